"""Factorisation machine ranking (Rendle, ICDM 2010, eq. 1): the baseline of pairwise products.

Tasks share the embeddings. Task t weighs the k coordinates of the summed products by its own h_t,
all ones at the start: with one task and h fixed at one this is the published model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers.embedding_tables import Candidates, EmbeddingOptions, Features
from models.layers.factorization import Moments
from models.layers.split_linear import Index
from models.ranking.logistic_regression import LinearTerm
from models.ranking.network import Network
from models.schema.inputs import FeatureSchema


@dataclass(frozen=True)
class FMConfig:
    width: int = 16


class FMUser(NamedTuple):
    """Everything about B users that their candidates share."""

    linear: Tensor  # float[B, T]
    moments: Moments


class FM(Network[FMUser]):
    """See the module docstring; sums over fields split into user and candidate exactly."""

    def __init__(
        self, schema: FeatureSchema, settings: FMConfig, options: EmbeddingOptions | None = None
    ) -> None:
        super().__init__(schema, settings.width, options)
        self.linear = LinearTerm(schema, options)
        self.task_weight = nn.Parameter(torch.ones(len(schema.tasks), settings.width))

    def user_part(self, users: Features) -> FMUser:
        return FMUser(self.linear.user_part(users), Moments.of(self.user_fields(users)))

    def logits(self, user: FMUser, row_user: Index, rows: Candidates) -> Tensor:
        products = user.moments.rows(row_user).plus(Moments.of(self.row_fields(rows))).products()
        return self.linear.logits(user.linear, row_user, rows) + products @ self.task_weight.T
