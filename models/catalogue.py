"""Items by rows: keys, string ids and declared fields. Row 0 is padding and "unknown item".

The table of a data set, which is published with the models trained on it, numbers items 1..n by
decreasing training popularity: the rows of those models' embeddings. The table of the catalogue
that is served (`services/catalogue`) numbers them in the order in which they came: a row is never
another item's, whatever else changes. Each state of it is a table of its own, which shares the
memory of the others.

Fields are stored as the declaration lays them out (`models/schema/layout.py`, group `item`): values
of a declared vocabulary by their ids, others as hashes of their text, which the table numbers for
the models by the vocabulary that was learned with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from models.schema.fold import Values

KEYS_FILE, FEATURES_FILE, IDS_FILE = "item_keys.npy", "item_features.npy", "item_ids.json"
COUNTS_FILE, VOCABULARIES_FILE = "item_counts.npy", "item_vocabularies.npz"
FILES = KEYS_FILE, FEATURES_FILE, IDS_FILE, COUNTS_FILE, VOCABULARIES_FILE


def item_key(item_id: str) -> int:
    """The 64-bit key that stands for a string item id inside the system (xxh3, seed 0)."""
    return xxhash.xxh3_64_intdigest(item_id.encode())


class KeyIndex:
    """The rows of keys: sorted, and beside it what came since, which is sorted in when it has
    become a share of the whole; so that n keys that come one by one cost O(n log n) altogether."""

    SHARE = 16

    def __init__(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """`keys` uint64[n], `rows` int64[n]. ValueError for a key that is there twice."""
        order = np.argsort(keys, kind="stable")
        self._parts = [(np.ascontiguousarray(keys[order]), np.ascontiguousarray(rows[order]))]
        if (np.diff(self._parts[0][0]) == 0).any():
            raise ValueError("two items have the same 64-bit key: rename one of them")

    def rows_of(self, keys: np.ndarray) -> np.ndarray:
        """int64 of the shape of `keys`; 0 for what is not there."""
        found = np.zeros(np.shape(keys), np.int64)
        for known, rows in self._parts:
            if len(known):
                at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
                found = np.where(known[at] == keys, rows[at], found)
        return found

    def with_(self, keys: np.ndarray, rows: np.ndarray) -> KeyIndex:
        """The index with further keys, none of which it has; this one stays as it is."""
        whole, *late = self._parts
        late_keys, late_rows = late[0] if late else (keys[:0], rows[:0])
        late_keys, late_rows = np.append(late_keys, keys), np.append(late_rows, rows)
        if len(late_keys) * self.SHARE > len(whole[0]):
            return KeyIndex(np.append(whole[0], late_keys), np.append(whole[1], late_rows))
        made = KeyIndex(late_keys, late_rows)
        made._parts = [whole, *made._parts]
        return made


class ItemTable:
    """Keys, ids and fields of n items; every array has n + 1 rows, row 0 standing for unknown."""

    def __init__(
        self,
        ids: Sequence[str],
        keys: np.ndarray,
        features: np.ndarray,
        counts: np.ndarray,
        vocabularies: Mapping[str, np.ndarray],
    ) -> None:
        """`ids` list n+1 strings ("" first), `keys` uint64[n+1], `features` structured [n+1].
        `counts` uint32[n+1, T]: how often the event of each of T tasks happened in the training
        window. `vocabularies`: of learned fields, by name, uint64[V] hashes of the values 1..V."""
        if not len(ids) == len(keys) == len(features) == len(counts):
            raise ValueError("ids, keys, features and counts must have the same length")
        if features.dtype.names is None:
            raise ValueError("item features have no names")
        self.ids = list(ids)
        self.keys = keys
        self.features = features
        self.counts = counts
        self.vocabularies = dict(vocabularies)
        self.removed = np.zeros(len(keys), bool)
        self.version, self.lineage = 0, object()
        self._changed_at = np.zeros(len(keys), np.int64)
        self._index = KeyIndex(keys[1:], np.arange(1, len(keys)))

    @classmethod
    def of_catalogue(
        cls,
        ids: list[str],
        keys: np.ndarray,
        features: np.ndarray,
        removed: np.ndarray,
        index: KeyIndex,
        changed_at: np.ndarray,
        version: int,
        identity: int,
        lineage: object,
    ) -> ItemTable:
        """A state of the catalogue that is served; nothing is copied. `removed` bool[n+1]: items
        that are there no more, whose rows stay; `ids` may have more than the n+1 texts of this
        state; `changed_at` int64[n+1]: the version in which a row changed last; `identity`: of the
        catalogue, 64 bits, whose rows are these in every process; `lineage`: by which the states
        are known to be of one table, whose versions count on."""
        made = cls.__new__(cls)
        made.ids, made.keys, made.features = ids, keys, features
        made.counts, made.vocabularies = np.zeros((len(keys), 0), np.uint32), {}
        made.removed, made.version = removed, version
        made._changed_at, made._index, made.lineage = changed_at, index, lineage
        made.__dict__["fingerprint"] = identity
        return made

    def changed_since(self, version: int) -> np.ndarray:
        """int64, ascending: the rows that are new or other than in that version of this lineage;
        some may have changed after this state."""
        return np.flatnonzero(self._changed_at > version)

    @classmethod
    def build(
        cls,
        item_ids: Sequence[str],
        features: np.ndarray,
        counts: np.ndarray | None = None,
        vocabularies: Mapping[str, np.ndarray] | None = None,
    ) -> ItemTable:
        """A table of items in order of decreasing popularity; `features` and `counts` have one row
        per item, and without `counts` those of two tasks are 0."""
        table = np.zeros(len(item_ids) + 1, features.dtype)
        table[1:] = features
        width = 2 if counts is None else counts.shape[1]
        counted = np.zeros((len(item_ids) + 1, width), np.uint32)
        if counts is not None:
            if len(counts) != len(item_ids):
                raise ValueError("items and counts must have the same length")
            counted[1:] = counts
        return cls(["", *item_ids], _keys(item_ids), table, counted, vocabularies or {})

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many ids there are, with 0, of the items and of each learned vocabulary, by input of
        a model (`models/schema/inputs.py`)."""
        learned = {f"item.{name}": 1 + len(v) for name, v in self.vocabularies.items()}
        return {"item": 1 + len(self), **learned}

    @cached_property
    def fingerprint(self) -> int:
        """64 bits that tell which item stands in which row: a row that two tables of one
        fingerprint both have is of one item."""
        return xxhash.xxh3_64_intdigest(self.keys.tobytes())

    def ids_of(self, field: str) -> np.ndarray:
        """int64[n + 1, S]: the ids of the values of a category or bag, 0 where there are no more;
        of a field that the table does not have, none."""
        stored = self._stored(field)
        known = self.vocabularies.get(field)
        if known is None:
            return stored.astype(np.int64)
        if not len(known):
            return np.zeros(stored.shape, np.int64)
        order = np.argsort(known, kind="stable")
        at = np.minimum(np.searchsorted(known, stored, sorter=order), len(known) - 1)
        return np.where(known[order[at]] == stored, order[at] + 1, 0) * (stored > 0)

    def multi_hot(self, field: str, values: int) -> np.ndarray:
        """float32[n + 1, 1 + values]: 1 for each value of an item. In column 0 for an item without
        any, if there are items with some; row 0 is zero."""
        found = _hot(self.ids_of(field), 1 + values)
        return found if found[:, 1:].any() else np.zeros_like(found)

    def unit_values(self, field: str, rows: np.ndarray) -> np.ndarray:
        """float32[len(rows), V]: the values of a category or bag of the items in these rows, as
        vectors of length 1; zero for the unknown item."""
        ids = self._stored(field)[rows]
        if ids.dtype == np.uint64:  # hashes, which are far apart
            _, places = np.unique(np.append(ids, 0), return_inverse=True)
            ids = places[:-1].reshape(ids.shape)  # the first value is 0: none
        table = np.zeros((len(rows), 1 + int(ids.max(initial=0))), np.float32)
        np.put_along_axis(table, ids.astype(np.int64), 1.0, axis=1)
        table[:, 0] = ~table[:, 1:].any(axis=1) & (rows > 0)
        length = np.linalg.norm(table, axis=1, keepdims=True)
        return np.asarray(table / np.maximum(length, 1e-6))

    def values_of(self, rows: np.ndarray, fields: Sequence[str]) -> list[Values | None]:
        """The values of these fields of the items in these rows; None for the unknown one."""
        numbers = rows.tolist()
        if len(fields) == 1:  # mostly, and in half of the time
            (field,) = fields
            stored = self._stored(field)[rows]
            return [{field: own} if row else None for row, own in zip(numbers, stored, strict=True)]
        of_fields = {field: self._stored(field)[rows] for field in fields}
        return [
            {field: own[i] for field, own in of_fields.items()} if row else None
            for i, row in enumerate(numbers)
        ]

    def _stored(self, field: str) -> np.ndarray:
        """[n + 1, S] as stored; zeros for a field that the table does not have."""
        if field in (self.features.dtype.names or ()):
            return np.asarray(self.features[field]).reshape(len(self.features), -1)
        return np.zeros((len(self.features), 1), np.uint16)

    def __len__(self) -> int:
        """Number of items, the unknown row not counted."""
        return len(self.keys) - 1

    def row_of(self, item_id: str) -> int:
        """Row of the item with this id's key; 0 where the table does not hold it."""
        return int(self._index.rows_of(np.array([item_key(item_id)], np.uint64))[0])

    def index_of(self, keys: np.ndarray) -> np.ndarray:
        """Row of each key (int64, any shape); 0 for keys that the table does not hold."""
        return self._index.rows_of(keys)

    def save(self, folder: Path) -> None:
        """Write the files of the table into an artifact's folder."""
        np.save(folder / KEYS_FILE, self.keys)
        np.save(folder / FEATURES_FILE, self.features)
        np.save(folder / COUNTS_FILE, self.counts)
        np.savez(folder / VOCABULARIES_FILE, **self.vocabularies)  # type: ignore[arg-type]
        ids = json.dumps(self.ids, ensure_ascii=False)
        (folder / IDS_FILE).write_text(ids, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ItemTable:
        """Open a saved table; the features stay on disk, memory-mapped and shared by processes.

        ValueError for files that are not of one table: an item would be answered by another's id.
        """
        ids = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))
        if not (isinstance(ids, list) and ids[:1] == [""] and all(type(i) is str for i in ids)):
            raise ValueError(f'{IDS_FILE} is no list of texts that begins with ""')
        keys = _keys(ids[1:])
        if not np.array_equal(keys, np.load(folder / KEYS_FILE, mmap_mode="r")):
            raise ValueError(f"{KEYS_FILE} are not the keys of {IDS_FILE}")
        features = np.load(folder / FEATURES_FILE, mmap_mode="r", allow_pickle=False)
        counts = np.load(folder / COUNTS_FILE, mmap_mode="r", allow_pickle=False)
        with np.load(folder / VOCABULARIES_FILE, allow_pickle=False) as vocabularies:
            return cls(ids, keys, features, counts, dict(vocabularies))


def _hot(ids: np.ndarray, width: int) -> np.ndarray:
    """float32[n, width]: 1 for each id int64[n, S] of a row, in column 0 for a row without any but
    row 0."""
    found = np.zeros((len(ids), width), np.float32)
    np.put_along_axis(found, ids, 1.0, axis=1)
    found[:, 0] = 0.0
    found[1:, 0] = ~found[1:].any(axis=1)
    return found


def _keys(item_ids: Sequence[str]) -> np.ndarray:
    """uint64[n + 1]: 0, then the key of each item."""
    return np.fromiter((0, *map(item_key, item_ids)), np.uint64, len(item_ids) + 1)
