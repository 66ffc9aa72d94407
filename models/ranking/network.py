"""What every ranking network has: embedded inputs, and the split of users and candidates.

A network says what depends on the user alone (`user_part`) and turns that and the candidates' rows
into logits (`logits`). Training and serving, declared domains and prepared tables take the same two
steps, so they cannot differ. Its settings are a frozen dataclass of JSON-ready values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from models.layers.embedding_tables import Candidates, EmbeddingOptions, EmbeddingTables, Features
from models.layers.split_linear import Index
from models.schema.inputs import FeatureSchema

UserPart = TypeVar("UserPart")


class Network(nn.Module, ABC, Generic[UserPart]):
    """Logits of rows; no row depends on another one."""

    def __init__(
        self,
        schema: FeatureSchema,
        width: int,
        options: EmbeddingOptions | None = None,
        **tables: Any,
    ) -> None:
        super().__init__()
        self.tables = EmbeddingTables(schema, width, options, **tables)
        self.num_fields = schema.fields()
        self.columns = self.num_fields * width

    @abstractmethod
    def user_part(self, users: Features) -> UserPart:
        """Whatever depends on the users alone; gradients flow through it."""

    @abstractmethod
    def logits(self, user: UserPart, row_user: Index, rows: Candidates) -> Tensor:
        """float[N, T] of N rows, each of the user that `row_user` says."""

    def forward(self, users: Features, row_user: Index, rows: Candidates) -> Tensor:
        return self.logits(self.user_part(users), row_user, rows)

    def user_fields(self, users: Features) -> Tensor:
        """float[B, Fu, k]."""
        fields: Tensor = self.tables(users, "user")
        return fields

    def row_fields(self, rows: Candidates) -> Tensor:
        """float[N, Fi + Fr, k]."""
        return self.tables.candidates(rows)


class NetworkClass(Protocol):
    """How a network is made."""

    def __call__(
        self, schema: FeatureSchema, settings: Any, options: EmbeddingOptions | None = None
    ) -> Network[Any]: ...
