"""Packed rows: a checked header in front of a feature group's values, exactly as numpy holds them.

The feature updater encodes rows, the store moves them, the router passes them on untouched, and the
replicas decode them. Little-endian, in this order:

    checksum     u64    xxh3_64 of everything after it
    schema_hash  u64    the layout (models/schema/groups.py), the group's or an older one of it
    event_time   i64    ms; event time of the newest event in the row
    version      u64    grows by one per write of the entity; the store's guard compares it
    values              group.dtype, packed

Decoding builds no Python object per feature: one row is one buffer, n rows are one joined buffer.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import xxhash

from feature_store.interface import GuardedWrite
from models.schema import first_version
from models.schema.groups import FeatureGroup
from models.schema.migration import moved
from models.schema.progress import USER_DELIVERY, USER_OLDER

_HEADER = struct.Struct("<QQqQ")
_CHECKSUM_BYTES = 8
HEADER_BYTES = _HEADER.size
VERSION_AT = 24  # the version's place in a row: the Redis guard reads these eight bytes itself
_MAX_VERSION = 2**64 - 1

_Ms = TypeVar("_Ms", int, np.ndarray)


class RowCorrupt(Exception):
    """A row whose bytes are not what was written: truncated, or the checksum disagrees."""


class RowStatus(IntEnum):
    """What was found where a row should be. EXPIRED is the reader's verdict, not the codec's."""

    FRESH = 0
    MISSING = 1
    EXPIRED = 2
    SCHEMA_MISMATCH = 3
    CORRUPT = 4


class Row(NamedTuple):
    """A decoded row: `record` is a writable 0-d structured array of the group's dtype."""

    record: np.ndarray
    event_time_ms: int


class Rows(NamedTuple):
    """n decoded rows; where `status` is not FRESH the record holds the declared defaults."""

    records: np.ndarray  # group.dtype[n]
    event_times_ms: np.ndarray  # int64[n]; 0 where there is no row
    status: np.ndarray  # uint8[n] of RowStatus: FRESH, MISSING, SCHEMA_MISMATCH or CORRUPT


def encode(
    group: FeatureGroup,
    record: np.ndarray,
    event_time_ms: int,
    version: int,
    over: bytes | None = None,
) -> bytes:
    """The packed row of `record` (0-d, group.dtype) in the layout that is written in the place of
    the row `over`."""
    if record.dtype != group.dtype or record.shape != ():
        raise TypeError(f"not one record of group {group.name!r}: {record.dtype} {record.shape}")
    layout = layout_over(group, over)
    return packed(layout, values(group, record, layout, over), event_time_ms, version)


def packed(layout: FeatureGroup, values: bytes, event_time_ms: int, version: int) -> bytes:
    """The row of `values` (see there) of a layout."""
    row = _HEADER.pack(0, layout.hash, event_time_ms, version) + values
    return _checksum(row).to_bytes(_CHECKSUM_BYTES, "little") + row[_CHECKSUM_BYTES:]


def layout_over(group: FeatureGroup, over: bytes | None) -> FeatureGroup:
    """The layout in which a row is written in the place of `over`: the one that the group writes,
    and its own where that is to stay."""
    if group.writes is None:
        return group
    there = layout_hash(over) if over and len(over) >= HEADER_BYTES else 0
    if there in group.stay:
        return group.older_by_hash.get(there, group)
    return group.writes


def values(
    group: FeatureGroup, record: np.ndarray, layout: FeatureGroup, over: bytes | None = None
) -> bytes:
    """What follows the header in a row of a layout of the group in the place of `over`, of which
    values that the group has no more are kept."""
    if layout is group:
        return record.tobytes()
    onto = None
    if over:
        with contextlib.suppress(RowCorrupt):
            found = decode(layout, over)
            onto = None if found is None else found.record
    return moved(record, group, layout, onto).tobytes()


def checked(group: FeatureGroup, row: bytes) -> int | None:
    """The event time (ms) of an undamaged row; None when it was written under another schema.

    Raises RowCorrupt when the bytes are not what was written.
    """
    if len(row) < HEADER_BYTES:
        raise RowCorrupt(f"{len(row)} bytes are less than a header")
    checksum, schema_hash, event_time_ms, _ = _HEADER.unpack_from(row)
    if checksum != _checksum(row):
        raise RowCorrupt("the checksum disagrees with the row")
    if schema_hash != group.hash:
        return None
    if len(row) != HEADER_BYTES + group.dtype.itemsize:
        raise RowCorrupt(f"{len(row)} bytes are not a row of group {group.name!r}")
    return event_time_ms


def status_of(group: FeatureGroup, row: bytes | None) -> RowStatus:
    """What a row is by its header and checksum; b"" counts as missing."""
    if not row:
        return RowStatus.MISSING
    try:
        known = checked(group, row) is not None
    except RowCorrupt:
        return RowStatus.CORRUPT
    return RowStatus.FRESH if known else RowStatus.SCHEMA_MISMATCH


def layout_hash(row: bytes) -> int:
    """The hash of the layout that an undamaged row was written under."""
    layout: int = _HEADER.unpack_from(row)[1]
    return layout


