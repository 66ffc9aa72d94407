"""After the answer: decision records on their way to the event log, a few milliseconds at a time.

Nobody waits for a decision record, so records go to the log in groups: one append, one wake-up of
the log's writer and one sync per partition serve all requests of the last LINGER_S. A router that
is killed (not drained) loses the records of that time, whose answers may have gone out.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from functools import partial

from services.event_log import topics
from services.event_log.interface import EventLog, LogSaturated, LogUnavailable, Record
from services.router.metrics import DECISIONS_LOST

LINGER_S = 0.02


class DecisionLog:
    """Collects records on the event loop; `flush` hands what there is to the log."""

    def __init__(self, event_log: EventLog) -> None:
        self._event_log = event_log
        self._waiting: list[Record] = []

    def write(self, record: Record) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_later(LINGER_S, self.flush)
        self._waiting.append(record)

    def flush(self) -> None:
        """What the log does not take is counted as lost. Also the last step of draining."""
        records, self._waiting = self._waiting, []
        if not records:
            return
        try:
            appended = self._event_log.append(topics.DECISIONS, records)
        except (LogSaturated, LogUnavailable):
            DECISIONS_LOST.inc(len(records))
        else:
            appended.add_done_callback(partial(_count_lost, len(records)))


def _count_lost(records: int, appended: Future[None]) -> None:
    if appended.exception() is not None:
        DECISIONS_LOST.inc(records)
