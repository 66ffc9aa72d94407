"""What every backend refuses: names and sizes that one of them could not store, and to read a log
that is no longer the one that was read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from services.event_log.interface import MAX_RECORD_BYTES, LogWentBack, Record

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
MAX_KEY_BYTES = 0xFFFF
LATEST_MS = 2**63 - 1


def check_name(what: str, name: str) -> None:
    """ValueError unless the name is safe as a directory and as a Kafka topic."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{what} {name!r} must be 1..200 letters, digits, '.', '_' or '-'")


def check_append(topic: str, records: Sequence[Record]) -> None:
    """ValueError for what no backend can store."""
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


def went_back(topic: str, what: str) -> LogWentBack:
    """The refusal to read on, with what to do."""
    return LogWentBack(
        f"topic {topic} went back: {what}. What its readers keep may count records that it no"
        " longer has: put the log back as it was, or let them begin anew (restart them; for the"
        " feature store: `tandem features rebuild`)"
    )
