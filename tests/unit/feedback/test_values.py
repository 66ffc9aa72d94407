"""What comes with an event, from its record into the rows that keep sums of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from feature_store import codec
from models.catalogue import ItemTable
from models.schema.compiled import compiled
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services.event_log.interface import LogRecord
from services.feedback.deliveries import parse
from services.feedback.rows import EntityRows
from tests.unit.models.schema.declared import shop

SHOP = compiled(shop())
PURCHASE, NOW_MS = 6, 1_700_000_000_000
ITEMS = ItemTable.build(["i"], np.zeros(1, SHOP.layout.item.dtype))


def record(n: int, value: float) -> LogRecord:
    event = FeedbackEvent(
        event_id=f"e{n}",
        user_id="u",
        item_id="i",
        event_type=PURCHASE,  # type: ignore[arg-type]
        event_time_ms=NOW_MS + n,
        value=value,
    )
    return LogRecord(0, n, NOW_MS, b"u", event.SerializeToString())


def test_values_are_added_up_in_the_rows_of_the_user() -> None:
    records = [record(0, 12.5), record(1, 0.25)]
    deliveries, dead = parse(records, ITEMS, NOW_MS + 60_000, SHOP.fold)
    assert not dead
    folded = EntityRows(SHOP).fold_user("u", [None] * 4, deliveries, NOW_MS + 60_000)
    assert folded.write is not None
    profile = codec.decode(SHOP.layout.profile, folded.write.rows["profile"])
    assert profile is not None
    assert (profile.record["count_6"], profile.record["sum_6"]) == (2, 12.75)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_never_reaches_a_row(value: float) -> None:
    deliveries, (dead,) = parse([record(0, value)], ITEMS, NOW_MS + 60_000, SHOP.fold)
    assert (deliveries, dead.reason) == ([], "value")


def test_no_time_of_a_user_lies_beyond_what_is_accepted() -> None:
    """Also those of single events, which would stay the newest for ever."""
    profile = SHOP.layout.profile.defaults()
    profile["last_event_ms"] = profile["last_6_ms"] = NOW_MS + 10**9
    row = codec.encode(SHOP.layout.profile, profile, NOW_MS + 10**9, 1)
    deliveries, _ = parse([record(0, 1.0)], ITEMS, NOW_MS + 60_000, SHOP.fold)
    folded = EntityRows(SHOP).fold_user("u", [None, None, row, None], deliveries, NOW_MS + 60_000)
    assert folded.write is not None
    after = codec.decode(SHOP.layout.profile, folded.write.rows["profile"])
    assert after is not None
    assert after.record["last_event_ms"] == after.record["last_6_ms"] == NOW_MS + 60_000
