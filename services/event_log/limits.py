"""What every backend refuses: names and sizes that one of them could not store, and to read a log
that is no longer the one that was read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from services.event_log.interface import MAX_RECORD_BYTES, LogWentBack, Record

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
MAX_KEY_BYTES = 0xFFFF
LATEST_MS = 2**63 - 1


def check_name(what: str, name: str) -> None:
    """ValueError unless the name is safe as a directory and as a Kafka topic."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{what} {name!r} must be 1..200 letters, digits, '.', '_' or '-'")


def check_append(topic: str, records: Sequence[Record], keyed: bool = False) -> None:
    """ValueError for what no backend can store; `keyed`: for a record without a key, too."""
    check_name("topic", topic)
    for record in records:
        if not (isinstance(record.key, bytes) and isinstance(record.value, bytes)):
            raise ValueError("the key and the value of a record must be bytes")
        if len(record.key) > MAX_KEY_BYTES:
            raise ValueError(f"a key may have {MAX_KEY_BYTES} bytes, not {len(record.key)}")
        if not (isinstance(record.time_ms, int) and 0 <= record.time_ms <= LATEST_MS):
            raise ValueError(f"a time must be 0..{LATEST_MS} ms since 1970, not {record.time_ms}")
        size = len(record.key) + len(record.value)
        if size > MAX_RECORD_BYTES:
            raise ValueError(f"a record may have {MAX_RECORD_BYTES} bytes, not {size}")
    if keyed and not all(record.key for record in records):
        raise ValueError(f"a record of topic {topic}, which is compacted, must have a key")


def check_start(start: Mapping[int, int]) -> None:
    """ValueError unless these can be offsets by partition."""
    for number, offset in start.items():
        if not (type(number) is type(offset) is int and number >= 0 and offset >= 0):
            raise ValueError(f"a start must be an offset by partition, not {number!r}: {offset!r}")


def went_back(topic: str, what: str) -> LogWentBack:
    """The refusal to read on, with what to do."""
    return LogWentBack(
        f"topic {topic} went back: {what}. What its readers keep may count records that it no"
        " longer has: put the log back as it was, or let them begin anew (restart them; for the"
        " feature store: `tandem features rebuild`)"
    )


def unknown_partition(
    topic: str, start: Mapping[int, int], partitions: Collection[int]
) -> LogWentBack | None:
    """The refusal to read on in a topic that has no longer all the partitions that were read."""
    if unknown := sorted(start.keys() - set(partitions)):
        return went_back(topic, f"it has no partition {unknown[0]}, which was read")
    return None
