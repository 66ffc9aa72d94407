"""Event logs for the tests, each with what can be done to it behind its back; and reading them."""

from __future__ import annotations

import contextlib
import fcntl
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition

from services.common.settings import EventLogSettings
from services.event_log.connect import connect
from services.event_log.group import Group, Position
from services.event_log.interface import (
    Consumer,
    EventLog,
    LogRecord,
    LogUnavailable,
    Record,
    TopicReader,
)

PATIENCE_S = 60.0
NOW_MS = int(time.time() * 1000)


class Backend:
    """One kind of log, its URL, and what can be done to it behind its back."""

    def __init__(
        self,
        url: str,
        stall: Callable[[str], contextlib.AbstractContextManager],
        delete: Callable[[str], None],
        move_group: Callable[[str, str, int], None],
    ) -> None:
        """`stall(topic)` keeps it from acknowledging anything for a while, `delete(topic)` removes
        a topic, `move_group(topic, group, offset)` lets a group have read partition 0 up to there.
        """
        self.url = url
        self.stall = stall
        self.delete = delete
        self.move_group = move_group
        self._open: list[EventLog] = []

    def open(
        self,
        clock: Callable[[], float] = time.time,
        installation: str | None = None,
        compacted: Collection[str] = (),
        **options: object,
    ) -> EventLog:
        """The log of an installation: on one broker, or in a folder of its own. What the settings
        would refuse they take here: segments of some bytes."""
        url = self.url
        if installation and url.startswith("log://"):
            url += f"-of-{installation}"
        settings = EventLogSettings(url=url).model_copy(update=options)
        log = connect(settings, installation, clock, compacted)
        self._open.append(log)
        return log

    def close(self) -> None:
        for log in self._open:
            log.close()


def move_embedded_group(root: Path, topic: str, group: str, offset: int) -> None:
    member = Group(root / topic / "groups" / group)
    member.commit(0, Position(offset, 0, offset * 1000))
    member.leave()


def move_kafka_group(admin: KafkaAdminClient, topic: str, group: str, offset: int) -> None:
    moved = {TopicPartition(topic, 0): OffsetAndMetadata(offset, "", -1)}
    admin.alter_group_offsets(f"{group}.{topic}", moved)


@contextlib.contextmanager
def locked(topic: Path) -> Iterator[None]:
    """Hold the locks of the partitions that were written so far, as another writer would."""
    with contextlib.ExitStack() as stack:
        for path in topic.glob("*/lock"):
            fcntl.flock(stack.enter_context(path.open()), fcntl.LOCK_EX)
        yield


def new_name() -> str:
    return f"t-{uuid.uuid4().hex}"


def records(count: int, prefix: str = "v") -> list[Record]:
    return [Record(f"k{i}".encode(), f"{prefix}{i}".encode(), NOW_MS + i) for i in range(count)]


def append_when_possible(log: EventLog, topic: str, appended: Sequence[Record]) -> None:
    """A broker takes a moment to forget a topic that was deleted."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return log.append(topic, appended).result()
        except LogUnavailable:
            assert time.monotonic() < deadline


def read(consumer: Consumer | TopicReader, count: int) -> list[LogRecord]:
    """Poll until `count` records came."""
    got: list[LogRecord] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < count:
        assert time.monotonic() < deadline, f"{len(got)} of {count} records came"
        got += consumer.poll(1000, 0.1)
    return got


def read_until(consumers: Sequence[Consumer], done: Callable[[], bool]) -> list[LogRecord]:
    """Poll the consumers in turn until the condition holds; what they returned meanwhile."""
    got: list[LogRecord] = []
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, [sorted(c.assigned()) for c in consumers]
        for consumer in consumers:
            got += consumer.poll(1000, 0.05)
    return got


def read_to_end(reader: TopicReader, max_records: int = 1000) -> list[LogRecord]:
    """Poll until all that is durable came."""
    got: list[LogRecord] = []
    deadline = time.monotonic() + PATIENCE_S
    while not reader.caught_up():
        assert time.monotonic() < deadline, f"{len(got)} records came"
        got += reader.poll(max_records, 0.1)
    return got


def read_from(log: EventLog, topic: str, start: int = 0) -> list[LogRecord]:
    """All that a reader of a topic's first partition finds from an offset on."""
    with contextlib.closing(log.reader(topic, {0: start})) as reader:
        return read_to_end(reader)


def check_kept(appended: Sequence[Record], got: Sequence[LogRecord], start: int = 0) -> None:
    """That these records of those that were appended are the last ones of every key, as they were,
    and perhaps others."""
    for record in got:
        assert record[2:] == (appended[record.offset].time_ms, *appended[record.offset][:2])
    offsets = [record.offset for record in got]
    assert offsets == sorted(set(offsets))
    last = {record.key: offset for offset, record in enumerate(appended)}
    assert {offset for offset in last.values() if offset >= start} <= set(offsets)


def values(read_records: Sequence[LogRecord]) -> list[str]:
    return sorted(r.value.decode() for r in read_records)


def values_of(appended: Sequence[Record]) -> list[str]:
    return sorted(r.value.decode() for r in appended)


def places(read_records: Sequence[LogRecord]) -> list[tuple[int, int]]:
    return sorted((r.partition, r.offset) for r in read_records)


def poll_until_raised(
    consumer: Consumer | TopicReader, unless: type[Exception] | tuple[()] = ()
) -> None:
    """Poll until something other than `unless` is raised; nothing may be returned meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(unless):
            assert consumer.poll(1000, 0.1) == []
