"""Users to ask a model for."""

from __future__ import annotations

import numpy as np

from models.inputs import UserBatch
from models.schema.films import GENRE_SLOTS, MODEL_HISTORY


def some_users(count: int, num_items: int, seed: int = 0) -> UserBatch:
    """Users with histories of 1 to 19 items."""
    rng = np.random.default_rng(seed)
    history = rng.integers(1, num_items + 1, (count, MODEL_HISTORY))
    history[np.arange(MODEL_HISTORY) >= rng.integers(1, 20, (count, 1))] = 0
    genres = rng.random((count, GENRE_SLOTS)).astype(np.float32)
    return UserBatch(
        history,
        (rng.random(history.shape) < 0.5) & (history > 0),
        rng.integers(0, 30, (count, 3)).astype(np.float32),
        genres / genres.sum(1, keepdims=True),
        (rng.random(count) * 1e6).astype(np.float32),
    )


def nobody() -> UserBatch:
    """One user of whom nothing is known."""
    return UserBatch(
        np.zeros((1, MODEL_HISTORY), np.int64),
        np.zeros((1, MODEL_HISTORY), bool),
        np.zeros((1, 3), np.float32),
        np.zeros((1, GENRE_SLOTS), np.float32),
        np.zeros(1, np.float32),
    )
