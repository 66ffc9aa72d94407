"""DeepFM ranking (IJCAI'17, arXiv 1703.04247): FM and a perceptron over the same embeddings.

The perceptron's hidden layers are shared by the tasks and end in a tower per task; the FM part is
that of `models/ranking/fm.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers.embedding_tables import Candidates, EmbeddingOptions, Features
from models.layers.factorization import Moments
from models.layers.split_linear import Index, SplitMLP, of_users
from models.ranking.heads import Head
from models.ranking.logistic_regression import LinearTerm
from models.ranking.network import Network
from models.schema.inputs import FeatureSchema


@dataclass(frozen=True)
class DeepFMConfig:
    width: int = 16
    hidden: tuple[int, ...] = (256, 128)
    tower: tuple[int, ...] = (64,)
    dropout: float = 0.0


class DeepFMUser(NamedTuple):
    """Everything about B users that their candidates share."""

    linear: Tensor  # float[B, T]
    moments: Moments
    hidden: Tensor  # float[B, h]: the perceptron's first map


class DeepFM(Network[DeepFMUser]):
    """See the module docstring; the sums and the first map are split exactly."""

    def __init__(
        self,
        schema: FeatureSchema,
        settings: DeepFMConfig,
        options: EmbeddingOptions | None = None,
    ) -> None:
        super().__init__(schema, settings.width, options)
        tasks = len(schema.tasks)
        self.linear = LinearTerm(schema, options)
        self.task_weight = nn.Parameter(torch.ones(tasks, settings.width))
        self.deep = SplitMLP(self.columns, settings.hidden)
        self.head = Head(tasks, self.deep.out_width, settings.tower, settings.dropout)

    def user_part(self, users: Features) -> DeepFMUser:
        fields = self.user_fields(users)
        hidden = self.deep.user_part(fields.flatten(1))
        return DeepFMUser(self.linear.user_part(users), Moments.of(fields), hidden)

    def logits(self, user: DeepFMUser, row_user: Index, rows: Candidates) -> Tensor:
        rest = self.row_fields(rows)
        products = user.moments.rows(row_user).plus(Moments.of(rest)).products()
        deep = self.deep.from_parts(of_users(user.hidden, row_user), rest.flatten(1))
        linear = self.linear.logits(user.linear, row_user, rows)
        return linear + products @ self.task_weight.T + self.head(deep)
