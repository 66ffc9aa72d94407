"""What the router costs: requests/s of Recommend against a bare gRPC echo, measured in one run.

`make bench-router`. Three servers, each in its own process, take turns under the same load:

    echo      a bare grpc.aio server on asyncio's event loop that answers one prepared
              RecommendResponse
    memory    the real router (store, experiments, pipeline, event log), on uvloop as it is served;
              both model services answer from this process's memory
    loopback  the same router; both model services answer from memory behind real gRPC

`ratio to echo` is in requests/s, `cpu ratio` in the servers' processor time per request. The
router's stages are timed one by one before, and whole requests that show two rankings as one list.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import typer
import uvloop

from feature_store import codec
from feature_store.connect import connect as connect_store
from feature_store.interface import FeatureStore
from load_tests.serving.generator import LoadProcess, LoadResult, Target
from load_tests.serving.server_process import ServerProcess, server_process
from models.catalogue import ItemTable
from models.research.figures import console, median, print_machine, print_table, save
from models.schema import GENRE_SLOTS, HISTORY, HISTORY_LENGTH, ITEM_DTYPE, PROFILE
from protos.tandem.v1 import (
    candidate_generation_pb2_grpc,
    ranking_pb2_grpc,
    recommender_pb2_grpc,
)
from protos.tandem.v1.candidate_generation_pb2 import RetrieveRequest, RetrieveResponse
from protos.tandem.v1.ranking_pb2 import RankRequest, RankResponse
from protos.tandem.v1.recommender_pb2 import RecommendRequest, RecommendResponse
from services.common.balancer import ReplicaSet
from services.common.discovery import StaticReplicas
from services.common.server import GrpcServer, Service
from services.common.settings import EventLogSettings, FeedbackSettings, RouterSettings
from services.common.validate import check_recommend
from services.event_log import topics
from services.event_log.connect import connect as connect_log
from services.event_log.interface import EventLog
from services.experiments.assign.assignment import Assigner
from services.experiments.assign.experiments_file import ExperimentsFile
from services.experiments.declare import config_reader
from services.feedback.ingest import Ingest
from services.router.pipeline import count_answer, recommend
from services.router.recent_feedback import RecentFeedback
from services.router.record import record_bytes
from services.router.servicer import SERVICE, RecommenderServicer
from services.router.surroundings import Surroundings

USERS, ITEMS, CANDIDATES, NUM_ITEMS = 5_000, 10_000, 200, 20
PREPARED = 64  # different answers of each model service
METHOD = f"/{SERVICE}/Recommend"
SURFACES = RouterSettings().surfaces


# The world: what an installation would have on disk.


def build_world(folder: Path) -> None:
    """An item table and a feature store. Histories hold the first half of the items and candidates
    come from the second, so that no prepared candidate is ever filtered."""
    draw = np.random.default_rng(1)
    features = np.zeros(ITEMS, ITEM_DTYPE)
    features["year"] = draw.integers(1950, 2020, ITEMS)
    features["genres"] = draw.random((ITEMS, GENRE_SLOTS)) < 0.15
    features["train_clicks"] = np.sort(draw.integers(0, 5_000, ITEMS))[::-1]
    items = ItemTable.build([str(i) for i in range(1, ITEMS + 1)], features)
    items.save(folder)
    store = open_store(folder)
    now_ms = int(time.time() * 1000)
    for start in range(0, USERS, 500):
        writes = []
        for user in range(start, start + 500):
            profile, history = PROFILE.defaults(), HISTORY.defaults()
            length = int(draw.integers(20, HISTORY_LENGTH))
            profile["clicks"], profile["last_event_ms"] = length, now_ms
            profile["genre_clicks"] = draw.random(GENRE_SLOTS)
            history["length"] = length
            history["item_keys"][:length] = items.keys[
                draw.choice(np.arange(1, ITEMS // 2), length, replace=False)
            ]
            history["event_times_ms"][:length] = now_ms
            history["event_types"][:length] = 2
            records = {"profile": profile, "history": history}
            writes.append(codec.guarded_write(f"user-{user}", PROFILE, 0, records, now_ms))
        assert all(store.write(writes))
    store.close()


def open_store(folder: Path) -> FeatureStore:
    return connect_store(f"lmdb://{folder / 'features'}", timeout_ms=50, lmdb_map_size_mb=256)


class PreparedAnswers(
    candidate_generation_pb2_grpc.CandidateGenerationServicer, ranking_pb2_grpc.RankingServicer
):
    """Both model services from memory: the `call` of a ReplicaSet without a network or a model."""

    def __init__(self, items: ItemTable) -> None:
        draw = np.random.default_rng(2)
        self._retrieved, self._ranked = [], []
        for _ in range(PREPARED):
            rows = draw.choice(np.arange(ITEMS // 2, ITEMS), CANDIDATES, replace=False)
            scores = np.sort(draw.random(CANDIDATES, np.float32))[::-1]
            self._retrieved.append(
                RetrieveResponse(
                    item_keys=items.keys[rows].tobytes(),
                    scores=scores.tobytes(),
                    interest_index=bytes(CANDIDATES),
                    sources=["ssl_two_tower"],
                    source_index=bytes(CANDIDATES),
                    model_version="prepared",
                    catalogue=items.fingerprint,
                    item_rows=rows.astype("<u4").tobytes(),
                )
            )
            self._ranked.append(
                RankResponse(
                    tasks=["click", "like"],
                    task_scores=draw.random((CANDIDATES, 2), np.float32).tobytes(),
                    model_version="prepared",
                )
            )
        self._calls = 0

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        self._calls += 1
        answers = self._retrieved if method == "Retrieve" else self._ranked
        return answers[self._calls % PREPARED]

    def hangs(self, now_s: float) -> bool:
        return False

    async def Retrieve(
        self, request: RetrieveRequest, context: grpc.aio.ServicerContext
    ) -> RetrieveResponse:
        return cast("RetrieveResponse", await self.call("Retrieve", request, 0))

    async def Rank(self, request: RankRequest, context: grpc.aio.ServicerContext) -> RankResponse:
        return cast("RankResponse", await self.call("Rank", request, 0))


INTERLEAVING = b"""\
version: 1
layers:
  - name: models
    parameters: [ranking.model]
    experiments:
      - name: side_by_side
        interleave: team_draft
        arms:
          - {name: a, parameters: {ranking.model: masknet}}
          - {name: b, parameters: {ranking.model: mc_mlcc}}
