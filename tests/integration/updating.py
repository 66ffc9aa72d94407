"""The feature updater on a real store and log: what its tests have in common."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from feature_store.connect import connect
from feature_store.interface import FeatureStore, FeatureStoreUnavailable, GuardedWrite, RowKey
from models.catalogue import ItemTable, item_key
from models.data.worlds.films.schema import (
    CLICK,
    FOLD,
    GROUPS,
    IMPRESSION,
    ITEM_DTYPE,
    LIKE,
    SCHEMA,
)
from models.schema.compiled import Schema
from models.schema.fold import Event, Fold, ItemState, UserState
from models.schema.layout import Layout
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services.event_log.embedded import EmbeddedEventLog
from services.event_log.interface import EventLog, Lag, LogRecord, Record
from services.event_log.topics import FEEDBACK
from services.feedback.updater import FeatureUpdater
from tests.served import serve_one

NOW_MS = 1_750_000_000_000
DEADLINE_S = 120.0


def item_table() -> ItemTable:
    """Items i0..i9, all but the first with a genre of its own; i10 and up are unknown."""
    features = np.zeros(10, ITEM_DTYPE)
    features["genres"][:, 0] = np.arange(10)
    return ItemTable.build([f"i{n}" for n in range(10)], features)


def feedback(user: str, item: str, kind: int, time_ms: int, event_id: str) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=event_id, user_id=user, item_id=item, event_type=kind, event_time_ms=time_ms
    )


def recount(
    events: Iterable[FeedbackEvent], fold: Fold = FOLD
) -> tuple[dict[str, UserState], dict[str, ItemState]]:
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
        (values,) = items.values_of(np.array([row]), fold.item_fields)
        fold.user(users.setdefault(e.user_id, fold.user_state()), event, values)
        if fold.counts_items(e.event_type):
            fold.item(counted.setdefault(e.item_id, fold.item_state()), event)
    return users, counted


def differences(
    store: FeatureStore,
    events: Sequence[FeedbackEvent],
    now_ms: int = NOW_MS,
    schema: Schema = SCHEMA,
    compared: Layout = SCHEMA.layout,
) -> list[str]:
    """Entities whose stored rows are not those of the recount in the columns of the layout
    `compared`; counters up to rounding."""
    users, items = recount(events, schema.fold)
    layout, wrong = schema.layout, []
    for user, state in users.items():
        keys = [RowKey("profile", user), RowKey("history", user)]
        for group, row, expected, names in zip(
            (layout.profile, layout.history),
            store.read(keys),
            (state.profile, state.history),
            (compared.profile.dtype.names, compared.history.dtype.names),
            strict=True,
        ):
            stored = serve_one(group, row, now_ms).record
            if any(stored[name].tobytes() != expected[name].tobytes() for name in names or ()):
                wrong.append(user)
    for item, counts in items.items():
        (row,) = store.read([RowKey("counters", item)])
        stored = serve_one(layout.counters, row, now_ms).record
        if not all(
            math.isclose(stored[name], counts.counters[name], rel_tol=1e-9)
            for name in compared.counters.dtype.names or ()
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
    return connect(
        f"lmdb://{folder}/features", GROUPS, installation=None, timeout_ms=50.0, lmdb_map_size_mb=64
    )


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
        SCHEMA, store, log, consumer, item_table, clock_ms=lambda: NOW_MS, poll_records=poll_records
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
    log.append(FEEDBACK, records).result(DEADLINE_S)


def outcomes() -> dict[str, float]:
    names = ("applied", "duplicate", "invalid")
    name = "tandem_updater_events_total"
    return {o: REGISTRY.get_sample_value(name, {"outcome": o}) or 0.0 for o in names}
