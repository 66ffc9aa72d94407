"""From one revision of a schema to the next, while everything runs."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from feature_store import codec
from feature_store.connect import connect as connect_store
from feature_store.interface import FeatureStore, RowKey
from models.schema import lock
from models.schema.compiled import Schema, load
from models.schema.layout import count_column
from protos.tandem.v1 import recommender_pb2 as pb
from protos.tandem.v1.recommender_pb2_grpc import RecommenderStub
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services.candidate_generation import deployment as candidate_generation
from services.common.listener import Listener
from services.common.settings import Settings
from services.event_log.connect import connect as connect_log
from services.event_log.embedded import EmbeddedEventLog
from services.event_log.interface import EventLog
from services.feedback.store_log import StoreRefused, claim
from services.feedback.updater import FeatureUpdater, worker_of
from services.ranking import deployment as ranking
from tests.artifacts import small_items
from tests.integration.asking import request
from tests.integration.conftest import routed, until
from tests.integration.updating import (
    NOW_MS,
    ScriptedConsumer,
    as_records,
    differences,
    feedback,
    item_table,
    traffic,
)
from tests.revisions import (
    AFTER,
    BEFORE,
    BOTH,
    FILMS,
    KNOWN,
    NEW,
    READS_BOTH,
    SHARE,
    WITH_SHARES,
)


def shares(schema: Schema, store: FeatureStore, user: str) -> int:
    (row,) = store.read([RowKey("profile", user)])
    found = codec.decode(schema.layout.profile, row or b"")
    assert found is not None
    (count,) = [c for c in schema.declaration.user_counts if c.event == "share"]
    return int(found.record[count_column(schema.declaration, count)])


def worker(
    schema: Schema, store: FeatureStore, log: EventLog, consumer: ScriptedConsumer
) -> FeatureUpdater:
    return FeatureUpdater(schema, store, log, consumer, item_table, clock_ms=lambda: NOW_MS)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**16),
    turns=st.lists(st.integers(0, 2), min_size=30, max_size=30),
)
def test_updaters_of_two_revisions_side_by_side_lose_nothing(
    seed: int, turns: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each reads partitions of its own; items are of all. The one that knows both writes the older
    revision, then some of that one write the newer."""
    folder = tmp_path_factory.mktemp("revisions")
    store = connect_store(
        f"lmdb://{folder}/features",
        AFTER.groups,
        installation=None,
        timeout_ms=50,
        lmdb_map_size_mb=16,
    )
    log = EmbeddedEventLog(folder / "events", partitions=3)
    sent = traffic(9, 300, seed)
    shared = [feedback(f"u{n}", "i1", SHARE, NOW_MS - 5, f"share{n}") for n in range(9)]
    records = as_records([*sent, *shared], partitions=3)
    first, rest = records[: len(sent) // 2], records[len(sent) // 2 :]

    def run(schemas: Sequence[Schema], part: Sequence, start: int) -> None:  # type: ignore[type-arg]
        draw = random.Random(seed)
        workers = [
            worker(
                schema,
                store,
                log,
                ScriptedConsumer(
                    [r for r in part if r.partition == p], (draw.randint(1, 9) for _ in range(500))
                ),
            )
            for p, schema in enumerate(schemas)
        ]
        for turn in turns[start:] + turns[:start]:
            workers[turn].step(0.0)
        for each in workers:
            while each.step(0.0):
                pass

    run([BEFORE, READS_BOTH, BEFORE], first, 0)
    run([READS_BOTH, AFTER, READS_BOTH], rest, 10)
    wrong = differences(store, [*sent, *shared], schema=AFTER, compared=BEFORE.layout)
    assert wrong == []
    (row,) = store.read([RowKey("counters", "i1")])
    counted = codec.decode(AFTER.layout.counters, row or b"")
    assert counted is not None
    (count,) = [c for c in NEW.item_counts if c.event == "share"]
    # Once in the newer layout, an item's row keeps it, whoever writes it then.
    assert codec.layout_hash(row or b"") == AFTER.layout.counters.hash
    assert 3 <= int(counted.record[count_column(NEW, count)]) <= 9
    # Whom the newer one followed has also what only it declares.
    assert {user: shares(AFTER, store, user) for user in ("u1", "u4", "u7")} == dict.fromkeys(
        ("u1", "u4", "u7"), 1
    )
    store.close()
    log.close()


def test_an_updater_that_does_not_know_what_it_reads_stops_and_changes_nothing(
    tmp_path: Path,
) -> None:
    store = connect_store(
        f"lmdb://{tmp_path}/features",
        AFTER.groups,
        installation=None,
        timeout_ms=50,
        lmdb_map_size_mb=16,
    )
    log = EmbeddedEventLog(tmp_path / "events", partitions=1)
    records = as_records(traffic(3, 40, 7), partitions=1)
    consumer = ScriptedConsumer(records[:20])
    assert worker(AFTER, store, log, consumer).step(0.0) == 20
    keys = [RowKey(g, f"u{n}") for g in ("profile", "history") for n in range(3)]
    before = store.read(keys)
    with pytest.raises(StoreRefused, match="of who wrote them"):
        worker(BEFORE, store, log, ScriptedConsumer(records[20:])).step(0.0)
    assert store.read(keys) == before
    store.close()
    log.close()


# Under traffic.


@asynccontextmanager
async def routing(settings: Settings) -> AsyncIterator[RecommenderStub]:
    async with routed(settings) as (router, channel):
        for replicas in (router._candidate_generation, router._ranking):
            await until(lambda replicas=replicas: bool(replicas.serving))
        yield RecommenderStub(channel)


class Clients:
    """Asks and tells without a pause; every failure and degradation is kept."""

    def __init__(self) -> None:
        self.stub: RecommenderStub | None = None
        self.wrong: list[str] = []
        self.asked = 0
        self.told: Counter[tuple[str, int]] = Counter()
        self.kinds = [1, 2, 3]
        self._number = 0

    async def run(self, n: int) -> None:
        user = f"u{n}"
        for turn in itertools.count(n):
            if (stub := self.stub) is None:
                return
            try:
                response = await stub.Recommend(request(user), timeout=30)
                self.asked += 1
                if response.degradations or len(response.items) != 10:
                    self.wrong.append(f"{response.degradations} {len(response.items)}")
                kind = self.kinds[turn % len(self.kinds)]
                self._number += 1
                event = FeedbackEvent(
                    event_id=f"e{self._number}",
                    user_id=user,
                    item_id=f"m{1 + self._number % 8}",  # few: what was chosen is not shown again
                    event_type=kind,
                    event_time_ms=int(time.time() * 1000),
                )
                batch = pb.RecordFeedbackRequest(events=[event])
                await stub.RecordFeedback(batch, timeout=30)
                self.told[user, kind] += 1
            except grpc.aio.AioRpcError as error:
                self.wrong.append(f"{error.code().name} {error.details()}")

    async def some(self, count: int = 30) -> None:
        until_asked = self.asked + count
        await until(lambda: self.asked >= until_asked or bool(self.wrong), 60.0)


def unreadable() -> float:
    name = "tandem_user_rows_unreadable_total"
    return sum(REGISTRY.get_sample_value(name, {"group": g}) or 0 for g in ("profile", "history"))


async def test_a_rolling_restart_to_the_next_revision_fails_no_request(
    small_settings: Settings, tmp_path: Path
) -> None:
    """Read everywhere first, then written; each part is replaced beside its predecessor."""
    for name, text, known in (("old", FILMS, KNOWN), ("new", WITH_SHARES, BOTH)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "schema.yaml").write_text(text)
        lock.write(tmp_path / name / lock.NAME, known)
    old = small_settings.model_copy(update={"schema_file": tmp_path / "old" / "schema.yaml"})
    reads = old.model_copy(
        update={"schema_file": tmp_path / "new" / "schema.yaml", "schema_write": 1}
    )
    writes = reads.model_copy(update={"schema_write": None})
    clients, before = Clients(), unreadable()
    log = connect_log(old.event_log, None)
    store = connect_store(
        old.feature_store.url, AFTER.groups, installation=None, timeout_ms=50, lmdb_map_size_mb=64
    )
    claim(store, log, old, int(time.time() * 1000))
    items = small_items()

    async def update(settings: Settings, steps: int) -> None:
        """A worker takes over from its predecessor for some steps."""
        consumer = log.consumer("feedback", "feature-updater")
        updater = worker_of(settings, store, log, consumer, lambda: items)
        for _ in range(steps):
            await asyncio.to_thread(updater.step, 0.3)
        consumer.close()

    async def replace(replicas: Sequence[Listener], settings: Settings) -> list[Listener]:
        made = []
        for module, predecessor in zip((candidate_generation, ranking), replicas, strict=True):
            made.append(await module.start_replica(settings))
            await clients.some(10)
            await predecessor.drain()
            await clients.some(10)
        return made

    replicas = [await m.start_replica(old) for m in (candidate_generation, ranking)]
    async with asyncio.TaskGroup() as tasks, routing(old) as clients.stub:
        running = [tasks.create_task(clients.run(n)) for n in range(4)]
        await clients.some()
        await update(old, 4)
        await clients.some()
        replicas = await replace(replicas, reads)
        async with routing(reads) as beside:
            clients.stub = beside
            await clients.some()
            await update(reads, 4)
            await clients.some()
            replicas = await replace(replicas, writes)
            async with routing(writes) as newest:
                clients.stub = newest
                await clients.some()
                clients.kinds.append(SHARE)  # which only a router of the newest takes
                await clients.some()
                await update(writes, 4)
                await clients.some()
                clients.stub = None
                await asyncio.wait(running)  # before their channels are closed
    for replica in replicas:
        await replica.drain()
    await update(writes, 8)
    assert clients.wrong == []
    assert unreadable() == before
    schema = load(writes.schema_file)  # type: ignore[arg-type]
    for n in range(4):
        assert shares(schema, store, f"u{n}") == clients.told[f"u{n}", SHARE] > 0
        (row,) = store.read([RowKey("profile", f"u{n}")])
        assert codec.layout_hash(row or b"") == schema.layout.profile.hash
    await store.close_async()
    log.close()
