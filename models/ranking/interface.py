"""What ranking needs of a model, whichever it is."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.catalogue import ItemTable
from models.inputs import UserBatch
from models.schema.inputs import Reads


class Ranker(Protocol):
    """A torch module on one device. `tasks` names the columns of its scores, `of_value` says which
    of them are values and no probabilities; `reads` is all that it reads of its domain. Items' rows
    are those of the table that is scored, histories' the model's own (`models/rows.py`)."""

    tasks: tuple[str, ...]
    of_value: tuple[bool, ...]

    @property
    def reads(self) -> Reads: ...

    @property
    def device(self) -> torch.device:
        """Where the tensors of `score` must be."""
        ...

    @property
    def counters(self) -> tuple[str, ...]:
        """The columns of items' counters that `score` is given, in this order."""
        ...

    def load_items(self, items: ItemTable, known: ItemTable | None = None) -> None:
        """Keep what is read of the item table that is scored; `known`: the model's own, unless that
        is the same."""
        ...

    def prepare_serving(self) -> None:
        """Compute once what depends on items alone."""
        ...

    def follow_items(self, items: ItemTable, known: ItemTable, rows: np.ndarray) -> bool:
        """Go on with a later state of that table, in which `rows` int64, ascending, have changed or
        are new. False, and nothing has happened: load it anew."""
        ...

    def places(self, rows: Tensor) -> Tensor:
        """bool[N]: whether its scores mean something for the items in these rows int64[N]."""
        ...

    def user_part(self, batch: UserBatch) -> Any:
        """Whatever depends on the B users alone."""
        ...

    def score(self, user: Any, row_user: Tensor, item_rows: Tensor, counters: Tensor) -> Tensor:
        """float32[N, T] of rows (user int64[N] in 0..B-1, item row int64[N], counters float32[N, C]
        at the request)."""
        ...
