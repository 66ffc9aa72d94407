"""Rows of users, written to and read from a feature store by the tests."""

from __future__ import annotations

import multiprocessing
import time

from feature_store import codec
from feature_store.connect import connect
from feature_store.interface import FeatureStore, GuardedWrite, RowKey
from models.data.worlds.films.schema import CLICKS, GROUPS, HISTORY, PROFILE
from models.schema.progress import USER_DELIVERY
from tests.served import serve_one

NOW_MS = int(time.time() * 1000)  # Redis expires by the real clock
DEADLINE_S = 60.0
USER_GROUPS = (USER_DELIVERY, PROFILE, HISTORY)


spawn = multiprocessing.get_context("spawn")


def open_store(
    url: str,
    *,
    installation: str | None = None,
    timeout_ms: float = 2_000.0,
    map_size_mb: int = 64,
) -> FeatureStore:
    return connect(
        url,
        GROUPS,
        installation=installation,
        timeout_ms=timeout_ms,
        lmdb_map_size_mb=map_size_mb,
    )


def user_write(
    user_id: str, expected_version: int, clicks: int, event_time_ms: int = NOW_MS
) -> GuardedWrite:
    """A write of all of a user's rows, each of which says `clicks`."""
    delivery, profile, history = (group.defaults() for group in USER_GROUPS)
    delivery["recent"] = profile[CLICKS] = history["length"] = clicks
    records = dict(zip(USER_GROUPS, (delivery, profile, history), strict=True))
    return codec.guarded_write(user_id, USER_DELIVERY, expected_version, records, event_time_ms)


def user_keys(user_id: str) -> list[RowKey]:
    return [RowKey(group.name, user_id) for group in USER_GROUPS]


def clicks_of(rows: list[bytes | None]) -> list[int]:
    """What each of a user's rows says, in the order of user_keys."""
    fields = ("recent", CLICKS, "length")
    return [
        int(serve_one(group, row, NOW_MS).record[field])
        for group, row, field in zip(USER_GROUPS, rows, fields, strict=True)
    ]
