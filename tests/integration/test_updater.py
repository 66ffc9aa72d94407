"""The feature updater on a real store and log: every event counts once, whatever breaks when."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.codec import decode
from feature_store.interface import FeatureStore, FeatureStoreUnavailable, GuardedWrite, RowKey
from models.data.worlds.films.schema import CLICK, COUNTERS, IMPRESSION, ITEM_CLICKS, LIKE, PROFILE
from models.schema.progress import APPLIED, USER_DELIVERY
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services.event_log.embedded import EmbeddedEventLog
from services.event_log.interface import EventLog
from services.event_log.topics import FEEDBACK
from services.feedback.updater import Contended
from tests.integration.updating import (
    NOW_MS,
    FailingStore,
    ScriptedConsumer,
    as_records,
    differences,
    event_log,
    feedback,
    open_store,
    outcomes,
    store,
    updater,
)
from tests.served import serve_one

__all__ = ["event_log", "store"]  # fixtures

# Few ids, so that many are sent twice; few items, so that users meet in their counters.
events = st.lists(
    st.builds(
        feedback,
        st.sampled_from(["u0", "u1", "u2"]),
        st.sampled_from(["i0", "i1", "i99"]),
        st.sampled_from([IMPRESSION, CLICK, LIKE]),
        st.integers(NOW_MS - 10_000, NOW_MS),
        st.integers(0, 12).map(str),
    ),
    max_size=30,
)
write_plans = st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=16)


def assert_marks_are_true(store: FeatureStore, consumer: ScriptedConsumer) -> None:
    """What is committed is below the marks, and what is below the marks is in the users' rows."""
    marks = {}
    for partition in range(2):
        (row,) = store.read([RowKey(APPLIED.name, f"{FEEDBACK}/{partition}")])
        found = decode(APPLIED, row) if row else None
        marks[partition] = int(found.record["next_offset"]) if found else 0
    for n, record in enumerate(consumer.records):
        assert n >= consumer.committed or record.offset < marks[record.partition]
        if record.offset < marks[record.partition]:
            (row,) = store.read([RowKey("user_delivery", record.key.decode())])
            delivery = decode(USER_DELIVERY, row or b"").record
            assert record.offset <= delivery["offsets"][delivery["partitions"] == record.partition]


@settings(max_examples=60)
@given(
    events,
    st.lists(st.integers(1, 8), min_size=1, max_size=40),
    write_plans,
    st.lists(st.booleans(), max_size=16),
)
def test_crashes_between_writes_replays_and_retries_count_every_event_once(
    sent: list[FeedbackEvent],
    batch_sizes: list[int],
    plan: list[int | None],
    crashes: list[bool],
) -> None:
    """Writes break off anywhere; the worker either goes on or a new one takes over from the
    committed position, with other batch boundaries; in the end the whole log is replayed."""
    with tempfile.TemporaryDirectory() as folder:
        store, log = open_store(Path(folder)), EmbeddedEventLog(Path(folder) / "events")
        failing = FailingStore(store, plan)
        consumer = ScriptedConsumer(as_records(sent), batch_sizes)
        worker = updater(failing, log, consumer)
        crash = iter(crashes)
        while consumer.committed < len(sent):
            try:
                worker.step(0.0)
            except FeatureStoreUnavailable:
                assert_marks_are_true(store, consumer)
                if next(crash, False):
                    consumer.rewind()
                    worker = updater(failing, log, consumer)
        assert differences(store, sent) == []
        assert_marks_are_true(store, consumer)
        consumer.committed = 0
        consumer.rewind()
        while consumer.committed < len(sent):
            worker.step(0.0)
        assert differences(store, sent) == []
        store.close()
        log.close()


