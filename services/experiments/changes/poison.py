"""Which records of the log experiments can read, and what becomes of the others.

Protobuf parses much that nobody means: enums of any number, ids that are empty, names with
anything in them, times at the ends of int64. Whoever can write the log can write that, by a bug or
a clock that nobody set; and it stays there, so that what it stops once it stops at every start. A
record that cannot be meant is *dropped*: it changes nothing, raises nothing, is counted in
tandem_experiments_records_dropped_total, and the first one of each kind is logged.

LISTS. A decision whose interleaved list nobody can be credited by, because it is not as a router
writes it or was made by a method that there is no more, counts; its list is dropped, and is in no
preference.

TIMES. Who reads a log (`mistimed`) drops what is from before EARLIEST_MS: seconds for milliseconds,
or a clock at its zero. One later than MAX_AHEAD_MS after the reader's clock is from a clock that is
wrong. Up to that it is taken, and counts when its time has come: clocks disagree. Who reads the log
anew later, takes what is no longer so far ahead.

What is well formed and false is not found here: who may write the log can make up requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import structlog
from prometheus_client import Counter

from models.schema.declaration import LARGEST_ID
from models.schema.reader.words import NAME as WORD
from models.yaml_reader.values import NAME
from protos.tandem.v1.records_pb2 import (
    DecisionRecord,
    Degradation,
    ExperimentChange,
    FeedbackEvent,
    Outcome,
)
from services.common.validate import MAX_ITEMS
from services.experiments.declare.config import INTERLEAVES
from services.experiments.declare.reader.experiments import MAX_STEPS

EARLIEST_MS = 10**12  # September 2001
MAX_AHEAD_MS = 3_600_000
MAX_PAUSES = 1000  # of all arms of an experiment

_OUTCOMES = frozenset(Outcome.values())
_KINDS = frozenset(ExperimentChange.Kind.values()) - {ExperimentChange.KIND_UNSPECIFIED}
_LONGEST = 64  # of a NAME

DROPPED = Counter(
    "tandem_experiments_records_dropped_total",
    "Records of the log that no experiment can be measured or changed by, per topic and reason: a "
    "broken writer, or (future) a clock that is ahead. Repair it: they are in no statistics. "
    "(interleaving): only the list is in none; routers of before had methods that are gone.",
    ["topic", "reason"],
)

log = structlog.get_logger(__name__)
_told: set[tuple[str, str]] = set()


def drop(topic: str, reason: str, record: str) -> None:
    """Count a record that is not taken; the first one for its reason is logged, by its id."""
    DROPPED.labels(topic, reason).inc()
    if (topic, reason) not in _told:
        _told.add((topic, reason))
        log.error(
            "experiment_record_dropped", topic=topic, reason=reason, record=ascii(record[:64])
        )


def mistimed(event_time_ms: int, clock: Callable[[], float]) -> str:
    """`past` or `future` if nobody can have meant that time; `clock` gives seconds since the
    epoch."""
    if event_time_ms < EARLIEST_MS:
        return "past"
    return "future" if event_time_ms > clock() * 1000 + MAX_AHEAD_MS else ""


def of_decision(record: DecisionRecord) -> str:
    """Why a decision cannot be meant, in a word; empty if it can be."""
    if not record.request_id:
        return "id"
    if record.event_time_ms < 0:
        return "past"
    if record.outcome not in _OUTCOMES:
        return "outcome"
    # One that this program does not know yet is a degradation all the same.
    if record.degradations and min(record.degradations) <= Degradation.DEGRADATION_UNSPECIFIED:
        return "degradation"
    seen = set()
    for a in record.assignments:
        if not (_is_name(a.experiment) and _is_name(a.arm)):
            return "name"
        if (a.salt and not _is_name(a.salt)) or (a.unit and not _is_name(a.unit)):
            return "name"
        seen.add(a.experiment)
    if len(seen) < len(record.assignments):
        return "two_arms"
    if not all(map(_is_name, record.segments)):
        return "name"
    return ""


def of_interleaving(record: DecisionRecord) -> str:
    """Likewise of a decision's interleaved list."""
    sent, length = record.interleaving, len(record.item_ids)
    whole = len(sent.teams) == length <= MAX_ITEMS and max(sent.teams, default=0) <= 1
    return "" if whole and sent.method in INTERLEAVES else "interleaving"


def of_feedback(event: FeedbackEvent) -> str:
    """Likewise of an event."""
    if not (event.event_id and event.user_id):
        return "id"
    if not 0 < event.event_type <= LARGEST_ID:
        return "type"
    if not math.isfinite(event.value):
        return "value"
    return "past" if event.event_time_ms < 0 else ""


def of_change(change: ExperimentChange) -> str:
    """Likewise of a change."""
    if not change.change_id:
        return "id"
    if not (_is_name(change.salt) and _is_name(change.experiment)):
        return "name"
    if change.kind not in _KINDS:
        return "kind"
    state = change.state
    if not all(_is_name(pause.arm) for pause in state.pauses):
        return "name"
    since_ms = state.ramp_step_since_ms
    too_much = len(state.pauses) > MAX_PAUSES or state.ramp_step >= MAX_STEPS
    if too_much or any(p.to_ms and p.to_ms <= p.from_ms for p in state.pauses):
        return "state"
    starts = (pause.from_ms for pause in state.pauses)
    return "past" if min(change.event_time_ms, since_ms, *starts) < 0 else ""


def latest_of(change: ExperimentChange) -> int:
    """The latest instant that a change names."""
    state = change.state
    pauses = (ms for p in state.pauses for ms in (p.from_ms, p.to_ms))
    return max(change.event_time_ms, state.ramp_step_since_ms, *pauses)


def _is_name(text: str) -> bool:
    return len(text) <= _LONGEST and _matches(text)


@lru_cache(4096)
def is_word(text: str) -> bool:
    """Whether schema.yaml could declare something of this name."""
    return WORD.fullmatch(text) is not None


@lru_cache(4096)
def _matches(text: str) -> bool:
    return NAME.fullmatch(text) is not None
