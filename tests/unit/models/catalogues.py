"""Catalogues that change, as those that are served do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from models.catalogue import ItemTable, KeyIndex, item_key

ROOM = 4_096


class Catalogue:
    """Items by row, in the order in which they came; `items` is its present state."""

    def __init__(self, dtype: np.dtype) -> None:
        self._ids = [""]
        self._keys, self._features = np.zeros(ROOM, np.uint64), np.zeros(ROOM, dtype)
        self._removed = np.zeros(ROOM, bool)
        self._index = KeyIndex(self._keys[:0], np.zeros(0, np.int64))
        self._changed_at, self._version = np.zeros(ROOM, np.int64), 0
        self._lineage = object()
        self._next([])

    @classmethod
    def of(cls, known: ItemTable, order: Iterable[int]) -> Catalogue:
        """Of the items in these rows of a table, in this order."""
        made = cls(known.features.dtype)
        made.write({known.ids[row]: known.features[row] for row in order})
        return made

    def write(self, records: Mapping[str, np.void | None]) -> None:
        """Upsert items with their fields, or remove those of None."""
        rows = [self._row_of(item) for item in records]
        for row, record in zip(rows, records.values(), strict=True):
            self._removed[row] = record is None
            if record is not None:
                self._features[row] = record
        self._next(rows)

    def leave_gap(self) -> None:
        """A row whose item has not come yet, which is the next new one's; nothing has changed."""
        self._ids.append("")
        self._removed[len(self._ids) - 1] = True
        self._next([])

    def _row_of(self, item: str) -> int:
        if item in self._ids:
            return self._ids.index(item)
        row = self._ids.index("", 1) if "" in self._ids[1:] else len(self._ids)
        self._ids[row:] = [item, *self._ids[row + 1 :]]
        self._keys[row] = item_key(item)
        self._index = self._index.with_(self._keys[[row]], np.array([row]))
        return row

    def _next(self, rows: Sequence[int]) -> None:
        self._version += 1
        self._changed_at[np.array(rows, np.int64)] = self._version
        self.items = self._state()

    def read_anew(self) -> None:
        """As a follower whose log was put back: the same rows, and their versions from 1."""
        self._lineage, self._version = object(), 0
        self._next(range(1, len(self._ids)))

    def _state(self) -> ItemTable:
        count = len(self._ids)
        return ItemTable.of_catalogue(
            self._ids,
            self._keys[:count],
            self._features[:count],
            self._removed[:count].copy(),
            self._index,
            self._changed_at[:count],
            self._version,
            identity=7,
            lineage=self._lineage,
        )
