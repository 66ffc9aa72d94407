"""Reading the whole retained event log into a fold.

Only what the log still retains can be read (event_log.retention_days): of an experiment that is
older, units that come back look as if they were new, on the day of their first decision that is
left. The worker remembers them; let it run (`worker`).
"""

from __future__ import annotations

from services.event_log.interface import EventLog
from services.experiments.fold import Fold
from services.feedback.whole_log import WholeLog

READER = "experiments"
POLL_S = 0.1
POLL_RECORDS = 1000


class LogReader(WholeLog):
    """Adds what is in the log to a fold. Used by one thread."""

    def __init__(
        self, event_log: EventLog, fold: Fold | None = None, poll_records: int = POLL_RECORDS
    ) -> None:
        """`fold` may hold what was read before: reading it again changes nothing."""
        self.fold = Fold() if fold is None else fold
        super().__init__(
            event_log, READER, poll_records, self.fold.on_decision, self.fold.on_feedback
        )

    def read_all(self) -> None:
        """Read until both topics' ends were reached at once. Raises LogUnavailable."""
        while not self.caught_up():
            self.step(POLL_S)
