"""What every servicer method shares: refusals, request metrics, deadlines.

Handlers bind the request id to the log context (each call is a task of its own), so that every
event logged below them carries it. A handler raises `Refusal` to answer with a gRPC status;
`rpc_method` turns it into the status, counts every outcome and times it. Anything else that
escapes a handler is a bug: it is logged with its trace, answered as INTERNAL without details, and
nothing else in the process notices.
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

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


class Refusal(Exception):
    """An answer other than OK: a status and one sentence that says what to do."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(field: str, reason: str) -> Refusal:
    """INVALID_ARGUMENT naming the field."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: {reason}")


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
                response = await handler(self, request, context)
            except Refusal as refusal:
                REQUESTS.labels(service, method, refusal.code.name).value += 1
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
