"""Faults under traffic, on the installation that a finished demo keeps serving.

The time limits of the router and of its visitors are wide here: what is tested is that nothing is
lost, not that a machine is fast which starts a second Ray cluster and all its replicas meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from feature_store.codec import decode
from feature_store.connect import connect as connect_store
from feature_store.interface import FeatureStore, RowKey
from load_tests.demo.metrics import scrape
from load_tests.demo.visitors import Simulator, Tally, TrafficConfig, Visitor, visitors
from models.catalogue import item_key
from models.data.backfill import (
    FeatureState,
    future_interactions,
    initial_state,
    values_by_key,
)
from models.data.events import Dataset
from models.data.worlds.films.schema import COUNTERS, FOLD, GROUPS, HISTORY, ITEM_COUNTS, PROFILE
from models.schema.fold import Event
from models.schema.groups import FeatureGroup
from models.schema.progress import (
    ITEM_DELIVERY,
    USER_DELIVERY,
    USER_OLDER,
    admit_item_event,
    admit_user_event,
)
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.recommender_pb2_grpc import RecommenderStub
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services.common.discovery import announced, replica_folder
from services.common.processes.ray_cluster import CLUSTER_FILE, CLUSTERS
from services.event_log.connect import connect as connect_log
from tests.e2e.running import PATIENCE_S, Background, Demo, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

DEMO_VISITORS = 40


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, artifacts: Path) -> Iterator[Demo]:
    """A demo that is done with its own visitors and keeps serving."""
    demo = Demo(
        tmp_path_factory.mktemp("demo"),
        artifacts,
        *("--visitors", str(DEMO_VISITORS)),
        TANDEM_ROUTER__DEADLINE_MS="40000",
        TANDEM_ROUTER__HYDRATE_MS="10000",
        TANDEM_ROUTER__RETRIEVE_MS="20000",
        TANDEM_ROUTER__RANK_MS="20000",
    )
    try:
        demo.wait_for("Still serving")
        yield demo
        assert demo.end(signal.SIGINT) == 0, demo.output()
        demo.assert_nothing_left()
    finally:
        demo.clean_up()


@pytest.fixture(scope="module")
def crowd(dataset: Dataset) -> Iterator[Visitor]:
    """Visitors that have not been there yet, without end."""
    return iter(visitors(future_interactions(dataset), 200_000)[DEMO_VISITORS:])


class Traffic(Background):
    """Visitors in the background for as long as the block runs; `tally` is what they saw."""

    def __init__(self, demo: Demo, crowd: Iterator[Visitor], rate: float = 20.0) -> None:
        self._address = f"127.0.0.1:{demo.ports[0]}"
        self._crowd = crowd
        self._config = TrafficConfig(visits_per_s=rate, think_s=0.2, request_timeout_s=60.0)
        self._stop = asyncio.Event()

    @property
    def tally(self) -> Tally:
        return self._simulator.tally

    async def __aenter__(self) -> Traffic:
        self._simulator = Simulator(self._address, self._config)
        self._going = asyncio.create_task(self._simulator.run(self._crowd, self._stop))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop.set()
        await self._going
        await self._simulator.close()

    async def more(self, answers: int) -> None:
        """Go on for this many answers."""
        goal = self.tally.answers["OK"] + answers
        await self.until(lambda: self.tally.answers["OK"] >= goal, f"{answers} answers")

    async def whole_again(self) -> None:
        """Go on until twenty answers in a row are not degraded."""
        async with asyncio.timeout(PATIENCE_S):
            degraded = -1
            while self.tally.degraded != degraded:
                degraded = self.tally.degraded
                await self.more(20)


def replicas(demo: Demo, service: str) -> dict[str, int]:
    """Address -> pid of the announced replicas."""
    entries = announced(replica_folder(demo.run_dir, service))
    return {entry.address: entry.pid for entry in entries}


def test_recommend_from_another_terminal_gives_reasons(demo: Demo) -> None:
    answer = demo.tandem("recommend", "--user", "42", "--items", "5")
    assert answer.returncode == 0, answer.stderr
    for reason in ("ssl_two_tower/0", "ranking_model=", "history", "retrieved", "rank"):
        assert reason in answer.stdout


@pytest.mark.parametrize("service", ["ranking", "candidate_generation"])
async def test_scaling_up_and_down_degrades_no_answer(
    demo: Demo, crowd: Iterator[Visitor], service: str
) -> None:
    before = replicas(demo, service)
    noted = demo.run_dir / CLUSTER_FILE
    assert noted.stat().st_mode & 0o777 == 0o600, "it holds Ray's token and URLs with passwords"
    async with Traffic(demo, crowd) as traffic:
        for count in (2, 1):
            scaled = await asyncio.to_thread(demo.tandem, "scale", service, str(count))
            assert scaled.returncode == 0, scaled.stderr
            await traffic.until(lambda n=count: len(replicas(demo, service)) == n, "the scaling")
            await traffic.more(20)
    assert traffic.tally.failed == 0
    assert traffic.tally.degraded == 0
    assert len(before) == 1


def kill(process: psutil.Process | None) -> None:
    assert process is not None
    process.kill()


def empty_ray_folder(demo: Demo) -> None:
    """As a cleaner of temporary files does that knows no sockets."""
    (link,) = (demo.run_dir / CLUSTERS).iterdir()
    for part in link.resolve().iterdir():
        shutil.rmtree(part)


@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(lambda demo: kill(demo.role("replicas")), id="driver"),
        pytest.param(lambda demo: kill(demo.daemon("raylet")), id="raylet"),
        pytest.param(lambda demo: kill(demo.daemon("gcs_server")), id="gcs"),
        pytest.param(empty_ray_folder, id="folder"),
    ],
)
async def test_replicas_serve_on_until_their_lost_cluster_is_replaced(
    demo: Demo, crowd: Iterator[Visitor], lose: Callable[[Demo], None]
) -> None:
    kinds = ("ranking", "candidate_generation")
    old = {kind: replicas(demo, kind).keys() for kind in kinds}
    role = demo.role("replicas")
    assert role is not None
    async with Traffic(demo, crowd) as traffic:
        await traffic.more(20)
        lose(demo)
        await traffic.until(lambda: not role.is_running(), "the end of the role")
        for kind in kinds:
            await traffic.until(
                lambda k=kind: (new := replicas(demo, k).keys()) and not new & old[k],
                f"new {kind} alone",
            )
        await traffic.more(20)
    assert traffic.tally.failed == 0
    assert traffic.tally.degraded == 0
    links = demo.run_dir / CLUSTERS
    wait_until(lambda: len(list(links.iterdir())) == 1, "the end of the old cluster's files")
    assert len(demo.raylets()) == 1
    log = (demo.run_dir / "logs" / "replicas.log").read_text()
    for event in ("model_loaded", "replica_started"):  # of the replicas, and outliving them
        assert log.count(f'"event": "{event}"') >= 4


async def test_a_short_deadline_gets_an_answer_or_deadline_exceeded(demo: Demo) -> None:
    statuses = set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{demo.ports[0]}") as channel:
        stub = RecommenderStub(channel)
        request = RecommendRequest(user_id="hasty", surface="home", num_items=10)
        for timeout_ms in (0.1, 0.5, 1, 2, 3, 5, 8, 13, 21, 34, 5_000):
            try:
                answer = await stub.Recommend(request, timeout=timeout_ms / 1000)
                statuses.add(grpc.StatusCode.OK)
                assert len(answer.items) == 10
            except grpc.aio.AioRpcError as error:
                statuses.add(error.code())
        cancelled = [stub.Recommend(request) for _ in range(20)]
        for call in cancelled:
            call.cancel()
        outcomes = await asyncio.gather(*cancelled, return_exceptions=True)
        assert all(isinstance(o, asyncio.CancelledError) for o in outcomes)
        assert len((await stub.Recommend(request, timeout=5)).items) == 10
    assert grpc.StatusCode.OK in statuses
    assert statuses <= {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
    metrics = scrape(f"127.0.0.1:{demo.ports[1]}")
    assert metrics is not None
    assert not metrics.value(
        "tandem_rpc_requests_total", service="recommender", method="Recommend", status="INTERNAL"
    )


async def test_a_killed_updater_loses_no_event_and_applies_none_twice(
    demo: Demo, crowd: Iterator[Visitor], dataset: Dataset
) -> None:
    """SIGKILL at three moments under traffic; then every row equals a recount of the log."""
    async with Traffic(demo, crowd, rate=30.0) as traffic:
        for _ in range(3):
            await traffic.more(30)
            await kill_role(traffic, demo, "updater")
            visible = traffic.tally.visible
            await traffic.until(lambda n=visible: traffic.tally.visible > n, "visible feedback")
    assert traffic.tally.failed == 0

    events = recorded(demo)
    assert len(events) > traffic.tally.events > 0
    summary = json.loads((demo.run_dir / "demo" / "summary.json").read_text())
    state = initial_state(dataset, summary["shift_ms"])
    oldest_ms = dataset.train_until_ms + summary["shift_ms"] - COUNTERS.ttl_s * 1000
    for key, item in list(state.items.items()):
        if item.counters["as_of_ms"] < oldest_ms:  # expired: the updater sweeps it at its start
            del state.items[key]
    settings = demo.settings.feature_store
    store = connect_store(
        settings.url,
        GROUPS,
        installation=None,
        timeout_ms=settings.timeout_ms,
        lmdb_map_size_mb=settings.lmdb_map_size_mb,
    )
    try:
        wait_until(lambda: applied_to_the_end(store, events), "an updater that has caught up")
        assert_store_holds(store, dataset, state, events)
    finally:
        store.close()


async def kill_role(traffic: Traffic, demo: Demo, role: str) -> None:
    """SIGKILL a role's process; returns when the supervisor has started another one."""
    await traffic.until(lambda: demo.role(role), f"a process of {role}")
    old = demo.role(role)
    assert old is not None
    old.kill()
    await traffic.until(
        lambda: (new := demo.role(role)) and new.pid != old.pid, f"another process of {role}"
    )


