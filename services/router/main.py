"""The router process: one gRPC server, its connections to everything behind it, its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import structlog

from protos.tandem.v1 import (
    candidate_generation_pb2_grpc,
    experiments_pb2_grpc,
    ranking_pb2_grpc,
    recommender_pb2_grpc,
)
from services.catalogue.follower import CatalogueFollower, fields_looked_at, follower_of
from services.common.balancer import ReplicaSet
from services.common.discovery import discover
from services.common.feature_store import store_of
from services.common.listener import Listener
from services.common.schema import schema_of
from services.common.server import Service
from services.common.settings import Settings
from services.common.value_model import ValueModel
from services.event_log import topics
from services.event_log.connect import connect as connect_log
from services.event_log.interface import EventLog, LogUnavailable
from services.experiments.assign import service as experiments_service
from services.experiments.assign.experiments_file import ExperimentsFile
from services.experiments.assign.following import Follower
from services.experiments.declare.domain import domain_of
from services.experiments.declare.targeting import Context
from services.feedback.ingest import Ingest
from services.router.blocked_items import BlockedItems
from services.router.hydrate import read_features
from services.router.popularity import CurrentPopular
from services.router.recent_feedback import RecentFeedback
from services.router.servicer import SERVICE, RecommenderServicer
from services.router.surroundings import Surroundings
from services.router.user_rows import UserRows

log = structlog.get_logger()

POLL_S = 1.0  # while there is nothing to start with


class Router:
    """A started router: its listener and everything it holds open."""

    def __init__(self, settings: Settings, known: Known) -> None:
        """`known` is in force; the router releases it at its end."""
        mine = settings.router
        self._settings = settings
        schema = schema_of(settings)
        self._rows = UserRows(schema)
        self._store = store_of(settings)
        self._event_log, self._catalogue, self._popular = known
        self._experiments = ExperimentsFile(mine.experiments_file, domain_of(schema.declaration))
        self._follower = Follower(self._event_log, self._experiments, settings.run_dir)
        # A thread of its own: a log that does not answer must not hold up files and requests.
        self._follower_thread = ThreadPoolExecutor(1, thread_name_prefix="experiment-changes")
        self._blocked = BlockedItems(mine.blocked_items_file, lambda: self._catalogue.items)
        self._candidate_generation = ReplicaSet(
            "tandem.v1.CandidateGeneration",
            candidate_generation_pb2_grpc.CandidateGenerationStub,
            discover(
                settings.candidate_generation.target, settings.run_dir, "candidate_generation"
            ),
        )
        self._ranking = ReplicaSet(
            "tandem.v1.Ranking",
            ranking_pb2_grpc.RankingStub,
            discover(settings.ranking.target, settings.run_dir, "ranking"),
        )
        self._recent = RecentFeedback(schema, lambda: self._catalogue.items)
        around = Surroundings(
            rows=self._rows,
            store=self._store,
            recent=self._recent,
            candidate_generation=self._candidate_generation,
            ranking=self._ranking,
            items=lambda: self._catalogue.items,
            popular=lambda: self._popular.loaded,
            value_model=ValueModel(schema.declaration),
            blocked=lambda: self._blocked.keys,
            assigner=self._experiments.assigner,
            settings=mine,
        )
        ingest = Ingest(schema, self._event_log, settings.feedback, settings.event_log)
        self._servicer = RecommenderServicer(around, self._event_log, ingest)
        recommender = Service(
            SERVICE, recommender_pb2_grpc.add_RecommenderServicer_to_server, self._servicer
        )
        experiments = Service(
            experiments_service.SERVICE,
            experiments_pb2_grpc.add_ExperimentsServicer_to_server,
            experiments_service.ExperimentsServicer(
                self._experiments.assigner, around.value_model.surfaces, features=self._features
            ),
        )
        self._listener = Listener(
            "router",
            [recommender, experiments],
            mine.host,
            settings.run_dir,
            mine.drain_s,
            [self._release],
            port=mine.port,
            metrics_port=mine.metrics_port,
            part="router",
        )

    @property
    def address(self) -> str:
        return self._listener.address

    async def start(self) -> None:
        """Take in what is stopped, follow replicas and files, then listen, then announce."""
        mine = self._settings.router
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._make_topics)
        await loop.run_in_executor(self._follower_thread, self._follower.begin)
        await self._candidate_generation.start()
        await self._ranking.start()
        await self._listener.start(
            self._follow(
                mine.experiments_reload_s,
                self._experiments.reload_if_changed,
                self._popular.refresh,
                self._blocked.refresh,
            ),
            self._follow(
                mine.experiments_reload_s, self._follower.refresh, on=self._follower_thread
            ),
        )

    async def drain(self) -> None:
        """Finish what is in flight, write what is pending, release everything."""
        await self._listener.drain()

    async def _release(self) -> None:
        await self._candidate_generation.close()
        await self._ranking.close()
        self._servicer.close()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._follower_thread, self._follower.close)
        self._follower_thread.shutdown()
        await loop.run_in_executor(None, self._catalogue.close)
        await loop.run_in_executor(None, self._event_log.close)
        await self._store.close_async()

    def _make_topics(self) -> None:
        """Before the first request needs them. Without the log lists are made all the same, with
        the arms that were last known to be live."""
        try:
            for topic in (topics.FEEDBACK, topics.DECISIONS):
                self._event_log.partitions(topic)
        except LogUnavailable as error:
            log.error("event_log_unavailable", error=str(error))

    async def _features(self, user_id: str) -> Context:
        """What conditions on a user look at, as in a request of this moment."""
        limit_s = self._settings.router.hydrate_ms / 1000.0
        now_ms = int(time.time() * 1000)
        return await read_features(self._rows, self._store, self._recent, user_id, now_ms, limit_s)

    async def _follow(
        self,
        period_s: float,
        *refreshes: Callable[[], object],
        on: ThreadPoolExecutor | None = None,
    ) -> None:
        """Take up what has changed, again and again, on a thread of `on`."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(period_s)
            for refresh in refreshes:
                try:
                    await loop.run_in_executor(on, refresh)
                except Exception:  # one file nobody foresaw must not end the following of all
                    log.exception("refresh_failed", what=refresh.__qualname__)


class Known(NamedTuple):
    """What a router needs before it can answer anybody."""

    event_log: EventLog
    catalogue: CatalogueFollower
    popular: CurrentPopular

    def close(self) -> None:
        """Release it where no router does."""
        self.catalogue.close()
        self.event_log.close()


async def known_in_force(settings: Settings, stop: asyncio.Event) -> Known | None:
    """The items to serve, as soon as there are any; None when `stop` is set first.

    A router without items could answer nobody, so it does not listen until it has some.
    """
    event_log = connect_log(settings.event_log, settings.installation)
    catalogue = follower_of(settings, event_log, fields_looked_at(schema_of(settings)))
    catalogue.start()
    popular = CurrentPopular(settings.artifacts_dir, settings.candidate_generation.models[0])
    known, loop = Known(event_log, catalogue, popular), asyncio.get_running_loop()
    told = False
    while True:
        await loop.run_in_executor(None, popular.refresh)  # which says why there is none
        if popular.in_force and catalogue.there:
            return known
        if not (told or catalogue.there):
            log.info("router_waits", reason="there are no items: `tandem items sync FILE`")
            told = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), POLL_S)
            await loop.run_in_executor(None, known.close)
            return None


async def run_router(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    known = await known_in_force(settings, stop)
    if known is None:
        return
    router = Router(settings, known)
    await router.start()
    await stop.wait()
    await router.drain()
