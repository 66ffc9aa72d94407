"""One replica of a model service: its listener, its announcement, its metrics, its drain.

Knows nothing of Ray: `services/common/processes/hosting.py` puts it into a Serve deployment, a test
starts it in its own process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
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


class Replica:
    """A started listener with the background tasks that belong to it."""

    def __init__(
        self,
        kind: str,
        services: Sequence[Service],
        host: str,
        run_dir: Path,
        background: Sequence[Coroutine[Any, Any, None]],
    ) -> None:
        self._kind = kind
        self._server = GrpcServer(services, host, 0)
        self._host = host
        self._run_dir = run_dir
        self._background = [asyncio.create_task(c) for c in background]
        self._announcement: Announcement | None = None

    @property
    def address(self) -> str:
        return self._server.address

    async def start(self) -> None:
        metrics_server, _, metrics_port = telemetry.serve_metrics(self._kind, self._host, 0)
        self._metrics_server = metrics_server
        await self._server.start()
        self._announcement = Announcement(
            replica_folder(self._run_dir, self._kind),
            self.address,
            metrics=joined(self._host, metrics_port),
        )
        log.info("replica_started", service=self._kind, address=self.address)

    def check(self) -> None:
        """Raise if a background task has died: the host then replaces the replica."""
        for task in self._background:
            if task.done():
                task.result()
                raise RuntimeError(f"background task {task.get_coro()} of {self._kind} ended")

    async def drain(self, grace_s: float) -> None:
        """Withdraw, say NOT_SERVING, finish what is in flight (at most `grace_s`), end."""
        if self._announcement:
            self._announcement.withdraw()
        await self._server.drain(DRAIN_NOTICE_S, grace_s)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._metrics_server.shutdown()
        self._metrics_server.server_close()
        log.info("replica_drained", service=self._kind, address=self.address)


class HostedReplica:
    """What a host needs of a replica: whether it is well, and how to end it."""

    def __init__(
        self, replica: Replica, grace_s: float, closers: Sequence[Callable[[], None]]
    ) -> None:
        self.replica = replica
        self._grace_s = grace_s
        self._closers = closers

    def check(self) -> None:
        self.replica.check()

    async def drain(self) -> None:
        """Lose no call, then release model threads and stores."""
        await self.replica.drain(self._grace_s)
        for close in self._closers:
            close()
