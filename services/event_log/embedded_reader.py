"""Reading the embedded log: what members of groups have in common with readers without one.

Nothing is announced between processes: a reader looks at the durable ends (one small read per
partition) every few milliseconds while it waits, and whether the log is still the one that it reads
twice a second.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import structlog

from services.event_log.interface import LogCorrupt, LogRecord, LogUnavailable, LogWentBack
from services.event_log.limits import unknown_partition, went_back
from services.event_log.partition import unavailable
from services.event_log.partition_reader import Reader

log = structlog.get_logger(__name__)

CHECK_S = 0.5  # how soon other members or another log are noticed, if nothing else tells
FIRST_WAIT_S, LONGEST_WAIT_S = 0.0005, 0.005  # between looks at the log while nothing comes


class EmbeddedReading(ABC):
    """What a member of a group and a reader without one have in common."""

    def __init__(
        self,
        topic_directory: Path,
        partitions: int,
        compacted: bool,
        identity: Callable[[], str],
        monotonic: Callable[[], float],
    ) -> None:
        """`identity` tells that of the topic as it is now."""
        self._directory = topic_directory
        self._partitions = partitions
        self._compacted = compacted
        self._ask_identity = identity
        self._identity = identity()
        self._monotonic = monotonic
        self._went_back: LogWentBack | None = None
        self._who: dict[str, str] = {}  # reads, for the log
        self._readers: dict[int, Reader] = {}
        self._next_check = 0.0
        self._turn = 0
        self._closing = threading.Event()

    @abstractmethod
    def _follow(self) -> None:
        """Have a reader of each partition that is to be read, and meet what has become of them."""

    def poll(self, max_records: int, timeout_s: float) -> list[LogRecord]:
        deadline = self._monotonic() + timeout_s
        wait_s = FIRST_WAIT_S
        with self._reading():
            while True:
                self._follow()
                records = self._read(max_records)
                left = deadline - self._monotonic()
                if records or left <= 0:
                    return records
                if self._closing.wait(min(wait_s, left)):
                    return []
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What the disk refuses meanwhile is LogUnavailable; a log that went back stays so."""
        if self._went_back is not None:
            raise self._went_back
        try:
            with unavailable(f"cannot read {self._directory}"):
                yield
        except LogWentBack as error:
            self._went_back = error
            raise

    def _check_replaced(self) -> None:
        """Meet a log that was put in the place of the one that is read, before anything of it."""
        if self._ask_identity() != self._identity:
            raise went_back(str(self._directory), "it was made anew")
        for number, reader in self._readers.items():
            if reader.partition.replaced():
                raise went_back(str(self._directory), f"other files replaced partition {number}")

    def _read(self, max_records: int) -> list[LogRecord]:
        """What is there, beginning with another partition each time so that none starves.

        What cannot be read raises when nothing was read before it, so that no position moves past
        a record that is not returned; otherwise that is returned first.
        """
        numbers = sorted(self._readers)
        self._turn += 1
        records: list[LogRecord] = []
        for i in range(len(numbers)):
            reader = self._readers[numbers[(self._turn + i) % len(numbers)]]
            try:
                reader.refresh()
                reader.read_into(records, max_records)
            except (OSError, LogCorrupt):
                if records:
                    break
                raise
            if reader.skipped:
                log.warning(
                    "records_expired_unread",
                    topic=self._directory.name,
                    records=reader.skipped,
                    **self._who,
                )
                reader.skipped = 0
            if len(records) >= max_records:
                break
        return records

    def close(self) -> None:
        self._closing.set()
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


class EmbeddedTopicReader(EmbeddedReading):
    """TopicReader of an embedded topic. What cannot be opened is tried again by whatever is asked
    next."""

    def __init__(
        self,
        topic_directory: Path,
        partitions: int,
        compacted: bool,
        start: Mapping[int, int],
        identity: Callable[[], str],
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(topic_directory, partitions, compacted, identity, monotonic)
        self._start = dict(start)
        self._went_back = unknown_partition(str(topic_directory), start, range(partitions))

    def positions(self) -> dict[int, int]:
        with self._reading():
            self._follow()
            return {number: reader.position.offset for number, reader in self._readers.items()}

    def caught_up(self) -> bool:
        with self._reading():
            self._follow()
            for reader in self._readers.values():
                reader.refresh()
            return all(reader.behind() == 0 for reader in self._readers.values())

    def _follow(self) -> None:
        if self._closing.is_set():
            raise LogUnavailable(f"the reader of {self._directory} is closed")
        if (now := self._monotonic()) >= self._next_check:
            self._check_replaced()
            self._next_check = now + CHECK_S
        if len(self._readers) == self._partitions:
            return
        for number in range(self._partitions):
            if number not in self._readers:
                self._readers[number] = Reader(
                    self._directory / str(number),
                    number,
                    start=self._start.get(number),
                    compacted=self._compacted,
                )
