"""Logs and metrics that every Tandem process shares.

Logs are structured events on stderr (structlog), one per decision worth knowing, carrying the
request id where there is one; nothing is logged per request on the hot path. Metrics are
prometheus_client's (on the request path those of loop_metrics.py), one process each, served on
loopback unless the settings say otherwise. A metric's help says which decision it serves; no label
takes values from outside the settings or the code.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from importlib import metadata
from typing import TextIO, cast

import grpc
import structlog
from prometheus_client import Counter, Gauge, Metric, disable_created_metrics, start_http_server

# Edges at the SLO bounds (25, 50, 100, 250 ms) so that "share within the SLO" is read off a
# bucket and not interpolated.
LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
AGE_BUCKETS = (0.1, 1, 10, 60, 600, 3_600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400)

# Set by handlers (each call is a task of its own); every event logged below them carries it.
REQUEST_ID: ContextVar[str] = ContextVar("request_id")

disable_created_metrics()  # a second series per counter and histogram that nobody reads


class OwnedGauge(Gauge):
    """A gauge without labels that is exported once it has been set, and by nobody else.

    A plain one is exported at 0 by every process that imports its module, where 0 may page
    somebody for what the process has nothing to do with.
    """

    _owned = False

    def set(self, value: float) -> None:
        self._owned = True
        super().set(value)

    def set_function(self, f: Callable[[], float]) -> None:
        self._owned = True
        super().set_function(f)

    def collect(self) -> Iterable[Metric]:
        return super().collect() if self._owned else []


BUILD_INFO = Gauge(
    "tandem_build_info",
    "Always 1; tells which build answers, to compare before and after a rollout.",
    ["service", "version", "python", "grpc", "torch"],
)

LOST_LINES = Counter(
    "tandem_log_lines_lost_total",
    "Log lines that could not be written: the disk of the logs is full, and the log has gaps.",
)
RESTARTS = Gauge(
    "tandem_role_restarts",
    "How often `tandem serve` has started this role again: growing means it dies again and again.",
    ["service"],
)
RESTARTS_SO_FAR = "TANDEM_RESTARTS"  # in the environment of a role that a supervisor started


def version() -> str:
    """Tandem's installed version."""
    return metadata.version("tandem")


class _Stream:
    """Where events go. Who logs must not fail for it: what a full disk refuses is counted."""

    def __init__(self, current: Callable[[], TextIO]) -> None:
        self._current = current

    def write(self, text: str) -> None:
        try:
            self._current().write(text)
        except OSError:
            LOST_LINES.inc()

    def flush(self) -> None:
        try:
            self._current().flush()
        except OSError:
            LOST_LINES.inc()


def _with_request_id(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if request_id := REQUEST_ID.get(""):
        event.setdefault("request_id", request_id)
    return event


def configure_logging(level: str, fmt: str, to: TextIO | None = None) -> None:
    """Send structured events as JSON lines or, for a person, as coloured text.

    To `to`, or to whatever sys.stderr is at the moment: loggers outlive a replaced stream.
    """
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if fmt == "json"
        else structlog.dev.ConsoleRenderer(colors=(to or sys.stderr).isatty())
    )
    structlog.configure(
        processors=[
            _with_request_id,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # One write per line: several processes may share a file.
        logger_factory=structlog.WriteLoggerFactory(
            cast(TextIO, _Stream(lambda: to or sys.stderr))
        ),
        cache_logger_on_first_use=True,
    )


def serve_metrics(service: str, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serve /metrics on `host`:`port` (0: a free port); returns the port and what ends it."""
    BUILD_INFO.labels(
        service, version(), platform.python_version(), grpc.__version__, metadata.version("torch")
    ).set(1)
    RESTARTS.labels(service).set(int(os.environ.get(RESTARTS_SO_FAR, "0")))
    server, thread = start_http_server(port, addr=host)

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, end
