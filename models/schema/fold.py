"""How an event changes rows, for any declaration: the one definition of training and serving.

Training replays the event table through `Fold` and takes each example's features just before its
event; the feature updater (`services/feedback/updater.py`) applies the same to rows of the feature
store. What an event does is looked up by its id. All state is numpy records of the declaration's
`Layout`; time is event time (ms), so a late event lands where it belongs, and nothing here reads a
clock.

Fading values of a user refer to the time of the user's newest event, those of an item to
`as_of_ms`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from models.schema.declaration import Count, Declaration
from models.schema.layout import Layout, affinity_column, count_column, last_column
from models.schema.progress import ITEM_DELIVERY, USER_DELIVERY, USER_OLDER

# Of an item: the ids of its fields, 0 where there is none.
Values: TypeAlias = Mapping[str, np.ndarray]


class Event(NamedTuple):
    """One feedback event as the fold needs it."""

    event_id: str
    user_id: str
    item_key: int
    event_type: int  # its id in the declaration
    event_time_ms: int
    value: float = 0.0


@dataclass
class UserState:
    """A user's rows: what is known, and what was already applied."""

    profile: np.ndarray
    history: np.ndarray
    delivery: np.ndarray
    older: np.ndarray


@dataclass
class ItemState:
    """An item's rows."""

    counters: np.ndarray
    delivery: np.ndarray


class _Add(NamedTuple):
    """1, or the event's value, to a column."""

    column: str
    half_life_s: float
    of_value: bool


class _Affinity(NamedTuple):
    column: str
    half_life_s: float
    field: str


@dataclass(frozen=True)
class _Effects:
    """What an event does."""

    user: tuple[_Add, ...]
    affinities: tuple[_Affinity, ...]
    last: str  # the column of its newest time, if it is kept
    item: tuple[_Add, ...]
    history: bool
    upgrades: frozenset[int]  # entries of the history that become one of it
    upgraded_by: frozenset[int]  # entries that it adds nothing to


def decay(elapsed_ms: float, half_life_s: float) -> float:
    """Weight left after `elapsed_ms`: 1 at 0, one half after one half-life."""
    return math.exp2(-elapsed_ms / (1000.0 * half_life_s))


