"""Times ahead of the reader's clock move nothing, and no record whatever stops who reads it."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_store import codec
from models.catalogue import ItemTable
from models.data.worlds.films.schema import (
    CLICK,
    CLICKS,
    COUNTERS,
    HISTORY,
    ITEM_CLICKS,
    ITEM_DTYPE,
    PROFILE,
    SCHEMA,
)
from models.schema.groups import FeatureGroup
from models.schema.progress import ITEM_DELIVERY, USER_DELIVERY
from protos.tandem.v1.records_pb2 import Assignment, DecisionRecord, FeedbackEvent
from services.event_log.interface import LogRecord
from services.feedback.ahead import latest_ms, when
from services.feedback.deliveries import AHEAD, Delivery, parse
from services.feedback.rows import EntityRows

ROWS = EntityRows(SCHEMA)

NOW_MS = 1_750_000_000_000
LATEST_MS = latest_ms(NOW_MS, 60.0)
YEAR_9999_MS = 253_402_300_799_999
ITEMS = ItemTable.build(["1"], np.zeros(1, ITEM_DTYPE))

unhurried = settings(suppress_health_check=[HealthCheck.too_slow])
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.one_of(st.sampled_from(["", "u", "x" * 256, "é" * 129, "\x00"]), st.text(max_size=4))
EVENTS = st.builds(
    FeedbackEvent,
    event_id=TEXT,
    user_id=TEXT,
    item_id=TEXT,
    request_id=TEXT,
    event_type=st.integers(-(2**31), 2**31 - 1),
    event_time_ms=INT64,
)
DECISIONS = st.builds(
    DecisionRecord,
    request_id=TEXT,
    user_id=TEXT,
    session_id=TEXT,
    event_time_ms=INT64,
    assignments=st.lists(
        st.builds(Assignment, layer=TEXT, experiment=TEXT, arm=TEXT, unit=TEXT), max_size=3
    ),
)


@st.composite
def garbage(draw: st.DrawFn) -> bytes:
    """Random bytes, or a message with some of its bytes cut off or changed."""
    message = draw(st.one_of(EVENTS, DECISIONS).map(lambda m: m.SerializeToString()))
    mutated = bytearray(message[: draw(st.integers(0, len(message)))])
    for at in draw(st.lists(st.integers(0, max(0, len(mutated) - 1)), max_size=3)):
        if mutated:
            mutated[at] = draw(st.integers(0, 255))
    return draw(st.sampled_from([message, bytes(mutated), draw(st.binary(max_size=40))]))


def record(offset: int, value: bytes) -> LogRecord:
    return LogRecord(0, offset, NOW_MS, b"", value)


def click(time_ms: int, n: int = 0) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=f"e{n}", user_id="u", item_id="1", event_type=CLICK, event_time_ms=time_ms
    )


def delivered(*times_ms: int) -> list[Delivery]:
    records = [record(n, click(t, n).SerializeToString()) for n, t in enumerate(times_ms)]
    deliveries, dead = parse(records, ITEMS, LATEST_MS, SCHEMA.fold)
    assert dead == []
    return deliveries


@unhurried
@given(st.lists(garbage(), max_size=8))
def test_every_record_is_delivered_or_dead_and_what_is_delivered_has_a_time_that_has_come(
    values: list[bytes],
) -> None:
    records = [record(n, value) for n, value in enumerate(values)]
    deliveries, dead = parse(records, ITEMS, LATEST_MS, SCHEMA.fold)
    offsets = [d.offset for d in deliveries] + [r.offset for r, _ in dead]
    assert sorted(offsets) == list(range(len(values)))
    assert all(0 < d.event.event_time_ms <= LATEST_MS for d in deliveries)


def test_an_event_counts_up_to_the_bound_and_is_dead_beyond_it() -> None:
    times = [1, NOW_MS, LATEST_MS, LATEST_MS + 1, NOW_MS + 3_600_000, YEAR_9999_MS, 2**63 - 1]
    records = [record(n, click(t, n).SerializeToString()) for n, t in enumerate(times)]
    deliveries, dead = parse(records, ITEMS, LATEST_MS, SCHEMA.fold)
    assert [d.event.event_time_ms for d in deliveries] == times[:3]
    assert [(r.offset, reason) for r, reason in dead] == [(n, AHEAD) for n in range(3, 7)]


def poisoned(group: FeatureGroup, field: str, clicks: str | None) -> bytes:
    row = group.defaults()
    row[field] = YEAR_9999_MS
    if clicks:
        row[clicks] = 1
    return codec.encode(group, row, YEAR_9999_MS, 7)


def test_an_item_that_an_event_of_the_year_9999_has_stopped_counts_again() -> None:
    delivery = codec.encode(ITEM_DELIVERY, ITEM_DELIVERY.defaults(), YEAR_9999_MS, 7)
    rows = [delivery, poisoned(COUNTERS, "as_of_ms", ITEM_CLICKS)]
    folded = ROWS.fold_item("1", rows, delivered(*[NOW_MS] * 100), LATEST_MS)
    assert folded.write is not None
    counters = codec.decode(COUNTERS, folded.write.rows[COUNTERS.name])
    assert counters is not None
    assert 100 < float(counters.record[ITEM_CLICKS]) <= 101
    assert int(counters.record["as_of_ms"]) == counters.event_time_ms == LATEST_MS
    assert len(ROWS.of_item) == len(rows)


def test_a_user_that_an_event_of_the_year_9999_has_stopped_ages_again() -> None:
    delivery = codec.encode(USER_DELIVERY, USER_DELIVERY.defaults(), YEAR_9999_MS, 7)
    history = HISTORY.defaults()
    history["length"] = 2
    history["item_keys"][:2] = 11, 22
    history["event_times_ms"][:2] = YEAR_9999_MS, NOW_MS - 5
    rows = [
        delivery,
        None,
        poisoned(PROFILE, "last_event_ms", CLICKS),
        codec.encode(HISTORY, history, YEAR_9999_MS, 7),
    ]
    folded = ROWS.fold_user("u", rows, delivered(NOW_MS), LATEST_MS)
    assert folded.write is not None
    groups = [group for group in ROWS.of_user if group.name in folded.write.rows]
    written = {g.name: codec.decode(g, folded.write.rows[g.name]) for g in groups}
    times = [row.event_time_ms for row in written.values() if row]
    assert times == [LATEST_MS] * 3
    assert int(written["profile"].record["last_event_ms"]) == LATEST_MS
    after = written["history"].record
    assert list(after["event_times_ms"][:3]) == [LATEST_MS, NOW_MS, NOW_MS - 5]
    assert int(written["profile"].record[CLICKS]) == 2


def test_a_time_for_a_message_is_a_date_or_the_number_where_no_calendar_has_it() -> None:
    assert when(NOW_MS) == "2025-06-15T15:06:40Z"
    assert when(2**63 - 1) == f"{2**63 - 1} ms"
