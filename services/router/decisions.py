"""After the answer: metrics and the decision record, for a group of answers at a time.

Requests that end without an answer after they were assigned their arms leave a record, too: an arm
whose requests fail or are given up must not look better for it. They are no answer in any metric.

Nobody waits for a decision record. What is due after an answer is therefore done for a group of
them (GROUP_S long, MAX_GROUP at most): the same code on many requests in a row costs half of what
it costs after each. Records go to the event log every COMMIT_S: an append there wakes its writer
and syncs a file per partition, half a millisecond of processor time that requests would have. A
router that is killed (not drained) loses what it was collecting, whose answers may have gone out. A
request that cannot be recorded is logged and counted as lost; the others are written.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextvars import Context
from functools import partial

import structlog

from services.event_log import topics
from services.event_log.interface import EventLog, LogSaturated, LogUnavailable, Record
from services.event_log.limits import check_append
from services.router.metrics import DECISIONS_LOST, count
from services.router.record import record_bytes
from services.router.request import UNASSIGNED, RequestState

log = structlog.get_logger()

GROUP_S = 0.01
MAX_GROUP = 16  # the event loop does nothing else while a group is counted and encoded
COMMIT_S = 0.2


class DecisionLog:
    """Collects requests that are over on the event loop; counts and records them soon after."""

    def __init__(self, event_log: EventLog) -> None:
        self._event_log = event_log
        self._waiting: list[RequestState] = []
        self._records: list[Record] = []
        self._group: asyncio.Handle | None = None
        self._commit: asyncio.Handle | None = None

    def write(self, state: RequestState) -> None:
        """Take a request that is over, answered or not; its record is written when the answer is on
        its way. Raises nothing: whatever happens here, the answer or the error goes on."""
        try:
            loop = asyncio.get_running_loop()
            self._waiting.append(state)
            # In a context of its own: what is logged there belongs to no single request.
            if self._commit is None:
                self._commit = loop.call_later(COMMIT_S, self.flush, context=Context())
            if len(self._waiting) == 1:
                self._group = loop.call_later(GROUP_S, self._encode, context=Context())
            elif len(self._waiting) == MAX_GROUP:
                loop.call_soon(self._encode, context=Context())
        except Exception:
            _lost(state)

    def flush(self) -> None:
        """What the log does not take is counted as lost. Also the last step of draining."""
        self._encode()
        if self._commit is not None:
            self._commit.cancel()
            self._commit = None
        records, self._records = self._records, []
        try:
            self._append(records)
        except ValueError:  # for one that cannot be stored the log refuses them all
            self._append([record for record in records if _fits(record)])

    def _append(self, records: list[Record]) -> None:
        if not records:
            return
        try:
            appended = self._event_log.append(topics.DECISIONS, records)
        except (LogSaturated, LogUnavailable):
            DECISIONS_LOST.inc(len(records))
        else:
            appended.add_done_callback(partial(_count_lost, len(records)))

    def _encode(self) -> None:
        """Count what waits, and turn it into records."""
        waiting, self._waiting = self._waiting, []
        if self._group is not None:
            self._group.cancel()
            self._group = None
        for state in waiting:
            try:
                count(state)
                # Without arms there is nothing to say, and no outcome means that the process ends.
                if state.decision is UNASSIGNED or state.outcome is None:
                    continue
                value = record_bytes(state)
            except Exception:
                _lost(state)
            else:
                request = state.request
                key = request.asked.user_id.encode()
                self._records.append(Record(key, value, request.now_ms))


def _lost(state: RequestState) -> None:
    DECISIONS_LOST.inc()
    log.exception("decision_not_recorded", request_id=state.request.request_id)


def _fits(record: Record) -> bool:
    """Whether the log can store a record; one that it cannot is logged and counted as lost."""
    try:
        check_append(topics.DECISIONS, [record])
    except ValueError as error:
        DECISIONS_LOST.inc()
        log.error("decision_not_recorded", user=record.key.decode(), error=str(error))
        return False
    return True


def _count_lost(records: int, appended: Future[None]) -> None:
    if appended.exception() is not None:
        DECISIONS_LOST.inc(records)
