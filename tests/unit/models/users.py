"""Users to ask a model for."""

from __future__ import annotations

import numpy as np

from models.data.worlds.films.schema import (
    CLICK,
    COUNTS,
    GENRE_CLICKS,
    GENRE_SLOTS,
    LIKE,
    MODEL_HISTORY,
    SCHEMA,
)
from models.inputs import UserBatch

NOW_MS = 1_700_000_000_000


def some_users(count: int, num_items: int, seed: int = 0) -> UserBatch:
    """Users of the films with histories of 1 to 19 items."""
    rng = np.random.default_rng(seed)
    history = rng.integers(1, num_items + 1, (count, MODEL_HISTORY))
    history[np.arange(MODEL_HISTORY) >= rng.integers(1, 20, (count, 1))] = 0
    events = np.where(rng.random(history.shape) < 0.5, LIKE, CLICK).astype(np.uint8)
    profile = np.zeros(count, SCHEMA.layout.profile.dtype)
    for column in COUNTS:
        profile[column] = rng.integers(0, 30, count)
    profile[GENRE_CLICKS] = rng.random((count, GENRE_SLOTS))
    profile["last_event_ms"] = NOW_MS - (rng.random(count) * 1e9).astype(np.int64)
    return UserBatch(
        history,
        events * (history > 0),
        profile,
        np.zeros(count, SCHEMA.layout.given.dtype),
        np.zeros(count, SCHEMA.layout.context.dtype),
        np.full(count, NOW_MS),
    )


def nobody() -> UserBatch:
    """One user of whom nothing is known."""
    return UserBatch(
        np.zeros((1, MODEL_HISTORY), np.int64),
        np.zeros((1, MODEL_HISTORY), np.uint8),
        np.zeros(1, SCHEMA.layout.profile.dtype),
        np.zeros(1, SCHEMA.layout.given.dtype),
        np.zeros(1, SCHEMA.layout.context.dtype),
        np.full(1, NOW_MS),
    )
