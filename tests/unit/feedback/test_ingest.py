"""A batch of feedback is taken whole or refused whole, with the field that is wrong."""

from __future__ import annotations

import contextlib
import math
import random
import re
from collections import Counter
from concurrent.futures import Future
from typing import Any

import grpc
import pytest
import structlog
from prometheus_client import REGISTRY

from models.data.worlds.films.schema import SCHEMA
from models.schema.compiled import compiled
from protos.tandem.v1.records_pb2 import EventType, FeedbackEvent
from services.common.rpc import Refusal
from services.common.settings import EventLogSettings, FeedbackSettings
from services.event_log.interface import LogSaturated, LogUnavailable
from services.feedback.ahead import when
from services.feedback.ingest import Ingest
from tests.unit.models.schema.declared import shop

NOW = 1_700_000_000_000
DAY = 86_400_000


def event(**changes: object) -> FeedbackEvent:
    fields = {
        "event_id": "e",
        "user_id": "u",
        "item_id": "i",
        "event_type": EventType.CLICK,
        "event_time_ms": NOW,
    }
    return FeedbackEvent(**{**fields, **changes})


class Log:
    """An event log that answers as told; only `append` is used by ingest."""

    def __init__(self, outcome: Exception | None = None, raises: Exception | None = None) -> None:
        self.outcome, self.raises, self.records = outcome, raises, []

    def append(self, topic, records):
        if self.raises:
            raise self.raises
        self.records += [(topic, record) for record in records]
        future: Future[None] = Future()
        if self.outcome:
            future.set_exception(self.outcome)
        else:
            future.set_result(None)
        return future


def ingest(log: Log) -> Ingest:
    return Ingest(SCHEMA, log, FeedbackSettings(), EventLogSettings(retention_days=7))


async def test_an_acknowledged_batch_is_in_the_log_keyed_by_user_with_its_event_time():
    log = Log()
    events = [event(event_id="a"), event(event_id="b", user_id="ü", event_time_ms=NOW - 5)]
    assert await ingest(log).record(events, NOW) == 2
    assert [(t, r.key, r.time_ms) for t, r in log.records] == [
        ("feedback", b"u", NOW),
        ("feedback", "ü".encode(), NOW - 5),
    ]
    assert [FeedbackEvent.FromString(r.value) for _, r in log.records] == events


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"event_id": ""}, "events[1].event_id: is empty"),
        ({"user_id": "x" * 257}, "events[1].user_id: has 257 bytes"),
        ({"item_id": ""}, "events[1].item_id: is empty"),
        ({"request_id": "x" * 257}, "events[1].request_id: has 257 bytes"),
        ({"event_type": 0}, "events[1].event_type: 0 is no event"),
        ({"event_type": 77}, "events[1].event_type: 77 is no event"),
        ({"event_time_ms": NOW - 7 * DAY - 1}, "events[1].event_time_ms"),
        ({"event_time_ms": NOW + 60_001}, "events[1].event_time_ms"),
        ({"event_time_ms": 0}, "events[1].event_time_ms"),
    ],
)
async def test_one_wrong_event_refuses_the_batch_and_nothing_is_stored(wrong, message):
    log = Log()
    with pytest.raises(Refusal) as refusal:
        await ingest(log).record([event(), event(**wrong)], NOW)
    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.message.startswith(message)
    assert log.records == []


SHOP = compiled(shop())  # 1 impression, 2 click, 6 purchase with a value in EUR


def shop_ingest(log: Log) -> Ingest:
    return Ingest(SHOP, log, FeedbackSettings(), EventLogSettings(retention_days=7))