Recorded = tuple[int, int, FeedbackEvent]  # partition, offset, event


def recorded(demo: Demo) -> list[Recorded]:
    """Everything in topic `feedback`, in order within each partition."""
    log = connect_log(demo.settings.event_log, None)
    consumer = log.consumer("feedback", f"recount-{uuid.uuid4().hex}")
    found: list[Recorded] = []
    try:

        def read_all() -> bool:
            records = consumer.poll(1000, 0.1)
            found.extend(
                (r.partition, r.offset, FeedbackEvent.FromString(r.value)) for r in records
            )
            return bool(consumer.assigned()) and consumer.lag().events == 0

        wait_until(read_all, "the end of the log")
    finally:
        consumer.close()
        log.close()
    return found


def applied_to_the_end(store: FeatureStore, events: list[Recorded]) -> bool:
    """Whether each partition's last event is in its user's row (which is written last)."""
    last = {partition: (offset, event.user_id) for partition, offset, event in events}
    return all(
        offset in stored(store, USER_DELIVERY, user_id)["offsets"]
        for offset, user_id in last.values()
    )


def stored(store: FeatureStore, group: FeatureGroup, entity_id: str) -> np.ndarray:
    (row,) = store.read([RowKey(group.name, entity_id)])
    if row is None:  # not written before something is in it
        return group.defaults()
    decoded = decode(group, row)
    assert decoded is not None
    return decoded.record


