"""What the first version wrote otherwise than by a declared layout, as it is now.

A user's delivery row held 64-bit hashes of the last 1024 event ids in one ring and was written
whole with every event. (The layouts of the other rows stand in the schema.lock of the films; its
artifacts are refused.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

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
