"""What a model of a declared domain reads, from records and item tables to `Features`.

One module for training and serving, retrieval and ranking. Of the user's side: the profile's counts
faded to the request, ratios, times, affinities, given fields, what came with the request, the
history. Of a row's: the item, its own fields, which are copied to the device once (`load_items`)
and followed (`follow_items`), its counters, in training its place in the list, and what it has in
common with the user. Items' rows are those of the table that is served, histories' the model's own
(`models/rows.py`).

What is learned of the data (`learn`) are buffers, published with the weights: quantiles, means and
bounds of numbers, vocabularies of users' fields, what never varied, the place that lists are
ordered for. Learned vocabularies of items travel in the model's own table.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.catalogue import ItemTable
from models.inputs import UserBatch
from models.layers.embedding import log_bucket
from models.layers.embedding_tables import Features
from models.layers.split_linear import Index, of_users
from models.profiles import Buckets, affinity_shares, counts_at, seconds_since
from models.rows import put, rows_in, with_room
from models.schema.inputs import (
    HISTORY,
    TIME_BUCKETS,
    How,
    Reads,
    Source,
)
from models.schema.stored import most_frequent

BUCKETED = ("quantiles", "log")  # scales that make ids of numbers


class UserInputs(NamedTuple):
    """B users: their features, and what their candidates' rows need besides."""

    features: Features
    shares: tuple[Tensor, ...]  # of each match: float[B, V], the affinity's
    now_ms: Tensor  # int64[B]


