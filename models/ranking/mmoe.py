"""MMoE ranking: experts shared by the tasks, a gate and a tower per task.

"Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD'18,
eq. 6 and 7, over the shared embeddings. The math is in `models/layers/experts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.layers.embedding_tables import Candidates, EmbeddingOptions, Features
from models.layers.experts import MixtureUser, MultiGateMixture
from models.layers.split_linear import Index
from models.ranking.heads import Head
from models.ranking.network import Network
from models.schema.inputs import FeatureSchema


@dataclass(frozen=True)
class MMoEConfig:
    """Sizes; `expert` are an expert's layers."""

    width: int = 16
    experts: int = 4
    expert: tuple[int, ...] = (128, 64)
    tower: tuple[int, ...] = (64,)
    dropout: float = 0.0


class MMoE(Network[MixtureUser]):
    """See the module docstring; the experts' first maps and the gates are split exactly."""

    def __init__(
        self, schema: FeatureSchema, settings: MMoEConfig, options: EmbeddingOptions | None = None
    ) -> None:
        super().__init__(schema, settings.width, options)
        tasks = len(schema.tasks)
        self.mixture = MultiGateMixture(self.columns, settings.experts, settings.expert, tasks)
        self.head = Head(tasks, self.mixture.out_width, settings.tower, settings.dropout)

    def user_part(self, users: Features) -> MixtureUser:
        return self.mixture.user_part(self.user_fields(users).flatten(1))

    def logits(self, user: MixtureUser, row_user: Index, rows: Candidates) -> Tensor:
        rest = self.row_fields(rows).flatten(1)
        return self.head(self.mixture.from_parts(user, row_user, rest))
