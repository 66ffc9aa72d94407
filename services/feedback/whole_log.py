"""Reading all that the event log retains of decisions and feedback, by whoever folds it.

A reader has a consumer group of its own, commits nothing and deletes the group afterwards: no other
reader is disturbed, and whoever reads again gets the same.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from google.protobuf.message import DecodeError

from protos.tandem.v1 import records_pb2
from services.event_log.interface import EventLog, Lag, LogRecord, LogUnavailable
from services.event_log.topics import DECISIONS, FEEDBACK

log = structlog.get_logger(__name__)

# Feedback cannot come before its list, but its sender's clock can be behind the router's.
SKEW_MS = 60_000


class WholeLog:
    """Gives each decision and each feedback event to its callable. Used by one thread."""

    def __init__(
        self,
        event_log: EventLog,
        reader: str,
        poll_records: int,
        on_decision: Callable[[records_pb2.DecisionRecord], None],
        on_feedback: Callable[[records_pb2.FeedbackEvent], None],
    ) -> None:
        """`reader` names the groups; those that killed readers of that name left are deleted."""
        self.undecodable = 0
        self._event_log = event_log
        self._reader = reader
        self._poll_records = poll_records
        self._on_decision, self._on_feedback = on_decision, on_feedback
        self._group = f"{reader}-{uuid.uuid4().hex}"
        self._forget_groups(f"{reader}-")
        with contextlib.ExitStack() as opened:
            self._decisions = event_log.consumer(DECISIONS, self._group)
            opened.callback(self._decisions.close)
            self._feedback = event_log.consumer(FEEDBACK, self._group)
            opened.pop_all()

    def step(self, timeout_s: float) -> int:
        """Give out what is there, waiting up to `timeout_s` per topic for it; number of records.

        Raises LogUnavailable; what was delivered before it is given out: it will not come again.
        """
        decisions = self._decisions.poll(self._poll_records, timeout_s)
        self._give(decisions, records_pb2.DecisionRecord.FromString, self._on_decision)
        # Feedback only waits when there was nothing else to do.
        feedback = self._feedback.poll(self._poll_records, 0.0 if decisions else timeout_s)
        self._give(feedback, records_pb2.FeedbackEvent.FromString, self._on_feedback)
        return len(decisions) + len(feedback)

    def lags(self) -> dict[str, Lag]:
        """What is not yet read, per topic."""
        return {DECISIONS: self._decisions.lag(), FEEDBACK: self._feedback.lag()}

    def assigned(self) -> bool:
        """Whether there are partitions of both topics to read; until then there is no lag."""
        return bool(self._decisions.assigned() and self._feedback.assigned())

    def close(self) -> None:
        self._decisions.close()
        self._feedback.close()
        self._forget_groups(self._group)

    def _forget_groups(self, prefix: str) -> None:
        """Delete unused groups. What cannot be deleted now is left to the next reader."""
        for topic in (DECISIONS, FEEDBACK):
            try:
                self._event_log.forget_groups(topic, prefix)
            except LogUnavailable as error:
                log.warning(f"{self._reader}_groups_left", topic=topic, cause=str(error))

    def _give(
        self,
        records: Sequence[LogRecord],
        parse: Callable[[bytes], Any],
        take: Callable[[Any], None],
    ) -> None:
        for record in records:
            try:
                message = parse(record.value)
            except DecodeError:
                self.undecodable += 1
                continue
            take(message)
