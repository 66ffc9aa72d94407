"""After the answer: metrics and the decision record, for a group of answers at a time.

Nobody waits for a decision record, so what is due after an answer is done in groups (LINGER_S long,
MAX_GROUP at most): the same code on many requests in a row costs half of what it costs after each,
and one append, one wake-up of the log's writer and one sync per partition serve all of them. A
router that is killed (not drained) loses the group that it was collecting, whose answers may have
gone out. A request that cannot be recorded is logged and counted as lost; the rest of its group is
written.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextvars import Context
from functools import partial

import structlog

from models.catalogue import ItemTable
from services.event_log import topics
from services.event_log.interface import EventLog, LogSaturated, LogUnavailable, Record
from services.event_log.limits import check_append
from services.router.metrics import DECISIONS_LOST
from services.router.pipeline import count_answer
from services.router.request import RequestState
from services.router.respond import decision_record

log = structlog.get_logger()

LINGER_S = 0.01
MAX_GROUP = 64  # the event loop does nothing else while a group is written


class DecisionLog:
    """Collects answered requests on the event loop; `flush` counts and records what there is."""

    def __init__(self, event_log: EventLog) -> None:
        self._event_log = event_log
        self._waiting: list[tuple[RequestState, ItemTable]] = []
        self._timer: asyncio.Handle | None = None

    def write(self, state: RequestState, items: ItemTable) -> None:
        """Take an answered request; it is written when the answer is on its way, never before."""
        self._waiting.append((state, items))
        loop = asyncio.get_running_loop()
        # In a context of its own: what is logged there belongs to no single request.
        if len(self._waiting) == 1:
            self._timer = loop.call_later(LINGER_S, self.flush, context=Context())
        elif len(self._waiting) == MAX_GROUP:
            loop.call_soon(self.flush, context=Context())

    def flush(self) -> None:
        """What the log does not take is counted as lost. Also the last step of draining."""
        waiting, self._waiting = self._waiting, []
        if self._timer is not None:
            self._timer.cancel()
        records = []
        for state, items in waiting:
            try:
                count_answer(state)
                value = decision_record(state, items).SerializeToString()
                record = Record(state.request.user_id.encode(), value, state.now_ms)
                check_append(topics.DECISIONS, [record])
            except Exception:
                DECISIONS_LOST.inc()
                log.exception("decision_not_recorded", request_id=state.request_id)
            else:
                records.append(record)
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
