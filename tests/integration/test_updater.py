"""The feature updater on a real store and log: every event counts once, whatever breaks when."""

from __future__ import annotations

import math
import multiprocessing
import random
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

import services.event_log.connect
from feature_store import reader
from feature_store.codec import decode
from feature_store.connect import connect
from feature_store.interface import (
    FeatureStore,
    FeatureStoreUnavailable,
    GuardedWrite,
    RowKey,
)
from models.catalogue import ItemTable
from models.features import Event, ItemState, UserState, fold_item, fold_user
from models.schema import (
    APPLIED,
    CLICK,
    COUNTERS,
    HISTORY,
    IMPRESSION,
    ITEM_DTYPE,
    LIKE,
    PROFILE,
    USER_DELIVERY,
    item_key,
)
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services.common.settings import (
    EventLogSettings,
    FeatureStoreSettings,
    FeedbackSettings,
    RouterSettings,
    Settings,
)
from services.event_log.embedded import EmbeddedEventLog
from services.event_log.interface import (
    EventLog,
    Lag,
    LogRecord,
    Record,
)
from services.feedback.updater import (
    GROUP,
    TOPIC,
    Contended,
    FeatureUpdater,
    run_updater,
)
from tests.servers.redis import free_port

NOW_MS = 1_750_000_000_000
DEADLINE_S = 120.0
KILLS = 3

spawn = multiprocessing.get_context("spawn")


def item_table() -> ItemTable:
    """Items i0..i9, each with a genre of its own; i10 and up are unknown."""
    features = np.zeros(10, ITEM_DTYPE)
    features["genres"][:, :10] = np.eye(10)
    return ItemTable.build([f"i{n}" for n in range(10)], features)


def feedback(user: str, item: str, kind: int, time_ms: int, event_id: str) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=event_id, user_id=user, item_id=item, event_type=kind, event_time_ms=time_ms
    )


def recount(events: Iterable[FeedbackEvent]) -> tuple[dict[str, UserState], dict[str, ItemState]]:
    """What the store must say: the first copy of each event, applied once, in order."""
    items = item_table()
    users: dict[str, UserState] = {}
    counted: dict[str, ItemState] = {}
    seen = set()
    for e in events:
        if (e.user_id, e.event_id) in seen:
            continue
        seen.add((e.user_id, e.event_id))
        key = item_key(e.item_id)
        row = int(items.index_of(np.uint64(key)))
        event = Event(e.event_id, e.user_id, key, e.event_type, e.event_time_ms)
        genres = items.features["genres"][row] if row else None
        fold_user(users.setdefault(e.user_id, UserState()), event, genres)
        fold_item(counted.setdefault(e.item_id, ItemState()), event)
    return users, counted


def differences(
    store: FeatureStore, events: Sequence[FeedbackEvent], now_ms: int = NOW_MS
) -> list[str]:
    """Entities whose stored rows are not those of the recount; counters up to rounding."""
    users, items = recount(events)
    wrong = []
    for user, state in users.items():
        profile, history = store.read([RowKey("profile", user), RowKey("history", user)])
        same_profile = reader.serve(PROFILE, profile, now_ms).record == state.profile
        same_history = reader.serve(HISTORY, history, now_ms).record == state.history
        if not (same_profile and same_history):
            wrong.append(user)
    for item, counts in items.items():
        (row,) = store.read([RowKey("counters", item)])
        stored = reader.serve(COUNTERS, row, now_ms).record
        if not all(
            math.isclose(stored[name], counts.counters[name], rel_tol=1e-9)
            for name in COUNTERS.dtype.names or ()
        ):
            wrong.append(item)
    return wrong


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)  # between two looks: the worker needs the core


class ScriptedConsumer:
    """A consumer of given records that polls batches of given sizes, then as many as it may."""

    def __init__(self, records: Sequence[LogRecord], sizes: Iterable[int] = ()) -> None:
        self.records = records
        self.sizes = iter(sizes)
        self.position = self.committed = 0
        self.at_end: Callable[[], None] = lambda: None

    def poll(self, max_records: int, timeout_s: float) -> list[LogRecord]:
        if self.position == len(self.records):
            self.at_end()
        end = self.position + min(max_records, next(self.sizes, max_records))
        batch = list(self.records[self.position : end])
        self.position += len(batch)
        return batch

    def commit(self) -> None:
        self.committed = self.position

    def rewind(self) -> None:
        self.position = self.committed

    def assigned(self) -> frozenset[int]:
        return frozenset(record.partition for record in self.records)

    def lag(self) -> Lag:
        return Lag(len(self.records) - self.position, 0.0)

    def close(self) -> None: ...


