"""Reading the embedded log: one member of a consumer group over the partitions that fall to it.

Nothing is announced between processes: a consumer looks at the durable ends (one small read per
partition) every few milliseconds while it waits, and at the group's members twice a second or when
one joins or leaves.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from services.event_log.group import Group, Position, committed, share
from services.event_log.interface import Lag, LogCorrupt, LogRecord, LogWentBack
from services.event_log.limits import went_back
from services.event_log.partition import Partition, unavailable
from services.event_log.segment import BODY, PREFIX, FrameError, damaged, decode_frame, frame_size

log = structlog.get_logger(__name__)

MEMBERS_CHECK_S = 0.5  # how soon a killed member is noticed
FIRST_WAIT_S, LONGEST_WAIT_S = 0.0005, 0.005  # between looks at the log while nothing comes
READ_BYTES = 1 << 18


class Reader:
    """Where a consumer is in one partition, with the bytes read ahead of it."""

    def __init__(self, directory: Path, number: int, committed: Position | None) -> None:
        """Begin at the committed position, or at the earliest record (see `skipped`).

        Raises LogWentBack, as `refresh` does, when the partition ends before that.
        """
        self.skipped = 0
        self._file = -1
        self._must_reopen = False
        self.partition = Partition(directory, number)
        try:
            self.end = self.partition.recovered_end()  # publishes what a crashed writer left
            if committed is not None and committed.offset > self.end.offset:
                raise self._went_back(committed.offset, self.end.offset)
            self.seek(committed)
        except BaseException:
            self.close()
            raise

    def seek(self, wanted: Position | None) -> None:
        """Go to a position; when its segment has expired, to the earliest record that is kept."""
        if wanted is None:
            first = self.partition.segments()[0]
            wanted = Position(first, first, 0)
        while True:
            try:
                file = os.open(self.partition.path(wanted.base), os.O_RDONLY)
                break
            except FileNotFoundError:
                first = min(self.partition.segments(), default=-1)
                if first < wanted.base:
                    # Segments expire oldest first: a gap after one that is there is no expiry.
                    raise LogCorrupt(
                        f"{self.partition.path(wanted.base)} is missing: restore it from a backup,"
                        " or move the older ones of its folder away to go on with the next"
                    ) from None
                self.skipped += max(0, first - wanted.offset)
                wanted = Position(first, first, 0)
        if self._file >= 0:
            os.close(self._file)
        self._file, self.position, self._buffer, self._at = file, wanted, b"", 0
        self._must_reopen = False

    def close(self) -> None:
        self.partition.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def refresh(self) -> None:
        """Learn how far the log reaches now."""
        end = self.partition.durable_end() or self.end
        if end.offset < self.end.offset:
            raise self._went_back(self.end.offset, end.offset)
        self.end = end

    def read_into(self, records: list[LogRecord], limit: int) -> None:
        """Add records after the position, which moves past them, until there are `limit`."""
        while len(records) < limit and (record := self._next()) is not None:
            records.append(record)

    def _next(self) -> LogRecord | None:
        if not self._load_frame():
            return None
        offset, base, byte = self.position
        try:
            record, end = decode_frame(self._buffer, self._at, self.partition.number, offset)
        except FrameError as error:
            raise self._corrupt(error) from error
        self.position = Position(offset + 1, base, byte + end - self._at)
        self._at = end
        return record

    def next_time_ms(self) -> int | None:
        """Time of the next record; None when everything durable was read."""
        if not self._load_frame():
            return None
        return BODY.unpack_from(self._buffer, self._at + PREFIX.size)[1]

    def behind(self) -> int:
        """Records between the position and the durable end."""
        return self.end.offset - self.position.offset

    def _load_frame(self) -> bool:
        """Have the frame at the position whole in the buffer; False at the durable end."""
        if self.behind() <= 0:
            return False
        if self._must_reopen:
            self.seek(self.position)
        while True:
            remaining = len(self._buffer) - self._at
            try:
                wanted = frame_size(self._buffer, self._at) if remaining >= PREFIX.size else 0
            except FrameError as error:
                raise self._corrupt(error) from error
            if wanted and wanted <= remaining:
                return True
            _, base, byte = self.position
            last = self.end.position if base == self.end.base else os.fstat(self._file).st_size
            if byte == last and base != self.end.base:
                self._open_next()
                continue
            size = max(0, min(max(wanted, READ_BYTES), last - byte))
            self._buffer, self._at = os.pread(self._file, size, byte), 0
            if len(self._buffer) < max(wanted, PREFIX.size):
                raise self._corrupt(f"{last - byte} bytes are left where a record must be")

    def _open_next(self) -> None:
        """Go on to the segment after this one, which was read to its end."""
        offset, base, _ = self.position
        if self.partition.path(base).exists() and not self.partition.path(offset).exists():
            # Segments expire oldest first: a gap after one that is still there is no expiry.
            raise self._corrupt(f"it ends, and no segment begins at its next offset, {offset}")
        self.seek(Position(offset, offset, 0))

    def _corrupt(self, reason: object) -> LogCorrupt:
        """The error; the next attempt looks at the file anew, which may have been restored."""
        self._must_reopen = True
        path = self.partition.path(self.position.base)
        return damaged(path, self.position.byte, reason)

    def _went_back(self, known: int, end: int) -> LogWentBack:
        directory = self.partition.directory
        return went_back(
            str(directory.parent),
            f"partition {directory.name} ends at offset {end}, but was known up to {known}",
        )


class EmbeddedConsumer:
    """Consumer of an embedded topic. Its partitions change inside `poll` only."""

    def __init__(
        self,
        topic_directory: Path,
        partitions: int,
        group: str,
        identity: Callable[[], str],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """`identity` tells that of the topic as it is now."""
        self._ask_identity = identity
        self._identity = identity()
        self._went_back: LogWentBack | None = None
        self._directory = topic_directory
        self._partitions = partitions
        self._clock = clock
        self._monotonic = monotonic
        self._readers: dict[int, Reader] = {}
        self._committed: dict[int, Position | None] = {}
        self._target: frozenset[int] = frozenset()
        self._members_seen_ns = -1
        self._next_check = 0.0
        self._turn = 0
        self._closing = threading.Event()
        self._group = Group(topic_directory / "groups" / group)

    def poll(self, max_records: int, timeout_s: float) -> list[LogRecord]:
        if self._went_back is not None:
            raise self._went_back
        deadline = self._monotonic() + timeout_s
        wait_s = FIRST_WAIT_S
        try:
            with self._reading():
                while True:
                    self._rebalance()
                    records = self._read(max_records)
                    left = deadline - self._monotonic()
                    if records or left <= 0:
                        return records
                    self._closing.wait(min(wait_s, left))
                    wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        except LogWentBack as error:
            self._went_back = error
            raise

    def commit(self) -> None:
        with unavailable(f"cannot commit in {self._group.directory}"):
            for number, reader in self._readers.items():
                if reader.position != self._committed[number]:
                    self._group.commit(number, reader.position)
                    self._committed[number] = reader.position

    def rewind(self) -> None:
        with self._reading():
            for number, reader in self._readers.items():
                reader.seek(self._committed[number])

    def assigned(self) -> frozenset[int]:
        return frozenset(self._readers)

    def lag(self) -> Lag:
        with self._reading():
            for reader in self._readers.values():
                reader.refresh()
            times = [reader.next_time_ms() for reader in self._readers.values()]
        oldest_ms = min((t for t in times if t is not None), default=None)
        age_s = 0.0 if oldest_ms is None else max(0.0, self._clock() - oldest_ms / 1000)
        return Lag(sum(reader.behind() for reader in self._readers.values()), age_s)

    def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._group.leave()

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        return unavailable(f"cannot read {self._directory}")

    def _rebalance(self) -> None:
        """Follow the group: give up what is no longer ours, take what has become free."""
        now = self._monotonic()
        try:
            changed_ns = self._group.changed_ns()
        except FileNotFoundError:
            self._check_replaced()  # tells more, where the whole topic went
            raise
        if changed_ns != self._members_seen_ns or now >= self._next_check:
            self._members_seen_ns = changed_ns
            self._next_check = now + MEMBERS_CHECK_S
            self._check_replaced()
            members = self._group.live_members()
            self._target = share(self._partitions, members, self._group.member)
        for number in self._readers.keys() - self._target:
            self._readers.pop(number).close()
            self._group.release(number)
        for number in self._target - self._readers.keys():
            if self._group.try_acquire(number):
                self._take(number)

    def _check_replaced(self) -> None:
        """Meet a log that was put in the place of the one that is read, before anything of it."""
        if self._ask_identity() != self._identity:
            raise went_back(str(self._directory), "it was made anew")
        for number, reader in self._readers.items():
            if reader.partition.replaced():
                raise went_back(str(self._directory), f"other files replaced partition {number}")

    def _take(self, number: int) -> None:
        try:
            position = committed(self._group.directory, number)
            reader = Reader(self._directory / str(number), number, position)
        except BaseException:
            self._group.release(number)
            raise
        self._readers[number], self._committed[number] = reader, position

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
                    group=self._group.directory.name,
                    records=reader.skipped,
                )
                reader.skipped = 0
            if len(records) >= max_records:
                break
        return records
