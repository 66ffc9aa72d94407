"""Training examples by replaying events through the serving fold (`models/schema/fold.py`).

Each example is one interaction with the features as they stood just BEFORE it, turned into model
inputs by the function that serving uses (`models/inputs.py`). Training and serving therefore
cannot disagree; `tests/unit/models/training/test_replay.py` compares them exactly.

MovieLens logged no impression without a click. The click task's negatives are *sampled*: catalogue
items that existed at the time of the event and that the user did not rate in the data the
example may know (training examples: anything before the split; test examples: anything).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from models.data.backfill import FeatureState, interactions, values_by_key
from models.data.events import Dataset
from models.inputs import UserBatch, user_batch
from models.schema.films import (
    COUNTERS,
    FOLD,
    GENRE_SLOTS,
    HISTORY,
    ITEM_COUNTS,
    MODEL_HISTORY,
    PROFILE,
)
from models.schema.fold import ItemState
from models.schema.progress import ITEM_DELIVERY

CHUNK = 2048  # examples whose full rows (3.5 kB each) are held before they become model inputs


@dataclass(frozen=True)
class Examples:
    """N interactions, oldest first, with the features just before each. S = 1 + negatives.

    Column 0 of the slate is the item of the interaction (row 0: not in the catalogue), the rest
    are sampled negatives (row 0: none could be drawn).
    """

    history: np.ndarray  # int32[N, H]
    history_liked: np.ndarray  # bool[N, H]
    counts: np.ndarray  # float32[N, 3]
    genres: np.ndarray  # float32[N, GENRE_SLOTS]
    idle_s: np.ndarray  # float32[N]
    user: np.ndarray  # int32[N], numbered by first event
    time_ms: np.ndarray  # int64[N]
    like: np.ndarray  # bool[N]
    slate: np.ndarray  # int32[N, S] item rows
    counters: np.ndarray  # float32[N, S, 2]: decayed clicks and likes
    lifetime: np.ndarray  # int32[N, S, 2]: clicks and likes since the first event

    def __len__(self) -> int:
        return len(self.user)

    @property
    def item(self) -> np.ndarray:
        """int32[N]: the interaction's item row, 0 when it is not in the catalogue."""
        return self.slate[:, 0]

    def user_batch(self, index: np.ndarray) -> UserBatch:
        """The users of the chosen examples as a model reads them."""
        return UserBatch(
            self.history[index].astype(np.int64),
            self.history_liked[index],
            self.counts[index],
            self.genres[index],
            self.idle_s[index],
        )


def replay(dataset: Dataset, negatives: int = 2, seed: int = 0) -> Examples:
    """Examples of all events of `dataset`; those of the training period see no later event."""
    events, items = dataset.events, dataset.items
    n = len(events)
    user = _numbered(events["user_id"])
    time_ms = events["event_time_ms"].to_numpy()
    keys = np.fromiter((i.item_key for i in interactions(events)), np.uint64, n)
    rows = items.index_of(keys).astype(np.int32)
    slate = np.concatenate(
        [rows[:, None], sample_negatives(user, rows, time_ms < dataset.train_until_ms,
                                         len(items), negatives, seed)], axis=1
    )  # fmt: skip
    out = Examples(
        history=np.zeros((n, MODEL_HISTORY), np.int32),
        history_liked=np.zeros((n, MODEL_HISTORY), bool),
        counts=np.zeros((n, 3), np.float32),
        genres=np.zeros((n, GENRE_SLOTS), np.float32),
        idle_s=np.zeros(n, np.float32),
        user=user,
        time_ms=time_ms,
        like=events["like"].to_numpy(),
        slate=slate,
        counters=np.zeros((*slate.shape, len(ITEM_COUNTS)), np.float32),
        lifetime=np.zeros((*slate.shape, 2), np.int32),
    )

    # The item states are views of one array, so that a whole slate's counters are one index.
    counters = np.zeros(len(items) + 1, COUNTERS.dtype)
    counters[:] = COUNTERS.defaults()
    state = FeatureState()
    for row in range(1, len(items) + 1):
        view = counters[row : row + 1].reshape(())
        state.items[int(items.keys[row])] = ItemState(view, ITEM_DELIVERY.defaults())
    of_items = values_by_key(items)
    lifetime = np.zeros((len(items) + 1, 2), np.int32)
    nobody = FOLD.user_state()
    profiles, histories = np.zeros(CHUNK, PROFILE.dtype), np.zeros(CHUNK, HISTORY.dtype)
    for i, interaction in enumerate(interactions(events)):
        before = state.users.get(interaction.user_id, nobody)
        profiles[i % CHUNK], histories[i % CHUNK] = before.profile, before.history
        out.counters[i] = FOLD.counters_at(counters[slate[i]], interaction.event_time_ms)
        out.lifetime[i] = lifetime[slate[i]]
        if (i + 1) % CHUNK == 0 or i + 1 == n:
            held = slice(i - i % CHUNK, i + 1)
            used = slice(i % CHUNK + 1)
            batch = user_batch(profiles[used], histories[used], out.time_ms[held], items)
            for name, values in vars(batch).items():
                getattr(out, name)[held] = values
        state.apply(interaction, of_items.get(interaction.item_key))
        if rows[i]:
            lifetime[rows[i]] += (1, interaction.like)
    return out


def _numbered(ids: pl.Series) -> np.ndarray:
    """int32 numbers of ids, in order of first appearance."""
    first = {user_id: i for i, user_id in enumerate(ids.unique(maintain_order=True))}
    return np.fromiter((first[user_id] for user_id in ids), np.int32, len(ids))


def sample_negatives(
    user: np.ndarray, rows: np.ndarray, train: np.ndarray, num_items: int, k: int, seed: int
) -> np.ndarray:
    """Sampled negatives of each event: int32[N, k], 0 where none was found in 20 draws.

    Half of the draws are uniform over the items seen so far, half follow past popularity. Drawn
    separately for the training period, which must not know what a user rates later.
    """
    negatives = np.zeros((len(rows), k), np.int32)
    for period, known in ((train, train), (~train, np.ones_like(train))):
        index = np.flatnonzero(period)
        rng = np.random.default_rng([seed, int(period is train)])
        rated = np.unique(user[known].astype(np.int64) * (num_items + 1) + rows[known])
        # `appeared` lists items by first appearance; `new[i]` of them exist before event i.
        seen_rows, first = np.unique(rows, return_index=True)
        first = first[seen_rows > 0]
        appeared = rows[np.sort(first)]
        existing = np.searchsorted(np.sort(first), np.arange(len(rows)), side="left")
        popular = np.arange(k) % 2 == 1
        todo = np.ones((len(index), k), bool)
        drawn = np.zeros((len(index), k), np.int32)
        for _ in range(20):
            at, column = np.nonzero(todo)
            if not len(at):
                break
            event = index[at]
            u = rng.random(len(at))
            uniform = appeared[(u * existing[event]).astype(np.int64)]
            past = rows[(u * event).astype(np.int64)]
            draw = np.where(popular[column], past, uniform)
            pair = user[event].astype(np.int64) * (num_items + 1) + draw
            good = (draw > 0) & (existing[event] > 0) & ~_contains(rated, pair)
            drawn[at[good], column[good]] = draw[good]
            todo[at[good], column[good]] = False
        negatives[index] = drawn
    return negatives


def _contains(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Whether each value is in a sorted array."""
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[at] == values
