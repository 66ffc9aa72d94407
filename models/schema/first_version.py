"""Rows as the first version wrote them, and what they are now.

Names of films stood in its layouts. A user's delivery row held 64-bit hashes of the last 1024 event
ids in one ring and was written whole with every event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from models.schema.films import COUNTS, GENRE_CLICKS, ITEM_COUNTS
from models.schema.groups import FOR_EVER_S, Feature, FeatureGroup
from models.schema.progress import MOVED_IDS, OLDER_IDS, USER_DELIVERY, USER_OLDER

DELIVERY = FeatureGroup(
    "user_delivery",
    "user",
    FOR_EVER_S,
    (
        Feature("partitions", "<i4", (4,), default=-1),
        Feature("offsets", "<i8", (4,), default=-1),
        Feature("ring", "<u8", (1024,)),
        Feature("ring_next", "<u4"),
    ),
)


class FirstLayout(NamedTuple):
    """A layout of the first version, and the columns of now with the names that they had."""

    group: FeatureGroup
    columns: Mapping[str, str]


def _of(name: str, entity: str, *features: Feature) -> FeatureGroup:
    return FeatureGroup(name, entity, FOR_EVER_S, features)


_LAYOUTS = (
    FirstLayout(
        _of(
            "profile",
            "user",
            *(Feature(name, "<u4") for name in ("impressions", "clicks", "likes")),
            Feature("last_event_ms", "<i8"),
            Feature("genre_clicks", "<f4", (20,)),
        ),
        {
            **dict(zip(COUNTS, ("impressions", "clicks", "likes"), strict=True)),
            "last_event_ms": "last_event_ms",
            GENRE_CLICKS: "genre_clicks",
        },
    ),
    FirstLayout(
        _of(
            "history",
            "user",
            Feature("length", "<u2"),
            Feature("item_keys", "<u8", (200,)),
            Feature("event_times_ms", "<i8", (200,)),
            Feature("event_types", "<u1", (200,)),
        ),
        {
            "length": "length",
            "item_keys": "item_keys",
            "event_times_ms": "event_times_ms",
            "event_ids": "event_types",
        },
    ),
    FirstLayout(
        _of(
            "counters",
            "item",
            *(Feature(name, "<f8") for name in ("views", "clicks", "likes")),
            Feature("as_of_ms", "<i8"),
        ),
        {**dict(zip(ITEM_COUNTS, ("clicks", "likes"), strict=True)), "as_of_ms": "as_of_ms"},
    ),
)
FIRST_LAYOUTS: Mapping[int, FirstLayout] = {first.group.hash: first for first in _LAYOUTS}


class SplitDelivery(NamedTuple):
    """Records of USER_DELIVERY and USER_OLDER."""

    delivery: np.ndarray
    older: np.ndarray


def split_delivery(record: np.ndarray, event_time_ms: int) -> SplitDelivery:
    """The records of now that know what `record`, one of DELIVERY, knows."""
    delivery, older = USER_DELIVERY.defaults(), USER_OLDER.defaults()
    for name in ("partitions", "offsets"):
        delivery[name] = record[name]
    hashes = np.roll(record["ring"], -int(record["ring_next"]))
    digests = np.maximum(hashes[hashes > 0] >> np.uint64(24), 1)
    moved = min(len(digests) // MOVED_IDS * MOVED_IDS, OLDER_IDS)
    before, since = digests[:moved], digests[moved:]
    for row, low, high, ids in (
        (delivery, "recent_low", "recent_high", since),
        (older, "low", "high", before),
    ):
        row[low][: len(ids)] = ids & np.uint64(0xFFFF_FFFF)
        row[high][: len(ids)] = ids >> np.uint64(32)
    delivery["recent"] = len(since)
    older["next"] = len(before) % OLDER_IDS
    older["moved_ms"] = event_time_ms if len(before) else 0
    return SplitDelivery(delivery, older)
