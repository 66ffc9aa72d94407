"""The request path in one process: real store, log, models and gRPC, without Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

import services.candidate_generation.deployment
import services.ranking.deployment
from load_tests.serving.feeding import feed
from protos.tandem.v1.recommender_pb2_grpc import RecommenderStub
from services.common.listener import Listener
from services.common.settings import (
    EventLogSettings,
    FeatureStoreSettings,
    RouterSettings,
    Settings,
)
from services.router.main import Router, known_in_force
from tests.artifacts import publish_small, small_items

EXPERIMENTS = """\
version: 1
layers:
  - name: value
    parameters: [rerank.like_weight]
    experiments:
      - name: like_weight
        arms:
          - {name: control, weight: 50}
          - {name: treatment, weight: 50, parameters: {rerank.like_weight: 3.0}}
        allow_list: {vip: treatment}
"""


@pytest.fixture(scope="session")
def small_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    publish_small(folder)
    return folder


@pytest.fixture
def small_settings(tmp_path: Path, small_artifacts: Path) -> Settings:
    """An installation of its own under tmp_path, on free ports."""
    experiments = tmp_path / "experiments.yaml"
    experiments.write_text(EXPERIMENTS)
    settings = Settings(
        run_dir=tmp_path,
        artifacts_dir=small_artifacts,
        router=RouterSettings(
            port=0,
            metrics_port=0,
            experiments_file=experiments,
            experiments_reload_s=0.05,
            deadline_ms=5_000,
            hydrate_ms=2_000,
            retrieve_ms=2_000,
            rank_ms=2_000,
            drain_s=2,
        ),
        feature_store=FeatureStoreSettings(url=f"lmdb://{tmp_path}/features", lmdb_map_size_mb=64),
        event_log=EventLogSettings(url=f"log://{tmp_path}/events", partitions=2),
    )
    feed(settings, small_items())
    return settings


@dataclass
class InProcess:
    """A running router with replicas that the test may start and drain."""

    settings: Settings
    router: Router
    stub: RecommenderStub
    channel: grpc.aio.Channel
    replicas: dict[str, list[Listener]]

    async def start_replica(self, kind: str) -> Listener:
        module = {
            "candidate_generation": services.candidate_generation.deployment,
            "ranking": services.ranking.deployment,
        }[kind]
        replica = await module.start_replica(self.settings)
        self.replicas[kind].append(replica)
        return replica

    async def drain_replica(self, kind: str, replica: Listener) -> None:
        self.replicas[kind].remove(replica)
        await replica.drain()

    def serving(self, kind: str) -> list[str]:
        replica_set = {
            "candidate_generation": self.router._candidate_generation,
            "ranking": self.router._ranking,
        }[kind]
        return replica_set.serving


async def until(condition: Callable[[], bool], patience_s: float = 20.0) -> None:
    """Wait for a condition on the event loop; fail if it does not come."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


@pytest.fixture
async def installation(small_settings: Settings) -> AsyncIterator[InProcess]:
    """Router and one replica of each service, all serving."""
    async with running(small_settings) as subject:
        yield subject


@asynccontextmanager
async def routed(settings: Settings) -> AsyncIterator[tuple[Router, grpc.aio.Channel]]:
    """A router in this process and a channel to it, gone with the block."""
    known = await known_in_force(settings, asyncio.Event())
    assert known is not None
    router = Router(settings, known)
    await router.start()
    async with grpc.aio.insecure_channel(router.address) as channel:
        yield router, channel
    await router.drain()


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[InProcess]:
    """An installation in this process, gone with the block."""
    async with routed(settings) as (router, channel):
        subject = InProcess(
            settings,
            router,
            RecommenderStub(channel),
            channel,
            {"candidate_generation": [], "ranking": []},
        )
        for kind in subject.replicas:
            await subject.start_replica(kind)
            await until(lambda kind=kind: len(subject.serving(kind)) == 1)
        yield subject
        for kind, replicas in subject.replicas.items():
            for replica in list(replicas):
                await subject.drain_replica(kind, replica)
