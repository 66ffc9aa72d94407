"""A user's profile as inputs: counts faded to the request, ratios, times since, affinities.

For `DeclaredInputs`, and whole as one vector for models that read no single features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from models.inputs import UserBatch
from models.layers.embedding import log_bucket, share_bucket
from models.schema.inputs import COUNT_BUCKETS, SHARE_BUCKETS, How, Reads, Source

Columns: TypeAlias = Sequence[tuple[str, float | None]]  # with half-lives
OF_PROFILE: tuple[How, ...] = ("key", "history", "shares", "count", "since")


def affinity_shares(values: np.ndarray, source: Source) -> np.ndarray:
    """float32[B, V]: an affinity divided by its sum, or zeros."""
    values = values[:, : source.input.size].astype(np.float32)
    total = values.sum(axis=1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)


class Buckets(nn.Module):
    """Ids of counts and ratios. `columns`: what they are made of, each once."""

    at: Tensor  # int64[P]: the columns of counts
    gains: Tensor  # float[P]
    above: Tensor  # int64[R]: of ratios
    below: Tensor  # int64[R]
    strengths: Tensor  # float[R]

    def __init__(self, counts: Sequence[Source], ratios: Sequence[Source]) -> None:
        super().__init__()
        every = [(c, s.half_life_s) for s in (*counts, *ratios) for c in s.columns]
        self.columns = tuple(dict.fromkeys(every))
        places = {column: i for i, (column, _) in enumerate(self.columns)}
        fades = [s.half_life_s is not None for s in ratios]
        for name, values in (
            ("at", [places[s.columns[0]] for s in counts]),
            # Of counts that fade tenths of one still tell rows apart.
            ("gains", [1.0 if s.half_life_s is None else 16.0 for s in counts]),
            ("above", [places[s.columns[0]] for s in ratios]),
            ("below", [places[s.columns[1]] for s in ratios]),
            ("strengths", [1.0 if fade else 4.0 for fade in fades]),
        ):
            dtype = torch.float32 if name in ("gains", "strengths") else torch.long
            self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

    def forward(self, values: Tensor) -> list[Tensor]:
        """int64[N, P] and int64[N, R], those that there are, of float[N, columns]."""
        found = []
        if len(self.at):
            found.append(log_bucket(values.index_select(1, self.at) * self.gains, COUNT_BUCKETS, 2))
        if len(self.above):
            above, below = (values.index_select(1, at) for at in (self.above, self.below))
            found.append(share_bucket(above, below, SHARE_BUCKETS, self.strengths))
        return found


def counts_at(columns: Columns, batch: UserBatch) -> np.ndarray:
    """float32[B, C]: columns of the profile, faded to the request."""
    counts = np.empty((len(batch), len(columns)), np.float32)
    for i, (column, half_life_s) in enumerate(columns):
        counts[:, i] = batch.profile[column]
        if half_life_s is not None:  # it refers to the time of the newest event
            idle_ms = np.maximum(batch.now_ms - batch.profile["last_event_ms"], 0)
            counts[:, i] *= np.exp2(-idle_ms / (1000.0 * half_life_s))
    return counts


def seconds_since(sources: Sequence[Source], batch: UserBatch) -> np.ndarray:
    """float32[B, S]: seconds from times of the profile to the request, 0 where there is none."""
    found = np.empty((len(batch), len(sources)), np.float32)
    for i, source in enumerate(sources):
        then = batch.profile[source.columns[0]]
        found[:, i] = np.where(then > 0, np.maximum(batch.now_ms - then, 0) / 1000.0, 0.0)
    return found


def profile_width(reads: Reads) -> int:
    """How many numbers `dense_profile` has."""
    sizes = {"shares": lambda s: s.input.size, "count": lambda s: 1, "since": lambda s: 1}
    return sum(sizes[s.how](s) for s in reads.sources if s.how in sizes)


def dense_profile(reads: Reads, batch: UserBatch) -> np.ndarray:
    """p_u float32[B, p]: affinities' shares, log counts and log seconds / 20."""
    of = {how: [s for s in reads.sources if s.how == how] for how in OF_PROFILE}
    parts = [affinity_shares(batch.profile[s.columns[0]], s) for s in of["shares"]]
    parts.append(
        np.log1p(
            np.maximum(counts_at([(s.columns[0], s.half_life_s) for s in of["count"]], batch), 0.0)
        )
    )
    parts.append(np.log1p(seconds_since(of["since"], batch)) / 20)
    return np.concatenate(parts, axis=1).astype(np.float32)
