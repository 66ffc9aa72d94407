"""What candidate generation needs of a retrieval model, whichever it is.

A model turns users into K vectors each and every item into one; an item's score is the largest
inner product with one of the user's vectors. K is 1 for a two-tower model. Items are those of the
table that is served, their rows in histories the model's own (`models/rows.py`).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from models.catalogue import ItemTable
from models.inputs import UserBatch
from models.schema.inputs import Reads


class RetrievalModel(Protocol):
    """A torch module on one device; `source` names it in answers and decision records, `reads` is
    all that it reads of its domain."""

    source: str
    num_interests: int
    reads: Reads

    @property
    def device(self) -> torch.device:
        """Where it is."""

    def config(self) -> dict[str, Any]:
        """Everything but the weights that is needed to build the module again (JSON-ready)."""
        ...

    def load_items(self, items: ItemTable, known: ItemTable | None = None) -> None:
        """Keep what the model needs of the item table that is served, as tensors on its device.
        `known`: the model's own, unless that is the same."""
        ...

    def follow_items(self, items: ItemTable, known: ItemTable, rows: np.ndarray) -> bool:
        """Go on with a later state of that table, in which `rows` int64, ascending, have changed or
        are new. False, and nothing has happened: load it anew."""
        ...

    def places(self, rows: torch.Tensor) -> torch.Tensor:
        """bool[N]: whether the vectors of the items in these rows int64[N] mean something."""
        ...

    def encode_users(self, batch: UserBatch) -> torch.Tensor:
        """float32[B, K, d] on the model's device, no gradient; finite for a user without events."""
        ...

    def item_vectors(self, rows: np.ndarray | None = None) -> torch.Tensor:
        """float32[n + 1, d] for every row of the item table, row 0 the unknown item; or those of
        `rows` int64[N], the same to the last bit."""
        ...
