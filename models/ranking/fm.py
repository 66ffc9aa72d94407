"""Factorisation machine ranking (Rendle, ICDM 2010, eq. 1): the baseline of pairwise products.

Tasks share the embeddings. Task t weighs the k coordinates of the summed products by its own h_t,
all ones at the start: with one task and h fixed at one this is the published model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.inputs import UserBatch
from models.layers.factorization import Moments
from models.ranking.field_model import Candidates, FieldModel
from models.ranking.fields import RankingFields
from models.ranking.logistic_regression import LinearTerm, LinearUser


@dataclass(frozen=True)
class FMConfig:
    """Sizes; `num_items` excludes the unknown row 0."""

    num_items: int
    width: int = 16
    tasks: tuple[str, ...] = ("click", "like")


@dataclass(frozen=True)
class FMUser:
    """Everything about B users that their candidates share."""

    linear: LinearUser
    moments: Moments
    shares: Tensor  # float[B, GENRE_SLOTS]


class FM(FieldModel[FMUser]):
    """See the module docstring; sums over fields split into user and candidate exactly."""

    def __init__(self, config: FMConfig) -> None:
        super().__init__(config, RankingFields(config.num_items, config.width))
        self.linear = LinearTerm(config.num_items, len(self.tasks))
        self.task_weight = nn.Parameter(torch.ones(len(self.tasks), config.width))

    def user_side(self, batch: UserBatch) -> FMUser:
        fields, shares = self.fields.user(batch)
        return FMUser(self.linear.user_side(batch), Moments.of(fields), shares)

    def row_logits(self, user: FMUser, candidates: Candidates) -> Tensor:
        rest = Moments.of(self.candidate_fields(user.shares, candidates))
        products = user.moments.rows(candidates.user).plus(rest).products()
        return self.linear.rows(user.linear, candidates) + products @ self.task_weight.T
