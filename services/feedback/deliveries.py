"""Records of topic `feedback` as the fold needs them, and those that can never be applied."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from models.catalogue import ItemTable, item_key
from models.schema.declaration import MAX_ID_BYTES
from models.schema.fold import Event, Fold, Values
from protos.tandem.v1 import records_pb2
from services.event_log.interface import LogRecord

AHEAD = "time ahead"  # the reason that says something about clocks, not about the sender


class Delivery(NamedTuple):
    """One valid record as the fold needs it; `values` are the item's, None for an unknown one."""

    partition: int
    offset: int
    item_id: str
    event: Event
    values: Values | None


class Dead(NamedTuple):
    """A record that can never be applied, and why."""

    record: LogRecord
    reason: str


def parse(
    records: Sequence[LogRecord], items: ItemTable, latest_ms: int, fold: Fold
) -> tuple[list[Delivery], list[Dead]]:
    """The valid records in order, and the others.

    An event after `latest_ms` is dead: its time would become the time that counters and histories
    refer to, and nothing that happens before it would count any more. How long ago an event was is
    not judged: an old one weighs what it weighs, and a log that is read late must give the same
    rows.
    """
    events: list[records_pb2.FeedbackEvent] = []
    valid: list[LogRecord] = []
    dead: list[Dead] = []
    for record in records:
        event, reason = _read(record.value, latest_ms, fold.events)
        if event is None:
            dead.append(Dead(record, reason))
        else:
            events.append(event)
            valid.append(record)
    keys = np.fromiter((item_key(event.item_id) for event in events), np.uint64, len(events))
    values = items.values_of(items.index_of(keys), fold.item_fields)
    deliveries = [
        Delivery(
            record.partition,
            record.offset,
            event.item_id,
            event_of(event, int(key)),
            of_item,
        )
        for record, event, key, of_item in zip(valid, events, keys, values, strict=True)
    ]
    return deliveries, dead


def event_of(message: records_pb2.FeedbackEvent, key: int) -> Event:
    """The event as the fold needs it; `key` is the item's."""
    return Event(
        message.event_id,
        message.user_id,
        key,
        message.event_type,
        message.event_time_ms,
        message.value,
    )


def _read(
    value: bytes, latest_ms: int, declared: Collection[int]
) -> tuple[records_pb2.FeedbackEvent | None, str]:
    """The event, or None and what is wrong with it."""
    try:
        event = records_pb2.FeedbackEvent.FromString(value)
    except DecodeError:
        return None, "no message"
    ids = (event.event_id, event.user_id, event.item_id)
    if not all(1 <= len(i.encode()) <= MAX_ID_BYTES for i in ids):
        return None, "ids"
    if event.event_type not in declared:
        return None, "event type"
    if not math.isfinite(event.value):
        return None, "value"
    if event.event_time_ms <= 0:
        return None, "no time"
    if event.event_time_ms > latest_ms:
        return None, AHEAD
    return event, ""
