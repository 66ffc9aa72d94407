"""Feedback at the edge: checked, turned into log records, acknowledged when the log has them.

A batch is all or nothing: one wrong event refuses it whole and nothing of it is stored.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from statistics import median

import grpc
import structlog
from prometheus_client import Counter

from models.schema.compiled import Schema
from models.schema.declaration import Event
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services.common.rpc import Refusal, invalid
from services.common.settings import EventLogSettings, FeedbackSettings
from services.common.validate import check_id
from services.event_log import topics
from services.event_log.interface import EventLog, LogSaturated, LogUnavailable, Record
from services.feedback.ahead import when

log = structlog.get_logger(__name__)

AHEAD = Counter(
    "tandem_feedback_ahead_users_total",
    "Users, by batch, whose feedback was refused because it lies ahead of this router's clock: a"
    " few have wrong clocks; if it is nearly everybody, this router has.",
)
WATCH_MS = 60_000  # how long users are counted together
WATCH_FROM_USERS = 10  # fewer prove nothing
WATCHED_USERS = 1_000  # of each kind: more prove no more


def check_events(
    events: Sequence[FeedbackEvent],
    now_ms: int,
    declared: Mapping[int, Event],
    *,
    max_events: int,
    oldest_ms: int,
    latest_ms: int,
) -> None:
    """Raise an INVALID_ARGUMENT Refusal naming the first wrong field, e.g. events[3].item_id.

    `declared`: events by their ids. One that is named gets its id in place of the name.
    """
    if not events:
        raise invalid("events", "is empty; send at least one event")
    if len(events) > max_events:
        raise invalid("events", f"has {len(events)} events; at most {max_events} are accepted")
    for i, event in enumerate(events):
        for name in ("event_id", "user_id", "item_id"):
            check_id(f"events[{i}].{name}", getattr(event, name))
        check_id(f"events[{i}].request_id", event.request_id, required=False)
        kind = _kind_of(f"events[{i}]", event, declared)
        if event.properties or event.properties_text:
            _check_properties(f"events[{i}]", event, kind)
        if event.event_time_ms < oldest_ms:
            raise invalid(
                f"events[{i}].event_time_ms",
                f"{event.event_time_ms} is {(now_ms - event.event_time_ms) / 1000:.0f} s ago"
                f"{_clocks(event, now_ms)};"
                f" events are kept for {(now_ms - oldest_ms) / 1000:.0f} s",
            )
        if event.event_time_ms > latest_ms:
            raise invalid(
                f"events[{i}].event_time_ms",
                f"{event.event_time_ms} is {(event.event_time_ms - now_ms) / 1000:.0f} s in the"
                f" future{_clocks(event, now_ms)}; at most {(latest_ms - now_ms) / 1000:.0f} s are"
                " accepted"
                " (is it in milliseconds?)",
            )


def _kind_of(place: str, event: FeedbackEvent, declared: Mapping[int, Event]) -> Event:
    """What the event's id or name means, with the value that came with it."""
    if name := event.event:
        number = next((number for number, kind in declared.items() if kind.name == name), 0)
        if not number:
            raise invalid(f"{place}.event", f"there is no event {name[:64]!r}: {_known(declared)}")
        if event.event_type not in (0, number):
            raise invalid(
                f"{place}.event", f"{name} has the id {number}, not {event.event_type} (event_type)"
            )
        event.event_type = number  # type: ignore[assignment]  # any id, not three alone
        event.ClearField("event")
    kind = declared.get(event.event_type)
    if kind is None:
        raise invalid(
            f"{place}.event_type", f"{event.event_type} is no event's id: {_known(declared)}"
        )
    amount, value = kind.value, event.value
    if amount is None:
        if value:
            raise invalid(
                f"{place}.value",
                f"{kind.name} has none: leave it out, or declare it in schema.yaml",
            )
    elif not (math.isfinite(value) and amount.low <= value <= amount.high):
        raise invalid(
            f"{place}.value",
            ("is missing, or 0, which" if value == 0 else f"{value:g} {amount.unit}")
            + f" is not in {amount.low:g}..{amount.high:g}, which schema.yaml declares of"
            f" {kind.name}",
        )
    return kind