class FailingStore:
    """A real store that fails on plan: each entry is one write call's, None or how many of its
    writes get through before the connection breaks."""

    def __init__(self, store: FeatureStore, plan: Iterable[int | None] = ()) -> None:
        self.store = store
        self.plan = iter(plan)
        self.refusals = 0

    def read(self, keys: Sequence[RowKey]) -> list[bytes | None]:
        return self.store.read(keys)

    async def read_async(self, keys: Sequence[RowKey], timeout_s: float) -> list[bytes | None]:
        return await self.store.read_async(keys, timeout_s)

    def write(self, writes: Sequence[GuardedWrite]) -> list[bool]:
        if self.refusals:
            self.refusals -= 1
            return [False] * len(writes)
        through = next(self.plan, None)
        if through is None:
            return self.store.write(writes)
        self.store.write(writes[:through])
        raise FeatureStoreUnavailable("the plan says so")

    def sweep(self, now_ms: int) -> int:
        return self.store.sweep(now_ms)

    def close(self) -> None:
        self.store.close()

    async def close_async(self) -> None:
        await self.store.close_async()


def open_store(folder: Path) -> FeatureStore:
    return connect(f"lmdb://{folder}/features", timeout_ms=50.0, lmdb_map_size_mb=64)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    store = open_store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def event_log(tmp_path: Path) -> Iterator[EventLog]:
    log = EmbeddedEventLog(tmp_path / "events", partitions=2)
    yield log
    log.close()


def updater(
    store: FeatureStore, log: EventLog, consumer: ScriptedConsumer, poll_records: int = 100
) -> FeatureUpdater:
    return FeatureUpdater(
        store, log, consumer, item_table, clock_ms=lambda: NOW_MS, poll_records=poll_records
    )


def as_records(events: Sequence[FeedbackEvent], partitions: int = 2) -> list[LogRecord]:
    """The events as a log holds them: one user's in one partition, offsets with gaps."""
    offsets = [0] * partitions
    records = []
    for e in events:
        partition = int(e.user_id[1:]) % partitions
        record = LogRecord(partition, offsets[partition], e.event_time_ms, b"", b"")
        records.append(record._replace(key=e.user_id.encode(), value=e.SerializeToString()))
        offsets[partition] += 1 + len(records) % 2
    return records


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
        (row,) = store.read([RowKey(APPLIED.name, f"{TOPIC}/{partition}")])
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
    assert float(reader.serve(COUNTERS, counters, NOW_MS).record["clicks"]) == 1.0
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


def outcomes() -> dict[str, float]:
    names = ("applied", "duplicate", "invalid")
    name = "tandem_updater_events_total"
    return {o: REGISTRY.get_sample_value(name, {"outcome": o}) or 0.0 for o in names}


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
    assert reader.serve(PROFILE, profile, NOW_MS + 500).age_s == 0.5
    assert reader.serve(COUNTERS, counters, NOW_MS + 500).age_s == 0.5


def traffic(users: int, events: int, seed: int, now_ms: int = NOW_MS) -> list[FeedbackEvent]:
    """Random feedback, some of it late, every twentieth event sent twice."""
    rng = random.Random(seed)
    sent: list[FeedbackEvent] = []
    for n in range(events):
        if n % 20 == 19:
            sent.append(sent[-rng.randint(1, 15)])
            continue
        user, item = f"u{rng.randrange(users)}", f"i{rng.randrange(12)}"
        kind = rng.choice([IMPRESSION, CLICK, LIKE])
        sent.append(feedback(user, item, kind, now_ms - 10**6 + n - rng.randrange(500), f"e{n}"))
    return sent


def append(log: EventLog, sent: Sequence[FeedbackEvent]) -> None:
    records = [Record(e.user_id.encode(), e.SerializeToString(), e.event_time_ms) for e in sent]
    log.append(TOPIC, records).result(DEADLINE_S)


