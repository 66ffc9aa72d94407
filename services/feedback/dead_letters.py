"""Topic `feedback.dlq`: records of feedback that can never be applied."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Sequence

import structlog
from prometheus_client import Counter

from protos.tandem.v1 import records_pb2
from services.event_log.interface import (
    MAX_RECORD_BYTES,
    EventLog,
    LogRecord,
    LogSaturated,
    LogUnavailable,
    Record,
)
from services.event_log.limits import MAX_KEY_BYTES
from services.event_log.topics import DEAD_LETTERS
from services.feedback.ahead import when
from services.feedback.deliveries import AHEAD, Dead

log = structlog.get_logger(__name__)

APPEND_S = 10.0  # for the dead letters to be durable

AHEAD_EVENTS = Counter(
    "tandem_updater_ahead_events_total",
    "Invalid records whose time lies ahead of this machine's clock: of one producer, its clock is"
    " wrong; of all, this machine's.",
)
LOST_LETTERS = Counter(
    "tandem_updater_lost_dead_letters_total",
    "Invalid records that topic feedback.dlq did not take; the log lines name their places.",
)


def bury(event_log: EventLog, dead: Sequence[Dead], now_ms: int) -> None:
    """Put the records into DEAD_LETTERS. One that cannot be put there is let go: it lies in topic
    `feedback` as long as that is retained, at the place that the log line names."""
    reasons = Tally(reason for _, reason in dead)
    where = [f"{record.partition}/{record.offset}" for record, _ in dead]
    log.warning("dead_letters", records=len(dead), reasons=dict(reasons), at=where[:10])
    if ahead := [record for record, reason in dead if reason == AHEAD]:
        AHEAD_EVENTS.inc(len(ahead))
        log.error("events_ahead_of_this_clock", cause=_ahead_sentence(ahead, now_ms))
    appends = []
    for record, place in zip((record for record, _ in dead), where, strict=True):
        # Cut only what another producer put over the log's own bounds.
        key = record.key[:MAX_KEY_BYTES]
        letter = Record(key, record.value[: MAX_RECORD_BYTES - len(key)], record.time_ms)
        try:
            appends.append((event_log.append(DEAD_LETTERS, [letter]), place))
        except (LogSaturated, LogUnavailable, ValueError) as error:
            _lost(place, error)
    deadline = time.monotonic() + APPEND_S
    for append, place in appends:
        try:
            append.result(max(0.0, deadline - time.monotonic()))
        except (LogUnavailable, TimeoutError) as error:
            _lost(place, error)


def _lost(place: str, error: Exception) -> None:
    LOST_LETTERS.inc()
    log.error("dead_letter_not_kept", at=place, cause=f"{type(error).__name__}: {error}")


def _ahead_sentence(records: Sequence[LogRecord], now_ms: int) -> str:
    read = records_pb2.FeedbackEvent.FromString
    newest_ms = max(read(record.value).event_time_ms for record in records)
    return (
        f"{len(records)} events lie up to {(newest_ms - now_ms) / 1000:.0f} s ahead of this"
        f" machine's clock ({when(newest_ms)}, and here it is {when(now_ms)}): they went to"
        f" {DEAD_LETTERS!r}; set the clock of their producer, or this one if most events are ahead"
    )