class Fold:
    """A declaration's events, compiled."""

    def __init__(self, declaration: Declaration, layout: Layout) -> None:
        self._layout = layout
        upgrades, dtype = _upgrades(declaration), layout.profile.dtype
        self._effects = {
            event.id: _Effects(
                user=_adds(declaration, declaration.user_counts, event.name),
                affinities=tuple(
                    _Affinity(affinity_column(declaration, each), each.half_life_s, each.field)
                    for each in declaration.affinities
                    if event.name in each.by
                ),
                last=last if (last := last_column(event)) in (dtype.names or ()) else "",
                item=_adds(declaration, declaration.item_counts, event.name),
                history=event.history,
                upgrades=upgrades[event.id],
                upgraded_by=frozenset(i for i, of in upgrades.items() if event.id in of),
            )
            for event in declaration.events
        }
        self.events = frozenset(self._effects)  # ids
        self.item_fields = tuple({a.field: None for a in declaration.affinities})  # that it reads
        columns = [(count_column(declaration, c), c.half_life_s) for c in declaration.user_counts]
        columns += [
            (affinity_column(declaration, a), a.half_life_s) for a in declaration.affinities
        ]
        self._fading = [(c, h, dtype[c].base.type) for c, h in columns if h != math.inf]
        self._item = [
            (count_column(declaration, count), count.half_life_s)
            for count in declaration.item_counts
        ]

    def user_state(self) -> UserState:
        """Of a user of whom nothing is known."""
        return UserState(
            self._layout.profile.defaults(),
            self._layout.history.defaults(),
            USER_DELIVERY.defaults(),
            USER_OLDER.defaults(),
        )

    def item_state(self) -> ItemState:
        """Of an item that nothing happened to."""
        return ItemState(self._layout.counters.defaults(), ITEM_DELIVERY.defaults())

    def user(self, state: UserState, event: Event, values: Values | None) -> None:
        """Apply one event to a user's profile and history, in place.

        `values` are those of the event's item, None for an unknown item, which changes no affinity;
        a known one without values adds to column 0. KeyError for an event that is not declared.
        """
        effects, profile = self._effects[event.event_type], state.profile
        last_ms, time_ms = int(profile["last_event_ms"]), event.event_time_ms
        if time_ms > last_ms:
            if last_ms:
                for column, half_life_s, kind in self._fading:
                    fading = profile[column]  # a view: to assign it back would copy it
                    fading *= kind(decay(time_ms - last_ms, half_life_s))
            profile["last_event_ms"] = time_ms
        late_ms = max(last_ms - time_ms, 0)  # so much of it has already faded
        for add in effects.user:
            total = profile[add.column]
            total += _amount(add, event, late_ms)
        if values is not None:
            for column, half_life_s, field in effects.affinities:
                shares = profile[column]
                ids = values[field]
                # A table that is ahead has ids that are not declared here.
                known = ids[(ids > 0) & (ids < len(shares))]
                shares[known if known.size else 0] += np.float32(decay(late_ms, half_life_s))
        if effects.last:
            profile[effects.last] = max(int(profile[effects.last]), time_ms)
        if effects.history:
            self.history(state.history, event)

    def history(self, history: np.ndarray, event: Event) -> None:
        """Put an event into the bounded history, newest first by event time, in place.

        An event that upgrades an entry of its item takes that entry over instead of adding one,
        and one whose upgrade is there already adds nothing: one choice, one entry. Among equal
        times the later arrival counts as newer.
        """
        effects = self._effects[event.event_type]
        n, length = int(history["length"]), len(history["item_keys"])
        keys, times, ids = history["item_keys"], history["event_times_ms"], history["event_ids"]
        for i in np.flatnonzero(keys[:n] == np.uint64(event.item_key)):
            found = int(ids[i])
            if found in effects.upgrades:
                ids[i] = event.event_type
                return
            if found in effects.upgraded_by:
                return
        # times[:n] descends; the new entry goes before the first entry that is not newer.
        at = int(np.searchsorted(-times[:n], -event.event_time_ms, side="left"))
        if at >= length:
            return
        end = min(n + 1, length)
        for column, value in (
            (keys, event.item_key),
            (times, event.event_time_ms),
            (ids, event.event_type),
        ):
            column[at + 1 : end] = column[at : end - 1].copy()
            column[at] = value
        history["length"] = end

    def counts_items(self, event_type: int) -> bool:
        """Whether an item's row changes with the event."""
        return bool(self._effects[event_type].item)

    def item(self, state: ItemState, event: Event) -> None:
        """Count one event into an item's counters, in place. KeyError as `user`."""
        effects, counters = self._effects[event.event_type], state.counters
        if not effects.item:
            return
        as_of = int(counters["as_of_ms"])
        if event.event_time_ms > as_of:
            if as_of:
                for column, half_life_s in self._item:
                    if half_life_s != math.inf:
                        counters[column] *= decay(event.event_time_ms - as_of, half_life_s)
            counters["as_of_ms"] = as_of = event.event_time_ms
        for add in effects.item:
            counters[add.column] += _amount(add, event, as_of - event.event_time_ms)

    @property
    def item_columns(self) -> tuple[str, ...]:
        """The columns of items' counts and sums."""
        return tuple(column for column, _ in self._item)

    def counters_at(
        self, counters: np.ndarray, now_ms: int, columns: Sequence[str] | None = None
    ) -> np.ndarray:
        """Counts and sums of items at `now_ms`, those of C columns, by default all that are
        declared: float32[..., C] from records [...]."""
        half_lives_s = dict(self._item)
        columns = list(half_lives_s) if columns is None else columns
        elapsed_ms = np.maximum(now_ms - counters["as_of_ms"], 0)
        found = np.zeros((*np.shape(elapsed_ms), len(columns)), np.float32)
        for i, column in enumerate(columns):
            fading = np.exp2(-(elapsed_ms / (1000.0 * half_lives_s[column])))
            found[..., i] = counters[column] * fading
        return found


def _adds(declaration: Declaration, counts: Iterable[Count], event: str) -> tuple[_Add, ...]:
    return tuple(
        _Add(count_column(declaration, each), each.half_life_s, each.of_value)
        for each in counts
        if each.event == event
    )


def _amount(add: _Add, event: Event, late_ms: int) -> float:
    amount = event.value if add.of_value else 1
    fades = late_ms and add.half_life_s != math.inf
    return amount * decay(late_ms, add.half_life_s) if fades else amount


def _upgrades(declaration: Declaration) -> dict[int, frozenset[int]]:
    """By id: the events that each takes the place of, and those that these take the place of."""
    found: dict[int, frozenset[int]] = {}

    def of(name: str) -> frozenset[int]:
        event = declaration.event[name]
        if event.id not in found:
            direct = [declaration.event[other].id for other in event.upgrades]
            found[event.id] = frozenset(direct).union(*map(of, event.upgrades))
        return found[event.id]

    for event in declaration.events:
        of(event.name)
    return found