def work(folder: Path, poll_records: int, stop: threading.Event) -> None:
    """One worker on the log and the store in `folder`."""
    store, log = open_store(folder), EmbeddedEventLog(folder / "events", partitions=2)
    consumer = log.consumer(TOPIC, GROUP)
    FeatureUpdater(
        store,
        log,
        consumer,
        item_table,
        clock_ms=lambda: NOW_MS,
        poll_records=poll_records,
    ).run(stop)
    consumer.close()
    store.close()
    log.close()


def work_until_killed(folder: Path, poll_records: int) -> None:
    work(folder, poll_records, threading.Event())


def test_two_workers_share_items_and_count_every_event_once(
    tmp_path: Path, store: FeatureStore, event_log: EventLog
) -> None:
    sent = traffic(users=20, events=400, seed=1)
    append(event_log, sent)
    stop = threading.Event()
    workers = [threading.Thread(target=work, args=(tmp_path, 10, stop)) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        wait_until(lambda: differences(store, sent) == [])
    finally:
        stop.set()
        for worker in workers:
            worker.join(DEADLINE_S)
    assert not any(worker.is_alive() for worker in workers)


def test_killing_the_worker_loses_no_event_and_applies_none_twice(
    tmp_path: Path, store: FeatureStore, event_log: EventLog
) -> None:
    sent = traffic(users=40, events=1_000, seed=2)
    append(event_log, sent)
    users = sorted({e.user_id for e in sent})

    def applied() -> int:
        rows = store.read([RowKey("profile", user) for user in users])
        profiles = reader.serve_many(PROFILE, rows, NOW_MS).records
        return sum(int(profiles[name].sum()) for name in ("impressions", "clicks", "likes"))

    distinct = len({(e.user_id, e.event_id) for e in sent})
    for kill in range(KILLS + 1):
        worker = spawn.Process(target=work_until_killed, args=(tmp_path, 20))
        worker.start()
        try:
            goal = distinct * (kill + 1) // 5 if kill < KILLS else distinct
            wait_until(lambda goal=goal: applied() >= goal)
        finally:
            worker.kill()
            worker.join(DEADLINE_S)
        if kill == 0:
            assert applied() < distinct  # it was killed midway, not after the fact
    assert applied() == distinct
    assert differences(store, sent) == []


def run_as_configured(configured: Settings) -> None:
    run_updater(configured, threading.Event())


def test_sigterm_finishes_the_batch_and_leaves_nothing_to_replay(tmp_path: Path) -> None:
    from models import artifact  # brings torch, which the workers of the other tests do without

    configured = Settings(
        run_dir=tmp_path / "run",
        artifacts_dir=tmp_path / "artifacts",
        router=RouterSettings(host="127.0.0.1"),
        feature_store=FeatureStoreSettings(url=f"lmdb://{tmp_path}/features", lmdb_map_size_mb=64),
        event_log=EventLogSettings(url=f"log://{tmp_path}/events", partitions=2),
        feedback=FeedbackSettings(updater_metrics_port=free_port(), poll_records=50),
    )
    artifact.publish(
        configured.artifacts_dir,
        configured.candidate_generation.models[0],
        tensors={},
        config={},
        items=item_table(),
        metrics={},
        data_window={},
    )
    log = services.event_log.connect.connect(configured.event_log)
    now_ms = time.time_ns() // 1_000_000  # the real worker's clock, by which it sweeps
    sent = traffic(users=10, events=200, seed=3, now_ms=now_ms)
    append(log, sent)
    store = open_store(tmp_path)
    worker = spawn.Process(target=run_as_configured, args=(configured,))
    worker.start()
    try:
        wait_until(lambda: differences(store, sent, now_ms) == [])
        address = f"http://127.0.0.1:{configured.feedback.updater_metrics_port}/metrics"
        with urllib.request.urlopen(address) as answer:
            metrics = answer.read().decode()
        worker.terminate()
        worker.join(DEADLINE_S)
        assert worker.exitcode == 0
    finally:
        worker.kill()
        worker.join(DEADLINE_S)
    assert 'tandem_updater_events_total{outcome="applied"}' in metrics
    consumer = log.consumer(TOPIC, GROUP)
    assert consumer.poll(100, 0.0) == []
    assert consumer.lag().events == 0
    consumer.close()
    store.close()
    log.close()