async def test_an_event_that_is_named_is_recorded_by_its_id_and_with_its_value():
    log = Log()
    named = [
        event(event_type=0, event="purchase", value=12.5, properties={"coupon": 1}),
        event(event_id="b", event_type=6, event="purchase", value=100_000),
        event(event_id="c", event_type=2),
    ]
    assert await shop_ingest(log).record(named, NOW) == 3
    found = [FeedbackEvent.FromString(r.value) for _, r in log.records]
    assert [(e.event_type, e.event, e.value) for e in found] == [
        (6, "", 12.5), (6, "", 100_000), (2, "", 0),
    ]  # fmt: skip
    assert [dict(e.properties) for e in found] == [{"coupon": 1.0}, {}, {}]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"event_type": 0, "event": "like"}, "events[0].event: there is no event 'like': give one"),
        (
            {"event_type": 0, "event": "x" * 10**5},
            f"events[0].event: there is no event '{'x' * 64}'",
        ),
        ({"event_type": 2, "event": "purchase"}, "events[0].event: purchase has the id 6, not 2"),
        ({"event_type": 3}, "events[0].event_type: 3 is no event's id: give one of 1 impression"),
        ({"event_type": 2, "value": 5}, "events[0].value: click has none"),
        ({"event_type": 2, "value": math.nan}, "events[0].value: click has none"),
        ({"event_type": 6, "value": -1}, "events[0].value: -1 EUR is not in 0..100000"),
        ({"event_type": 6, "value": 100_001}, "events[0].value: 100001 EUR is not in"),
        ({"event_type": 6, "value": math.nan}, "events[0].value: nan EUR is not in"),
        ({"event_type": 6, "value": math.inf}, "events[0].value: inf EUR is not in"),
        ({"event_type": 2, "properties": {"coupon": 1}}, "events[0].properties['coupon']: schema"),
        ({"event_type": 6, "properties": {"coupon": 2}}, "events[0].properties['coupon']: is 2"),
        ({"event_type": 6, "properties": {"coupon": math.nan}}, "events[0].properties['coupon']"),
        (
            {"event_type": 6, "properties_text": {"coupon": "yes"}},
            "events[0].properties_text['coupon']: is a flag: send it in properties",
        ),
    ],
)
async def test_an_event_or_a_value_that_is_not_declared_is_refused(wrong, message):
    log = Log()
    with pytest.raises(Refusal) as refusal:
        await shop_ingest(log).record([event(**wrong)], NOW)
    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.message.startswith(message)
    assert log.records == []


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
async def test_a_value_without_an_upper_bound_is_a_number_all_the_same(value):
    free = compiled(shop(("value: {unit: EUR, max: 100000}", "value: {unit: EUR}")))
    subject = Ingest(free, Log(), FeedbackSettings(), EventLogSettings(retention_days=7))
    assert await subject.record([event(event_type=6, value=1e9)], NOW) == 1
    with pytest.raises(Refusal, match="value"):
        await subject.record([event(event_type=6, value=value)], NOW)


async def test_a_refused_time_is_told_with_both_clocks():
    for time_ms in (NOW + 3_600_000, NOW - 30 * DAY):
        with pytest.raises(Refusal) as refusal:
            await ingest(Log()).record([event(event_time_ms=time_ms)], NOW)
        assert f"({when(time_ms)}, and here it is {when(NOW)})" in refusal.value.message


async def offer(subject: Ingest, user: str, time_ms: int) -> None:
    with contextlib.suppress(Refusal):
        await subject.record([event(user_id=user, event_time_ms=time_ms)], NOW)


async def test_a_router_whose_clock_is_an_hour_slow_says_so_once():
    subject = ingest(Log())
    before = REGISTRY.get_sample_value("tandem_feedback_ahead_users_total")
    with structlog.testing.capture_logs() as logs:
        for n in range(40):
            await offer(subject, f"u{n}", NOW + 3_600_000 + n)
    (said,) = logs
    assert said["event"] == "this_clock_is_slow"
    assert f"Here it is {when(NOW)}, which seems to be 3600 s slow" in said["cause"]
    assert REGISTRY.get_sample_value("tandem_feedback_ahead_users_total") == before + 40


async def test_users_whose_clocks_are_ahead_say_nothing_about_this_one():
    subject = ingest(Log())
    with structlog.testing.capture_logs() as logs:
        for n in range(40):
            await offer(subject, f"u{n}", NOW)
            await offer(subject, f"v{n % 20}", NOW + 3_600_000)
        for _ in range(40):
            await offer(ingest(Log()), "one", NOW + 3_600_000)
    assert logs == []


