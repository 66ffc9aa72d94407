"""A plain perceptron over the embedded fields: the baseline to run first, it tests the data path.

With hidden (256, 128) and one tower (64, 32) it is the DNN of `specs/ranking_models.md` section
2.1. Hidden layers are shared by the tasks and end in a tower per task.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.layers.embedding_tables import Candidates, EmbeddingOptions, Features
from models.layers.split_linear import Index, SplitMLP, of_users
from models.ranking.heads import Head
from models.ranking.network import Network
from models.schema.inputs import FeatureSchema


@dataclass(frozen=True)
class DNNConfig:
    width: int = 16
    hidden: tuple[int, ...] = (256, 128)
    tower: tuple[int, ...] = (64, 32)
    dropout: float = 0.0


class DNN(Network[Tensor]):
    """See the module docstring; the first map is split exactly: a user's part is float[B, h]."""

    def __init__(
        self, schema: FeatureSchema, settings: DNNConfig, options: EmbeddingOptions | None = None
    ) -> None:
        super().__init__(schema, settings.width, options)
        self.deep = SplitMLP(self.columns, settings.hidden)
        self.head = Head(len(schema.tasks), self.deep.out_width, settings.tower, settings.dropout)

    def user_part(self, users: Features) -> Tensor:
        return self.deep.user_part(self.user_fields(users).flatten(1))

    def logits(self, user: Tensor, row_user: Index, rows: Candidates) -> Tensor:
        return self.head(
            self.deep.from_parts(of_users(user, row_user), self.row_fields(rows).flatten(1))
        )
