"""The item table of the catalogue as it grows: arrays with room to spare, and its states.

A state (`items`) is an ItemTable of its own: whoever took one keeps it for as long as an answer
takes. Rows are never moved, and what a later state adds or removes an earlier one does not show;
changed fields show in all of them. Used by one thread; states may be read by any.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import structlog

from models.catalogue import ItemTable, KeyIndex, item_key
from models.schema.compiled import Schema
from models.schema.declaration import Field
from protos.tandem.v1.records_pb2 import ItemRecord
from services.catalogue.values import column

log = structlog.get_logger(__name__)

SPARE = 1.25  # of a table that must grow; and LEAST rows
LEAST = 1_024


class GrowingTable:
    """Items by row, of the fields that its process reads."""

    def __init__(self, schema: Schema, fields: Collection[str] | None = None) -> None:
        """`fields`: those to keep, all of them unless given."""
        declared = schema.declaration.item_fields
        self.fields: tuple[Field, ...] = tuple(
            field for field in declared if fields is None or field.name in fields
        )
        names = [field.name for field in self.fields]
        whole = schema.layout.item.dtype
        # A table has a name for something; nobody reads one of no field.
        self.dtype = np.dtype([(name, whole[name]) for name in names] or [("", np.dtype("u1"))])
        self._ids: list[str] = [""]
        self._keys = np.zeros(LEAST, np.uint64)
        self._features = np.zeros(LEAST, self.dtype)
        self._removed = np.zeros(1, bool)
        self._index = KeyIndex(self._keys[:0], np.zeros(0, np.int64))
        self._changed_at = np.zeros(LEAST, np.int64)
        self._version, self._lineage = 0, object()
        self._identity = 0
        self.items = self._state(np.zeros(0, np.int64))

    def __len__(self) -> int:
        """Rows that are taken, the unknown one not counted."""
        return len(self._ids) - 1

    def fill(
        self,
        ids: Sequence[str],
        keys: np.ndarray,
        removed: np.ndarray,
        columns: Mapping[str, np.ndarray],
        identity: int,
    ) -> None:
        """Take n + 1 rows, as a generation has them, into an empty table."""
        rows, room = len(keys), max(LEAST, int(len(keys) * SPARE))
        self._ids = list(ids)
        self._keys, self._features = np.zeros(room, np.uint64), np.zeros(room, self.dtype)
        self._changed_at = np.zeros(room, np.int64)
        self._keys[:rows] = keys
        for name, values in columns.items():
            self._features[name][:rows] = values
        self._removed = np.array(removed)
        taken = np.flatnonzero(keys)  # a row without a key is one whose item has not come yet
        self._index = KeyIndex(keys[taken], taken)
        self._identity = identity
        self.items = self._state(np.arange(1, rows))

    def fitting(self, records: Sequence[ItemRecord]) -> list[ItemRecord]:
        """Those of the records whose rows are their items', all in order. What is not so was
        written by no builder; and rows never change their meaning."""
        rows: dict[str, int] = {}
        ids: dict[int, str] = {}
        found = []
        for record in records:
            row, item_id = record.row, record.item_id
            there = self._ids[row] if row < len(self._ids) else ""
            known = rows.get(item_id) or self.items.row_of(item_id)
            if known in (0, row) and (there or ids.get(row, item_id)) == item_id:
                rows[item_id], ids[row] = row, item_id
                found.append(record)
            else:
                log.error("item_row_refused", item=item_id, row=row, known_row=known, of=there)
        return found

    def apply(self, records: Sequence[ItemRecord], identity: int) -> None:
        """Bring the rows of these items, each `fitting`, up to date, in order; the next state has
        them."""
        self._identity = identity
        by_row = {record.row: record for record in records}
        if not by_row:
            return
        rows = np.array(sorted(by_row), np.int64)
        chosen = [by_row[row] for row in rows.tolist()]
        self._make_room(int(rows[-1]) + 1)
        new = rows[self._keys[rows] == 0]
        for row in new.tolist():
            self._ids[row] = by_row[row].item_id
            self._keys[row] = item_key(by_row[row].item_id)
        for field in self.fields:
            values = [
                record.fields[field.name].value if field.name in record.fields else None
                for record in chosen
            ]
            self._features[field.name][rows] = column(field, values)
        removed = np.ones(len(self._ids), bool)  # a gap is nobody's
        removed[: len(self._removed)] = self._removed
        removed[0] = False
        removed[rows] = [record.removed for record in chosen]
        self._removed = removed
        if len(new):
            self._index = self._index.with_(self._keys[new], new)
        self.items = self._state(rows)

    def _make_room(self, rows: int) -> None:
        self._ids.extend([""] * (rows - len(self._ids)))
        if rows > len(self._keys):
            room = int(rows * SPARE)
            for name in ("_keys", "_features", "_changed_at"):
                old = getattr(self, name)
                new = np.zeros(room, old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)

    def _state(self, changed: np.ndarray) -> ItemTable:
        """The next state, in which these rows have changed."""
        rows = len(self._ids)
        self._version += 1
        self._changed_at[changed] = self._version
        return ItemTable.of_catalogue(
            self._ids,
            self._keys[:rows],
            self._features[:rows],
            self._removed[:rows],
            self._index,
            self._changed_at[:rows],
            self._version,
            self._identity,
            self._lineage,
        )