@pytest.mark.parametrize("time_ms", [NOW - 7 * DAY, NOW + 60_000])
async def test_the_edges_of_the_accepted_time_are_accepted(time_ms):
    assert await ingest(Log()).record([event(event_time_ms=time_ms)], NOW) == 1


@pytest.mark.parametrize(("count", "ok"), [(0, False), (1000, True), (1001, False)])
async def test_a_batch_holds_1_to_1000_events(count, ok):
    if ok:
        assert await ingest(Log()).record([event()] * count, NOW) == count
    else:
        with pytest.raises(Refusal, match=r"^events: "):
            await ingest(Log()).record([event()] * count, NOW)


async def test_what_a_newer_client_adds_is_not_stored_unchecked():
    log = Log()
    unknown = bytes([0xFA, 0x3F]) + bytes([0x80, 0x80, 0x80, 0x01]) + b"x" * 2**21  # field 1023
    newer = FeedbackEvent.FromString(event().SerializeToString() + unknown)
    assert newer.ByteSize() > 2**21
    assert await ingest(log).record([newer], NOW) == 1
    ((_, stored),) = log.records
    assert stored.value == event().SerializeToString()


async def test_a_full_log_says_retry_and_a_broken_one_says_send_again():
    with pytest.raises(Refusal) as refusal:
        await ingest(Log(raises=LogSaturated("20000 appends wait"))).record([event()], NOW)
    assert refusal.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(Refusal) as refusal:
        await ingest(Log(outcome=LogUnavailable("disk full"))).record([event()], NOW)
    assert refusal.value.code is grpc.StatusCode.UNAVAILABLE
    assert "disk full" in refusal.value.message


TEXTS = ["", "u", "click", "clik", "purchase", "x" * 300, "\0"]
NUMBERS = [0.0, 1.0, -1.0, 59.9, math.nan, math.inf, 1e300]
ODD: dict[str, list[Any]] = {
    "event_id": TEXTS, "user_id": TEXTS, "item_id": TEXTS, "request_id": TEXTS, "event": TEXTS,
    "event_type": [0, 1, 2, 3, 99], "value": NUMBERS,
    "event_time_ms": [0, NOW, NOW // 1000, NOW + DAY, NOW - 9 * DAY, -(2**63)],
    "properties": [{}, {"coupon": 1.0}, {"coupon": 3.0}, {"cupon": 1.0}, {"": math.nan}],
    "properties_text": [{}, {"coupon": "x"}, {"channel": "x" * 300}, {"": ""}],
}  # fmt: skip


async def refusal_of(into: Ingest, events: list[FeedbackEvent]) -> Refusal | None:
    try:
        assert await into.record(events, NOW) == len(events)
    except Refusal as refusal:
        return refusal
    return None


async def test_whatever_an_event_holds_is_recorded_or_refused_by_a_field_of_it() -> None:
    rng, log = random.Random(0), Log()
    into = Ingest(compiled(shop()), log, FeedbackSettings(), EventLogSettings(retention_days=7))
    said: Counter[str] = Counter()
    for _ in range(10_000):
        odd = {name: rng.choice(ODD[name]) for name in rng.sample(list(ODD), rng.randrange(4))}
        before = len(log.records)
        refused = await refusal_of(into, [event(), event(**odd)])
        if refused is None:
            said["taken"] += 1
            assert len(log.records) == before + 2
            continue
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        field = re.match(r"events\[1\]\.(\w+)(\[.*?\])?: ", refused.message, re.DOTALL)
        assert field, refused.message
        # An event of another kind lacks the value that goes with it.
        assert field[1] in odd or (field[1] == "value" and odd.keys() & {"event", "event_type"})
        said[field[1]] += 1
        assert len(log.records) == before, "a batch is taken whole or not at all"
    assert said["taken"] > 1000
    assert said.keys() >= {"taken", *ODD} - {"properties_text"}
