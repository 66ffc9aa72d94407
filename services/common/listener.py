"""What a router and a replica of a model service run: listener, announcement, metrics, drain.

Knows nothing of Ray: `services/common/processes/hosting.py` puts replicas into a Serve deployment
and replica.py each into a process of its own; a test starts them in its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog

from services.common import telemetry
from services.common.channels import joined
from services.common.discovery import Announcement, replica_folder
from services.common.server import GrpcServer, Service

log = structlog.get_logger()

# Balancers poll the announcements every 0.1 s and hear of NOT_SERVING by a stream; after this
# long nobody sends new calls any more.
DRAIN_NOTICE_S = 0.5


class Listener:
    """A gRPC server with the background tasks that belong to it, announced and measured."""

    def __init__(
        self,
        kind: str,
        services: Sequence[Service],
        host: str,
        run_dir: Path,
        grace_s: float,
        closers: Sequence[Callable[[], Awaitable[None] | None]] = (),
        *,
        port: int = 0,
        metrics_port: int = 0,
        part: str = "replica",
    ) -> None:
        """Takes the port. `closers` release what the services hold open; `part` is what logs say
        has started."""
        self._kind = kind
        self._part = part
        self._host = host
        self._run_dir = run_dir
        self._grace_s = grace_s
        self._closers = closers
        self._metrics_port = metrics_port
        self._server = GrpcServer(services, host, port)
        self._background: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        return self._server.address

    async def start(self, *background: Coroutine[Any, Any, None]) -> None:
        """Listen, then announce; `background` runs until the drain."""
        self._background = [asyncio.create_task(c) for c in background]
        metrics_port, self._end_metrics = telemetry.serve_metrics(
            self._kind, self._host, self._metrics_port
        )
        await self._server.start()
        self._announcement = Announcement(
            replica_folder(self._run_dir, self._kind),
            self.address,
            metrics=joined(self._host, metrics_port),
        )
        log.info(f"{self._part}_started", service=self._kind, address=self.address, pid=os.getpid())

    def check(self) -> None:
        """Raise if a background task has died: the host then replaces the replica."""
        for task in self._background:
            if task.done():
                task.result()
                raise RuntimeError(f"background task {task.get_coro()} of {self._kind} ended")

    async def drain(self) -> None:
        """Withdraw, say NOT_SERVING, finish what is in flight (at most `grace_s`), release, end.

        The metrics end last: what is lost while something is released can still be scraped.
        """
        self._announcement.withdraw()
        await self._server.drain(DRAIN_NOTICE_S, self._grace_s)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for close in self._closers:
            closing = close()
            if closing is not None:
                await closing
        self._end_metrics()
        log.info(f"{self._part}_drained", service=self._kind, address=self.address)
