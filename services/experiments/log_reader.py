"""Reading the whole retained event log into a fold.

Under a consumer group of its own that commits nothing and is forgotten afterwards, as the joiner
does it: no other reader is disturbed, and whoever reads again gets the same. Only what the log
still retains can be read (event_log.retention_days): of an experiment that is older, units that
come back look as if they were new, on the day of their first decision that is left. The worker
remembers them; let it run (`worker`).
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import Any

import structlog
from google.protobuf.message import DecodeError

from protos.tandem.v1 import records_pb2
from services.event_log.interface import Consumer, EventLog, Lag, LogUnavailable
from services.event_log.topics import DECISIONS, FEEDBACK
from services.experiments.fold import Fold

log = structlog.get_logger(__name__)

GROUP_PREFIX = "experiments-"
POLL_S = 0.1
POLL_RECORDS = 1000


class LogReader:
    """Adds what is in the log to a fold. Used by one thread."""

    def __init__(
        self, event_log: EventLog, fold: Fold | None = None, poll_records: int = POLL_RECORDS
    ) -> None:
        """`fold` may hold what was read before: reading it again changes nothing."""
        self.fold = Fold() if fold is None else fold
        self.undecodable = 0
        self._poll_records = poll_records
        self._event_log = event_log
        self._group = f"{GROUP_PREFIX}{uuid.uuid4().hex}"
        self._forget_groups(GROUP_PREFIX)
        with contextlib.ExitStack() as opened:
            self._decisions = event_log.consumer(DECISIONS, self._group)
            opened.callback(self._decisions.close)
            self._feedback = event_log.consumer(FEEDBACK, self._group)
            opened.pop_all()

    def step(self, timeout_s: float = POLL_S) -> int:
        """Add what is there, waiting up to `timeout_s` per topic for it; number of records.

        Raises LogUnavailable; what was delivered before it is added.
        """
        decisions = self._read(
            self._decisions,
            timeout_s,
            records_pb2.DecisionRecord.FromString,
            self.fold.on_decision,
        )
        feedback = self._read(
            self._feedback,
            0.0 if decisions else timeout_s,
            records_pb2.FeedbackEvent.FromString,
            self.fold.on_feedback,
        )
        return decisions + feedback

    def caught_up(self) -> bool:
        """Whether all that is in the log was read."""
        consumers = (self._decisions, self._feedback)
        return all(c.assigned() and not c.lag().events for c in consumers)

    def lags(self) -> dict[str, Lag]:
        """What is not yet read, per topic."""
        return {DECISIONS: self._decisions.lag(), FEEDBACK: self._feedback.lag()}

    def read_all(self) -> None:
        """Read until both topics' ends were reached at once. Raises LogUnavailable."""
        while not self.caught_up():
            self.step()

    def close(self) -> None:
        self._decisions.close()
        self._feedback.close()
        self._forget_groups(self._group)

    def _read(
        self,
        consumer: Consumer,
        timeout_s: float,
        parse: Callable[[bytes], Any],
        add: Callable[[Any], None],
    ) -> int:
        records = consumer.poll(self._poll_records, timeout_s)
        for record in records:
            try:
                message = parse(record.value)
            except DecodeError:
                self.undecodable += 1
                continue
            add(message)
        return len(records)

    def _forget_groups(self, prefix: str) -> None:
        """Delete unused groups. What cannot be deleted now is left to the next reader."""
        for topic in (DECISIONS, FEEDBACK):
            try:
                self._event_log.forget_groups(topic, prefix)
            except LogUnavailable as error:
                log.warning("experiments_groups_left", topic=topic, cause=str(error))
