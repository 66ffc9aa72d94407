"""Which records of the event log rows have counted: what is kept for that, and how it is asked.

A user's rows keep the last offset of each partition and digests of the last event ids: the newest
in the row that is written with every event, and OLDER_IDS before them in a row of their own, to
which MOVED_IDS are moved at a time. An item's row keeps the last offset of each partition.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import xxhash

from models.schema.groups import FOR_EVER_S, Feature, FeatureGroup

EVENT_IDS = 1024  # a client's retry is recognised among the user's last so many events
RECENT_IDS, MOVED_IDS, OLDER_IDS = 64, 32, 992
WATERMARK_SLOTS = 4  # partitions remembered per user; more than one only after re-partitioning
MAX_PARTITIONS = 64  # of the feedback topic: an item's counters keep a watermark for each

USER_DELIVERY = FeatureGroup(
    "user_delivery",
    "user",
    FOR_EVER_S,
    (
        Feature("partitions", "<i4", (WATERMARK_SLOTS,), default=-1),
        Feature("offsets", "<i8", (WATERMARK_SLOTS,), default=-1, doc="last offset applied"),
        Feature("recent_low", "<u4", (RECENT_IDS,), doc="digests of event ids, oldest first"),
        Feature("recent_high", "<u1", (RECENT_IDS,)),
        Feature("recent", "<u1", doc="how many there are"),
    ),
)
USER_OLDER = FeatureGroup(
    "user_older",
    "user",
    FOR_EVER_S,
    (
        Feature("low", "<u4", (OLDER_IDS,), doc="digests of the ids before them, a ring"),
        Feature("high", "<u1", (OLDER_IDS,)),
        Feature("next", "<u2", doc="slot that the next ones overwrite"),
        Feature("moved_ms", "<i8", doc="newest event time when ids were moved here"),
    ),
)
ITEM_DELIVERY = FeatureGroup(
    "item_delivery",
    "item",
    FOR_EVER_S,
    (Feature("offsets", "<i8", (MAX_PARTITIONS,), default=-1, doc="last offset applied"),),
)
SOURCE = FeatureGroup(
    "source",
    "log",
    FOR_EVER_S,
    (Feature("identity", "<u8", doc="xxh3 of the identity of the topic read"),),
)
APPLIED = FeatureGroup(
    "applied",
    "log",
    FOR_EVER_S,
    (Feature("next_offset", "<i8", doc="records before it, of one partition, are in the rows"),),
)


class Sent(Protocol):
    """What `admit_user_event` asks of an event."""

    @property
    def event_id(self) -> str: ...
    @property
    def event_time_ms(self) -> int: ...


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
    delivery: np.ndarray, older: np.ndarray, partition: int, offset: int, event: Sent
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
    if at == RECENT_IDS:
        at = _make_room(delivery, older)
        older["moved_ms"] = max(int(older["moved_ms"]), event.event_time_ms)
    delivery["recent_low"][at] = low
    delivery["recent_high"][at] = high
    delivery["recent"] = at + 1
    return True


def _holds(lows: np.ndarray, highs: np.ndarray, low: int, high: int) -> bool:
    at = np.flatnonzero(lows == low)
    return bool(at.size) and bool((highs[at] == high).any())


def _make_room(delivery: np.ndarray, older: np.ndarray) -> int:
    """Move the oldest of the recent ids to the older ones; how many are left."""
    moved, start = MOVED_IDS, int(older["next"])
    for recent, ring in (("recent_low", "low"), ("recent_high", "high")):
        older[ring][start : start + moved] = delivery[recent][:moved]
        delivery[recent][:-moved] = delivery[recent][moved:]
    older["next"] = (start + moved) % OLDER_IDS
    return RECENT_IDS - moved


def admit_item_event(delivery: np.ndarray, partition: int, offset: int) -> bool:
    """Whether the item's counters have not yet seen this record; remembers it if so, in place."""
    if offset <= delivery["offsets"][partition]:
        return False
    delivery["offsets"][partition] = offset
    return True
