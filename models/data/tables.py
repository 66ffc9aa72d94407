"""The table a ranking model trains on: one row per (request or impression, candidate).

Id 0 of every vocabulary stands for "unknown" (and for padding in lists). Everything that is learned
from the data while it is prepared (vocabularies, the frequent values) is learned from the training
part alone, and a history holds only events before its row's time: nothing of the future leaks.

A prepared table is a folder of `.npy` arrays (memory-mapped when loaded) and `table.json` with the
checksum of each.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import xxhash

from models.data.errors import DataError

Side = Literal["user", "item", "context"]
SIDES = ("user", "item", "context")
SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = 0, 1, 2
MANIFEST = "table.json"
FORMAT = 1
CHUNK_ROWS = 1 << 18
HISTORY_CHUNK_ROWS = 1 << 11  # what a chunk needs stays in the processor's cache


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

    def __len__(self) -> int:
        return len(self.categorical)

    def field_index(self, name: str) -> int:
        """Column of the field `name`; KeyError if there is none."""
        for index, each in enumerate(self.fields):
            if each.name == name:
                return index
        raise KeyError(name)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers int64[n] of a split ("train", "valid" or "test")."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def take(self, index: np.ndarray) -> FieldTable:
        """The rows `index` int[n] (copied), in that order."""
        return replace(
            self,
            categorical=self.categorical[index],
            dense=self.dense[index],
            labels=self.labels[index],
            known=self.known[index],
            user=self.user[index],
            time_ms=self.time_ms[index],
            split=self.split[index],
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
        lists = {k: b.ids for k, b in self.bags.items()} | {
            k: h.ids for k, h in self.history.items()
        }
        for name, ids in lists.items():
            shapes[name] = (ids, (n, ids.shape[-1]), np.int32)
        for name, (array, shape, dtype) in shapes.items():
            if array.shape != shape or array.dtype != dtype:
                self._fail(
                    name,
                    None,
                    f"is {array.dtype}{list(array.shape)}, expected {np.dtype(dtype)}{list(shape)}",
                )
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
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
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
            if folder.exists():
                shutil.rmtree(folder)
            scratch.chmod(0o755)  # mkdtemp makes it private
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        for name in ("categorical", "dense", "labels", "known", "user", "time_ms", "split"):
            yield name, getattr(self, name)
        for number, bag in enumerate(self.bags.values()):
            yield f"bag{number}", bag.ids
        for number, history in enumerate(self.history.values()):
            yield f"history{number}", history.ids

    @classmethod
    def load(cls, folder: Path, verify: bool = True, mmap: bool = True) -> FieldTable:
        """A table that `save` wrote; arrays are read-only memory maps unless `mmap` is False.

        `verify` compares the checksums. DataError if a file is missing, damaged or of another form.
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
                if verify and file_checksum(file) != checksum:
                    raise DataError(f"{file}: checksum differs from {path}: prepare it anew")
                arrays[name] = np.load(file, mmap_mode="r" if mmap else None, allow_pickle=False)
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


def vocabulary(values: pl.Series, train: np.ndarray, min_count: int = 1) -> pl.Series:
    """Values seen at least `min_count` times where `train` bool[N], most frequent first.

    Id i is entry i - 1; equal counts are ordered by value; missing values are not in it.
    """
    counts = (
        values.rename("value")
        .filter(pl.Series(train))
        .drop_nulls()
        .to_frame()
        .group_by("value")
        .len()
        .filter(pl.col("len") >= min_count)
        .sort(["len", "value"], descending=[True, False])
    )
    return counts["value"]


def encode(values: pl.Series, known: pl.Series) -> np.ndarray:
    """Ids int32[N] in the vocabulary `known`; 0 for a missing value or one that is not in it."""
    ids = pl.DataFrame({"value": known, "id": np.arange(1, len(known) + 1, dtype=np.int32)})
    joined = values.rename("value").to_frame().join(ids, on="value", how="left", nulls_equal=False,
                                                    maintain_order="left")  # fmt: skip
    return joined["id"].fill_null(0).to_numpy()


def encode_frame(
    frame: pl.DataFrame, sides: dict[str, Side], train: np.ndarray, min_count: int = 1
) -> tuple[tuple[Field, ...], np.ndarray]:
    """The columns `sides` of `frame` as fields and ids int32[N, F], vocabularies of `train`."""
    categorical = np.empty((len(frame), len(sides)), np.int32)
    fields = []
    for index, (name, side) in enumerate(sides.items()):
        known = vocabulary(frame[name], train, min_count)
        categorical[:, index] = encode(frame[name], known)
        fields.append(Field(name, len(known) + 1, side))
    return tuple(fields), categorical


def hashed_frame(
    frame: pl.DataFrame, sides: dict[str, Side], buckets: int, texts: dict[str, str] | None = None
) -> tuple[tuple[Field, ...], np.ndarray]:
    """The columns `sides` as fields of `buckets` ids each: md5("{field}_{value}") mod `buckets`.

    The hashing of the official MLCC code (shishishu/MLCC; specification 5.4). Id 0 is an ordinary
    bucket here, and the bucket of a missing value. `texts` gives the format of a column's values
    where it is not that of `str` ("08x" for hexadecimal codes read as numbers).
    """
    categorical = np.empty((len(frame), len(sides)), np.int32)
    for index, name in enumerate(sides):
        unique = frame[name].unique().drop_nulls()
        style = (texts or {}).get(name, "")
        digests = [
            int.from_bytes(hashlib.md5(f"{name}_{v:{style}}".encode()).digest(), "big") % buckets
            for v in unique
        ]
        categorical[:, index] = np.asarray([0, *digests])[encode(frame[name], unique)]
    return tuple(Field(name, buckets, side) for name, side in sides.items()), categorical


