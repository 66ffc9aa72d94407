"""The columns of a table, of values as a source has them: ids, bags and histories.

A vocabulary is learned from the training rows alone; id 0 stands for what is not in it.
"""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl

from models.data.tables import BagField, Field, Side

HISTORY_CHUNK_ROWS = 1 << 11  # what a chunk needs stays in the processor's cache


def vocabulary(values: pl.Series, train: np.ndarray, min_count: int = 1) -> pl.Series:
    """Values seen at least `min_count` times where `train` bool[N], most frequent first.

    Id i is entry i - 1; equal counts are ordered by value; missing values are not in it.
    """
    counts = (
        values.rename("value")
        .filter(pl.Series(train))
        .drop_nulls()
        .value_counts(name="count")
        .filter(pl.col("count") >= min_count)
        .sort(["count", "value"], descending=[True, False])
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
    trained = items.is_in(row_item.filter(pl.Series(train)).unique().implode()).to_numpy()
    rows, flat = _flatten(listed)
    known = vocabulary(flat, trained[rows])
    per_item = _fill(rows, encode(flat, known), len(listed), slots)
    ids = np.vstack([np.zeros((1, slots), np.int32), per_item])
    return BagField(ids[encode(row_item, items)], len(known) + 1, side)


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


def numbered(values: pl.Series) -> np.ndarray:
    """int32[N]: 0.. for the distinct values in ascending order (users, to group rows by)."""
    return np.unique(values.to_numpy(), return_inverse=True)[1].astype(np.int32)
