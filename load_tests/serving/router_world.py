"""A router under load: its world, its servers and its traffic, for bench_router.

Three servers, each for a process of its own: a bare gRPC echo, the real router, and both model
services as one that answers from memory.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np

from feature_store import codec
from feature_store.connect import connect as connect_store
from feature_store.interface import FeatureStore
from models.catalogue import ItemTable
from models.data.worlds.films.schema import (
    CLICKS,
    GENRE_CLICKS,
    GENRE_SLOTS,
    GROUPS,
    HISTORY,
    HISTORY_LENGTH,
    ITEM_DTYPE,
    PROFILE,
    SCHEMA,
)
from protos.tandem.v1 import candidate_generation_pb2_grpc, ranking_pb2_grpc, recommender_pb2_grpc
from protos.tandem.v1.candidate_generation_pb2 import RetrieveRequest, RetrieveResponse
from protos.tandem.v1.ranking_pb2 import RankRequest, RankResponse
from protos.tandem.v1.recommender_pb2 import RecommendRequest, RecommendResponse
from services.common.balancer import ReplicaSet
from services.common.discovery import discover
from services.common.server import GrpcServer, Service
from services.common.settings import EventLogSettings, FeedbackSettings, RouterSettings
from services.common.value_model import ValueModel
from services.event_log.connect import connect as connect_log
from services.event_log.interface import EventLog
from services.experiments.assign.experiments_file import ExperimentsFile
from services.experiments.declare.domain import domain_of
from services.feedback.ingest import Ingest
from services.router.popularity import Popular
from services.router.recent_feedback import RecentFeedback
from services.router.servicer import SERVICE, RecommenderServicer
from services.router.surroundings import Surroundings
from services.router.user_rows import UserRows

USERS, ITEMS, CANDIDATES, NUM_ITEMS = 5_000, 10_000, 200, 20
PREPARED = 64  # different answers of each model service
METHOD = f"/{SERVICE}/Recommend"
SURFACES = SCHEMA.declaration.surface_names


# The world: what an installation would have on disk.


def build_world(folder: Path) -> None:
    """An item table and a feature store. Histories hold the first half of the items and candidates
    come from the second, so that no prepared candidate is ever filtered."""
    draw = np.random.default_rng(1)
    features = np.zeros(ITEMS, ITEM_DTYPE)
    features["year"] = draw.integers(1950, 2020, ITEMS)
    features["genres"][:, :3] = draw.integers(1, GENRE_SLOTS, (ITEMS, 3))
    clicks = np.sort(draw.integers(0, 5_000, ITEMS))[::-1]
    counts = np.stack([clicks, np.zeros_like(clicks)], axis=1)
    items = ItemTable.build([str(i) for i in range(1, ITEMS + 1)], features, counts)
    items.save(folder)
    store = open_store(folder)
    now_ms = int(time.time() * 1000)
    for start in range(0, USERS, 500):
        writes = []
        for user in range(start, start + 500):
            profile, history = PROFILE.defaults(), HISTORY.defaults()
            length = int(draw.integers(20, HISTORY_LENGTH))
            profile[CLICKS], profile["last_event_ms"] = length, now_ms
            profile[GENRE_CLICKS] = draw.random(GENRE_SLOTS)
            history["length"] = length
            history["item_keys"][:length] = items.keys[
                draw.choice(np.arange(1, ITEMS // 2), length, replace=False)
            ]
            history["event_times_ms"][:length] = now_ms
            history["event_ids"][:length] = 2
            records = {PROFILE: profile, HISTORY: history}
            writes.append(codec.guarded_write(f"user-{user}", PROFILE, 0, records, now_ms))
        assert all(store.write(writes))
    store.close()


def open_store(folder: Path) -> FeatureStore:
    return connect_store(
        f"lmdb://{folder / 'features'}",
        GROUPS,
        installation=None,
        timeout_ms=50,
        lmdb_map_size_mb=256,
    )


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


def surroundings(
    folder: Path, store: FeatureStore, candidate_generation: Any, ranking: Any
) -> Surroundings:
    items = ItemTable.load(folder)
    blocked, popular = np.zeros(0, np.uint64), Popular.of(items)
    experiments = ExperimentsFile(Path("experiments.yaml"), domain_of(SCHEMA.declaration))
    return Surroundings(
        rows=UserRows(SCHEMA),
        store=store,
        recent=RecentFeedback(SCHEMA, lambda: items),
        candidate_generation=candidate_generation,
        ranking=ranking,
        items=lambda: items,
        value_model=ValueModel(SCHEMA.declaration),
        popular=lambda: popular,
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
            found = discover(f"static:{models}", folder, "models")
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
            Ingest(SCHEMA, event_log, FeedbackSettings(), EventLogSettings()),
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
    return connect_log(EventLogSettings(url=f"log://{folder}"), None)


# The load.


@cache
def prepared_requests() -> list[bytes]:
    order = random.Random(3).sample(range(USERS), USERS)
    return [request_of(user).SerializeToString() for user in order]


def request_of(user: int) -> RecommendRequest:
    return RecommendRequest(user_id=f"user-{user}", surface=SURFACES[0], num_items=NUM_ITEMS)


def traffic(i: int) -> tuple[str, bytes]:
    return METHOD, prepared_requests()[i % USERS]


def judge(method: str, answer: bytes) -> str:
    """Tells a full answer from a degraded one."""
    return "degraded" if RecommendResponse.FromString(answer).degradations else "OK"
