"""Appends on their way: bounded, and made durable by one thread, whatever the backend."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from services.common.telemetry import OwnedGauge
from services.event_log.interface import LogSaturated, LogUnavailable, Record
from services.event_log.limits import check_append

PENDING = OwnedGauge(
    "tandem_event_log_pending_records",
    "Appended records that are not yet durable; at event_log.max_pending feedback is refused.",
)


class Append:
    """An append under way; its future cannot be cancelled."""

    def __init__(self, topic: str, records: Sequence[Record]) -> None:
        self.topic = topic
        self.records = records
        self.future: Future[None] = Future()
        self.future.set_running_or_notify_cancel()


A = TypeVar("A", bound=Append)


class AppendingLog(ABC, Generic[A]):
    """`append` and `close` of an EventLog: what is accepted queues up for the writer's thread."""

    def __init__(self, max_pending: int, compacted: Collection[str]) -> None:
        self._max_pending = max_pending
        self._compacted = frozenset(compacted)
        self._wake = threading.Condition()  # also the lock of what follows
        self._queue: deque[A] = deque()
        self._pending = 0
        self._closed = False
        self._writer: threading.Thread | None = None

    @abstractmethod
    def _new_append(self, topic: str, records: Sequence[Record]) -> A: ...

    @abstractmethod
    def _write_until_closed(self) -> None:
        """The writer's thread: end the future of every append, and return when closed."""

    def append(self, topic: str, records: Sequence[Record]) -> Future[None]:
        check_append(topic, records, topic in self._compacted)
        append = self._new_append(topic, records)
        with self._wake:
            if self._closed:
                append.future.set_exception(LogUnavailable("the event log is closed"))
                return append.future
            if self._pending + len(records) > self._max_pending:
                raise LogSaturated(
                    f"{self._pending} of at most {self._max_pending} appended records are not yet"
                    " durable"
                )
            self._add_pending(len(records))
            self._queue.append(append)
            if self._writer is None:
                self._writer = threading.Thread(
                    target=self._write_until_closed, name="event-log-writer", daemon=True
                )
                self._writer.start()
            self._wake.notify()
        return append.future

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._writer is not None:
            self._writer.join()

    def _add_pending(self, count: int) -> None:
        """Count these records (negative: no longer) under the bound."""
        with self._wake:
            self._pending += count
            PENDING.set(self._pending)
