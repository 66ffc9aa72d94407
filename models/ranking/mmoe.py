"""MMoE ranking: experts shared by the tasks, a gate and a tower per task.

"Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD'18,
eq. 6 and 7, over the shared embeddings. The math is in `models/layers/experts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.inputs import UserBatch
from models.layers.experts import MixtureUser, MultiGateMixture
from models.ranking.field_model import Candidates, FieldModel
from models.ranking.fields import NUM_FIELDS, RankingFields
from models.ranking.heads import TaskTowers


@dataclass(frozen=True)
class MMoEConfig:
    """Sizes; `num_items` excludes the unknown row 0; `expert` are an expert's layers."""

    num_items: int
    width: int = 16
    experts: int = 4
    expert: tuple[int, ...] = (128, 64)
    tower: tuple[int, ...] = (64,)
    dropout: float = 0.0
    tasks: tuple[str, ...] = ("click", "like")


@dataclass(frozen=True)
class MMoEUser:
    """Everything about B users that their candidates share."""

    mixture: MixtureUser
    shares: Tensor  # float[B, GENRE_SLOTS]


class MMoE(FieldModel[MMoEUser]):
    """See the module docstring; the experts' first maps and the gates are split exactly."""

    def __init__(self, config: MMoEConfig) -> None:
        super().__init__(config, RankingFields(config.num_items, config.width))
        columns, tasks = NUM_FIELDS * config.width, len(self.tasks)
        self.mixture = MultiGateMixture(columns, config.experts, config.expert, tasks)
        self.towers = TaskTowers(tasks, self.mixture.out_width, config.tower, config.dropout)

    def user_side(self, batch: UserBatch) -> MMoEUser:
        fields, shares = self.fields.user(batch)
        return MMoEUser(self.mixture.user_part(fields.flatten(1)), shares)

    def row_logits(self, user: MMoEUser, candidates: Candidates) -> Tensor:
        rest = self.candidate_fields(user.shares, candidates).flatten(1)
        return self.towers(self.mixture.from_parts(user.mixture, candidates.user, rest))
