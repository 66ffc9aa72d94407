"""The router process: one gRPC server, its connections to everything behind it, its metrics."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import structlog

from feature_store.connect import connect as connect_store
from models import artifact
from models.catalogue import ItemTable
from models.schema import item_key
from protos.tandem.v1 import (
    candidate_generation_pb2_grpc,
    ranking_pb2_grpc,
    recommender_pb2_grpc,
)
from services.common import telemetry
from services.common.balancer import ReplicaSet
from services.common.discovery import Announcement, discover, replica_folder
from services.common.server import GrpcServer, Service
from services.common.settings import Settings
from services.event_log.connect import connect as connect_log
from services.experiments.assignment import ExperimentsFile
from services.feedback.ingest import TOPIC, Ingest
from services.router.pipeline import Surroundings
from services.router.servicer import DECISIONS_TOPIC, SERVICE, RecommenderServicer

log = structlog.get_logger()

DRAIN_NOTICE_S = 0.5


class Catalogue:
    """The item table of the current retrieval artifact, followed as new versions are published."""

    def __init__(self, artifacts_dir: Path, model: str) -> None:
        self._artifacts_dir, self._model = artifacts_dir, model
        self._folder = artifact.current(artifacts_dir, model)
        self.items = ItemTable.load(self._folder)

    def refresh(self) -> None:
        try:
            folder = artifact.current(self._artifacts_dir, self._model)
            if folder != self._folder:
                self.items = ItemTable.load(folder)
                self._folder = folder
                log.info("catalogue_loaded", version=folder.name, items=len(self.items))
        except (artifact.ArtifactError, OSError, ValueError) as error:
            log.error("catalogue_refused", error=str(error))


class BlockedItems:
    """Keys of the items that nobody is shown: one item id per line of a file, followed."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._text = ""
        self.keys = np.zeros(0, np.uint64)
        self.refresh()

    def refresh(self) -> None:
        if self._path is None:
            return
        try:
            text = self._path.read_text()
        except OSError as error:  # keep blocking what was blocked
            log.error("blocked_items_unreadable", error=str(error))
            return
        if text != self._text:
            ids = [line.strip() for line in text.splitlines() if line.strip()]
            self.keys = np.array([item_key(i) for i in ids], np.uint64)
            self._text = text


async def run_router(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    mine = settings.router
    store = connect_store(
        settings.feature_store.url,
        timeout_ms=settings.feature_store.timeout_ms,
        lmdb_map_size_mb=settings.feature_store.lmdb_map_size_mb,
    )
    event_log = connect_log(settings.event_log)
    for topic in (TOPIC, DECISIONS_TOPIC):
        event_log.partitions(topic)  # created before the first request needs it
    experiments = ExperimentsFile(mine.experiments_file)
    catalogue = Catalogue(settings.artifacts_dir, settings.candidate_generation.models[0])
    blocked = BlockedItems(mine.blocked_items_file)
    candidate_generation = ReplicaSet(
        "tandem.v1.CandidateGeneration",
        candidate_generation_pb2_grpc.CandidateGenerationStub,
        discover(settings.candidate_generation.target, settings.run_dir, "candidate_generation"),
    )
    ranking = ReplicaSet(
        "tandem.v1.Ranking",
        ranking_pb2_grpc.RankingStub,
        discover(settings.ranking.target, settings.run_dir, "ranking"),
    )
    around = Surroundings(
        store,
        candidate_generation,
        ranking,
        items=lambda: catalogue.items,
        blocked=lambda: blocked.keys,
        assigner=experiments.assigner,
        settings=mine,
    )
    servicer = RecommenderServicer(
        around, event_log, Ingest(event_log, settings.feedback, settings.event_log)
    )
    server = GrpcServer(
        [Service(SERVICE, recommender_pb2_grpc.add_RecommenderServicer_to_server, servicer)],
        mine.host,
        mine.port,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    async def follow() -> None:
        while True:
            await asyncio.sleep(mine.experiments_reload_s)
            for refresh in (experiments.reload_if_changed, catalogue.refresh, blocked.refresh):
                await loop.run_in_executor(None, refresh)

    await candidate_generation.start()
    await ranking.start()
    following = asyncio.create_task(follow())
    metrics_server, _, metrics_port = telemetry.serve_metrics(
        "router", mine.host, mine.metrics_port
    )
    await server.start()
    announcement = Announcement(
        replica_folder(settings.run_dir, "router"),
        server.address,
        metrics=f"{mine.host}:{metrics_port}",
    )
    log.info("router_started", address=server.address, pid=os.getpid())
    await stop.wait()
    announcement.withdraw()
    await server.drain(DRAIN_NOTICE_S, mine.drain_s)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await candidate_generation.close()
    await ranking.close()
    await loop.run_in_executor(None, event_log.close)
    await store.close_async()
    metrics_server.shutdown()
    metrics_server.server_close()
    log.info("router_stopped")
