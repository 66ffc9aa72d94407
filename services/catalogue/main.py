"""The role `catalogue`: one process builds, and listens as long as it does."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

from protos.tandem.v1 import catalogue_pb2_grpc
from services.catalogue.builder import LEASE_S, Builder
from services.catalogue.servicer import SERVICE, CatalogueServicer
from services.common.clock import epoch_ms
from services.common.listener import Listener
from services.common.processes.waiting import Stopped, wait_for
from services.common.schema import schema_of
from services.common.server import Service
from services.common.settings import Settings
from services.event_log.connect import connect as connect_log
from services.event_log.interface import EventLog, LogUnavailable


def builder_of(settings: Settings, event_log: EventLog) -> Builder:
    """The builder of an installation."""
    log_of = settings.event_log
    appends_s = 0.0 if log_of.url.startswith("log://") else log_of.append_timeout_s
    return Builder(
        event_log,
        settings.generations_dir,
        schema_of(settings),
        max_waiting=settings.catalogue.max_waiting,
        lease_s=LEASE_S + appends_s,
    )


class BuildingServer:
    """A builder that leads, on a thread, behind its gRPC service."""

    def __init__(self, settings: Settings, builder: Builder) -> None:
        mine = settings.catalogue
        self._builder, self._stop = builder, threading.Event()
        servicer = CatalogueServicer(builder, schema_of(settings).declaration, epoch_ms)
        register = catalogue_pb2_grpc.add_CatalogueServicer_to_server
        self._listener = Listener(
            "catalogue",
            [Service(SERVICE, register, servicer)],
            mine.host,
            settings.run_dir,
            mine.drain_s,
            [self._release],
            port=mine.port,
            metrics_port=mine.metrics_port,
            part="catalogue",
        )
        self.ended: asyncio.Future[Any] | None = None

    @property
    def address(self) -> str:
        return self._listener.address

    async def start(self) -> None:
        """Build and listen. `ended` is done when the builder is, with the reason."""
        await self._listener.start()
        loop = asyncio.get_running_loop()
        self.ended = loop.run_in_executor(None, self._builder.run, self._stop)

    async def drain(self) -> None:
        """Finish what is in flight, then release everything."""
        await self._listener.drain()

    async def _release(self) -> None:
        assert self.ended is not None
        self._stop.set()
        await asyncio.gather(self.ended, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self._builder.close)


async def run_catalogue(settings: Settings) -> None:
    """Build until SIGTERM or SIGINT, then drain. Raises NotBuilding when another one took over."""
    loop = asyncio.get_running_loop()
    stop, stopped = threading.Event(), asyncio.Event()

    def end() -> None:
        stop.set()
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    event_log = connect_log(settings.event_log, settings.installation)
    builder = builder_of(settings, event_log)
    try:
        leads = await loop.run_in_executor(None, _lead, builder, stop)
        if leads:
            server = BuildingServer(settings, builder)
            await server.start()
            assert server.ended is not None
            waiting: asyncio.Future[Any] = asyncio.ensure_future(stopped.wait())
            await asyncio.wait({waiting, server.ended}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            await server.drain()
            server.ended.result()
    finally:
        await loop.run_in_executor(None, builder.close)
        await loop.run_in_executor(None, event_log.close)


def _lead(builder: Builder, stop: threading.Event) -> bool:
    try:
        return wait_for("the event log", lambda: builder.lead(stop), stop, LogUnavailable)
    except Stopped:
        return False
