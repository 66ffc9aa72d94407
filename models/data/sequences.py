"""Users' item sequences: the shape, the splits and the files of `user item` lines.

`Sequences` is what retrieval research trains on: per user the items in order, nothing else. A split
(`user_split`, `leave_one_out`, `last_fifth`) says which part of which user is for training and
which moments are asked about; it copies no event. Protocols are those of specification section 1.4
(retrieval) and of the usual leave-one-out benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from models.data.delimited import whole_numbers
from models.data.errors import DataError
from models.data.source_files import lines_of

SPLIT_SEED = 1230  # of the user split, as in the ComiRec authors' code
Column = np.ndarray | pl.Series
MIN_EVENTS = 3  # leave-one-out: one to train on, one to validate, one to test


@dataclass(frozen=True)
class Sequences:
    """U users with E events; user u's are `items[offsets[u]:offsets[u + 1]]`, oldest first.

    Item rows are 1..num_items by decreasing count. `item_ids` and `item_attributes` belong to row
    r at entry r - 1; attribute numbers are the source's, in the order in which it lists them.
    """

    name: str
    offsets: np.ndarray  # int64[U + 1]
    items: np.ndarray  # int32[E]
    times_ms: np.ndarray | None  # int64[E]
    num_items: int
    item_ids: tuple[str, ...]
    item_attributes: tuple[tuple[int, ...], ...] | None = None
    attribute_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64[U]: events per user."""
        return np.diff(self.offsets)

    def counts(self) -> np.ndarray:
        """int64[num_items + 1]: events per item row; row 0 has none."""
        return np.bincount(self.items, minlength=self.num_items + 1)

    def check(self) -> Sequences:
        """Itself, or DataError that names what does not fit together."""
        if len(self.offsets) < 2 or not len(self.items):
            raise DataError(f"{self.name}: no events")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.items):
            raise DataError(f"{self.name}: offsets do not span the {len(self.items)} events")
        if (np.diff(self.offsets) < 0).any():
            user = int(np.flatnonzero(np.diff(self.offsets) < 0)[0])
            raise DataError(f"{self.name}: user {user}: offsets decrease")
        outside = (self.items < 1) | (self.items > self.num_items)
        if outside.any():
            event = int(outside.argmax())
            raise DataError(
                f"{self.name}: event {event}: item {self.items[event]} is not in "
                f"1..{self.num_items}"
            )
        if len(self.item_ids) != self.num_items:
            raise DataError(
                f"{self.name}: {len(self.item_ids)} item ids for {self.num_items} items"
            )
        if self.item_attributes is not None and len(self.item_attributes) != self.num_items:
            raise DataError(
                f"{self.name}: attributes of {len(self.item_attributes)} items, expected "
                f"{self.num_items}"
            )
        if self.times_ms is not None and len(self.times_ms) != len(self.items):
            raise DataError(f"{self.name}: {len(self.times_ms)} times, {len(self.items)} events")
        if (np.diff(self.counts()[1:]) > 0).any():
            raise DataError(f"{self.name}: item rows are not ordered by decreasing count")
        return self


def from_events(
    name: str,
    user: Column,
    item: Column,
    times_ms: Column | None = None,
    attributes: dict[str, tuple[int, ...]] | None = None,
) -> Sequences:
    """Sequences of events in the given order per user; `item` holds ids of any printable type.

    Users are numbered by first event, items by decreasing count (first seen first among equals). An
    item that `attributes` does not know has none.
    """
    frame = pl.DataFrame({"user": user, "item": item}).with_row_index("at")
    users = frame.group_by("user", maintain_order=True).agg("at")
    ranked = (
        frame.group_by("item")
        .agg(count=pl.len(), first=pl.col("at").min())
        .sort(["count", "first"], descending=[True, False])
        .with_row_index("row", offset=1)
    )
    order = users["at"].explode().to_numpy()
    rows = frame.join(ranked.select("item", "row"), on="item", maintain_order="left")["row"]
    ids = tuple(str(i) for i in ranked["item"])
    lengths = users["at"].list.len().to_numpy()
    return Sequences(
        name,
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        rows.to_numpy().astype(np.int32)[order],
        None if times_ms is None else np.asarray(times_ms, np.int64)[order],
        len(ids),
        ids,
        None if attributes is None else tuple(attributes.get(i, ()) for i in ids),
    ).check()


def read_user_item_lines(path: Path, name: str) -> Sequences:
    """A (gzipped) file of `user item` integers per line, each user's lines in true order."""
    lines = pl.Series("line", lines_of(path))
    if not lines.str.strip_chars().ne("").any():
        raise DataError(f"{path}: is empty: copy it anew")
    parts = lines.str.split_exact(" ", 2)
    user, item = (
        whole_numbers(path, parts.struct.field(f"field_{at}").fill_null("").alias(column))
        for at, column in enumerate(("user", "item"))
    )
    third = parts.struct.field("field_2").is_not_null()
    if third.any():
        line = int(third.arg_max() or 0)
        raise DataError(
            f"{path}: line {line + 1}: more than a user and an item in {lines[line]!r}: every "
            "line must be `user item`"
        )
    return from_events(name, user, item)


@dataclass(frozen=True)
class Cases:
    """C moments that are asked about. Positions are event numbers in `Sequences.items`.

    Case c knows items[start:cut] of a user and asks for items[cut:end], one or many.
    """

    user: np.ndarray  # int64[C]
    start: np.ndarray  # int64[C]
    cut: np.ndarray  # int64[C]
    end: np.ndarray  # int64[C]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray | slice) -> Cases:
        """Some of the cases."""
        return Cases(self.user[index], self.start[index], self.cut[index], self.end[index])


