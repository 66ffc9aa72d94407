"""The table a ranking model trains on: one row per (request or impression, candidate).

Id 0 of every vocabulary stands for "unknown" (and for padding in lists). Everything that is learned
from the data while it is prepared (vocabularies, the frequent values) is learned from the training
part alone, and a history holds only events before its row's time: nothing of the future leaks.

A prepared table is a folder of `.npy` arrays (memory-mapped when loaded) and `table.json` with the
checksum of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from models.data.errors import DataError
from models.data.folders import whole_folder

Side = Literal["user", "item", "context"]
SIDES = ("user", "item", "context")
SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = 0, 1, 2
MANIFEST = "table.json"
FORMAT = 1
CHUNK_ROWS = 1 << 18
ARRAYS = ("categorical", "dense", "labels", "known", "user", "time_ms", "split")


@dataclass(frozen=True)
class Field:
    """A categorical field: ids 0..vocabulary-1, 0 = unknown."""

    name: str
    vocabulary: int
    side: Side


@dataclass(frozen=True)
class BagField:
    """An unordered list per row; ids int32[N, S], 0 = padding, at the end."""

    ids: np.ndarray
    vocabulary: int
    side: Side


@dataclass(frozen=True)
class HistoryField:
    """Earlier items of the row's user; ids int32[N, L], newest first, 0 = padding, at the end.

    `of` names the categorical field whose vocabulary (and embedding table) the ids share.
    """

    ids: np.ndarray
    of: str


@dataclass(frozen=True)
class FieldTable:
    """N rows of F categorical fields, D numbers, bags, histories and T binary tasks."""

    name: str
    fields: tuple[Field, ...]
    categorical: np.ndarray  # int32[N, F]
    dense_names: tuple[str, ...]
    dense: np.ndarray  # float32[N, D]
    tasks: tuple[str, ...]
    labels: np.ndarray  # float32[N, T], 0 or 1; 0 where not known
    known: np.ndarray  # bool[N, T]
    user: np.ndarray  # int32[N], 0..; all 0 where the source has no users
    time_ms: np.ndarray  # int64[N], 0 where the source has no times
    split: np.ndarray  # int8[N]: 0 train, 1 valid, 2 test
    bags: dict[str, BagField] = field(default_factory=dict)
    history: dict[str, HistoryField] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        fields: tuple[Field, ...],
        categorical: np.ndarray,
        labels: Mapping[str, Any],
        split: np.ndarray,
        **more: Any,
    ) -> FieldTable:
        """A checked table of labels (an array or Series per task), all known unless `more` says so.

        What `more` does not give it does not have: numbers, users, times, bags, histories.
        """
        rows = len(categorical)
        nothing: dict[str, Any] = {
            "dense_names": (),
            "dense": np.zeros((rows, 0), np.float32),
            "known": np.ones((rows, len(labels)), bool),
            "user": np.zeros(rows, np.int32),
            "time_ms": np.zeros(rows, np.int64),
        }
        columns = np.column_stack(list(labels.values())).astype(np.float32)
        return cls(
            name=name,
            fields=fields,
            categorical=categorical,
            tasks=tuple(labels),
            labels=columns,
            split=split,
            **nothing | more,
        ).check()

    def __len__(self) -> int:
        return len(self.categorical)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers int64[n] of a split ("train", "valid" or "test")."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def take(self, index: np.ndarray) -> FieldTable:
        """The rows `index` int[n] (copied), in that order."""
        return replace(
            self,
            **{name: getattr(self, name)[index] for name in ARRAYS},
            bags={k: replace(b, ids=b.ids[index]) for k, b in self.bags.items()},
            history={k: replace(h, ids=h.ids[index]) for k, h in self.history.items()},
        )

    def subset(self, split: str) -> FieldTable:
        """The rows of one split."""
        return self.take(self.rows(split))

    def check(self) -> FieldTable:
        """Itself; DataError names the table, the column and the row of the first thing wrong."""
        self._check_shapes()
        self._refuse("split", (self.split < TRAIN) | (self.split > TEST), "is not 0, 1 or 2")
        for number, split in enumerate(SPLITS):
            if not (self.split == number).any():
                self._fail("split", None, f"the {split} part is empty: use more rows or other cuts")
        for index, each in enumerate(self.fields):
            self._check_ids(each.name, self.categorical[:, index], each.vocabulary)
        for name, bag in self.bags.items():
            self._check_ids(f"bag {name}", bag.ids, bag.vocabulary)
        for name, history in self.history.items():
            sizes = {f.name: f.vocabulary for f in self.fields}
            if history.of not in sizes:
                self._fail(f"history {name}", None, f"shares the unknown field {history.of!r}")
            self._check_ids(f"history {name}", history.ids, sizes[history.of])
            self._check_padding(f"history {name}", history.ids)
        for index, name in enumerate(self.dense_names):
            self._refuse(name, ~np.isfinite(self.dense[:, index]), "is not a finite number")
        for index, task in enumerate(self.tasks):
            label, known = self.labels[:, index], self.known[:, index]
            self._refuse(f"label {task}", np.isnan(label), "is NaN")
            self._refuse(f"label {task}", known & (label != 0) & (label != 1), "is not 0 or 1")
            if not known[self.split == TRAIN].any():
                self._fail(f"label {task}", None, "is not known for any row of the training part")
        return self

    def _check_shapes(self) -> None:
        n, names = len(self), [f.name for f in self.fields]
        if not n:
            self._fail("table", None, "has no rows")
        if len(set(names)) < len(names):
            self._fail("fields", None, f"a name is used twice: {', '.join(names)}")
        shapes: dict[str, tuple[np.ndarray, tuple[int, ...], type]] = {
            "categorical": (self.categorical, (n, len(self.fields)), np.int32),
            "dense": (self.dense, (n, len(self.dense_names)), np.float32),
            "labels": (self.labels, (n, len(self.tasks)), np.float32),
            "known": (self.known, (n, len(self.tasks)), np.bool_),
            "user": (self.user, (n,), np.int32),
            "time_ms": (self.time_ms, (n,), np.int64),
            "split": (self.split, (n,), np.int8),
        }
        lists: dict[str, BagField | HistoryField] = {**self.bags, **self.history}
        for name, each in lists.items():
            shapes[name] = (each.ids, (n, each.ids.shape[-1]), np.int32)
        for name, (array, shape, dtype) in shapes.items():
            if array.shape != shape or array.dtype != dtype:
                expected = f"{np.dtype(dtype)}{list(shape)}"
                self._fail(name, None, f"is {array.dtype}{list(array.shape)}, expected {expected}")
        for side in [f.side for f in self.fields] + [b.side for b in self.bags.values()]:
            if side not in SIDES:
                self._fail("fields", None, f"side {side!r} is none of {', '.join(SIDES)}")

    def _check_ids(self, column: str, ids: np.ndarray, vocabulary: int) -> None:
        if ids.size and (ids.min() < 0 or ids.max() >= vocabulary):
            outside = (ids < 0) | (ids >= vocabulary)
            row = int(np.argmax(outside if ids.ndim == 1 else outside.any(axis=1)))
            value = ids[row] if ids.ndim == 1 else ids[row][outside[row]][0]
            self._fail(column, row, f"id {value} is outside 0..{vocabulary - 1}: prepare it anew")

    def _check_padding(self, column: str, ids: np.ndarray) -> None:
        for start in range(0, len(ids), CHUNK_ROWS):
            part = ids[start : start + CHUNK_ROWS]
            gap = ((part[:, :-1] == 0) & (part[:, 1:] != 0)).any(axis=1)
            if gap.any():
                self._fail(column, start + int(np.argmax(gap)), "has padding before an item")

    def _refuse(self, column: str, bad: np.ndarray, what: str) -> None:
        if bad.any():
            self._fail(column, int(np.argmax(bad)), what)

    def _fail(self, column: str, row: int | None, what: str) -> None:
        where = "" if row is None else f" row {row}:"
        raise DataError(f"table {self.name}: {column}:{where} {what}")

    def save(self, folder: Path) -> None:
        """Write the table as a new folder; it appears complete or not at all.

        An older prepared table there is replaced; DataError if something else lies there.
        """
        if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
            raise DataError(f"{folder}: holds other files: name a new or empty folder")
        with whole_folder(folder) as scratch:
            checksums = {}
            for name, array in self._arrays():
                path = scratch / f"{name}.npy"
                np.save(path, array, allow_pickle=False)
                checksums[name] = file_checksum(path)
            manifest = {
                "format": FORMAT,
                "name": self.name,
                "rows": len(self),
                "fields": [[f.name, f.vocabulary, f.side] for f in self.fields],
                "dense": list(self.dense_names),
                "tasks": list(self.tasks),
                "bags": {k: [b.vocabulary, b.side] for k, b in self.bags.items()},
                "history": {k: h.of for k, h in self.history.items()},
                "xxh3_128": checksums,
            }
            (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")

    def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        for name in ARRAYS:
            yield name, getattr(self, name)
        for number, bag in enumerate(self.bags.values()):
            yield f"bag{number}", bag.ids
        for number, history in enumerate(self.history.values()):
            yield f"history{number}", history.ids

    @classmethod
    def load(cls, folder: Path) -> FieldTable:
        """A table that `save` wrote; arrays are read-only memory maps.

        DataError if a file is missing, damaged or of another form.
        """
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise DataError(f"{path}: no prepared table: run `tandem data prepare`") from error
        if manifest.get("format") != FORMAT:
            raise DataError(
                f"{path}: format {manifest.get('format')}, expected {FORMAT}: prepare it anew"
            )
        arrays = {}
        for name, checksum in manifest["xxh3_128"].items():
            file = folder / f"{name}.npy"
            try:
                if file_checksum(file) != checksum:
                    raise DataError(f"{file}: checksum differs from {path}: prepare it anew")
                arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"{file}: cannot be read ({error}): prepare it anew") from error
        bags = {
            name: BagField(arrays.pop(f"bag{i}"), size, side)
            for i, (name, (size, side)) in enumerate(manifest["bags"].items())
        }
        history = {
            name: HistoryField(arrays.pop(f"history{i}"), of)
            for i, (name, of) in enumerate(manifest["history"].items())
        }
        return cls(
            name=manifest["name"],
            fields=tuple(Field(*f) for f in manifest["fields"]),
            dense_names=tuple(manifest["dense"]),
            tasks=tuple(manifest["tasks"]),
            bags=bags,
            history=history,
            **arrays,
        )


def file_checksum(path: Path) -> str:
    """xxh3-128 of a file's contents, in hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def time_split(
    time: np.ndarray, train_share: float = 0.8, valid_share: float = 0.1, name: str = "table"
) -> np.ndarray:
    """Split int8[N] by time: the last `valid_share` of the first `train_share` is for validation.

    Rows of one time are never separated. DataError if a part would be empty.
    """
    ordered = np.sort(time)
    cuts = [int(train_share * (1 - valid_share) * len(ordered)), int(train_share * len(ordered))]
    split = np.zeros(len(time), np.int8)
    for cut in cuts:
        split += time >= ordered[min(cut, len(ordered) - 1)]
    return _non_empty(split, name)


