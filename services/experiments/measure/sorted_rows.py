"""Rows with a key as a set that grows, and finding rows by their keys."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.void]

_FLUSH = 4096  # rows that wait as Python objects
_COMPACT = 1 << 17  # rows beyond the last sorting before duplicates are taken out again


class SortedRows:
    """Rows by their key, the first field: a sorted part without duplicates, and what came since.
    Used by one thread."""

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self.dtype = dtype
        self._sorted: Rows = np.empty(0, dtype)
        self._since: list[Rows] = []
        self._rows: list[tuple[float, ...]] = []

    @property
    def nbytes(self) -> int:
        rows = len(self._sorted) + sum(map(len, self._since)) + len(self._rows)
        return rows * self.dtype.itemsize

    def append(self, row: tuple[float, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _FLUSH:
            self._flush()

    def extend(self, rows: Rows) -> None:
        self._since.append(rows)
        if sum(map(len, self._since)) > max(_COMPACT, len(self._sorted)):
            self.settled()

    def replace(self, rows: Rows) -> None:
        """Hold these rows only, which are part of `settled`."""
        self._sorted = rows

    def settled(self) -> Rows:
        """All rows, ascending by key, each key once."""
        self._flush()
        if self._since:
            self._sorted = _distinct(np.concatenate([self._sorted, *self._since]))
            self._since = []
        return self._sorted

    def _flush(self) -> None:
        if self._rows:
            rows, self._rows = np.array(self._rows, self.dtype), []
            self.extend(rows)


def _distinct(rows: Rows) -> Rows:
    """Rows (n,) ascending by their first field, of several with the same one the least."""
    names = rows.dtype.names
    assert names is not None
    rows = rows[np.argsort(rows[names[0]], kind="stable")]
    keys = rows[names[0]]
    again = np.zeros(len(rows), bool)
    again[1:] = keys[1:] == keys[:-1]
    if not again.any():
        return rows
    involved = again.copy()
    involved[:-1] |= again[1:]
    repeated = rows[involved]
    # Only these need all fields in order: a whole sort by seven keys takes several times as long.
    rows[involved] = repeated[np.lexsort([repeated[name] for name in reversed(names)])]
    return rows[~again]


def rows_of(keys: NDArray[np.int64], ascending: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each key (n,) stands in `ascending`; -1 where it does not."""
    if not len(ascending):
        return np.full(len(keys), -1, np.int64)
    places = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    return np.where(ascending[places] == keys, places, -1)
