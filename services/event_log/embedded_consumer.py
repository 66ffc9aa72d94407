"""Reading the embedded log: one member of a consumer group over the partitions that fall to it.

A consumer looks at the group's members twice a second, or when one joins or leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from services.event_log.embedded_reader import CHECK_S, EmbeddedReading
from services.event_log.group import Group, Position, committed, share
from services.event_log.interface import Lag
from services.event_log.partition import unavailable
from services.event_log.partition_reader import Reader


class EmbeddedConsumer(EmbeddedReading):
    """Consumer of an embedded topic. Its partitions change inside `poll` only."""

    def __init__(
        self,
        topic_directory: Path,
        partitions: int,
        compacted: bool,
        group: str,
        identity: Callable[[], str],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(topic_directory, partitions, compacted, identity, monotonic)
        self._who = {"group": group}
        self._clock = clock
        self._committed: dict[int, Position | None] = {}
        self._target: frozenset[int] = frozenset()
        self._members_seen_ns = -1
        self._group = Group(topic_directory / "groups" / group)

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
        super().close()
        self._group.leave()

    def _follow(self) -> None:
        """Follow the group: give up what is no longer ours, take what has become free."""
        now = self._monotonic()
        try:
            changed_ns = self._group.changed_ns()
        except FileNotFoundError:
            self._check_replaced()  # tells more, where the whole topic went
            raise
        if changed_ns != self._members_seen_ns or now >= self._next_check:
            self._members_seen_ns = changed_ns
            self._next_check = now + CHECK_S
            self._check_replaced()
            members = self._group.live_members()
            self._target = share(self._partitions, members, self._group.member)
        for number in self._readers.keys() - self._target:
            self._readers.pop(number).close()
            self._group.release(number)
        for number in self._target - self._readers.keys():
            if self._group.try_acquire(number):
                self._take(number)

    def _take(self, number: int) -> None:
        try:
            position = committed(self._group.directory, number)
            reader = Reader(
                self._directory / str(number), number, position, compacted=self._compacted
            )
        except BaseException:
            self._group.release(number)
            raise
        self._readers[number], self._committed[number] = reader, position