def log2_bucket(values: pl.Series, buckets: int = 32) -> np.ndarray:
    """Ids int32[N] of counts: 0 missing or negative, 1 for 0, and 2 + floor(log2 x) for x >= 1."""
    numbers = values.cast(pl.Float64).fill_null(-1.0).to_numpy()
    logs = np.floor(np.log2(np.maximum(numbers, 1.0))).astype(np.int32) + 2
    ids = np.where(numbers < 1, 1, logs)
    return np.where(numbers < 0, 0, np.minimum(ids, buckets - 1)).astype(np.int32)


def item_bags(
    items: pl.Series,
    listed: pl.Series,
    row_item: pl.Series,
    train: np.ndarray,
    slots: int,
    side: Side = "item",
) -> BagField:
    """Bags of N rows whose item is `row_item`, from one list of values per item of `items`.

    The vocabulary is that of items with a training row; a row's bag holds the first `slots` known
    values, and nothing where the item is not in `items`.
    """
    trained = items.is_in(row_item.filter(pl.Series(train)).unique().implode())
    per_item, size = _bags(listed, trained.to_numpy(), slots)
    row = encode(row_item, items)
    ids = np.vstack([np.zeros((1, slots), np.int32), per_item])
    return BagField(ids[row], size, side)


def _bags(listed: pl.Series, train: np.ndarray, slots: int) -> tuple[np.ndarray, int]:
    rows, flat = _flatten(listed)
    known = vocabulary(flat, np.asarray(train)[rows])
    return _fill(rows, encode(flat, known), len(listed), slots), len(known) + 1


def list_history(newest_first: pl.Series, known: pl.Series, length: int) -> np.ndarray:
    """Ids int32[N, length] of lists of values in the vocabulary `known`; unknown ones skipped."""
    rows, flat = _flatten(newest_first)
    return _fill(rows, encode(flat, known), len(newest_first), length)


def _flatten(listed: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Row number of every value in the lists, and the values."""
    present = listed.list.drop_nulls()
    rows = np.repeat(np.arange(len(listed)), present.list.len().fill_null(0).to_numpy())
    return rows, present.explode(keep_nulls=False, empty_as_null=False)


def _fill(rows: np.ndarray, ids: np.ndarray, height: int, width: int) -> np.ndarray:
    """int32[height, width]: the first non-zero ids of each row (`rows` ascending), left-aligned."""
    rows, ids = rows[ids > 0], ids[ids > 0]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    fits = place < width
    table = np.zeros((height, width), np.int32)
    table[rows[fits], place[fits]] = ids[fits]
    return table


def earlier_items(
    user: np.ndarray,
    time: np.ndarray,
    event_user: np.ndarray,
    event_time: np.ndarray,
    event_item: np.ndarray,
    length: int,
) -> np.ndarray:
    """Per row the newest `length` items of its user's events strictly before its time.

    int32[N, length], newest first, padded with 0; events at the same time are ordered as given
    (the last is the newest), events of item 0 (unknown) are skipped.
    """
    kept = np.flatnonzero(np.asarray(event_item) > 0)
    users = np.concatenate([user, np.asarray(event_user)[kept]])
    times = np.concatenate([time, np.asarray(event_time)[kept]])
    order = np.lexsort((times, users))
    sorted_users, sorted_times = users[order], times[order]
    new_user = np.r_[True, sorted_users[1:] != sorted_users[:-1]][: len(order)]
    new_moment = new_user | np.r_[True, sorted_times[1:] != sorted_times[:-1]][: len(order)]
    moment = np.empty(len(order), np.int64)  # rank of (user, time), by user and then by time
    moment[order] = np.cumsum(new_moment)
    first = np.maximum.accumulate(np.where(new_user, moment[order], 0))
    first_moment = np.empty(len(order), np.int64)  # of the same user
    first_moment[order] = first

    n = len(user)
    oldest_first = np.argsort(moment[n:], kind="stable")
    items = np.asarray(event_item, np.int32)[kept][oldest_first]
    per_moment = np.bincount(moment[n:], minlength=int(moment.max(initial=0)) + 1)
    before = np.cumsum(per_moment) - per_moment  # events of earlier moments
    end, begin = before[moment[:n]], before[first_moment[:n]]
    history = np.zeros((n, length), np.int32)
    if not len(items):
        return history
    steps = np.arange(1, length + 1)
    for start in range(0, n, HISTORY_CHUNK_ROWS):
        rows = slice(start, start + HISTORY_CHUNK_ROWS)
        at = end[rows, None] - steps
        np.multiply(items[np.maximum(at, 0)], at >= begin[rows, None], out=history[rows])
    return history


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


def numbered(values: pl.Series) -> np.ndarray:
    """int32[N]: 0.. for the distinct values in ascending order (users, to group rows by)."""
    return np.unique(values.to_numpy(), return_inverse=True)[1].astype(np.int32)


def _non_empty(split: np.ndarray, name: str) -> np.ndarray:
    for number, part in enumerate(SPLITS):
        if not (split == number).any():
            raise DataError(
                f"table {name}: the {part} part of {len(split)} rows is empty: "
                "use more rows or other shares"
            )
    return split