def upgraded(group: FeatureGroup, row: bytes) -> bytes:
    """An undamaged row of an older layout of the group as one of now; any other as it is.

    Raises RowCorrupt as `checked`.
    """
    now = _migrated(group, row)
    if now is None:
        return row
    return packed(group, now.record.tobytes(), now.event_time_ms, row_version(row))


def _migrated(group: FeatureGroup, row: bytes) -> Row | None:
    """The record of an undamaged row of an older layout of the group; None for any other."""
    older = group.older_by_hash.get(layout_hash(row))
    if older is None or (found := decode(older, row)) is None:
        return None
    return found._replace(record=moved(found.record, older, group))


def split_delivery(
    delivery_row: bytes | None, older_row: bytes | None
) -> tuple[bytes | None, bytes | None]:
    """The two rows that say which events a user's rows have; of the first version's one row, both.

    Rows that cannot be read are left to who judges them.
    """
    row, of_first = delivery_row or b"", first_version.DELIVERY.hash
    if len(row) < HEADER_BYTES or layout_hash(row) != of_first:  # most, before a look at the rest
        return delivery_row, older_row
    try:
        first = decode(first_version.DELIVERY, row)
    except RowCorrupt:
        first = None
    if first is None:
        return delivery_row, older_row
    made = first_version.split_delivery(first.record, first.event_time_ms)
    version = row_version(delivery_row)
    return (
        encode(USER_DELIVERY, made.delivery, first.event_time_ms, version),
        encode(USER_OLDER, made.older, first.event_time_ms, version),
    )


def decode(group: FeatureGroup, row: bytes) -> Row | None:
    """The row's record; None and RowCorrupt as in `checked`."""
    event_time_ms = checked(group, row)
    if event_time_ms is None:
        return _migrated(group, row)
    record = np.frombuffer(row, group.dtype, 1, HEADER_BYTES).copy().reshape(())
    return Row(record, event_time_ms)


def decode_many(group: FeatureGroup, rows: Sequence[bytes | None]) -> Rows:
    """Decode the rows of n entities at once; None and b"" are missing rows."""
    n, layout = len(rows), _row_dtype(group)
    judged = bytearray([status_of(group, row) for row in rows])
    status = np.frombuffer(judged, np.uint8)
    found = status == RowStatus.FRESH
    whole = b"".join([row for row, ok in zip(rows, found, strict=True) if row and ok])
    packed = np.frombuffer(whole, layout)
    records = np.full(n, group.defaults(), group.dtype)
    records[found] = packed["values"]
    event_times_ms = np.zeros(n, np.int64)
    event_times_ms[found] = packed["event_time_ms"]
    if RowStatus.SCHEMA_MISMATCH in judged:  # cheaper than to ask an array
        _add_older(group, rows, Rows(records, event_times_ms, status))
    return Rows(records, event_times_ms, status)


def _add_older(group: FeatureGroup, rows: Sequence[bytes | None], found: Rows) -> None:
    """Put in the rows of older layouts, those of one layout at a time."""
    other = np.flatnonzero(found.status == RowStatus.SCHEMA_MISMATCH).tolist()
    by_layout: dict[int, list[int]] = {}
    for i in other:
        by_layout.setdefault(layout_hash(rows[i] or b""), []).append(i)
    for older in group.older:
        if at := by_layout.get(older.hash):
            there = decode_many(older, [rows[i] for i in at])
            found.records[at] = moved(there.records, older, group)
            found.event_times_ms[at] = there.event_times_ms
            found.status[at] = there.status


def row_version(row: bytes | None) -> int:
    """The version a store's guard compares; 0 for no row and for one too short to hold any.

    Deliberately blind to checksum and schema, so that a damaged row can still be replaced.
    """
    if row is None or len(row) < VERSION_AT + 8:
        return 0
    return int.from_bytes(row[VERSION_AT : VERSION_AT + 8], "little")


def expiry_ms(group: FeatureGroup, event_time_ms: _Ms) -> _Ms:
    """The last moment (ms) at which a row of that event time (or array of them) is served."""
    return event_time_ms + group.ttl_ms


def event_time_of(row: bytes) -> int:
    """The event time (ms) a store expires a row by; blind to the checksum, as row_version is."""
    return _HEADER.unpack_from(row)[2] if len(row) >= HEADER_BYTES else 0


def guarded_write(
    entity_id: str,
    guard_group: FeatureGroup,
    expected_version: int,
    records: Mapping[FeatureGroup, np.ndarray],
    event_time_ms: int,
) -> GuardedWrite:
    """Encode records of one entity as the successors of what was read.

    `expected_version` is row_version of the guard row as read, before anything else was read.
    """
    version = next_version(expected_version)
    rows = {g.name: encode(g, record, event_time_ms, version) for g, record in records.items()}
    return GuardedWrite(entity_id, guard_group.name, expected_version, rows)


def next_version(version: int) -> int:
    """The version of what is written in the place of a row."""
    return version + 1 if version < _MAX_VERSION else 1


def _checksum(row: bytes) -> int:
    # A copy of some kilobytes costs less than a view of them.
    return xxhash.xxh3_64_intdigest(row[_CHECKSUM_BYTES:])


@cache
def _row_dtype(group: FeatureGroup) -> np.dtype:
    header = [("checksum", "<u8"), ("schema_hash", "<u8"), ("event_time_ms", "<i8")]
    return np.dtype([*header, ("version", "<u8"), ("values", group.dtype)])
