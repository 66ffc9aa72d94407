"""The gRPC server every Tandem service runs: health, reflection, draining, and what it bears.

`grpc.health.v1.Health` knows the empty name and each service's full name from before the first
call (an unknown name answers NOT_FOUND, which a kubelet counts as failure). Draining follows the
order that loses no call: health to NOT_SERVING, a moment for the balancers to see it, then no new
calls while those in flight finish.

gRPC's core drops calls that wait to be accepted beyond some number as CANCELLED, which no client
understands and no metric counts. Here they wait until a handler takes or refuses them (rpc.py).
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common.channels import joined
from services.common.rpc import reader

MAX_MESSAGE_BYTES = 8 * 2**20
# Calls waiting to be accepted, by method: a handler takes one in some 0.1 ms. Only memory bounds
# them, a few kB each.
MAX_UNACCEPTED = 65_536
# Of one connection, so that none keeps the others waiting. A client waits itself for what is over.
MAX_STREAMS = 4_096
# Clients may ping every 10 s, also when they have no call; gRPC's default takes that for an attack.
MIN_PING_INTERVAL_MS = 9_000
HANDSHAKE_MS = 10_000  # after which a connection that has said nothing is closed
OTHER_DESCRIPTORS = 128  # what a process keeps open besides clients' connections
MAX_INT = 2**31 - 1  # of an option
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a coin toss
    ("grpc.server.max_pending_requests", MAX_UNACCEPTED),
    ("grpc.server.max_pending_requests_hard_limit", MAX_UNACCEPTED),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
)


@dataclass(frozen=True)
class Service:
    """A servicer with the generated function that registers it and its full proto name."""

    name: str
    register: Callable[[Any, Any], None]
    servicer: Any


class GrpcServer:
    """One listener for some services, with health checking and reflection."""

    def __init__(self, services: Sequence[Service], host: str, port: int) -> None:
        self._names = ["", *(s.name for s in services)]
        self._health = health.aio.HealthServicer()
        connections = max_connections()
        self._server = grpc.aio.server(
            options=(*OPTIONS, ("grpc.max_allowed_incoming_connections", connections))
        )
        for service in services:
            service.register(service.servicer, _Registrar(self._server))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._names[1:], health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        self._host = host
        self.port = self._server.add_insecure_port(joined(host, port))

    @property
    def address(self) -> str:
        return joined(self._host, self.port)

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


class _Registrar:
    """Takes a service's methods from the generated code and hands them on, with a reader each."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """The same methods as below, where they cannot be looked into."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]
    ) -> None:
        reading = {
            name: handler._replace(request_deserializer=reader(handler.request_deserializer))
            for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, reading),)
        )
        self._server.add_registered_method_handlers(service, reading)


def max_connections() -> int:
    """Clients' connections that leave the process descriptors to work with.

    The process may open as many as the system lets it: the soft limit is raised to the hard one.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most == resource.RLIM_INFINITY:
        return MAX_INT
    return max(min(most, MAX_INT) - OTHER_DESCRIPTORS, OTHER_DESCRIPTORS)
