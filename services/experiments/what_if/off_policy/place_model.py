"""A small model of what a place earns by the item at it: the model of a doubly robust estimate.

The mean reward of a cell (place, tenth of the items by their value), shrunk towards the product of
the place's and the tenth's own means. It need not be right, only better than nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 10
PRIOR = 20.0  # decisions that a cell's mean is shrunk by


@dataclass(frozen=True, eq=False)
class PlaceModel:
    """edges: float64[BINS - 1], of the values. table: float64[places, BINS]."""

    edges: np.ndarray
    table: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, rewards: np.ndarray) -> PlaceModel:
        """values, rewards: float64[n, k], of the items shown; NaN values where there was none."""
        places = np.broadcast_to(np.arange(values.shape[1]), values.shape)
        real = ~np.isnan(values)
        edges = np.quantile(values[real], np.linspace(0, 1, BINS + 1)[1:-1])
        cells = places[real] * BINS + np.searchsorted(edges, values[real], side="right")
        shape = values.shape[1], BINS
        count = np.bincount(cells, minlength=shape[0] * BINS).reshape(shape)
        total = np.bincount(cells, rewards[real], shape[0] * BINS).reshape(shape)
        mean = total.sum() / count.sum()
        of_place = (total.sum(1) + PRIOR * mean) / (count.sum(1) + PRIOR)
        of_bin = (total.sum(0) + PRIOR * mean) / (count.sum(0) + PRIOR)
        expected = np.outer(of_place, of_bin) / mean if mean else np.zeros(shape)
        return cls(edges, (total + PRIOR * expected) / (count + PRIOR))

    def of_shown(self, values: np.ndarray) -> np.ndarray:
        """float64[n, k]: what items of these values are expected to earn at their places; 0 where
        the value is NaN."""
        bins = np.searchsorted(self.edges, values, side="right")
        made = self.table[np.arange(values.shape[1]), np.minimum(bins, BINS - 1)]
        return np.where(np.isnan(values), 0.0, made)

    def of_policy(self, ranked: np.ndarray, marginals: np.ndarray) -> np.ndarray:
        """float64[n, k]: the same for a policy that puts items of rankings (their values
        float64[n, m], best first) at places with the probabilities float64[k, m]."""
        bins = np.searchsorted(self.edges, ranked, side="right")
        weights = np.zeros((len(ranked), len(marginals), BINS))
        for of_bin in range(BINS):
            weights[:, :, of_bin] = (bins == of_bin) @ marginals.T
        return np.asarray(np.einsum("nkb,kb->nk", weights, self.table[: len(marginals)]))
