"""The gRPC server every Tandem service runs: health, reflection, draining.

`grpc.health.v1.Health` knows the empty name and each service's full name from before the first
call (an unknown name answers NOT_FOUND, which a kubelet counts as failure). Draining follows the
order that loses no call: health to NOT_SERVING, a moment for the balancers to see it, then no new
calls while those in flight finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

MAX_MESSAGE_BYTES = 8 * 2**20
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a coin toss
)


@dataclass(frozen=True)
class Service:
    """A servicer with the generated function that registers it and its full proto name."""

    name: str
    register: Callable[[Any, grpc.aio.Server], None]
    servicer: Any


class GrpcServer:
    """One listener for some services, with health checking and reflection."""

    def __init__(self, services: Sequence[Service], host: str, port: int) -> None:
        self._names = ["", *(s.name for s in services)]
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=OPTIONS)
        for service in services:
            service.register(service.servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._names[1:], health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        self._host = host
        self.port = self._server.add_insecure_port(f"{host}:{port}")

    @property
    def address(self) -> str:
        return f"{self._host}:{self.port}"

    async def start(self) -> None:
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def drain(self, notice_s: float, grace_s: float) -> None:
        """Say NOT_SERVING, keep answering for `notice_s`, then finish what is in flight.

        Calls still running `grace_s` after the notice are cancelled.
        """
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(notice_s)
        await self._server.stop(grace_s)

    async def stop(self) -> None:
        """End at once; for tests and for the end of `drain`."""
        await self._server.stop(None)