def _check_properties(place: str, event: FeedbackEvent, kind: Event) -> None:
    """What else came with the event. A value of a category that is not declared is kept as it is:
    it is none of those that somebody asks for."""
    declared = {field.name: field.type for field in kind.properties}
    for part, texts in (("properties", False), ("properties_text", True)):
        for name, value in getattr(event, part).items():
            at = f"{place}.{part}[{name[:64]!r}]"
            if name not in declared:
                known = ", ".join(declared) or "none"
                raise invalid(at, f"schema.yaml declares no such property of {kind.name}: {known}")
            if texts != (declared[name] == "category"):
                other = "properties" if texts else "properties_text"
                raise invalid(at, f"is a {declared[name]}: send it in {other}")
            if texts:
                check_id(at, value)
            elif not math.isfinite(value) or (declared[name] == "flag" and value not in (0, 1)):
                accepted = "0 or 1" if declared[name] == "flag" else "a finite number"
                raise invalid(at, f"is {value:g}; expected {accepted}")


def _known(declared: Mapping[int, Event]) -> str:
    return "give one of " + ", ".join(f"{number} {kind.name}" for number, kind in declared.items())


def _clocks(event: FeedbackEvent, now_ms: int) -> str:
    """Both times, so that whoever reads the refusal sees whose clock is wrong."""
    return f" ({when(event.event_time_ms)}, and here it is {when(now_ms)})"


class ClockWatch:
    """Notices that this machine's clock is slow, by everybody being ahead of it.

    A user whose events lie ahead has a wrong clock; when most users' do, this machine has one, and
    all feedback is refused. Counts users, so that one who tries again and again proves nothing.
    """

    def __init__(self) -> None:
        self._until_ms = 0
        self._right: set[str] = set()
        self._ahead: dict[str, int] = {}  # by user, how far (ms)
        self._said = False

    def saw(self, users: set[str], ahead: Mapping[str, int], now_ms: int) -> None:
        """One batch: its users, and of those with events ahead of the bound how far."""
        if not self._until_ms - WATCH_MS <= now_ms < self._until_ms:
            self._until_ms, self._said = now_ms + WATCH_MS, False
            self._right.clear()
            self._ahead.clear()
        if len(self._right) < WATCHED_USERS:
            self._right |= users - ahead.keys()
        if not ahead:
            return
        if len(self._ahead) < WATCHED_USERS:
            self._ahead.update(ahead)
        many = max(WATCH_FROM_USERS, len(self._right) + 1)
        if len(self._ahead) >= many and not self._said:
            self._said = True
            log.error("this_clock_is_slow", cause=self._sentence(now_ms))

    def _sentence(self, now_ms: int) -> str:
        slow_s = median(self._ahead.values()) / 1000
        return (
            f"feedback of {len(self._ahead)} users lies ahead of this machine's clock and of"
            f" {len(self._right)} does not: it is refused. Here it is {when(now_ms)}, which seems"
            f" to be {slow_s:.0f} s slow: set the clock"
        )


class Ingest:
    """Writes checked feedback to the event log."""

    def __init__(
        self,
        schema: Schema,
        log: EventLog,
        feedback: FeedbackSettings,
        event_log: EventLogSettings,
    ) -> None:
        self._declared = schema.accepted
        self._log = log
        self._feedback = feedback
        self._retention_ms = int(event_log.retention_days * 86_400_000)
        self._clock = ClockWatch()

    async def record(self, events: Sequence[FeedbackEvent], now_ms: int) -> int:
        """Check and append; returns the number of events once they are durable.

        Raises Refusal: INVALID_ARGUMENT, RESOURCE_EXHAUSTED (too many appends wait), UNAVAILABLE.
        """
        latest_ms = now_ms + int(self._feedback.max_future_s * 1000)
        users = {event.user_id for event in events}
        try:
            check_events(
                events,
                now_ms,
                self._declared,
                max_events=self._feedback.max_batch_events,
                oldest_ms=now_ms - self._retention_ms,
                latest_ms=latest_ms,
            )
        except Refusal:
            ahead = {
                event.user_id: event.event_time_ms - now_ms
                for event in events
                if event.event_time_ms > latest_ms
            }
            AHEAD.inc(len(ahead))
            self._clock.saw(users, ahead, now_ms)
            raise
        self._clock.saw(users, {}, now_ms)
        for event in events:
            event.DiscardUnknownFields()  # of a newer client: nothing here has checked their size
        records = [
            Record(event.user_id.encode(), event.SerializeToString(), event.event_time_ms)
            for event in events
        ]
        try:
            # Shielded: a caller that goes away must not cancel an append half-way.
            await asyncio.shield(asyncio.wrap_future(self._log.append(topics.FEEDBACK, records)))
        except LogSaturated as error:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{error}; retry later") from None
        except LogUnavailable as error:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE,
                f"the event log did not confirm the events: {error}; send them again"
                " (event_id makes that harmless)",
            ) from None
        return len(records)
