"""How far ahead of its reader's clock a time in the log may lie.

Times in the log are written by others: clients, routers, foreign producers. The greatest of them
becomes what counters refer to and what a history begins with, so one that is far ahead would make
everything after it look old. No reader lets a time beyond this bound move anything.
"""

from __future__ import annotations

from datetime import UTC, datetime

from services.common.settings import FeedbackSettings
from services.event_log.whole_log import SKEW_MS

MAX_FUTURE_S = FeedbackSettings().max_future_s


def latest_ms(now_ms: int, max_future_s: float = MAX_FUTURE_S) -> int:
    """The latest time (ms) that a reader at `now_ms` accepts.

    A router takes what is `max_future_s` ahead of its own clock, which may be ahead of the reader's
    by SKEW_MS: what a router has acknowledged is never refused here.
    """
    return now_ms + int(max_future_s * 1000) + SKEW_MS


def when(time_ms: int) -> str:
    """The time for a message: 2026-01-31T12:00:00Z, or the number where no calendar has it."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"