class DeclaredInputs(nn.Module):
    """See the module docstring; `reads` says everything of the domain."""

    item_ids: Tensor  # int32[n + 1, 1 + F]: the item's row in the model, and the declared fields
    item_numbers: Tensor  # float[n + 1, D]
    item_times: Tensor  # int64[n + 1, T], ms
    place: Tensor  # int64: that candidates are taken to have, all the same one
    bounds: Tensor  # float[n, 2]: the least and the largest of training, of each bounded field
    pinned: Tensor  # bool[m]: which of the users' fields had one value in all of the training

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads
        of = self._of
        self._of_users, self._of_rows = (
            Buckets(of("count", side), of("ratio", side)) for side in ("user", "row")
        )
        self._sinces, self._affinities, self._matches = of("since"), of("shares"), of("match")
        self._of_requests = of("value", "user")  # given fields, and those of the request
        self._fields, self._times = of("value", "item"), of("value", "row")
        self._history = next(iter(of("history")), None)
        self._position = next(iter(of("position")), None)
        if self._position is not None:
            self.register_buffer("place", torch.tensor(0))
        self._event_types = np.zeros(256, np.uint8)
        self._event_types[list(reads.events)] = range(len(reads.events))
        learned = [s for s in of("value") if _learns(s)]
        self._learned = {s.input.name: i for i, s in enumerate(learned)}
        for i, source in enumerate(learned):
            self.register_buffer(f"learned_{i}", _nothing_learned(source))
        self._bounded = {s.input.name: i for i, s in enumerate(filter(_is_bounded, of("value")))}
        most = torch.finfo(torch.float32).max
        if self._bounded:
            self.register_buffer("bounds", torch.tensor([[-most, most]] * len(self._bounded)))
        if self._of_requests:
            self.register_buffer("pinned", torch.zeros(len(self._of_requests), dtype=torch.bool))
        for i, source in enumerate(self._of_requests):
            self.register_buffer(f"pin_{i}", _nothing_of(source))
        self._lists = [s.input.name for s in self._fields if s.input.kind in ("bag", "vector")]
        for name in ("item_ids", "item_numbers", "item_times"):
            self.register_buffer(name, torch.zeros(1, 0), persistent=False)
        for i in range(len(self._lists)):
            self.register_buffer(f"item_list_{i}", torch.zeros(1, 0), persistent=False)
        for i in range(len(self._matches)):
            self.register_buffer(f"match_ids_{i}", torch.zeros(1, 0), persistent=False)
            self.register_buffer(f"match_weights_{i}", torch.zeros(1, 0), persistent=False)
        self._numbers: dict[str, _Numbers] = {}  # of the learned vocabularies of items

    @property
    def device(self) -> torch.device:
        return self.item_ids.device

    def learn(
        self, items: ItemTable, users: UserBatch, positions: np.ndarray | None = None
    ) -> None:
        """Learn of the training part of the data, of items, users and the places int[N] where items
        were seen.

        Of places the most frequent one: if rows were shown without theirs instead, what comes of
        the usual place of an item would be put down to the item after all. Of numbers the bounds:
        what a request sends beyond them could be anything, and is read as the nearest. Of users'
        and requests' fields those that did not vary: nothing is learned of them, so they are read
        as what they were, whatever a request says."""
        if self._position is not None and positions is not None and positions.any():
            known = np.minimum(positions[positions > 0], self._position.input.size - 1)
            self.place.fill_(int(np.bincount(known).argmax()))
        for source in self._of("value"):
            column, of_item = source.columns[0], source.group == "item"
            values = items.features[column][1:] if of_item else _own(users, source)
            if source.type == "time":
                values = _ages(users.now_ms[-1:] if of_item else users.now_ms, values)
            if _learns(source):
                self._learnt(source).copy_(_learned(source, values))
            if (at := self._bounded.get(source.input.name)) is not None:
                known = values[np.isfinite(values)]
                if len(known):
                    self.bounds[at] = torch.tensor([float(known.min()), float(known.max())])
        for i, source in enumerate(self._of_requests):
            value = self._value(source, _own(users, source), users.now_ms)
            self.pinned[i] = same = len(value) > 0 and bool((value == value[:1]).all())
            if same:
                getattr(self, f"pin_{i}").copy_(value[0])

    def constant(self) -> list[str]:
        """The users' and requests' fields that had one value in all of the training."""
        return [s.input.name for i, s in enumerate(self._of_requests) if self.pinned[i]]

    def load_items(self, items: ItemTable, known: ItemTable | None = None) -> None:
        """Copy what is read of the item table to the device. `known`: the model's own table, unless
        that is the same. ValueError if it is another model's, or a field is not in `items`."""
        known = items if known is None else known
        size = next(s.input.size for s in self._of("key"))
        if len(known) + 1 != size:
            raise ValueError(f"model of {size - 1} items, table of {len(known)}")
        there = items.features.dtype.names or ()
        for source in [*self._fields, *self._times, *self._matches]:
            if source.columns[0] not in there:
                raise ValueError(f"the item table has no field {source.columns[0]}")
        self._numbers = {name: _Numbers(values) for name, values in known.vocabularies.items()}
        for name, values in self._of_items(items, known, None).items():
            setattr(self, name, values if known is items else with_room(values))

    def follow_items(self, items: ItemTable, known: ItemTable, rows: np.ndarray) -> None:
        """As `load_items`, of a later state of that table: `rows` int64, ascending, have changed or
        are new."""
        for name, values in self._of_items(items, known, rows).items():
            setattr(self, name, put(getattr(self, name), rows, values, len(items) + 1))

    def _of_items(
        self, items: ItemTable, known: ItemTable, rows: np.ndarray | None
    ) -> dict[str, Tensor]:
        """What is kept of the items in these rows, or in all, by buffer."""
        own = self._to(rows_in(known, items, rows))
        found = [self._value(source, self._raw(items, source, rows)) for source in self._fields]
        if rows is None:
            for values in found:
                values[0] = (
                    0  # of the unknown item nothing is known, not that it is false or average
                )
        kinds = [source.input.kind for source in self._fields]
        of_kinds: dict[str, list[Tensor]] = {"id": [own], "number": [], "list": []}
        for kind, values in zip(kinds, found, strict=True):
            of_kinds[kind if kind in of_kinds else "list"].append(values)
        times = [self._to(self._raw(items, s, rows).astype(np.int64)) for s in self._times]
        kept = {
            "item_ids": self._columns(of_kinds["id"], len(own), torch.int32),
            "item_numbers": self._columns(of_kinds["number"], len(own), torch.float32),
            "item_times": self._columns(times, len(own), torch.int64),
        }
        kept |= {f"item_list_{i}": values for i, values in enumerate(of_kinds["list"])}
        for i, source in enumerate(self._matches):
            ids = torch.from_numpy(self._ids(items, source.columns[0], rows))
            there = (ids > 0) & (ids < self._size_of(source.shares))
            weights = there.float()
            none = ~there.any(1)
            if rows is None:
                none[0] = False
            weights[:, 0] += none.float()  # what has none adds to share 0
            kept[f"match_ids_{i}"] = (ids * there).to(self.device)
            kept[f"match_weights_{i}"] = weights.to(self.device)
        return kept

    def _raw(self, items: ItemTable, source: Source, rows: np.ndarray | None) -> np.ndarray:
        """A column of the item table; of a learned vocabulary numbered, and flat where it is."""
        column = source.columns[0]
        if source.vocabulary == "learned":
            found = self._ids(items, column, rows)
            return found if source.input.kind == "bag" else found[:, 0]
        return _stored(items, column, rows)

    def _ids(self, items: ItemTable, column: str, rows: np.ndarray | None) -> np.ndarray:
        """int64[N, S]: the ids of the values of a category or bag, 0 where there are no more."""
        stored = _stored(items, column, rows)
        stored = stored.reshape(len(stored), math.prod(stored.shape[1:]))
        numbers = self._numbers.get(column)
        return stored.astype(np.int64) if numbers is None else numbers.of(stored)

    # Users

    def user(self, batch: UserBatch) -> UserInputs:
        """What is read of B users."""
        profile, now_ms = batch.profile, batch.now_ms
        ids: list[Tensor] = []
        if columns := self._of_users.columns:
            ids += self._of_users(self._to(counts_at(columns, batch)))
        if self._sinces:
            ids.append(log_bucket(self._to(seconds_since(self._sinces, batch)), TIME_BUCKETS))
        numbers, lists = [], {}
        for i, source in enumerate(self._of_requests):
            value = self._value(source, _own(batch, source), batch.now_ms)
            value = torch.where(self.pinned[i], getattr(self, f"pin_{i}"), value)
            if source.input.kind == "id":
                ids.append(value[:, None])
            elif source.input.kind == "number":
                numbers.append(value[:, None])
            else:
                lists[source.input.name] = value
        for source in self._affinities:
            lists[source.input.name] = self._to(affinity_shares(profile[source.columns[0]], source))
        types = {}
        if self._history is not None:
            newest = slice(self.reads.history)
            lists[HISTORY] = self._to(batch.history[:, newest])
            types[HISTORY] = self._to(self._event_types[batch.events[:, newest]])
        features = Features(
            self._joined(ids, len(batch)),
            self._joined(numbers, len(batch), torch.float32),
            lists,
            types,
        )
        shares = tuple(lists[source.shares] for source in self._matches)
        return UserInputs(features, shares, self._to(now_ms))

    # Rows

    def rows(
        self,
        users: UserInputs,
        row_user: Index,
        rows: Tensor,
        counters: Tensor,
        positions: Tensor | None = None,
    ) -> Features:
        """What is read of N candidates besides their items: item rows int64[N] of users, the
        columns `reads.counters` of their counters at the request, float[N, C], and the places where
        they were seen, int64[N] from 1, 0 for what is not known; None: of a list to be made."""
        ids: list[Tensor] = []
        numbers: list[Tensor] = []
        if self._times:
            times = self.item_times.index_select(0, rows)
            ages = (of_users(users.now_ms, row_user)[:, None] - times) / 1000.0
            known = times > 0
            for i, source in enumerate(self._times):
                age = torch.where(known[:, i], ages[:, i].clamp_min(0.0), torch.nan).float()
                value = self._scaled(source, age)
                (ids if source.input.kind == "id" else numbers).append(value[:, None])
        ids += self._of_rows(counters)
        if self._position is not None:
            places = self.place.expand(len(rows)) if positions is None else positions
            ids.append(places.clamp(0, self._position.input.size - 1)[:, None])
        for i, shares in enumerate(users.shares):
            at = getattr(self, f"match_ids_{i}").index_select(0, rows)
            weights = getattr(self, f"match_weights_{i}").index_select(0, rows)
            found = of_users(shares, row_user).gather(1, at) * weights
            numbers.append(found.sum(1, keepdim=True))
        return Features(
            self._joined(ids, len(rows)), self._joined(numbers, len(rows), torch.float32), {}, {}
        )

    def items(self, rows: Tensor) -> Features:
        """What is read of the items in N rows alone."""
        ids = self.item_ids.index_select(0, rows)
        return Features(ids, self.item_numbers.index_select(0, rows), self._item_lists(rows), {})

    def _item_lists(self, rows: Tensor) -> dict[str, Tensor]:
        return {
            name: getattr(self, f"item_list_{i}").index_select(0, rows)
            for i, name in enumerate(self._lists)
        }

    # Parts

    def _of(self, how: How, side: str | None = None) -> list[Source]:
        return [s for s in self.reads.sources if s.how == how and side in (None, s.input.side)]

    def _size_of(self, name: str) -> int:
        return next(s.input.size for s in self.reads.sources if s.input.name == name)

    def _learnt(self, source: Source) -> Tensor:
        found: Tensor = getattr(self, f"learned_{self._learned[source.input.name]}")
        return found

    def _value(self, source: Source, raw: np.ndarray, now_ms: np.ndarray | None = None) -> Tensor:
        """A declared field of N records on the device: ids int64[N] or [N, S], float[N] or
        float[N, n]."""
        size = source.input.size
        if source.vocabulary == "learned" and source.group != "item":
            return _numbered(self._to(raw.astype(raw.dtype).view(np.int64)), self._learnt(source))
        if source.vocabulary == "hashed":
            ids = np.where(raw > 0, raw % np.uint64(size - 1) + 1, 0).astype(np.int64)
            return self._to(ids)
        if source.vocabulary or source.type == "text":
            ids = raw.astype(np.int64)
            return self._to(np.where(ids < size, ids, 0))  # declared since: not known
        if source.type == "flag":
            return self._to(raw.astype(np.int64) + 1)
        if source.type in ("vector", "numbers"):
            return self._within(source, self._to(raw.astype(np.float32)))
        if source.type == "time":
            assert now_ms is not None
            raw = _ages(now_ms, raw)
        return self._scaled(source, self._to(raw.astype(np.float32)))

    def _scaled(self, source: Source, value: Tensor) -> Tensor:
        """A number float[N] as its scale says; NaN is an unknown one."""
        unknown = value.isnan()
        value = value.nan_to_num(0.0)
        if source.scale in BUCKETED:
            found = 1 + torch.bucketize(value, self._learnt(source), right=True)
            return torch.where(unknown, 0, found)
        if source.scale == "cyclic":
            angle = value * (2 * math.pi / source.period)
            return torch.stack([angle.sin(), angle.cos()], 1) * ~unknown[:, None]
        value = self._within(source, value) * ~unknown
        if source.scale == "linear":
            return value
        mean, scale = self._learnt(source)
        return ((value - mean) / scale) * ~unknown

    def _within(self, source: Source, value: Tensor) -> Tensor:
        low, high = self.bounds[self._bounded[source.input.name]]
        return value.clamp(low, high)

    def _to(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _columns(self, values: list[Tensor], rows: int, dtype: torch.dtype) -> Tensor:
        """float or int[N, C] of values [N] of C fields."""
        return self._joined([value[:, None].to(dtype) for value in values], rows, dtype)

    def _joined(self, columns: list[Tensor], rows: int, dtype: torch.dtype = torch.long) -> Tensor:
        if not columns:
            return torch.zeros(rows, 0, dtype=dtype, device=self.device)
        return torch.cat(columns, 1)


def _own(users: UserBatch, source: Source) -> np.ndarray:
    """The column of a field of the users or their requests."""
    records: np.ndarray = getattr(users, source.group)
    return records[source.columns[0]]


def _learns(source: Source) -> bool:
    own = source.vocabulary == "learned" and source.group != "item"
    plain = source.input.kind in ("id", "number") and not source.vocabulary
    return own or (plain and source.scale in (*BUCKETED, "standardised"))


def _is_bounded(source: Source) -> bool:
    """A number or numbers that a network is given as they are, or by a linear scale."""
    return source.input.kind in ("number", "vector") and source.scale != "cyclic"


def _nothing_of(source: Source) -> Tensor:
    """A value of a field as `DeclaredInputs._value` makes it of one user."""
    if source.input.kind in ("id", "number"):
        return torch.zeros((), dtype=torch.long if source.input.kind == "id" else torch.float32)
    if source.input.kind == "bag":
        return torch.zeros(source.form[0][1], dtype=torch.long)
    return torch.zeros(source.input.size)


def _nothing_learned(source: Source) -> Tensor:
    if source.vocabulary:
        return torch.zeros(source.input.size - 1, dtype=torch.long)
    if source.scale in BUCKETED:
        return torch.zeros(source.buckets - 1)
    return torch.tensor([0.0, 1.0])


def _learned(source: Source, values: np.ndarray) -> Tensor:
    if source.vocabulary:
        found = np.zeros(source.input.size - 1, np.uint64)
        known = most_frequent(values, len(found))
        found[: len(known)] = known
        return torch.from_numpy(found.view(np.int64))
    known = values[np.isfinite(values)].astype(np.float64)
    if not len(known):
        return _nothing_learned(source)
    at = np.arange(1, source.buckets) / max(source.buckets, 1)
    if source.scale == "quantiles":
        return torch.from_numpy(np.quantile(known, at).astype(np.float32))
    if source.scale == "log":  # of equal width in the logarithm
        low, high = (math.copysign(math.log1p(abs(v)), v) for v in (known.min(), known.max()))
        edges = low + (high - low) * at
        return torch.from_numpy((np.sign(edges) * np.expm1(np.abs(edges))).astype(np.float32))
    spread = float(known.std())
    return torch.tensor([float(known.mean()), spread if spread > 0 else 1.0])


def _ages(now_ms: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
    """Seconds from times to requests, not below 0; NaN for an unknown time."""
    ages = np.maximum(now_ms - times_ms.astype(np.int64), 0) / 1000.0
    return np.where(times_ms > 0, ages, np.nan)


def _stored(items: ItemTable, column: str, rows: np.ndarray | None) -> np.ndarray:
    """A column of the item table in these rows, or in all."""
    values = items.features[column]
    return np.asarray(values if rows is None else values[rows])


class _Numbers:
    """The numbers 1.. of the values of a learned vocabulary uint64[V], as `ItemTable.ids_of`."""

    def __init__(self, known: np.ndarray) -> None:
        self._order = np.argsort(known, kind="stable")
        self._ordered = known[self._order]

    def of(self, stored: np.ndarray) -> np.ndarray:
        """int64 of the same shape; 0 for what is not in it."""
        if not len(self._ordered):
            return np.zeros(stored.shape, np.int64)
        at = np.minimum(np.searchsorted(self._ordered, stored), len(self._ordered) - 1)
        return np.where(self._ordered[at] == stored, self._order[at] + 1, 0) * (stored > 0)


def _numbered(hashes: Tensor, known: Tensor) -> Tensor:
    """Places 1.. of hashes int64[...] in `known` int64[V], 0 for what is not in it."""
    if not len(known):
        return torch.zeros_like(hashes)
    ordered, order = known.sort()
    at = torch.searchsorted(ordered, hashes).clamp_max(len(known) - 1)
    return torch.where((ordered[at] == hashes) & (hashes != 0), order[at] + 1, 0)
