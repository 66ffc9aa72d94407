"""The fields of a ranking model: embeddings of the user, of the candidate, and of their match.

Order matters: user fields come first, so that a model can compute them once per request and add
only the candidate's columns of its first linear maps.

An item's lifetime counts come from the item table when serving. In training they must be those of
the time of the event: the table's counts contain the very label that is to be predicted.

Of row 0, an unknown item, every field is that of a missing value: the id and the genres are zero
vectors without a gradient, year and counts the rows of "none", which training sees with both labels
(`models/training/ranking.py`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.catalogue import ItemTable
from models.inputs import UserBatch
from models.layers.embedding import (
    YEAR_BUCKETS,
    log_bucket,
    masked_mean,
    share_bucket,
    year_bucket,
)
from models.schema.films import GENRE_SLOTS

USER_FIELDS = ("activity", "like_rate", "idle", "genres", "history", "liked_history")
ITEM_FIELDS = (
    "id", "year", "genres", "popularity", "like_rate", "lifetime_popularity", "lifetime_like_rate",
)  # fmt: skip
CROSS_FIELDS = ("genre_match",)
NUM_FIELDS = len(USER_FIELDS) + len(ITEM_FIELDS) + len(CROSS_FIELDS)

COUNT_BUCKETS, SHARE_BUCKETS, IDLE_BUCKETS = 24, 20, 32


class RankingFields(nn.Module):
    """Embeds users and candidates, `width` numbers per field. Item features are buffers."""

    def __init__(self, num_items: int, width: int) -> None:
        super().__init__()
        self.item_table = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.genre_table = nn.Parameter(torch.empty(GENRE_SLOTS, width))
        sizes = {
            "activity": COUNT_BUCKETS,
            "user_like_rate": SHARE_BUCKETS,
            "idle": IDLE_BUCKETS,
            "year": YEAR_BUCKETS,
            "popularity": COUNT_BUCKETS,
            "like_rate": SHARE_BUCKETS,
            "lifetime_popularity": COUNT_BUCKETS,
            "lifetime_like_rate": SHARE_BUCKETS,
        }
        self.tables = nn.ModuleDict({k: nn.Embedding(n, width) for k, n in sizes.items()})
        self.match = nn.Parameter(torch.empty(width))
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.05)
        with torch.no_grad():
            self.item_table.weight[0].zero_()
        rows = num_items + 1
        self.register_buffer("years", torch.zeros(rows, dtype=torch.long), persistent=False)
        self.register_buffer("genres", torch.zeros(rows, GENRE_SLOTS), persistent=False)
        self.register_buffer("lifetime", torch.zeros(rows, 2), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.match.device

    def load_items(self, items: ItemTable) -> None:
        """Copy year, genres and training counts of the item table to the model's device."""
        if len(items) + 1 != self.item_table.num_embeddings:
            raise ValueError(
                f"model of {self.item_table.num_embeddings - 1} items, table of {len(items)}"
            )
        f = items.features
        self.years = year_bucket(torch.from_numpy(f["year"].astype(np.int64))).to(self.device)
        genres = items.multi_hot("genres", GENRE_SLOTS - 1)
        self.genres = torch.from_numpy(genres).to(self.device)
        self.lifetime = torch.from_numpy(items.counts.astype(np.float32)).to(self.device)

    def user(self, batch: UserBatch) -> tuple[Tensor, Tensor]:
        """User fields float[B, 6, k] and genre shares float[B, GENRE_SLOTS]."""
        to = self._tensor
        history, counts, shares = to(batch.history), to(batch.counts), to(batch.genres)
        known, clicked = history > 0, self.item_table(history)
        clicks, likes = counts[:, 1], counts[:, 2]
        fields = [
            self.tables["activity"](log_bucket(clicks, COUNT_BUCKETS, 2)),
            self.tables["user_like_rate"](share_bucket(likes, clicks, SHARE_BUCKETS)),
            self.tables["idle"](log_bucket(to(batch.idle_s), IDLE_BUCKETS)),
            shares @ self.genre_table,
            masked_mean(clicked, known),
            masked_mean(clicked, known & to(batch.history_liked)),
        ]
        return torch.stack(fields, dim=1), shares

    def candidate(
        self, shares: Tensor, rows: Tensor, counters: Tensor, lifetime: Tensor | None = None
    ) -> Tensor:
        """Item and cross fields float[N, 8, k].

        `shares` float[N, GENRE_SLOTS] of each row's user, `rows` int64[N], `counters` float[N, 2];
        `lifetime` float[N, 2] (clicks, likes) replaces the item table's counts in training.
        """
        clicks, likes = counters[:, 0], counters[:, 1]
        ever = self.lifetime[rows] if lifetime is None else lifetime
        genres = self.genres[rows]
        share = genres / genres.sum(1, keepdim=True).clamp_min(1.0)
        fields = [
            self.item_table(rows),
            self.tables["year"](self.years[rows]),
            share @ self.genre_table,
            # Counters fade by half in 90 days: tenths of a click still tell items apart.
            self.tables["popularity"](log_bucket(clicks * 16, COUNT_BUCKETS, 2)),
            self.tables["like_rate"](share_bucket(likes, clicks, SHARE_BUCKETS, strength=1.0)),
            self.tables["lifetime_popularity"](log_bucket(ever[:, 0], COUNT_BUCKETS, 2)),
            self.tables["lifetime_like_rate"](share_bucket(ever[:, 1], ever[:, 0], SHARE_BUCKETS)),
            (shares * genres).sum(1, keepdim=True) * self.match,
        ]
        return torch.stack(fields, dim=1)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
