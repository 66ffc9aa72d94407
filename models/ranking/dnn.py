"""A plain perceptron over the embedded fields: the baseline to run first, it tests the data path.

With hidden (256, 128) and one tower (64, 32) it is the DNN of `specs/ranking_models.md` section
2.1. Hidden layers are shared by the tasks and end in a tower per task.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.inputs import UserBatch
from models.layers.split_linear import SplitMLP
from models.ranking.field_model import Candidates, FieldModel
from models.ranking.fields import NUM_FIELDS, RankingFields
from models.ranking.heads import TaskTowers


@dataclass(frozen=True)
class DNNConfig:
    """Sizes; `num_items` excludes the unknown row 0."""

    num_items: int
    width: int = 16
    hidden: tuple[int, ...] = (256, 128)
    tower: tuple[int, ...] = (64, 32)
    dropout: float = 0.0
    tasks: tuple[str, ...] = ("click", "like")


@dataclass(frozen=True)
class DNNUser:
    """Everything about B users that their candidates share."""

    hidden: Tensor  # float[B, h]
    shares: Tensor  # float[B, GENRE_SLOTS]


class DNN(FieldModel[DNNUser]):
    """See the module docstring; the first map is split exactly."""

    def __init__(self, config: DNNConfig) -> None:
        super().__init__(config, RankingFields(config.num_items, config.width))
        self.deep = SplitMLP(NUM_FIELDS * config.width, config.hidden)
        self.towers = TaskTowers(len(self.tasks), self.deep.out_width, config.tower, config.dropout)

    def user_side(self, batch: UserBatch) -> DNNUser:
        fields, shares = self.fields.user(batch)
        return DNNUser(self.deep.user_part(fields.flatten(1)), shares)

    def row_logits(self, user: DNNUser, candidates: Candidates) -> Tensor:
        rest = self.candidate_fields(user.shares, candidates).flatten(1)
        return self.towers(self.deep.from_parts(user.hidden[candidates.user], rest))
