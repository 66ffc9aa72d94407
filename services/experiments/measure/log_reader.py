"""Reading the whole retained event log into a fold.

Only what the log still retains can be read (event_log.retention_days): of an experiment that is
older, units that come back look as if they were new, on the day of their first decision that is
left. The worker remembers them; let it run (`worker`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from protos.tandem.v1 import records_pb2
from services.event_log.interface import EventLog
from services.event_log.topics import DECISIONS, FEEDBACK
from services.event_log.whole_log import WholeLog
from services.experiments.changes import poison
from services.experiments.measure.fold import Fold

READER = "experiments"
POLL_S = 0.1
POLL_RECORDS = 1000


class LogReader(WholeLog):
    """Adds what is in the log to a fold. Used by one thread."""

    def __init__(
        self,
        event_log: EventLog,
        fold: Fold | None = None,
        poll_records: int = POLL_RECORDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`fold` may hold what was read before: reading it again changes nothing. `clock` gives
        seconds since the epoch: records of times that nobody can mean are dropped (`poison`)."""
        self.fold = Fold() if fold is None else fold
        self._clock = clock
        super().__init__(event_log, READER, poll_records, self._on_decision, self._on_feedback)

    def _on_decision(self, record: records_pb2.DecisionRecord) -> None:
        timely = self._timely(DECISIONS, record.request_id, record.event_time_ms)
        self.undecodable += not (timely and self.fold.on_decision(record))

    def _on_feedback(self, event: records_pb2.FeedbackEvent) -> None:
        timely = self._timely(FEEDBACK, event.event_id, event.event_time_ms)
        self.undecodable += not (timely and self.fold.on_feedback(event))

    def _timely(self, topic: str, record: str, event_time_ms: int) -> bool:
        """Whether somebody can have meant that time; drops the record if not."""
        if reason := poison.mistimed(event_time_ms, self._clock):
            poison.drop(topic, reason, record)
        return not reason
