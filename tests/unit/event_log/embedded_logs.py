"""Embedded logs for the tests: opening, filling and reading them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from services.event_log.embedded import EmbeddedEventLog
from services.event_log.interface import LogRecord, Record
from services.event_log.partition import Partition

PATIENCE_S = 60.0
DAY_MS = 86_400_000
SEGMENT_BYTES = 1 << 20


def record(value: bytes = b"value", time_ms: int = 7, key: bytes = b"k") -> Record:
    return Record(key, value, time_ms)


def open_log(root: Path, **options: object) -> EmbeddedEventLog:
    # At time 0 nothing expires.
    return EmbeddedEventLog(root, **{"partitions": 1, "clock": lambda: 0.0, **options})


def read_all(root: Path, topic: str = "t", group: str = "reader") -> list[LogRecord]:
    """Every durable record of the topic, read as a new group would."""
    log = open_log(root)
    consumer = log.consumer(topic, group)
    records = []
    consumer.poll(1, 0.0)
    consumer.rewind()
    while consumer.lag().events:
        records += consumer.poll(1000, 0.0)
    consumer.close()
    log.close()
    return records


def append_direct(directory: Path, *values: bytes) -> None:
    partition = Partition(directory, 0)
    partition.append([record(value) for value in values], SEGMENT_BYTES)
    partition.close()


def expire(topic: Path, oldest_ms: int) -> int:
    """Delete the segments of partition 0 that are older; how many."""
    with contextlib.closing(Partition(topic / "0", 0)) as partition:
        return len(partition.enforce_retention(oldest_ms))
