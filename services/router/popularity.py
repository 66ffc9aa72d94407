"""What most chose: the items of the training of the current retrieval model, most chosen first.

The list to fall back to. Items stand in it by their keys, as a model keeps them; which of them are
in the catalogue is asked when the list is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models import artifact
from models.catalogue import ItemTable
from services.common.current_version import CurrentVersion


class Popular(NamedTuple):
    """Items, most chosen first."""

    keys: np.ndarray  # uint64[k]
    shares: np.ndarray  # float32[k], of all choices

    @staticmethod
    def of(items: ItemTable) -> Popular:
        """Those of a training: they are in that order."""
        chosen = items.counts[1:, 0].astype(np.float32)
        return Popular(items.keys[1:], chosen / (float(chosen.sum()) or 1.0))

    def rows_in(self, items: ItemTable, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows int64[n] of the `count` most chosen items that are in the catalogue, their shares).
        Where they do not suffice, the newest of the others come after them."""
        asked = count
        while True:
            rows = items.index_of(self.keys[:asked])
            there = np.flatnonzero(~items.removed[rows] & (rows > 0))
            if len(there) >= count or asked >= len(self.keys):
                break
            asked *= 2
        there = there[:count]
        rows, shares = rows[there], self.shares[there]
        if len(rows) < count:
            others = ~items.removed
            others[0] = False
            others[rows] = False
            newest = np.flatnonzero(others)[::-1][: count - len(rows)]
            rows = np.append(rows, newest)
            shares = np.append(shares, np.zeros(len(newest), np.float32))
        return rows, shares


NOTHING = Popular(np.zeros(0, np.uint64), np.zeros(0, np.float32))


class CurrentPopular(CurrentVersion[Popular]):
    """`loaded` is the list in force. Of a version no more is read than its items."""

    def __init__(
        self,
        artifacts_dir: Path,
        model: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        def load(folder: Path) -> Popular:
            return Popular.of(artifact.load_items(folder))

        super().__init__(artifacts_dir, model, load, what="popular", monotonic=monotonic)
