"""From feature rows to model inputs, once for training and for serving.

`user_batch` turns B users' profile and history records into arrays that depend on the user alone
(computed once per request, broadcast over its candidates); what depends on the candidate is its
row in the item table and its counters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.catalogue import ItemTable
from models.schema.films import COUNTS, GENRE_CLICKS, ITEM_COUNTS, LIKE, MODEL_HISTORY

COUNTERS_READ = ITEM_COUNTS  # of items, in the order in which models are given them


@dataclass(frozen=True)
class UserBatch:
    """B users, ready for a model. H = MODEL_HISTORY; histories are newest first, left-aligned."""

    history: np.ndarray  # int64[B, H] item rows, 0 = padding
    history_liked: np.ndarray  # bool[B, H]
    counts: np.ndarray  # float32[B, 3]: impressions, clicks, likes
    genres: np.ndarray  # float32[B, GENRE_SLOTS]: share of decayed clicks per genre, sums to 1 or 0
    idle_s: np.ndarray  # float32[B]: seconds since the newest event; 0 for a user without events

    def __len__(self) -> int:
        return len(self.history)

    def take(self, index: slice | np.ndarray) -> UserBatch:
        """Some of the users."""
        return UserBatch(*(values[index] for values in vars(self).values()))


def user_batch(
    profile: np.ndarray, history: np.ndarray, now_ms: np.ndarray, items: ItemTable
) -> UserBatch:
    """Inputs of B users from PROFILE records [B], HISTORY records [B] and request times int64[B].

    Events of items that the table does not know are skipped (the rest moves up), so that what a
    model sees does not depend on when an unknown item was clicked.
    """
    batch = len(profile)
    keys = history["item_keys"]
    used = np.arange(keys.shape[1]) < history["length"][:, None]
    rows = np.where(used, items.index_of(keys), 0)
    liked = history["event_ids"] == LIKE
    # Stable sort on "is padding" moves known items to the front and keeps their order.
    order = np.argsort(rows == 0, axis=1, kind="stable")[:, :MODEL_HISTORY]
    rows = np.take_along_axis(rows, order, axis=1)
    liked = np.take_along_axis(liked, order, axis=1) & (rows > 0)
    counts = np.stack([profile[column] for column in COUNTS], axis=-1).astype(np.float32)
    genres = profile[GENRE_CLICKS].reshape(batch, -1)
    total = genres.sum(axis=1, keepdims=True)
    genres = np.divide(genres, total, out=np.zeros_like(genres), where=total > 0)
    last_ms = profile["last_event_ms"]
    idle_s = np.where(last_ms > 0, np.maximum(now_ms - last_ms, 0) / 1000.0, 0.0)
    return UserBatch(rows, liked, counts, genres.astype(np.float32), idle_s.astype(np.float32))
