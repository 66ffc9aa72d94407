"""The items of one artifact version: keys, string ids and declared fields, memory-mapped.

Items are numbered 1..n by decreasing training popularity; 0 is padding and "unknown item". The
same numbers index the embedding tables of the model that was published with the table, so a
popularity list is `1..k` and a model and a table of different versions must never be mixed.

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
        self._units: dict[str, np.ndarray] = {}
        self._order = np.argsort(keys[1:], kind="stable").astype(np.int64) + 1
        self._sorted_keys = np.ascontiguousarray(keys[self._order])
        if len(self._sorted_keys) > 1 and (np.diff(self._sorted_keys) == 0).any():
            raise ValueError("two items have the same 64-bit key: rename one of them")

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
        """64 bits that tell which item stands in which row; equal tables have equal ones."""
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

    def unit_values(self, field: str) -> np.ndarray:
        """float32[n + 1, V]: the values of a category or bag as vectors of length 1, zero for the
        unknown item."""
        if field not in self._units:
            ids = self.ids_of(field)
            values, places = np.unique(ids, return_inverse=True)  # hashes are far apart
            table = _hot(places.reshape(ids.shape), len(values))  # the first is that of row 0: none
            length = np.linalg.norm(table, axis=1, keepdims=True)
            self._units[field] = table / np.maximum(length, 1e-6)
        return self._units[field]

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
        return len(self.ids) - 1

    def index_of(self, keys: np.ndarray) -> np.ndarray:
        """Row of each key (int64, any shape); 0 for keys that the table does not hold."""
        if not len(self):
            return np.zeros(np.shape(keys), np.int64)
        at = np.searchsorted(self._sorted_keys, keys)
        at = np.minimum(at, len(self._sorted_keys) - 1)
        return np.where(self._sorted_keys[at] == keys, self._order[at], 0)

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
