"""The embedded log, `log://path`: durable files that several processes write and read.

    path/<topic>/topic.json                      partition count, identity and whether it is
                                                 compacted, fixed at creation
    path/<topic>/<partition>/<offset>.log ...    segments (segment.py), end and lock (partition.py)
    path/<topic>/groups/<group>/                 members, locks, positions (group.py)

One thread per log and process writes: it takes everything that is queued and makes it durable with
one fdatasync per touched partition, so that many small appends share the disk's latency. Another
one compacts (compaction.py) when a compacted topic has begun a segment. For one machine and a file
system with flock; a stopped (not killed) writer holds up the others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog
import xxhash

from models.files import sync
from services.event_log.appends import Append, AppendingLog
from services.event_log.compaction import compact
from services.event_log.embedded_consumer import EmbeddedConsumer
from services.event_log.embedded_reader import EmbeddedTopicReader
from services.event_log.group import committed, forget
from services.event_log.interface import LogCorrupt, LogUnavailable, Record, TopicUnfit
from services.event_log.limits import check_name, check_start
from services.event_log.partition import DIRECTORY_MODE, Partition, private, unavailable

log = structlog.get_logger(__name__)


MAX_PARTITIONS = 10_000  # far more than settings allow: another number is damage


class Topic(NamedTuple):
    """What a topic has been created with."""

    partitions: int
    identity: str  # "" in topics from before they had one
    written_ns: int  # when topic.json was: one that was put in its place is read again
    compacted: bool


class EmbeddedEventLog(AppendingLog[Append]):
    """EventLog in a directory. See the interface for the contract."""

    def __init__(
        self,
        root: Path,
        *,
        partitions: int = 4,
        segment_mb: float = 64,
        retention_days: float = 7.0,
        max_pending: int = 20_000,
        compacted: Collection[str] = (),
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(max_pending, compacted)
        self.root = root
        self._new_topic_partitions = partitions
        self._segment_bytes = int(segment_mb * 2**20)
        self._retention_ms = int(retention_days * 86_400_000)
        self._clock = clock
        self._monotonic = monotonic
        self._topics: dict[str, Topic] = {}
        self._round_robin = itertools.count()
        self._writing: dict[tuple[str, int], Partition] = {}  # the writer thread's only
        self._compactions: dict[Path, threading.Thread] = {}  # by partition; the writer thread's

    def _new_append(self, topic: str, records: Sequence[Record]) -> Append:
        return Append(topic, records)

    def consumer(self, topic: str, group: str) -> EmbeddedConsumer:
        check_name("group", group)
        partitions = self.partitions(topic)
        directory = self.root / topic
        with unavailable(f"cannot join group {group} of {directory}"):
            return EmbeddedConsumer(
                directory,
                partitions,
                topic in self._compacted,
                group,
                partial(self.identity, topic),
                self._clock,
                self._monotonic,
            )

    def reader(self, topic: str, start: Mapping[int, int] | None = None) -> EmbeddedTopicReader:
        start = start or {}
        check_start(start)
        return EmbeddedTopicReader(
            self.root / topic,
            self.partitions(topic),
            topic in self._compacted,
            start,
            partial(self.identity, topic),
            self._monotonic,
        )

    def forget_groups(self, topic: str, prefix: str) -> int:
        check_name("topic", topic)
        groups = self.root / topic / "groups"
        with unavailable(f"cannot forget groups in {groups}"):
            return forget(groups, prefix)

    def partitions(self, topic: str) -> int:
        return self._topic(topic).partitions

    def identity(self, topic: str) -> str:
        return self._topic(topic).identity

    def end_offsets(self, topic: str) -> list[int]:
        return self._of_partitions(topic, lambda partition: partition.recovered_end().offset)

    def start_offsets(self, topic: str) -> list[int]:
        return self._of_partitions(topic, lambda partition: next(iter(partition.segments()), 0))

    def positions(self, topic: str, group: str) -> dict[int, int]:
        check_name("group", group)
        numbers = range(self.partitions(topic))
        directory = self.root / topic / "groups" / group
        with unavailable(f"cannot read positions in {directory}"):
            found = {number: committed(directory, number) for number in numbers}
        return {number: position.offset for number, position in found.items() if position}

    def _of_partitions(self, topic: str, ask: Callable[[Partition], int]) -> list[int]:
        offsets = []
        with unavailable(f"cannot ask how far {self.root / topic} reaches"):
            for number in range(self.partitions(topic)):
                with contextlib.closing(self._partition(topic, number)) as partition:
                    offsets.append(ask(partition))
        return offsets

    def _partition(self, topic: str, number: int) -> Partition:
        return Partition(self.root / topic / str(number), number, topic in self._compacted)

    def _topic(self, name: str) -> Topic:
        check_name("topic", name)
        topic = self._topics.get(name)
        directory = self.root / name
        compacted = name in self._compacted
        with unavailable(f"cannot open topic {directory}"):
            try:
                if topic and topic.written_ns == topic_file(directory).stat().st_mtime_ns:
                    return topic
                if topic is None:
                    create_topic(directory, self._new_topic_partitions, compacted)
                topic = read_topic(directory)
            except FileNotFoundError as error:
                # Not made anew by itself: the disk may just not be mounted.
                raise LogUnavailable(
                    f"topic {directory} is gone: put it back, or restart to begin it anew"
                ) from error
        if topic.compacted != compacted:
            kept = {True: "the last record of a key alone", False: "records until they expire"}
            raise TopicUnfit(
                f"topic {directory} keeps {kept[topic.compacted]}; it must keep {kept[compacted]}:"
                " move its folder away to begin it anew"
            )
        self._topics[name] = topic
        return topic

    def _write_until_closed(self) -> None:
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._queue or self._closed)
                    appends = list(self._queue)
                    self._queue.clear()
                if not appends:
                    return
                self._write(appends)
        finally:
            for partition in self._writing.values():
                partition.close()
            self._writing.clear()
            for compaction in self._compactions.values():
                compaction.join()

    def _write(self, appends: Sequence[Append]) -> None:
        """One group commit: every queued append, partition by partition, then their futures."""
        failures: dict[int, Exception] = {}
        batches: dict[tuple[str, int], list[Record]] = defaultdict(list)
        touched: dict[tuple[str, int], set[int]] = defaultdict(set)
        for index, append in enumerate(appends):
            try:
                count = self.partitions(append.topic)
            except Exception as error:  # nobody may be left waiting, and least the appends after
                failures[index] = error
                continue
            split: dict[int, list[Record]] = defaultdict(list)
            for record in append.records:
                split[self._partition_of(record.key, count)].append(record)
            for number, records in split.items():
                place = append.topic, number
                batches[place] += records
                touched[place].add(index)
        for place, records in batches.items():
            try:
                self._write_partition(place, records)
            except Exception as error:
                # Whatever it was, nobody may be left waiting for an answer. What mends it may be
                # other files in the place of the open ones.
                failures |= dict.fromkeys(touched[place], error)
                self._close_partition(place)
        self._add_pending(-sum(len(append.records) for append in appends))
        for index, append in enumerate(appends):
            failure = failures.get(index)
            if failure is None:
                append.future.set_result(None)
            elif isinstance(failure, LogUnavailable):
                append.future.set_exception(failure)
            else:
                wrapped = LogUnavailable(f"cannot write topic {append.topic}: {failure}")
                wrapped.__cause__ = failure
                append.future.set_exception(wrapped)

    def _write_partition(self, place: tuple[str, int], records: Sequence[Record]) -> None:
        partition = self._writing.get(place)
        if partition is not None and partition.replaced():
            log.warning("partition_replaced", partition=str(partition.directory))
            self._close_partition(place)
            partition = None
        if partition is None:
            partition = self._writing[place] = self._partition(*place)
        if partition.append(records, self._segment_bytes):
            if partition.compacted:
                self._compact(partition)
            else:
                self._retain(partition)

    def _close_partition(self, place: tuple[str, int]) -> None:
        if partition := self._writing.pop(place, None):
            partition.close()

    def _retain(self, partition: Partition) -> None:
        """Delete what retention no longer covers of a partition that has begun a segment."""
        where = str(partition.directory)
        try:
            deleted = partition.enforce_retention(int(self._clock() * 1000) - self._retention_ms)
            if deleted:
                log.info("segments_expired", partition=where, segments=deleted)
        except (OSError, LogCorrupt) as error:  # the records themselves are durable
            log.error("retention_failed", partition=where, error=str(error))

    def _compact(self, partition: Partition) -> None:
        """Begin to compact one that has begun a segment, beside what is appended meanwhile."""
        running = self._compactions.get(partition.directory)
        if running is None or not running.is_alive():
            self._compactions[partition.directory] = threading.Thread(
                target=compact_closed,
                args=(partition.directory, partition.number),
                name="event-log-compaction",
                daemon=True,
            )
            self._compactions[partition.directory].start()

    def _partition_of(self, key: bytes, count: int) -> int:
        return (xxhash.xxh3_64_intdigest(key) if key else next(self._round_robin)) % count


def compact_closed(directory: Path, number: int) -> None:
    """Compact a partition until it no longer pays: segments may have been closed meanwhile. What
    fails is tried again when the next one begins."""
    try:
        with contextlib.closing(Partition(directory, number, compacted=True)) as partition:
            while done := compact(partition):
                log.info("segments_compacted", partition=str(directory), **done._asdict())
    except (OSError, LogCorrupt) as error:  # nothing is lost by it
        log.error("compaction_failed", partition=str(directory), error=str(error))


def topic_file(directory: Path) -> Path:
    return directory / "topic.json"


def create_topic(directory: Path, partitions: int, compacted: bool) -> None:
    """Create the topic with `partitions` (a compacted one: 1) unless it exists already."""
    file = topic_file(directory)
    if not file.exists():
        for folder in (directory.parent, directory):
            folder.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        temporary = directory / f"topic.{uuid.uuid4().hex}.tmp"
        with open(temporary, "w", opener=private) as out:
            kind = {"partitions": 1, "compacted": True} if compacted else {"partitions": partitions}
            json.dump({**kind, "identity": uuid.uuid4().hex}, out)
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(temporary, file)  # fails, unlike rename, when another process was first
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
        sync(directory)
        sync(directory.parent)


def read_topic(directory: Path) -> Topic:
    """The topic that exists."""
    with topic_file(directory).open() as file:
        try:
            found = json.load(file)
            written_ns = os.fstat(file.fileno()).st_mtime_ns
            partitions = found["partitions"]
            if type(partitions) is not int or not 1 <= partitions <= MAX_PARTITIONS:
                raise ValueError(f"partitions are 1..{MAX_PARTITIONS}")
            identity = str(found.get("identity", ""))
            return Topic(partitions, identity, written_ns, bool(found.get("compacted")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LogCorrupt(
                f"{file.name} does not say how many partitions ({error!r}): restore it from a"
                " backup"
            ) from error
