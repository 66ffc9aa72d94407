"""Reading all that the event log retains, and then whatever is appended.

A reader has a consumer group of its own, commits nothing and deletes the group afterwards: no other
reader is disturbed, and whoever reads again gets the same.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping

import structlog
from google.protobuf.message import DecodeError

from protos.tandem.v1 import records_pb2
from services.event_log.interface import Consumer, EventLog, Lag, LogRecord, LogUnavailable
from services.event_log.topics import DECISIONS, FEEDBACK

log = structlog.get_logger(__name__)

# Feedback cannot come before its list, but its sender's clock can be behind the router's.
SKEW_MS = 60_000


class WholeTopics:
    """Gives each record to its topic's callable. Used by one thread."""

    def __init__(
        self,
        event_log: EventLog,
        reader: str,
        poll_records: int,
        takers: Mapping[str, Callable[[LogRecord], object]],
    ) -> None:
        """`takers` by topic, the first being the one to wait for; a record for which one raises
        DecodeError is counted as undecodable. `reader` names the groups; those that killed readers
        of that name left are deleted. Raises LogUnavailable."""
        self.undecodable = 0
        self._event_log = event_log
        self._reader = reader
        self._poll_records = poll_records
        self._takers = dict(takers)
        self._group = f"{reader}-{uuid.uuid4().hex}"
        self._forget_groups(f"{reader}-")
        self._consumers: dict[str, Consumer] = {}
        self._open()

    def _open(self) -> None:
        with contextlib.ExitStack() as opened:
            consumers = {}
            for topic in self._takers:
                consumers[topic] = self._event_log.consumer(topic, self._group)
                opened.callback(consumers[topic].close)
            opened.pop_all()
        self._consumers = consumers

    def begin_anew(self) -> None:
        """Let the next step read all there is, after LogWentBack: for takers that may be given
        again what they were given before."""
        self.close()

    def step(self, timeout_s: float) -> int:
        """Give out what is there, waiting up to `timeout_s` per topic for it; number of records.

        Raises LogUnavailable; what was delivered before it is given out: it will not come again.
        Raises LogWentBack, as `lags` does, when what was given out is no longer what the log holds.
        """
        if not self._consumers:
            self._open()
        read = 0
        for topic, consumer in self._consumers.items():
            # Later topics only wait when there was nothing else to do.
            records = consumer.poll(self._poll_records, 0.0 if read else timeout_s)
            for record in records:
                try:
                    self._takers[topic](record)
                except DecodeError:
                    self.undecodable += 1
            read += len(records)
        return read

    def lags(self) -> dict[str, Lag]:
        """What is not yet read, per topic. Raises as `step`."""
        if not self._consumers:
            self._open()
        return {topic: consumer.lag() for topic, consumer in self._consumers.items()}

    def assigned(self) -> bool:
        """Whether there are partitions of every topic to read; until then there is no lag."""
        return bool(self._consumers) and all(c.assigned() for c in self._consumers.values())

    def caught_up(self) -> bool:
        """Whether all that is in the log was read."""
        return self.assigned() and not any(lag.events for lag in self.lags().values())

    def read_all(self, poll_s: float = 0.1) -> None:
        """Read until the ends of all topics were reached at once. Raises LogUnavailable."""
        while not self.caught_up():
            self.step(poll_s)

    def close(self) -> None:
        for consumer in self._consumers.values():
            consumer.close()
        self._consumers = {}
        self._forget_groups(self._group)

    def _forget_groups(self, prefix: str) -> None:
        """Delete unused groups. What cannot be deleted now is left to the next reader."""
        for topic in self._takers:
            try:
                self._event_log.forget_groups(topic, prefix)
            except LogUnavailable as error:
                log.warning(f"{self._reader}_groups_left", topic=topic, cause=str(error))


class WholeLog(WholeTopics):
    """Gives each decision and each feedback event to its callable."""

    def __init__(
        self,
        event_log: EventLog,
        reader: str,
        poll_records: int,
        on_decision: Callable[[records_pb2.DecisionRecord], None],
        on_feedback: Callable[[records_pb2.FeedbackEvent], None],
    ) -> None:
        parse_decision = records_pb2.DecisionRecord.FromString
        parse_feedback = records_pb2.FeedbackEvent.FromString
        super().__init__(
            event_log,
            reader,
            poll_records,
            {
                DECISIONS: lambda record: on_decision(parse_decision(record.value)),
                FEEDBACK: lambda record: on_feedback(parse_feedback(record.value)),
            },
        )
