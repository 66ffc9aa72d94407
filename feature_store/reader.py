"""What is served for a row that was read: its values while they are fresh, else the defaults.

Pure functions between the store and its users: the router judges two raw rows per request and
passes them on (`serve_raw`), the ranking replica takes item counters by the hundred (`serve_many`).
Each answer carries an age and a status; who serves counts the statuses, so that a default is never
mistaken for data.

Age is seconds from the row's newest event to now: 0 when the event lies in the future (clocks
disagree), -1 when the declared default is served. A row older than its group's TTL is expired,
whether or not the backend has dropped it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from feature_store import codec
from feature_store.codec import RowStatus
from models.schema.groups import FeatureGroup

NO_AGE_S = -1.0


class ServedRaw(NamedTuple):
    """One row to pass on: as stored if `status` is FRESH, else b""."""

    row: bytes
    age_s: float
    status: RowStatus


class ServedMany(NamedTuple):
    """n records to use: the stored one where `status` is FRESH, else the declared defaults."""

    records: np.ndarray  # group.dtype[n]
    ages_s: np.ndarray  # float64[n]
    status: np.ndarray  # uint8[n] of RowStatus


def serve_raw(group: FeatureGroup, row: bytes | None, now_ms: int) -> ServedRaw:
    """Judge a row by its header and checksum, without decoding it; b"" counts as missing.

    One of an older layout is served as one of now.
    """
    if not row:
        return ServedRaw(b"", NO_AGE_S, RowStatus.MISSING)
    try:
        event_time_ms = codec.checked(group, row)
        if event_time_ms is None:
            row = codec.upgraded(group, row)
            event_time_ms = codec.checked(group, row)
    except codec.RowCorrupt:
        return ServedRaw(b"", NO_AGE_S, RowStatus.CORRUPT)
    if event_time_ms is None:
        return ServedRaw(b"", NO_AGE_S, RowStatus.SCHEMA_MISMATCH)
    if now_ms > codec.expiry_ms(group, event_time_ms):
        return ServedRaw(b"", NO_AGE_S, RowStatus.EXPIRED)
    return ServedRaw(row, max(now_ms - event_time_ms, 0) / 1000.0, RowStatus.FRESH)


def serve_many(group: FeatureGroup, rows: Sequence[bytes | None], now_ms: int) -> ServedMany:
    """The records of n rows of one group, each judged as `serve_raw` judges one."""
    decoded = codec.decode_many(group, rows)
    records, status = decoded.records, decoded.status
    old = now_ms > codec.expiry_ms(group, decoded.event_times_ms)
    status[(status == RowStatus.FRESH) & old] = RowStatus.EXPIRED
    ages_s = np.maximum(now_ms - decoded.event_times_ms, 0) / 1000.0
    stale = status != RowStatus.FRESH
    records[stale] = group.defaults()
    ages_s[stale] = NO_AGE_S
    return ServedMany(records, ages_s, status)