@dataclass(frozen=True)
class Split:
    """Training parts and the cases of validation and test.

    Training user t may be learned from by items[train_start[t]:train_end[t]]. With `filter_seen` a
    user's earlier items are removed from the list before it is measured.
    """

    sequences: Sequences
    train_start: np.ndarray  # int64[T]
    train_end: np.ndarray  # int64[T]
    valid: Cases
    test: Cases
    filter_seen: bool

    def train_events(self) -> np.ndarray:
        """int64[N]: the numbers of all training events, user by user, oldest first."""
        lengths = self.train_end - self.train_start
        first = np.repeat(self.train_start - np.cumsum(lengths) + lengths, lengths)
        return first + np.arange(lengths.sum())

    def train_user(self) -> np.ndarray:
        """int64[N]: the training user (0..T-1) of each of `train_events`."""
        return np.repeat(np.arange(len(self.train_start)), self.train_end - self.train_start)

    def train_counts(self) -> np.ndarray:
        """int64[num_items + 1]: training events per item row."""
        rows = self.sequences.items[self.train_events()]
        return np.bincount(rows, minlength=self.sequences.num_items + 1)


def user_split(sequences: Sequences, seed: int = SPLIT_SEED) -> Split:
    """Protocol A: users 80/10/10; a held-out user's last fifth is asked for, given the rest.

    Nothing is filtered from the lists. Users with fewer than five events cannot be trained on with
    at least four known events, nor tested with a history of four: DataError.
    """
    if int(sequences.lengths.min()) < 5:
        user = int(sequences.lengths.argmin())
        raise DataError(f"{sequences.name}: user {user} has fewer than the 5 events of protocol A")
    shuffled = np.random.default_rng(seed).permutation(len(sequences))
    train_size, valid_size = int(0.8 * len(shuffled)), int(0.1 * len(shuffled))
    train, valid, test = np.split(shuffled, [train_size, train_size + valid_size])
    train = np.sort(train)
    offsets = sequences.offsets
    return Split(
        sequences, offsets[train], offsets[train + 1],
        last_fifth_cases(sequences, np.sort(valid)), last_fifth_cases(sequences, np.sort(test)),
        filter_seen=False,
    )  # fmt: skip


def last_fifth_cases(sequences: Sequences, user: np.ndarray) -> Cases:
    """The last fifth of each of the users int[C] is asked for, given the rest."""
    start, end = sequences.offsets[user], sequences.offsets[user + 1]
    return Cases(user, start, start + (4 * (end - start)) // 5, end)


def leave_one_out(sequences: Sequences) -> Split:
    """Each user's last event is the test, the one before it the validation; the rest trains.

    Seen items are filtered. Users with fewer than three events train only.
    """
    start, end = sequences.offsets[:-1], sequences.offsets[1:]
    user = np.flatnonzero(sequences.lengths >= MIN_EVENTS)
    train_end = end.copy()
    train_end[user] -= 2
    at = start[user], end[user]
    return Split(
        sequences, start, train_end,
        Cases(user, at[0], at[1] - 2, at[1] - 1), Cases(user, at[0], at[1] - 1, at[1]),
        filter_seen=True,
    )  # fmt: skip


def last_fifth(sequences: Sequences) -> Split:
    """The set-based target: each user's last 20 % is the test, the last 20 % of the rest validates.

    The order of simultaneous events cannot help, except at the border. Users whose share of test or
    validation would be empty train only.
    """
    start, end = sequences.offsets[:-1], sequences.offsets[1:]
    cut = start + (4 * (end - start)) // 5
    inner = start + (4 * (cut - start)) // 5
    user = np.flatnonzero((inner > start) & (inner < cut) & (cut < end))
    train_end = end.copy()
    train_end[user] = inner[user]
    return Split(
        sequences, start, train_end,
        Cases(user, start[user], inner[user], cut[user]),
        Cases(user, start[user], cut[user], end[user]),
        filter_seen=True,
    )  # fmt: skip


@dataclass(frozen=True)
class NextItemPairs:
    """Consecutive pairs of items (protocol C) and whose they are: a user's pairs are alike."""

    train: np.ndarray  # int32[N, 2] item rows (query, item)
    valid: np.ndarray  # int32[N, 2]
    test: np.ndarray  # int32[N, 2]
    train_user: np.ndarray  # int64[N] user numbers
    valid_user: np.ndarray  # int64[N]
    test_user: np.ndarray  # int64[N]


def next_item_pairs(sequences: Sequences, seed: int = SPLIT_SEED) -> NextItemPairs:
    """All (item, next item of the same user) pairs: 10 % test, 5 % validation, 85 % training."""
    inside = np.ones(len(sequences.items), bool)
    inside[sequences.offsets[:-1]] = False  # a user's first event follows nothing
    at = np.flatnonzero(inside)
    at = at[np.random.default_rng(seed).permutation(len(at))]
    pairs = np.stack([sequences.items[at - 1], sequences.items[at]], axis=1)
    user = np.searchsorted(sequences.offsets, at, side="right") - 1
    test, valid = len(pairs) // 10, len(pairs) // 20
    train, held, asked = slice(test + valid, None), slice(test, test + valid), slice(test)
    return NextItemPairs(
        pairs[train], pairs[held], pairs[asked], user[train], user[held], user[asked]
    )
