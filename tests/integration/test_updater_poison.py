"""What stops the feature updater and what does not: poison, damage, foreign rows, another log."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from feature_store.codec import encode
from feature_store.interface import FeatureStore, GuardedWrite, RowKey
from models.data.worlds.films.schema import CLICK, COUNTERS, GROUPS, PROFILE, SCHEMA
from models.schema.groups import Feature
from models.schema.progress import ITEM_DELIVERY, USER_DELIVERY
from services.event_log.embedded import EmbeddedEventLog
from services.event_log.interface import (
    MAX_RECORD_BYTES,
    EventLog,
    LogRecord,
    LogSaturated,
    LogUnavailable,
    Record,
)
from services.event_log.topics import DEAD_LETTERS, FEEDBACK
from services.feedback.store_log import GROUP, ForeignLayout, OtherLog
from services.feedback.updater import FeatureUpdater
from tests.integration.updating import (
    DEADLINE_S,
    NOW_MS,
    ScriptedConsumer,
    as_records,
    differences,
    event_log,
    feedback,
    item_table,
    open_store,
    outcomes,
    store,
    updater,
)
from tests.unit.feedback.test_ahead import garbage

__all__ = ["event_log", "store"]  # fixtures


def test_what_cannot_be_applied_goes_to_the_dead_letters_as_it_came(
    store: FeatureStore, event_log: EventLog
) -> None:
    good = feedback("u1", "i1", CLICK, NOW_MS, "e1")
    bad = [
        b"\xff not a message",
        b"",
        feedback("", "i1", CLICK, NOW_MS, "e2").SerializeToString(),
        feedback("u1", "i1", CLICK, NOW_MS, "").SerializeToString(),
        feedback("u1", "x" * 257, CLICK, NOW_MS, "e3").SerializeToString(),
        feedback("u1", "i1", 0, NOW_MS, "e4").SerializeToString(),
        feedback("u1", "i1", 9, NOW_MS, "e5").SerializeToString(),
        feedback("u1", "i1", CLICK, 0, "e6").SerializeToString(),
        feedback("u1", "i1", CLICK, 2**62, "e7").SerializeToString(),
    ]
    values = [*bad, good.SerializeToString(), good.SerializeToString()]
    event_log.append(FEEDBACK, [Record(b"u1", value, NOW_MS) for value in values]).result(
        DEADLINE_S
    )
    before = outcomes()
    consumer = event_log.consumer(FEEDBACK, GROUP)
    worker = FeatureUpdater(
        SCHEMA, store, event_log, consumer, item_table, clock_ms=lambda: NOW_MS, poll_records=100
    )
    assert worker.step(DEADLINE_S) == len(values)
    after = outcomes()
    assert {o: after[o] - before[o] for o in after} == {
        "applied": 1.0,
        "duplicate": 1.0,
        "invalid": float(len(bad)),
    }
    assert differences(store, [good]) == []
    letters = event_log.consumer(DEAD_LETTERS, "test")
    assert [(r.key, r.value) for r in letters.poll(100, DEADLINE_S)] == [(b"u1", v) for v in bad]
    consumer.close()
    letters.close()


class NoDeadLetters(EmbeddedEventLog):
    """A log whose topic of dead letters takes nothing."""

    def __init__(self, root: Path, refusal: Exception) -> None:
        super().__init__(root, partitions=2)
        self.refusal = refusal

    def append(self, topic: str, records: Sequence[Record]) -> Future[None]:
        if topic != DEAD_LETTERS:
            return super().append(topic, records)
        if isinstance(self.refusal, (LogSaturated, ValueError)):
            raise self.refusal
        failed: Future[None] = Future()
        failed.set_exception(self.refusal)
        return failed


@pytest.mark.parametrize(
    "refusal",
    [LogUnavailable("no right to write"), TimeoutError(), LogSaturated("full"), ValueError("size")],
    ids=lambda refusal: type(refusal).__name__,
)
def test_a_dead_letter_that_cannot_be_kept_is_counted_and_stops_nothing(
    store: FeatureStore, tmp_path: Path, refusal: Exception
) -> None:
    good = feedback("u1", "i1", CLICK, NOW_MS, "e1")
    bad = LogRecord(1, 0, NOW_MS, b"k" * 2**20, b"\xff" * 2**20)
    after = LogRecord(1, 1, NOW_MS, b"u1", good.SerializeToString())
    lost = "tandem_updater_lost_dead_letters_total"
    before = REGISTRY.get_sample_value(lost)
    log = NoDeadLetters(tmp_path / "events", refusal)
    consumer = ScriptedConsumer([bad, after])
    assert updater(store, log, consumer).step(0.0) == consumer.committed == 2
    assert differences(store, [good]) == []
    assert REGISTRY.get_sample_value(lost) == before + 1
    log.close()


def test_a_dead_letter_is_cut_to_what_the_log_takes(
    store: FeatureStore, event_log: EventLog
) -> None:
    bad = LogRecord(0, 0, NOW_MS, b"k" * 2**20, b"\xff" * 2**21)
    updater(store, event_log, ScriptedConsumer([bad])).step(0.0)
    letters = event_log.consumer(DEAD_LETTERS, "test")
    (letter,) = letters.poll(10, DEADLINE_S)
    assert (len(letter.key), len(letter.key) + len(letter.value)) == (0xFFFF, MAX_RECORD_BYTES)
    letters.close()


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(garbage(), max_size=6))
def test_whatever_lies_in_the_topic_the_worker_goes_on_and_counts_it(values: list[bytes]) -> None:
    good = feedback("u1", "i1", CLICK, NOW_MS, "a good event")
    records = [
        LogRecord(1, n, NOW_MS, b"", value)
        for n, value in enumerate([*values, good.SerializeToString()])
    ]
    with tempfile.TemporaryDirectory() as folder:
        store, log = open_store(Path(folder)), EmbeddedEventLog(Path(folder) / "events")
        consumer, before = ScriptedConsumer(records), outcomes()
        worker = updater(store, log, consumer)
        worker.step(0.0)
        assert consumer.committed == len(records)
        counted = {o: n - before[o] for o, n in outcomes().items()}
        assert counted == {o: worker.outcomes[o] for o in counted}
        assert sum(counted.values()) == len(records)
        assert differences(store, [good]) == [] or counted["applied"] > 1
        store.close()
        log.close()


def test_rows_of_a_foreign_layout_stop_the_worker_and_stay_as_they_are(
    store: FeatureStore, event_log: EventLog
) -> None:
    for group, guard, entity in (
        (PROFILE, USER_DELIVERY, "u1"),
        (USER_DELIVERY, USER_DELIVERY, "u1"),
        (COUNTERS, ITEM_DELIVERY, "i1"),
        (ITEM_DELIVERY, ITEM_DELIVERY, "i1"),
    ):
        newer = dataclasses.replace(group, features=(*group.features, Feature("more", "<u1")))
        store.clear(GROUPS)
        rows = {guard.name: encode(guard, guard.defaults(), NOW_MS, 1)}
        rows[group.name] = encode(newer, newer.defaults(), NOW_MS, 1)
        assert store.write([GuardedWrite(entity, guard.name, 0, rows)]) == [True]
        consumer = ScriptedConsumer(as_records([feedback("u1", "i1", CLICK, NOW_MS, "e1")]))
        said = f"{group.name!r} in layout {newer.hash:016x}.*{group.hash:016x}.*features rebuild"
        with pytest.raises(ForeignLayout, match=said):
            updater(store, event_log, consumer).step(0.0)
        kept = store.read([RowKey(name, entity) for name in rows])
        assert kept == list(rows.values())
        others = [k for g in ("user_delivery", "profile", "history") for k in [RowKey(g, "u1")]]
        others += [RowKey(g, "i1") for g in ("item_delivery", "counters")]
        assert sum(row is not None for row in store.read(others)) == len(rows)
        assert consumer.committed == 0


def test_a_damaged_row_is_begun_anew_and_counted(store: FeatureStore, event_log: EventLog) -> None:
    sent = [feedback("u1", "i1", CLICK, NOW_MS, "e1")]
    damaged = encode(COUNTERS, COUNTERS.defaults(), NOW_MS, 1)[:-1] + b"\x07"
    guard = encode(ITEM_DELIVERY, ITEM_DELIVERY.defaults(), NOW_MS, 1)
    rows = {"item_delivery": guard, "counters": damaged}
    store.write([GuardedWrite("i1", "item_delivery", 0, rows)])
    name = "tandem_updater_damaged_rows_total"
    before = REGISTRY.get_sample_value(name)
    updater(store, event_log, ScriptedConsumer(as_records(sent))).step(0.0)
    assert differences(store, sent) == []
    assert REGISTRY.get_sample_value(name) == before + 1


def test_store_and_log_are_judged_before_a_partition_that_is_new_or_went_back_is_applied(
    store: FeatureStore, event_log: EventLog
) -> None:
    sent = [feedback("u2", "i1", CLICK, NOW_MS, f"e{n}") for n in range(6)]
    first, again = as_records(sent)[:4], as_records(sent)[2:3]
    consumer, judged = ScriptedConsumer([*first, *again], [2, 2, 1]), []

    def judge() -> None:
        judged.append(consumer.position)
        if consumer.position == 5:
            raise OtherLog("it went back")

    worker = FeatureUpdater(
        SCHEMA, store, event_log, consumer, item_table, clock_ms=lambda: NOW_MS, verify=judge
    )
    assert (worker.step(0.0), worker.step(0.0)) == (2, 2)
    assert judged == [2]
    with pytest.raises(OtherLog):
        worker.step(0.0)
    assert (judged, consumer.committed) == ([2, 5], 4)
