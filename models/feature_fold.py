"""How an event changes features: the one definition that training and serving share.

Training replays the event table through these functions and takes each example's features just
before its event; the feature updater (`services/feedback/updater.py`) applies the same functions to
rows of the feature store. A parity test pushes the same events both ways and compares exactly.

All state is numpy records of the groups in `models/schema/rows.py`; time is event time (ms), so a
late event lands where it belongs and nothing here reads a clock.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import xxhash

from models.schema import rows
from models.schema.rows import CLICK, HISTORY_LENGTH, IMPRESSION, LIKE


class Event(NamedTuple):
    """One feedback event as the fold needs it."""

    event_id: str
    user_id: str
    item_key: int
    event_type: int
    event_time_ms: int


class UserState:
    """A user's rows: `profile`, `history`, and what was already applied, `delivery` and `older`."""

    __slots__ = ("delivery", "history", "older", "profile")

    def __init__(
        self,
        profile: np.ndarray | None = None,
        history: np.ndarray | None = None,
        delivery: np.ndarray | None = None,
        older: np.ndarray | None = None,
    ) -> None:
        self.profile = rows.PROFILE.defaults() if profile is None else profile
        self.history = rows.HISTORY.defaults() if history is None else history
        self.delivery = rows.USER_DELIVERY.defaults() if delivery is None else delivery
        self.older = rows.USER_OLDER.defaults() if older is None else older


class ItemState:
    """An item's rows: `counters` and `delivery` (the last offset applied per partition)."""

    __slots__ = ("counters", "delivery")

    def __init__(
        self, counters: np.ndarray | None = None, delivery: np.ndarray | None = None
    ) -> None:
        self.counters = rows.COUNTERS.defaults() if counters is None else counters
        self.delivery = rows.ITEM_DELIVERY.defaults() if delivery is None else delivery


def decay(elapsed_ms: float, half_life_s: float) -> float:
    """Weight left after `elapsed_ms`: 1 at 0, one half after one half-life."""
    return math.exp2(-elapsed_ms / (1000.0 * half_life_s))


def fold_user(state: UserState, event: Event, genres: np.ndarray | None) -> None:
    """Apply one event to a user's profile and history, in place.

    `genres` is the item's multi-hot row (float32[GENRE_SLOTS]), None for an unknown item.
    """
    profile = state.profile
    last_ms = int(profile["last_event_ms"])
    if event.event_type == IMPRESSION:
        profile["impressions"] += 1
    elif event.event_type == CLICK:
        profile["clicks"] += 1
        if genres is not None:
            totals = profile["genre_clicks"]
            if event.event_time_ms >= last_ms:
                # The totals refer to last_event_ms; bring them to this event, then add it.
                if last_ms:
                    totals *= np.float32(
                        decay(event.event_time_ms - last_ms, rows.GENRE_HALF_LIFE_S)
                    )
                totals += genres
            else:  # late: it has already faded by now
                weight = decay(last_ms - event.event_time_ms, rows.GENRE_HALF_LIFE_S)
                totals += genres * np.float32(weight)
    elif event.event_type == LIKE:
        profile["likes"] += 1
    if event.event_time_ms > last_ms:
        if event.event_type != CLICK and last_ms:
            profile["genre_clicks"] *= np.float32(
                decay(event.event_time_ms - last_ms, rows.GENRE_HALF_LIFE_S)
            )
        profile["last_event_ms"] = event.event_time_ms
    if event.event_type != IMPRESSION:
        fold_history(state.history, event)


def fold_history(history: np.ndarray, event: Event) -> None:
    """Put a click or like into the bounded history, newest first by event time, in place.

    A like of an item whose click is in the history turns that entry into a like instead of
    adding one, and a click that arrives after its like adds nothing: one choice, one entry. Among
    equal times the later arrival counts as newer.
    """
    n = int(history["length"])
    keys, times, types = history["item_keys"], history["event_times_ms"], history["event_types"]
    twin = CLICK if event.event_type == LIKE else LIKE
    for i in np.flatnonzero(keys[:n] == np.uint64(event.item_key)):
        if types[i] == twin:
            types[i] = LIKE
            return
    # times[:n] descends; the new entry goes before the first entry that is not newer.
    at = int(np.searchsorted(-times[:n], -event.event_time_ms, side="left"))
    if at >= HISTORY_LENGTH:
        return
    end = min(n + 1, HISTORY_LENGTH)
    for column, value in ((keys, event.item_key), (times, event.event_time_ms)):
        column[at + 1 : end] = column[at : end - 1].copy()
        column[at] = value
    types[at + 1 : end] = types[at : end - 1].copy()
    types[at] = event.event_type
    history["length"] = end