def assert_store_holds(
    store: FeatureStore, dataset: Dataset, state: FeatureState, events: list[Recorded]
) -> None:
    """Fold the events over `state` and compare every row that they touch."""
    values = values_by_key(dataset.items, FOLD)
    users, items = set(), {}
    for partition, offset, e in events:
        key = item_key(e.item_id)
        event = Event(e.event_id, e.user_id, key, e.event_type, e.event_time_ms)
        user = state.users.setdefault(e.user_id, FOLD.user_state())
        if not admit_user_event(user.delivery, user.older, partition, offset, event):
            continue  # a client's retry
        FOLD.user(user, event, values.get(key))
        users.add(e.user_id)
        if not FOLD.counts_items(e.event_type):
            continue
        item = state.items.setdefault(key, FOLD.item_state())
        assert admit_item_event(item.delivery, partition, offset)
        FOLD.item(item, event)
        items[e.item_id] = item

    for user_id in users:
        wanted = state.users[user_id]
        for group, record in (
            (USER_DELIVERY, wanted.delivery),
            (USER_OLDER, wanted.older),
            (PROFILE, wanted.profile),
            (HISTORY, wanted.history),
        ):
            found = stored(store, group, user_id)
            assert found.tobytes() == record.tobytes(), (user_id, found, record)
    for item_id, item in items.items():
        delivery = stored(store, ITEM_DELIVERY, item_id)
        assert delivery.tobytes() == item.delivery.tobytes(), item_id
        counters = stored(store, COUNTERS, item_id)
        for name in ITEM_COUNTS:
            # The partitions took turns in another order than here, which rounds differently.
            wanted_count = float(item.counters[name])
            assert float(counters[name]) == pytest.approx(wanted_count, rel=1e-9), (item_id, name)
