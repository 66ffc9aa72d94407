"""From UserContext messages to model inputs, for both model services."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from prometheus_client import Counter

from feature_store import codec
from models.catalogue import ItemTable
from models.inputs import UserBatch, user_batch
from models.schema import HISTORY, PROFILE, FeatureGroup
from protos.tandem.v1.features_pb2 import UserContext
from services.common.rpc import invalid

UNREADABLE = Counter(
    "tandem_user_rows_unreadable_total",
    "User rows that a replica could not read and served as defaults; more than none during a"
    " rollout means that router and replicas are of builds with different schemas.",
    ["group"],
)


def _records(group: FeatureGroup, rows: Sequence[bytes]) -> np.ndarray:
    decoded = codec.decode_many(group, rows)
    stale = decoded.status != codec.RowStatus.FRESH
    decoded.records[stale] = group.defaults()
    if stale.any():
        unreadable = np.count_nonzero(stale & (decoded.status != codec.RowStatus.MISSING))
        UNREADABLE.labels(group.name).inc(int(unreadable))
    return decoded.records


def batch_of_users(contexts: Sequence[UserContext], items: ItemTable) -> UserBatch:
    """B users' inputs; an empty or unreadable row stands for the schema's defaults."""
    return user_batch(
        _records(PROFILE, [c.profile_row for c in contexts]),
        _records(HISTORY, [c.history_row for c in contexts]),
        np.fromiter((c.now_ms for c in contexts), np.int64, len(contexts)),
        items,
    )


def unpack_keys(field: str, data: bytes, limit: int) -> np.ndarray:
    """uint64[n] from a packed field; refuses a broken length and more than `limit` keys."""
    if len(data) % 8:
        raise invalid(field, f"{len(data)} bytes are no whole number of uint64")
    if len(data) > 8 * limit:
        raise invalid(field, f"{len(data) // 8} keys; at most {limit} are accepted")
    return np.frombuffer(data, "<u8")
