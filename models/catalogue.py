"""The items of one artifact version: keys, string ids and features, memory-mapped.

Items are numbered 1..n by decreasing training popularity; 0 is padding and "unknown item". The
same numbers index the embedding tables of the model that was published with the table, so a
popularity list is `1..k` and a model and a table of different versions must never be mixed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from models.schema.films import ITEM_DTYPE
from models.schema.fold import Values

FILES = KEYS_FILE, FEATURES_FILE, IDS_FILE = "item_keys.npy", "item_features.npy", "item_ids.json"


def item_key(item_id: str) -> int:
    """The 64-bit key that stands for a string item id inside the system (xxh3, seed 0)."""
    return xxhash.xxh3_64_intdigest(item_id.encode())


class ItemTable:
    """Keys, ids and features of n items; every array has n + 1 rows, row 0 standing for unknown."""

    def __init__(self, ids: Sequence[str], keys: np.ndarray, features: np.ndarray) -> None:
        """`ids` list n+1 strings ("" first), `keys` uint64[n+1], `features` ITEM_DTYPE[n+1]."""
        if not len(ids) == len(keys) == len(features):
            raise ValueError("ids, keys and features must have the same length")
        if features.dtype != ITEM_DTYPE:
            raise ValueError("item features do not have the schema's layout")
        self.ids = list(ids)
        self.keys = keys
        self.features = features
        self._order = np.argsort(keys[1:], kind="stable").astype(np.int64) + 1
        self._sorted_keys = np.ascontiguousarray(keys[self._order])
        if len(self._sorted_keys) > 1 and (np.diff(self._sorted_keys) == 0).any():
            raise ValueError("two items have the same 64-bit key: rename one of them")

    @classmethod
    def build(cls, item_ids: Sequence[str], features: np.ndarray) -> ItemTable:
        """A table of items in order of decreasing popularity; `features` has one row per item."""
        table = np.zeros(len(item_ids) + 1, ITEM_DTYPE)
        table[1:] = features
        return cls(["", *item_ids], _keys(item_ids), table)

    @cached_property
    def fingerprint(self) -> int:
        """64 bits that tell which item stands in which row; equal tables have equal ones."""
        return xxhash.xxh3_64_intdigest(self.keys.tobytes())

    @cached_property
    def unit_genres(self) -> np.ndarray:
        """float32[n + 1, G]: genres scaled to length 1; zero for an item without any."""
        genres = np.array(self.features["genres"], np.float32)
        return genres / np.maximum(np.linalg.norm(genres, axis=1, keepdims=True), 1e-6)

    @cached_property
    def genre_ids(self) -> np.ndarray:
        """uint16[n + 1, S]: the genres of each item, 0 where there are no more."""
        genres = self.features["genres"][:, 1:] > 0
        ids = np.zeros((len(genres), max(1, int(genres.sum(axis=1).max(initial=0)))), np.uint16)
        rows, columns = np.nonzero(genres)
        first = np.searchsorted(rows, rows)  # of each item's own
        ids[rows, np.arange(len(rows)) - first] = columns + 1
        return ids

    def values_of(self, rows: np.ndarray) -> list[Values | None]:
        """What the fold reads of the items in these rows; None for the unknown one."""
        ids = self.genre_ids[rows]
        return [{"genres": own} if row else None for row, own in zip(rows, ids, strict=True)]

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
        """Write the three files of the table into an artifact's folder."""
        np.save(folder / KEYS_FILE, self.keys)
        np.save(folder / FEATURES_FILE, self.features)
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
        return cls(ids, keys, np.load(folder / FEATURES_FILE, mmap_mode="r", allow_pickle=False))


def _keys(item_ids: Sequence[str]) -> np.ndarray:
    """uint64[n + 1]: 0, then the key of each item."""
    return np.fromiter((0, *map(item_key, item_ids)), np.uint64, len(item_ids) + 1)
