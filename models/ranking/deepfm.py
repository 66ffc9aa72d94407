"""DeepFM ranking (IJCAI'17, arXiv 1703.04247): FM and a perceptron over the same embeddings.

The perceptron's hidden layers are shared by the tasks and end in a tower per task; the FM part is
that of `models/ranking/fm.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.inputs import UserBatch
from models.layers.factorization import Moments
from models.layers.split_linear import SplitMLP
from models.ranking.field_model import Candidates, FieldModel
from models.ranking.fields import NUM_FIELDS, RankingFields
from models.ranking.heads import TaskTowers
from models.ranking.logistic_regression import LinearTerm, LinearUser


@dataclass(frozen=True)
class DeepFMConfig:
    """Sizes; `num_items` excludes the unknown row 0."""

    num_items: int
    width: int = 16
    hidden: tuple[int, ...] = (256, 128)
    tower: tuple[int, ...] = (64,)
    dropout: float = 0.0
    tasks: tuple[str, ...] = ("click", "like")


@dataclass(frozen=True)
class DeepFMUser:
    """Everything about B users that their candidates share."""

    linear: LinearUser
    moments: Moments
    hidden: Tensor  # float[B, h]: the perceptron's first map
    shares: Tensor  # float[B, GENRE_SLOTS]


class DeepFM(FieldModel[DeepFMUser]):
    """See the module docstring; the sums and the first map are split exactly."""

    def __init__(self, config: DeepFMConfig) -> None:
        super().__init__(config, RankingFields(config.num_items, config.width))
        tasks = len(self.tasks)
        self.linear = LinearTerm(config.num_items, tasks)
        self.task_weight = nn.Parameter(torch.ones(tasks, config.width))
        self.deep = SplitMLP(NUM_FIELDS * config.width, config.hidden)
        self.towers = TaskTowers(tasks, self.deep.out_width, config.tower, config.dropout)

    def user_side(self, batch: UserBatch) -> DeepFMUser:
        fields, shares = self.fields.user(batch)
        hidden = self.deep.user_part(fields.flatten(1))
        return DeepFMUser(self.linear.user_side(batch), Moments.of(fields), hidden, shares)

    def row_logits(self, user: DeepFMUser, candidates: Candidates) -> Tensor:
        rest, row_user = self.candidate_fields(user.shares, candidates), candidates.user
        products = user.moments.rows(row_user).plus(Moments.of(rest)).products()
        deep = self.deep.from_parts(user.hidden[row_user], rest.flatten(1))
        linear = self.linear.rows(user.linear, candidates)
        return linear + products @ self.task_weight.T + self.towers(deep)
