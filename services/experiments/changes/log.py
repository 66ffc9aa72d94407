"""The event log's topic `experiments`: appending changes and following them.

Every process that acts on changes reads the topic from its beginning (`state.Changes` does not
mind the order) and keeps following it; its records are few. Nothing is committed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence

from google.protobuf.message import DecodeError

from protos.tandem.v1.records_pb2 import ExperimentChange
from services.event_log.interface import (
    EventLog,
    LogRecord,
    LogSaturated,
    LogUnavailable,
    LogWentBack,
    Record,
)
from services.event_log.topics import EXPERIMENTS
from services.event_log.whole_log import WholeTopics
from services.experiments.changes import poison
from services.experiments.changes.state import Changes

READER = "changes"
POLL_S = 0.05
POLL_RECORDS = 1000
APPEND_TIMEOUT_S = 15.0


class ChangeLog:
    """All changes, as far as they were read. Used by one thread, or by several in turn."""

    def __init__(
        self,
        event_log: EventLog,
        on_new: Callable[[ExperimentChange], None] = lambda change: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`on_new` is told every change whose id was not known. `clock` gives seconds since the
        epoch: changes from the future are dropped (`poison`). Opens nothing yet."""
        self.changes = Changes()
        self.followed = False  # whether the last look reached the end
        self._event_log = event_log
        self._on_new = on_new
        self._clock = clock
        self._topic: WholeTopics | None = None
        self._written_ms: dict[str, int] = {}  # by id: the newest record that holds the change

    @property
    def undecodable(self) -> int:
        """Records that are no valid change."""
        return self._topic.undecodable if self._topic else 0

    def read(self, wait_s: float = 0.0) -> bool:
        """Take in what has come, waiting up to `wait_s` for it; whether it was all.

        Raises LogUnavailable; the next call tries again.
        """
        self.followed = False
        if self._topic is None:
            self._topic = WholeTopics(
                self._event_log, READER, POLL_RECORDS, {EXPERIMENTS: self._take}
            )
        try:
            self._topic.step(wait_s)
            self.followed = self._topic.caught_up()
        except LogWentBack as error:
            # What is known stays; what does not come again is due to be repeated.
            self._topic.begin_anew()
            self._written_ms = dict.fromkeys(self._written_ms, 0)
            raise LogUnavailable(str(error)) from error
        return self.followed

    def read_all(self, timeout_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Read to the end. LogUnavailable if that takes longer than `timeout_s`."""
        deadline = monotonic() + timeout_s
        while not self.read(POLL_S):
            if monotonic() >= deadline:
                raise LogUnavailable(f"topic {EXPERIMENTS} was not read in {timeout_s:g} s")

    def append(self, changes: Sequence[ExperimentChange], now_ms: float) -> None:
        """Append changes and know them; they are durable when it returns.

        Raises LogUnavailable when that is not confirmed in time. It may have happened all the same:
        what is decided again then has the same id.
        """
        if not changes:
            return
        records = [Record(c.salt.encode(), c.SerializeToString(), int(now_ms)) for c in changes]
        try:
            self._event_log.append(EXPERIMENTS, records).result(APPEND_TIMEOUT_S)
        except TimeoutError:
            raise LogUnavailable(
                f"the log did not confirm a change in {APPEND_TIMEOUT_S:g} s"
            ) from None
        except LogSaturated as error:
            raise LogUnavailable(str(error)) from error
        for change in changes:
            self._know(change, int(now_ms))

    def repeat(self, salts: Collection[str], now_ms: float, after_ms: float) -> int:
        """Append again, as they are, the changes of these salts of which no record is younger than
        `after_ms`, so that the log keeps their state and their audit; how many. LogUnavailable."""
        old = [
            change
            for change in self.changes.all()
            if change.salt in salts and self._written_ms[change.change_id] < now_ms - after_ms
        ]
        self.append(old, now_ms)
        return len(old)

    def close(self) -> None:
        """Stop following, if it has begun."""
        if self._topic is not None:
            with contextlib.suppress(LogUnavailable):
                self._topic.close()
            self._topic = None

    def _take(self, record: LogRecord) -> None:
        change = ExperimentChange.FromString(record.value)
        try:
            if poison.latest_of(change) > self._clock() * 1000 + poison.MAX_AHEAD_MS:
                raise ValueError("future")
            # When a record says that it is written later than now, the log forgets it by its own.
            self._know(change, min(record.time_ms, int(self._clock() * 1000)))
        except ValueError as error:
            poison.drop(EXPERIMENTS, str(error), change.change_id)
            raise DecodeError(str(error)) from error

    def _know(self, change: ExperimentChange, written_ms: int) -> None:
        if self.changes.add(change):
            self._on_new(change)
        before = self._written_ms.get(change.change_id, written_ms)
        self._written_ms[change.change_id] = max(before, written_ms)
