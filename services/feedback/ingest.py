"""Feedback at the edge: checked, turned into log records, acknowledged when the log has them.

A batch is all or nothing: one wrong event refuses it whole and nothing of it is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc

from protos.tandem.v1.records_pb2 import EventType, FeedbackEvent
from services.common.rpc import Refusal, invalid
from services.common.settings import EventLogSettings, FeedbackSettings
from services.event_log import topics
from services.event_log.interface import EventLog, LogSaturated, LogUnavailable, Record
from services.router.validate import check_id

KNOWN_TYPES = frozenset({EventType.IMPRESSION, EventType.CLICK, EventType.LIKE})


def check_events(
    events: Sequence[FeedbackEvent],
    now_ms: int,
    *,
    max_events: int,
    oldest_ms: int,
    latest_ms: int,
) -> None:
    """Raise an INVALID_ARGUMENT Refusal naming the first wrong field, e.g. events[3].item_id."""
    if not events:
        raise invalid("events", "is empty; send at least one event")
    if len(events) > max_events:
        raise invalid("events", f"has {len(events)} events; at most {max_events} are accepted")
    for i, event in enumerate(events):
        check_id(f"events[{i}].event_id", event.event_id)
        check_id(f"events[{i}].user_id", event.user_id)
        check_id(f"events[{i}].item_id", event.item_id)
        check_id(f"events[{i}].request_id", event.request_id, required=False)
        if event.event_type not in KNOWN_TYPES:
            raise invalid(
                f"events[{i}].event_type",
                f"{event.event_type} is not IMPRESSION, CLICK or LIKE",
            )
        if event.event_time_ms < oldest_ms:
            raise invalid(
                f"events[{i}].event_time_ms",
                f"{event.event_time_ms} is {(now_ms - event.event_time_ms) / 1000:.0f} s ago;"
                f" events are kept for {(now_ms - oldest_ms) / 1000:.0f} s",
            )
        if event.event_time_ms > latest_ms:
            raise invalid(
                f"events[{i}].event_time_ms",
                f"{event.event_time_ms} is {(event.event_time_ms - now_ms) / 1000:.0f} s in the"
                f" future; at most {(latest_ms - now_ms) / 1000:.0f} s are accepted"
                " (is it in milliseconds?)",
            )


class Ingest:
    """Writes checked feedback to the event log."""

    def __init__(
        self, log: EventLog, feedback: FeedbackSettings, event_log: EventLogSettings
    ) -> None:
        self._log = log
        self._feedback = feedback
        self._retention_ms = int(event_log.retention_days * 86_400_000)

    async def record(self, events: Sequence[FeedbackEvent], now_ms: int) -> int:
        """Check and append; returns the number of events once they are durable.

        Raises Refusal: INVALID_ARGUMENT, RESOURCE_EXHAUSTED (too many appends wait), UNAVAILABLE.
        """
        check_events(
            events,
            now_ms,
            max_events=self._feedback.max_batch_events,
            oldest_ms=now_ms - self._retention_ms,
            latest_ms=now_ms + int(self._feedback.max_future_s * 1000),
        )
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