def fold_item(state: ItemState, event: Event) -> None:
    """Count one event into an item's decayed views, clicks or likes, in place."""
    counters = state.counters
    as_of = int(counters["as_of_ms"])
    if event.event_time_ms > as_of:
        if as_of:
            weight = decay(event.event_time_ms - as_of, rows.COUNTER_HALF_LIFE_S)
            for name in ("views", "clicks", "likes"):
                counters[name] *= weight
        counters["as_of_ms"] = as_of = event.event_time_ms
    name = {IMPRESSION: "views", CLICK: "clicks", LIKE: "likes"}[event.event_type]
    counters[name] += decay(as_of - event.event_time_ms, rows.COUNTER_HALF_LIFE_S)


def counters_at(counters: np.ndarray, now_ms: int) -> np.ndarray:
    """Views, clicks and likes decayed to `now_ms`: float32[..., 3] from records [...]."""
    elapsed = np.maximum(now_ms - counters["as_of_ms"], 0) / (1000.0 * rows.COUNTER_HALF_LIFE_S)
    weight = np.exp2(-elapsed)
    columns = [counters["views"], counters["clicks"], counters["likes"]]
    return (np.stack(columns, axis=-1) * weight[..., None]).astype(np.float32)


def event_id_digest(event_id: str) -> int:
    """What rows keep of an event id, 40 bits; never 0, which marks an empty slot.

    An event is taken for a retry of another one with a chance of 1024 in 2^40, one in 10^9.
    """
    return xxhash.xxh3_64_intdigest(event_id.encode()) >> 24 or 1


def applied_ids(delivery: np.ndarray, older: np.ndarray) -> np.ndarray:
    """uint64[n]: the digests of the event ids that the two rows know; 0 for empty slots."""
    low = np.concatenate([delivery["recent_low"], older["low"]]).astype(np.uint64)
    return low | np.concatenate([delivery["recent_high"], older["high"]]).astype(np.uint64) << 32


def admit_user_event(
    delivery: np.ndarray, older: np.ndarray, partition: int, offset: int, event: Event
) -> bool:
    """Whether this delivery is the event's first for the user; remembers it if so, in place.

    A record at or below its partition's watermark was applied before (replay). A record above it
    whose event id is known is a client's retry that became a second record: it moves the watermark
    and is not applied.
    """
    partitions, offsets = delivery["partitions"], delivery["offsets"]
    slots = np.flatnonzero(partitions == partition)
    if slots.size:
        slot = int(slots[0])
        if offset <= offsets[slot]:
            return False
    else:
        empty = np.flatnonzero(partitions < 0)
        slot = int(empty[0]) if empty.size else int(np.argmin(offsets))
        partitions[slot] = partition
    offsets[slot] = offset
    digest = event_id_digest(event.event_id)
    low, high = digest & 0xFFFF_FFFF, digest >> 32
    if _holds(delivery["recent_low"], delivery["recent_high"], low, high):
        return False
    if _holds(older["low"], older["high"], low, high):
        return False
    at = int(delivery["recent"])
    if at == rows.RECENT_IDS:
        at = _make_room(delivery, older)
        older["moved_ms"] = max(int(older["moved_ms"]), event.event_time_ms)
    delivery["recent_low"][at] = low
    delivery["recent_high"][at] = high
    delivery["recent"] = at + 1
    return True


def _holds(lows: np.ndarray, highs: np.ndarray, low: int, high: int) -> bool:
    return bool((highs[lows == low] == high).any())


def _make_room(delivery: np.ndarray, older: np.ndarray) -> int:
    """Move the oldest of the recent ids to the older ones; how many are left."""
    moved, start = rows.MOVED_IDS, int(older["next"])
    for recent, ring in (("recent_low", "low"), ("recent_high", "high")):
        older[ring][start : start + moved] = delivery[recent][:moved]
        delivery[recent][:-moved] = delivery[recent][moved:]
    older["next"] = (start + moved) % rows.OLDER_IDS
    return rows.RECENT_IDS - moved


def admit_item_event(delivery: np.ndarray, partition: int, offset: int) -> bool:
    """Whether the item's counters have not yet seen this record; remembers it if so, in place."""
    if offset <= delivery["offsets"][partition]:
        return False
    delivery["offsets"][partition] = offset
    return True
