"""What every servicer method shares: refusals, request metrics, deadlines.

Handlers bind the request id to the log context (each call is a task of its own), so that every
event logged below them carries it. A handler raises `Refusal` to answer with a gRPC status;
`rpc_method` turns it into the status, counts every outcome and times it. Anything else that
escapes a handler is a bug: it is logged with its trace, answered as INTERNAL without details, and
nothing else in the process notices. RESOURCE_EXHAUSTED always says when to come again, in the
metadata that gRPC's clients obey.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError

from services.common.loop_metrics import LoopCounters, LoopHistograms
from services.common.telemetry import LATENCY_BUCKETS

log = structlog.get_logger()

REQUESTS = LoopCounters(
    "tandem_rpc_requests_total",
    "Requests by method and status; the share that is not OK decides about paging.",
    ["service", "method", "status"],
)
REQUEST_SECONDS = LoopHistograms(
    "tandem_rpc_request_seconds",
    "Time inside the handler; the share under the SLO bound decides about scaling out.",
    ["service", "method"],
    buckets=LATENCY_BUCKETS,
)

RETRY_S = 0.1  # after which a refused client may come again, where nobody knows better
PUSHBACK = "grpc-retry-pushback-ms"

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


class Refusal(Exception):
    """An answer other than OK: a status and one sentence that says what to do.

    `retry_s`: when another try is worth it, for RESOURCE_EXHAUSTED.
    """

    def __init__(self, code: grpc.StatusCode, message: str, retry_s: float = RETRY_S) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_s = retry_s


def invalid(field: str, reason: str) -> Refusal:
    """INVALID_ARGUMENT naming the field."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: {reason}")


class Unreadable:
    """What came instead of a request: bytes that are none. `why` says so."""

    def __init__(self, why: str) -> None:
        self.why = why


def reader(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`deserialize` that gives an Unreadable where it would raise.

    gRPC answers what it raises itself, as UNKNOWN with the exception's name, and nobody counts it.
    """

    def read(message: bytes) -> Any:
        try:
            return deserialize(message)
        except DecodeError as error:
            return Unreadable(str(error))

    return read


def check_readable(request: Any) -> None:
    """Refuse what is no message as INVALID_ARGUMENT; `rpc_method` does for unary requests."""
    if request.__class__ is Unreadable:
        raise invalid(
            "request",
            f"is not the message that the .proto declares ({request.why}); generate the client anew"
            " from protos/ or look for what changes the bytes on their way",
        )


def rpc_method(service: str) -> Callable[[Handler], Handler]:
    """Decorate a servicer method (unary or client-streaming) of `service`."""

    def decorate(handler: Handler) -> Handler:
        method = handler.__name__
        ok = REQUESTS.labels(service, method, "OK")
        seconds = REQUEST_SECONDS.labels(service, method)

        @functools.wraps(handler)
        async def handle(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
            started = time.perf_counter()
            try:
                if request.__class__ is Unreadable:
                    check_readable(request)
                response = await handler(self, request, context)
            except Refusal as refusal:
                REQUESTS.labels(service, method, refusal.code.name).value += 1
                if refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    pushback = (PUSHBACK, str(max(round(refusal.retry_s * 1000), 1)))
                    context.set_trailing_metadata((*(context.trailing_metadata() or ()), pushback))
                await context.abort(refusal.code, refusal.message)
            except asyncio.CancelledError:
                # gRPC cancels the handler when the deadline is over, too: that is what clients see.
                late = time_left(context) <= 0
                status = "DEADLINE_EXCEEDED" if late else "CANCELLED"
                REQUESTS.labels(service, method, status).value += 1
                raise
            except Exception:
                REQUESTS.labels(service, method, "INTERNAL").value += 1
                log.exception("handler_failed", service=service, method=method)
                await context.abort(
                    grpc.StatusCode.INTERNAL, "internal error; see the server's log"
                )
            else:
                ok.value += 1
                return response
            finally:
                # Cancelled calls too: leaving out the late ones would flatter the share in time.
                seconds.observe(time.perf_counter() - started)

        return handle  # type: ignore[return-value]

    return decorate


def time_left(context: grpc.aio.ServicerContext) -> float:
    """Seconds until the client's deadline; infinite when it set none."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else remaining