"""


def surroundings(
    folder: Path, store: FeatureStore, candidate_generation: Any, ranking: Any
) -> Surroundings:
    items = ItemTable.load(folder)
    blocked = np.zeros(0, np.uint64)
    experiments = ExperimentsFile(Path("experiments.yaml"))
    return Surroundings(
        store,
        RecentFeedback(lambda: items),
        candidate_generation,
        ranking,
        items=lambda: items,
        blocked=lambda: blocked,
        assigner=experiments.assigner,
        settings=RouterSettings(),
    )


# The servers.


@asynccontextmanager
async def echo_server(answer: bytes) -> AsyncIterator[str]:
    """The floor: generated code on grpc.aio, and nothing else."""
    prepared = RecommendResponse.FromString(answer)

    class Echo(recommender_pb2_grpc.RecommenderServicer):
        async def Recommend(
            self, request: RecommendRequest, context: grpc.aio.ServicerContext
        ) -> RecommendResponse:
            return prepared

    server = grpc.aio.server()
    recommender_pb2_grpc.add_RecommenderServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@asynccontextmanager
async def model_services(folder: Path) -> AsyncIterator[str]:
    """Candidate generation and ranking that answer from memory, over gRPC."""
    answers = PreparedAnswers(ItemTable.load(folder))
    server = GrpcServer(
        [
            Service(
                "tandem.v1.CandidateGeneration",
                candidate_generation_pb2_grpc.add_CandidateGenerationServicer_to_server,
                answers,
            ),
            Service("tandem.v1.Ranking", ranking_pb2_grpc.add_RankingServicer_to_server, answers),
        ],
        "127.0.0.1",
        0,
    )
    await server.start()
    yield server.address
    await server.stop()


@asynccontextmanager
async def router_server(
    folder: Path, log_folder: str, models: str | None = None
) -> AsyncIterator[str]:
    """The real router; the model services at address `models`, or in memory."""
    event_log = open_log(folder / log_folder)
    store = open_store(folder)
    async with AsyncExitStack() as stack:
        candidate_generation: Any
        ranking: Any
        if models is None:
            candidate_generation = ranking = PreparedAnswers(ItemTable.load(folder))
        else:
            found = StaticReplicas(frozenset([models]))
            candidate_generation = ReplicaSet(
                "tandem.v1.CandidateGeneration",
                candidate_generation_pb2_grpc.CandidateGenerationStub,
                found,
            )
            ranking = ReplicaSet("tandem.v1.Ranking", ranking_pb2_grpc.RankingStub, found)
            for replicas in (candidate_generation, ranking):
                await replicas.start()
                stack.push_async_callback(replicas.close)
            while not (candidate_generation.serving and ranking.serving):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        servicer = RecommenderServicer(
            surroundings(folder, store, candidate_generation, ranking),
            event_log,
            Ingest(event_log, FeedbackSettings(), EventLogSettings()),
        )
        server = GrpcServer(
            [Service(SERVICE, recommender_pb2_grpc.add_RecommenderServicer_to_server, servicer)],
            "127.0.0.1",
            0,
        )
        await server.start()
        yield server.address
        await server.stop()
        servicer.close()
    event_log.close()
    store.close()


def open_log(folder: Path) -> EventLog:
    return connect_log(EventLogSettings(url=f"log://{folder}"))


# The load.


@cache
def _requests() -> list[bytes]:
    order = random.Random(3).sample(range(USERS), USERS)
    return [request_of(user).SerializeToString() for user in order]


def request_of(user: int) -> RecommendRequest:
    return RecommendRequest(user_id=f"user-{user}", surface=SURFACES[0], num_items=NUM_ITEMS)


def traffic(i: int) -> tuple[str, bytes]:
    return METHOD, _requests()[i % USERS]


def judge(method: str, answer: bytes) -> str:
    """Tells a full answer from a degraded one."""
    return "degraded" if RecommendResponse.FromString(answer).degradations else "OK"


# The stages.


async def stage_costs(folder: Path, repetitions: int) -> tuple[dict[str, float], bytes]:
    """Median µs per stage of one request at a time, in this process; and one response."""
    event_log, store = open_log(folder / "stages"), open_store(folder)
    answers = cast("ReplicaSet", PreparedAnswers(ItemTable.load(folder)))
    around = surroundings(folder, store, answers, answers)
    costs: dict[str, list[float]] = {}
    for i in range(repetitions):
        request = request_of(i % USERS)
        started = time.perf_counter()
        check_recommend(request, SURFACES)
        checked = time.perf_counter()
        response, state = await recommend(request, 1.0, around)
        answered = time.perf_counter()
        count_answer(state)
        counted = time.perf_counter()
        record_bytes(state)
        recorded = time.perf_counter()
        assert not state.degradations
        laps = {
            "check": checked - started,
            **{f"  {stage}": ms / 1000 for stage, ms in state.stage_ms.items()},
            "pipeline": answered - checked,
            "count": counted - answered,
            "record": recorded - counted,
        }
        for stage, seconds in laps.items():
            costs.setdefault(stage, []).append(seconds * 1e6)
    assigner = Assigner(config_reader.parse(INTERLEAVING, "interleaving.yaml"))
    around = replace(around, assigner=lambda: assigner)
    costs["pipeline, interleaved"], costs["record, interleaved"] = [], []
    for i in range(repetitions // 5):
        request = request_of(i % USERS)
        started = time.perf_counter()
        _, state = await recommend(request, 1.0, around)
        answered = time.perf_counter()
        count_answer(state)
        counted = time.perf_counter()
        record_bytes(state)
        recorded = time.perf_counter()
        assert state.interleaving is not None
        costs["pipeline, interleaved"].append((answered - started) * 1e6)
        costs["record, interleaved"].append((recorded - counted) * 1e6)
    event_log.close()
    store.close()
    return {s: median(us) for s, us in costs.items()}, response.SerializeToString()


# The run.


def measure(
    load: LoadProcess, sides: dict[str, ServerProcess], in_flight: int, seconds: float
) -> dict[str, tuple[LoadResult, float]]:
    """One round: every side under the same load; its result and its processor seconds."""
    measured = {}
    for name, side in sides.items():
        before = side.cpu_s()
        target = Target(side.address, traffic, judge=judge)
        result = load.closed_loop(target, in_flight, seconds=seconds)
        measured[name] = result, side.cpu_s() - before
    return measured


def durable_records(folder: Path) -> int:
    log = open_log(folder)
    consumer = log.consumer(topics.DECISIONS, "bench")
    # The first poll assigns the partitions; until then there is no lag to speak of.
    records = len(consumer.poll(1, 1.0))
    records += consumer.lag().events
    consumer.close()
    log.close()
    return records


def main(
    rounds: int = 5, seconds: float = 4.0, in_flight: int = 16, repetitions: int = 5_000
) -> None:
    print_machine()
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name:
        folder = Path(name)
        build_world(folder)
        stages, answer = asyncio.run(stage_costs(folder, repetitions))
        console.print(
            f"request {len(_requests()[0])} B, response {len(answer)} B, {CANDIDATES} candidates,"
            f" {NUM_ITEMS} items; {in_flight} in flight, {rounds} rounds of {seconds:g} s per side"
        )
        results: list[dict[str, tuple[LoadResult, float]]] = []
        with (
            server_process(echo_server, answer) as echo,
            server_process(router_server, folder, "log-memory", run=uvloop.run) as memory,
            server_process(model_services, folder) as models,
            server_process(
                router_server, folder, "log-loopback", models.address, run=uvloop.run
            ) as loopback,
            LoadProcess() as load,
        ):
            sides = {"echo": echo, "memory": memory, "loopback": loopback}
            warm_up = measure(load, sides, in_flight, 1.0)
            for i in range(rounds):
                order = dict(list(sides.items())[:: 1 if i % 2 else -1])
                results.append(measure(load, order, in_flight, seconds))
        recorded = {name: durable_records(folder / f"log-{name}") for name in list(sides)[1:]}
    figures = {}
    for name in sides:
        runs = [measured[name] for measured in results]
        figures[name] = {
            "requests_per_s": median(r.per_second for r, _ in runs),
            "ratio_to_echo": median(
                measured[name][0].per_second / measured["echo"][0].per_second
                for measured in results
            ),
            "cpu_us_per_request": median(1e6 * cpu / r.requests for r, cpu in runs),
            "cpu_ratio": median(
                echo_cpu / echo_run.requests * run.requests / cpu
                for (echo_run, echo_cpu), (run, cpu) in (
                    (measured["echo"], measured[name]) for measured in results
                )
            ),
            "p50_ms": median(r.percentile_ms(50) for r, _ in runs),
            "server_cores_busy": median(cpu / r.seconds for r, cpu in runs),
            "generator_cores_busy": median(r.cpu_s / r.seconds for r, _ in runs),
            "failed_or_degraded": sum(r.requests - r.outcomes["OK"] for r, _ in runs),
        }
        if name in recorded:
            answered = sum(r.outcomes["OK"] for r, _ in [*runs, warm_up[name]])
            figures[name]["records_missing"] = answered - recorded[name]
    print_table(
        f"closed loop, {in_flight} in flight, medians of {rounds} interleaved rounds",
        ["side", *(key.replace("_", " ") for key in figures["memory"])],
        [
            [name, *(f"{v:.2f}" if v < 20 and v % 1 else f"{v:,.0f}" for v in row.values())]
            for name, row in figures.items()
        ],
    )
    grpc_us = figures["echo"]["cpu_us_per_request"]
    print_table(
        f"CPU µs of one request at a time, in-process (nothing waits); median of {repetitions:,}",
        ["stage", "µs"],
        [[stage, f"{us:.1f}"] for stage, us in stages.items()],
    )
    own_us = sum(stages[s] for s in ("check", "pipeline", "count", "record"))
    console.print(
        f"own work {own_us:.0f} µs + bare gRPC {grpc_us:.0f} µs = {own_us + grpc_us:.0f} µs"
    )
    save("bench_router", {"sides": figures, "stages_us": stages})


if __name__ == "__main__":
    typer.run(main)
