"""Logistic regression over the fields: a weight per value of a field and task, nothing crossed.

As a torch module it is served like every other model. `LinearTerm` is also the first-order term of
FM and DeepFM.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.inputs import UserBatch
from models.ranking.field_model import Candidates, FieldModel
from models.ranking.fields import RankingFields


@dataclass(frozen=True)
class LinearUser:
    """The users' share of the sum."""

    total: Tensor  # float[B, T]
    shares: Tensor  # float[B, GENRE_SLOTS]


class LinearTerm(RankingFields):
    """b_t + sum over fields of the value's weight: embeddings of width T, column t for task t.

    As everywhere the table of items is one, so an item weighs the same as candidate and, averaged,
    in a history; the latter is the same for all candidates of a request.
    """

    def __init__(self, num_items: int, tasks: int) -> None:
        super().__init__(num_items, tasks)
        self.bias = nn.Parameter(torch.zeros(tasks))

    def user_side(self, batch: UserBatch) -> LinearUser:
        fields, shares = self.user(batch)
        return LinearUser(fields.sum(1) + self.bias, shares)

    def rows(self, user: LinearUser, candidates: Candidates) -> Tensor:
        """float[N, T]."""
        own = self.candidate(
            user.shares[candidates.user],
            candidates.rows,
            candidates.counters,
            candidates.lifetime,
        )
        return user.total[candidates.user] + own.sum(1)


@dataclass(frozen=True)
class LogisticRegressionConfig:
    """`num_items` excludes the unknown row 0."""

    num_items: int
    tasks: tuple[str, ...] = ("click", "like")


class LogisticRegression(FieldModel[LinearUser]):
    """See the module docstring; the split of user and candidate is exact."""

    fields: LinearTerm

    def __init__(self, config: LogisticRegressionConfig) -> None:
        super().__init__(config, LinearTerm(config.num_items, len(config.tasks)))

    def user_side(self, batch: UserBatch) -> LinearUser:
        return self.fields.user_side(batch)

    def row_logits(self, user: LinearUser, candidates: Candidates) -> Tensor:
        return self.fields.rows(user, candidates)