def random_split(
    rows: int, test_share: float = 0.2, valid_share: float = 0.1, seed: int = 0, name: str = "table"
) -> np.ndarray:
    """Split int8[N] at random: `test_share` of all, then `valid_share` of the rest for validation.

    The sizes are exact (rounded); the same seed gives the same split.
    """
    order = np.random.default_rng(seed).permutation(rows)
    tests = round(test_share * rows)
    valids = round(valid_share * (rows - tests))
    split = np.zeros(rows, np.int8)
    split[order[:tests]] = TEST
    split[order[tests : tests + valids]] = VALID
    return _non_empty(split, name)


def ordered_split(
    rows: int, train_share: float, valid_share: float, name: str = "table"
) -> np.ndarray:
    """Split int8[N] in the order of the file: first train, then validation, the rest is test."""
    place = np.arange(rows)
    first, second = int(train_share * rows), int((train_share + valid_share) * rows)
    return _non_empty(((place >= first).astype(np.int8) + (place >= second)).astype(np.int8), name)


def _non_empty(split: np.ndarray, name: str) -> np.ndarray:
    for number, part in enumerate(SPLITS):
        if not (split == number).any():
            raise DataError(
                f"table {name}: the {part} part of {len(split)} rows is empty: "
                "use more rows or other shares"
            )
    return split
