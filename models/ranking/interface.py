"""What the ranking service needs of a ranking model, whichever it is.

The user side of a request is computed once (`user_part`) and broadcast over its candidates; several
requests are scored in one call, `row_user` saying which user each row belongs to.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

import torch

from models.catalogue import ItemTable
from models.inputs import UserBatch

UserPart = TypeVar("UserPart")


class RankingModel(Protocol, Generic[UserPart]):
    """A torch module on one device. `UserPart` is the model's own and opaque to the service."""

    tasks: tuple[str, ...]

    def config(self) -> dict[str, Any]:
        """Everything but the weights that is needed to build the module again (JSON-ready)."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the tensors of `score` must be."""
        ...

    def load_items(self, items: ItemTable) -> None:
        """Keep what the model needs of the item table, as tensors on its device."""
        ...

    def user_part(self, batch: UserBatch) -> UserPart:
        """Whatever depends on the B users alone."""
        ...

    def score(
        self,
        user: UserPart,
        row_user: torch.Tensor,
        item_rows: torch.Tensor,
        counters: torch.Tensor,
    ) -> torch.Tensor:
        """Probabilities float[N, T] of rows (user int64[N] in 0..B-1, item row int64[N]).

        `counters` float32[N, 2]: the item's decayed clicks and likes at request time
        (`models.schema.fold.Fold.counters_at`). Row 0 is scored as an item of which nothing is
        known: training shows items of the catalogue so, drawn with equal chances, clicked or not.
        That is the mean of a catalogue at best; the service does not rank by it
        (`services/ranking`).
        """
        ...
