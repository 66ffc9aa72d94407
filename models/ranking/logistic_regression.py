"""Logistic regression over the fields: a weight per value of a field and task, nothing crossed.

As a torch module it is served like every other model. `LinearTerm` is also the first-order term of
FM and DeepFM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.layers.embedding_tables import Candidates, EmbeddingOptions, Features
from models.layers.split_linear import Index, of_users
from models.ranking.network import Network
from models.schema.inputs import FeatureSchema


class LinearTerm(Network[Tensor]):
    """b_t + sum over fields of the value's weight: embeddings of width T, column t for task t.

    As everywhere the table of items is one, so an item weighs the same as candidate and, averaged,
    in a history; the latter is the same for all candidates of a request.
    """

    def __init__(self, schema: FeatureSchema, options: EmbeddingOptions | None = None) -> None:
        tasks = len(schema.tasks)
        super().__init__(schema, tasks, replace(options or EmbeddingOptions(), lookups=1))
        self.bias = nn.Parameter(torch.zeros(tasks))

    def user_part(self, users: Features) -> Tensor:
        """The users' share of the sum, float[B, T]."""
        return self.user_fields(users).sum(1) + self.bias

    def logits(self, user: Tensor, row_user: Index, rows: Candidates) -> Tensor:
        return of_users(user, row_user) + self.row_fields(rows).sum(1)


@dataclass(frozen=True)
class LogisticRegressionConfig:
    """Nothing to set: a weight per value and task."""


class LogisticRegression(LinearTerm):
    """See the module docstring; the split of user and candidate is exact."""

    def __init__(
        self,
        schema: FeatureSchema,
        settings: LogisticRegressionConfig,
        options: EmbeddingOptions | None = None,
    ) -> None:
        super().__init__(schema, options)
