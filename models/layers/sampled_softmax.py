"""Softmax over the catalogue, whole or estimated from log-uniformly sampled negatives.

Items are numbered 1..n by decreasing popularity (`models/catalogue.py`), so an item's number is
its rank and P(r) = log((r+1)/r) / log(n+1) follows a Zipf law without looking at counts. Row 0
(unknown) is never sampled.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def log_uniform(num_items: int) -> np.ndarray:
    """P float64[n] of ranks 1..n: log((r+1)/r) / log(n+1); sums to 1."""
    return np.log1p(1.0 / np.arange(1, num_items + 1)) / np.log1p(num_items)


def expected_counts(probability: np.ndarray, count: int) -> np.ndarray:
    """Q float64[n]: the chance that an item is among `count` different ones, 0 < count <= n.

    Q = 1 - (1 - P)^m, where the number of tries m is found by bisection so that Q sums to `count`.
    """
    if not 0 < count <= len(probability):
        raise ValueError(f"cannot draw {count} different items from {len(probability)}")
    if count == len(probability):
        return np.ones_like(probability)
    missed = np.log1p(-probability)  # finite: P = 1 only for a single item

    def counts(tries: float) -> np.ndarray:
        return -np.expm1(tries * missed)

    low, high = 0.0, float(count)
    while counts(high).sum() < count:
        low, high = high, 2 * high
    while (middle := 0.5 * (low + high)) not in (low, high):
        low, high = (middle, high) if counts(middle).sum() < count else (low, middle)
    return counts(high)


class LogUniformSampler:
    """Draws `count` different item rows (all of them if there are no more) for a whole batch.

    `log_q` float32[n + 1] is log Q of every row, row 0 unused. Items are drawn one after the other
    with probability proportional to P among those left; Q is the usual approximation of their
    inclusion probability (relative error of the order 1 / count).
    """

    def __init__(self, num_items: int, count: int) -> None:
        self.count = min(count, num_items)
        probability = log_uniform(num_items)
        log_q = np.zeros(num_items + 1, np.float32)
        log_q[1:] = np.log(expected_counts(probability, self.count))
        self.log_q = torch.from_numpy(log_q)
        self._rate = torch.from_numpy(probability)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """int64[count], in no meaningful order, on the CPU (the same draw for every device)."""
        if self.count == len(self._rate):
            return torch.arange(1, self.count + 1)
        # The first `count` arrivals of independent clocks with rates P are exactly a draw without
        # replacement, one item after the other.
        arrival = torch.empty_like(self._rate).exponential_(generator=generator) / self._rate
        return arrival.topk(self.count, largest=False, sorted=False).indices + 1


def sampled_softmax(
    vectors: Tensor,
    positive: Tensor,
    negative: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: Tensor,
) -> Tensor:
    """-s_y + logsumexp([s_y, s_Neg]) of each row, float32[B], with s_i = <v, e_i> - log Q(i).

    `vectors` v and `positive` e_y float[B, d] of items `targets` int64[B]; `negative` float[N, d]
    of items `negatives` int64[N], shared by the batch; `log_q` float[n + 1] by item row. A negative
    that is a row's own target (accidental hit) is left out of that row.
    """
    own = (vectors * positive).sum(1).float() - log_q[targets]
    others = (vectors @ negative.T).float() - log_q[negatives]
    others = others.masked_fill(targets[:, None] == negatives[None, :], float("-inf"))
    return torch.logsumexp(torch.cat([own[:, None], others], dim=1), dim=1) - own


def full_softmax(vectors: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """-<v, e_y> + logsumexp over items 1..n, float32[B]; `items` float[n + 1, d]."""
    scores = (vectors @ items[1:].T).float()
    own = scores.gather(1, targets[:, None] - 1)[:, 0]
    return torch.logsumexp(scores, dim=1) - own
