"""Waiting at a start for what a role cannot do without: Redis, Kafka, a disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 5.0

T = TypeVar("T")


class Stopped(Exception):
    """The role was told to stop while it waited."""


def wait_for(
    what: str,
    attempt: Callable[[], T],
    stop: threading.Event,
    *errors: type[Exception],
    first_wait_s: float = FIRST_WAIT_S,
) -> T:
    """What `attempt` returns once it raises none of `errors`; they are logged with their causes.

    It must leave nothing open when it raises. Other errors pass: no waiting mends a wrong setting.
    Waits `first_wait_s`, then twice as long each time up to LONGEST_WAIT_S. Raises Stopped as soon
    as `stop` is set.
    """
    wait_s = first_wait_s
    while not stop.is_set():
        try:
            return attempt()
        except errors as error:
            log.warning("start_waits", what=what, cause=str(error), seconds=wait_s)
        stop.wait(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
    raise Stopped(f"told to stop while waiting for {what}")
