"""Calls to the replicas of one service, spread by least outstanding requests.

The router holds one ReplicaSet per service behind it. A replica receives calls while it is
announced (discovery) and says SERVING on its health stream; a call that meets a dead or draining
replica, or a full queue, is sent once more to another one within the same deadline (Retrieve and
Rank are reads, so a second try is harmless). Least outstanding beats round robin because replicas
warm up, swap models and share machines: the slow one gets less.

A replica that hangs says nothing, and its health stream goes on saying SERVING. So one that let
HANGS calls run out of time and answered none meanwhile gets none for SUSPECT_S, unless there is no
other; then it is tried again, and one more such call suspends it again. Its host replaces it in the
end. One that is merely overloaded answers others, or refuses: it is not suspected.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import Counter, Gauge

from services.common.channels import CHANNEL_OPTIONS
from services.common.discovery import Discovery
from services.common.server import MAX_MESSAGE_BYTES

log = structlog.get_logger()

REPLICAS = Gauge(
    "tandem_balancer_replicas",
    "Replicas that take calls; 0 means that every request is answered degraded.",
    ["service"],
)
RETRIES = Counter(
    "tandem_balancer_retries_total",
    "Calls sent to a second replica; a steady rate means replicas die or are overloaded.",
    ["service", "status"],
)

RETRIED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})
HANGS = 3
HANG_S = 0.05  # a call that was given less than this and ran out of time tells nothing
SUSPECT_S = 1.0
SILENT_S = 1.0  # a service that answers nothing for so long hangs
REPLICA_OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Each replica is a connection of its own, never a shared subchannel of another set's.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class NoReplica(Exception):
    """No replica of the service takes calls now."""


class Replica:
    """One connection, its health and its calls in flight."""

    def __init__(self, address: str, service: str, stub_class: type) -> None:
        self.address = address
        self._service = service
        self.channel = grpc.aio.insecure_channel(address, options=REPLICA_OPTIONS)
        self.stub: Any = stub_class(self.channel)
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.serving = False
        self.timeouts = 0  # calls that ran out of time since it last answered
        self.answered_s = 0.0  # when that was, on the monotonic clock
        self.silent_since_s = math.inf  # when the first of those calls was sent
        self.suspect_until = 0.0  # on the monotonic clock
        self._watching = asyncio.create_task(self._watch())

    def answered(self) -> None:
        """Note an answer or a refusal, or that the connection is gone: it does not hang."""
        self.timeouts = 0
        self.answered_s = time.monotonic()
        self.silent_since_s = math.inf

    def ran_out_of_time(self, sent_s: float, now_s: float) -> None:
        """Note a call that was given enough time, and suspect the replica if it seems to hang."""
        if self.answered_s >= sent_s:
            return  # others, meanwhile
        self.silent_since_s = min(self.silent_since_s, sent_s)
        self.timeouts += 1
        if self.timeouts >= HANGS and self.suspect_until <= now_s:
            self.suspect_until = now_s + SUSPECT_S
            log.warning("replica_suspected", address=self.address, timeouts=self.timeouts)

    def doubt(self) -> None:
        """Send nothing until the health service says again, on a new stream, that it serves."""
        self.serving = False
        self._watching.cancel()
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        stub = health_pb2_grpc.HealthStub(self.channel)
        request = health_pb2.HealthCheckRequest(service=self._service)
        while True:
            try:
                async for update in stub.Watch(request, wait_for_ready=True):
                    self.serving = update.status == health_pb2.HealthCheckResponse.SERVING
            except grpc.aio.AioRpcError as error:
                log.info("replica_lost", address=self.address, status=error.code().name)
            except Exception:  # without this stream the replica would stay out for ever
                log.exception("health_stream_failed", address=self.address)
            self.serving = False
            await asyncio.sleep(0.05)  # the channel's own backoff paces the reconnection

    async def close(self) -> None:
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self.channel.close()


def least_outstanding(
    replicas: Mapping[str, Replica], tried: str | None, now_s: float
) -> Replica | None:
    """The serving replica with the fewest calls in flight, the first of equals, leaving out the one
    already tried; a suspected one only if there is no other."""
    best: Replica | None = None
    suspected: Replica | None = None
    for replica in replicas.values():
        if not replica.serving or replica.address == tried:
            continue
        if replica.suspect_until > now_s:
            suspected = replica
        elif best is None or replica.in_flight < best.in_flight:
            best = replica
    return best or suspected


class ReplicaSet:
    """The replicas of `service` (full proto name), kept up to date with a discovery."""

    def __init__(
        self, service: str, stub_class: type, discovery: Discovery, poll_s: float = 0.1
    ) -> None:
        self._service = service
        self._stub_class = stub_class
        self._discovery = discovery
        self._poll_s = poll_s
        self._replicas: dict[str, Replica] = {}
        self._following: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._gauge = REPLICAS.labels(service)

    async def start(self) -> None:
        self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        if self._following:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await asyncio.gather(*(r.close() for r in self._replicas.values()), *self._closing)
        self._replicas.clear()

    @property
    def serving(self) -> list[str]:
        """Addresses that take calls now."""
        return sorted(r.address for r in self._replicas.values() if r.serving)

    def hangs(self, now_s: float) -> bool:
        """Whether none of its replicas has answered for SILENT_S, though asked."""
        serving = [r for r in self._replicas.values() if r.serving]
        return bool(serving) and all(now_s - r.silent_since_s > SILENT_S for r in serving)

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """The method's response from some replica within `timeout_s`.

        Raises NoReplica, or the last replica's grpc.aio.AioRpcError.
        """
        now_s = time.monotonic()
        deadline = now_s + timeout_s
        replica = least_outstanding(self._replicas, None, now_s)
        if replica is None:
            raise NoReplica(f"no replica of {self._service} takes calls")
        # To the end of the line, so that equals take turns.
        self._replicas[replica.address] = self._replicas.pop(replica.address)
        try:
            return await self._call_replica(replica, method, request, timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() not in RETRIED:
                raise
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                replica.doubt()
            now_s = time.monotonic()
            second = least_outstanding(self._replicas, replica.address, now_s)
            left = deadline - now_s
            if second is None or left <= 0:
                raise
            RETRIES.labels(self._service, error.code().name).inc()
            return await self._call_replica(second, method, request, left)

    async def _call_replica(
        self, replica: Replica, method: str, request: Any, timeout_s: float
    ) -> Any:
        sent_s = time.monotonic()
        replica.in_flight += 1
        replica.idle.clear()
        try:
            answer = await getattr(replica.stub, method)(request, timeout=timeout_s)
            replica.answered()
            return answer
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                replica.answered()
            elif timeout_s >= HANG_S:
                replica.ran_out_of_time(sent_s, time.monotonic())
            raise
        finally:
            replica.in_flight -= 1
            if not replica.in_flight:
                replica.idle.set()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                found = await loop.run_in_executor(None, self._discovery)
            except Exception as error:  # whatever a resolver raises, ask again
                log.warning("discovery_failed", service=self._service, error=str(error))
            else:
                for address in found - self._replicas.keys():
                    self._replicas[address] = Replica(address, self._service, self._stub_class)
                    log.info("replica_found", service=self._service, address=address)
                for address in self._replicas.keys() - found:
                    self._retire(self._replicas.pop(address))
            self._gauge.set(len(self.serving))
            await asyncio.sleep(self._poll_s)

    def _retire(self, replica: Replica) -> None:
        """Close a withdrawn replica's channel once its last call has ended."""

        async def close_when_idle() -> None:
            await replica.idle.wait()
            await replica.close()

        log.info("replica_withdrawn", service=self._service, address=replica.address)
        task = asyncio.create_task(close_when_idle())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