def test_nothing_is_committed_before_everything_is_written(
    store: FeatureStore, event_log: EventLog
) -> None:
    sent = [feedback("u1", "i1", CLICK, NOW_MS, "e1")]
    consumer = ScriptedConsumer(as_records(sent))
    worker = updater(FailingStore(store, [1, 0]), event_log, consumer)
    for _ in range(2):  # after the items; before the users
        with pytest.raises(FeatureStoreUnavailable):
            worker.step(0.0)
        assert consumer.committed == 0
    (counters,) = store.read([RowKey("counters", "i1")])
    assert float(serve_one(COUNTERS, counters, NOW_MS).record[ITEM_CLICKS]) == 1.0
    assert worker.step(0.0) == 1
    assert consumer.committed == 1
    assert differences(store, sent) == []


def test_a_refused_guard_is_folded_again_and_endless_refusal_puts_the_batch_back(
    store: FeatureStore, event_log: EventLog
) -> None:
    sent = [feedback("u1", f"i{n}", CLICK, NOW_MS + n, f"e{n}") for n in range(5)]
    consumer = ScriptedConsumer(as_records(sent))
    refusing = FailingStore(store)
    worker = updater(refusing, event_log, consumer)
    refusing.refusals = 1_000
    with pytest.raises(Contended):
        worker.step(0.0)
    assert consumer.committed == 0
    refusing.refusals = 2
    assert worker.step(0.0) == 5
    assert consumer.committed == 5
    assert differences(store, sent) == []


class BreaksWhenRefused(FailingStore):
    """Refuses the rows of u1, as when another worker was faster, and breaks when asked again."""

    refused = False

    def write(self, writes: Sequence[GuardedWrite]) -> list[bool]:
        if self.refused or "u1" not in {w.entity_id for w in writes}:
            return super().write(writes)
        self.refused, self.plan = True, iter([0])
        others = [w for w in writes if w.entity_id != "u1"]
        applied = dict(zip((w.entity_id for w in others), self.store.write(others), strict=True))
        return [applied.get(w.entity_id, False) for w in writes]


def test_what_a_failed_batch_has_written_counts_as_applied(
    store: FeatureStore, event_log: EventLog
) -> None:
    sent = [feedback(f"u{n}", "i1", CLICK, NOW_MS + n, f"e{n}") for n in range(2)]
    worker = updater(BreaksWhenRefused(store), event_log, ScriptedConsumer(as_records(sent)))
    before = outcomes()
    with pytest.raises(FeatureStoreUnavailable):
        worker.step(0.0)
    assert outcomes()["applied"] - before["applied"] == 1
    assert worker.step(0.0) == 2
    assert outcomes()["applied"] - before["applied"] == 2
    assert outcomes()["duplicate"] - before["duplicate"] == 1  # u0's, replayed
    assert differences(store, sent) == []


class RecordedWaits(threading.Event):
    """A stop event that does not wait, but remembers for how long it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


def test_an_outage_is_waited_out_longer_each_time_and_loses_nothing(
    store: FeatureStore, event_log: EventLog
) -> None:
    sent = [feedback("u1", f"i{n}", CLICK, NOW_MS + n, f"e{n}") for n in range(5)]
    consumer, stop = ScriptedConsumer(as_records(sent)), RecordedWaits()
    consumer.at_end = stop.set
    updater(FailingStore(store, [0] * 8), event_log, consumer).run(stop)
    assert stop.waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert differences(store, sent) == []


def test_rows_carry_the_time_of_their_newest_event(
    store: FeatureStore, event_log: EventLog
) -> None:
    newest_first = [feedback("u1", "i1", CLICK, NOW_MS - n * 1_000, f"e{n}") for n in range(3)]
    consumer = ScriptedConsumer(as_records(newest_first))
    worker = updater(store, event_log, consumer, poll_records=1)
    for _ in newest_first:
        worker.step(0.0)
    (profile,) = store.read([RowKey("profile", "u1")])
    (counters,) = store.read([RowKey("counters", "i1")])
    assert serve_one(PROFILE, profile, NOW_MS + 500).age_s == 0.5
    assert serve_one(COUNTERS, counters, NOW_MS + 500).age_s == 0.5
