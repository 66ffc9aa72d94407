"""Quantiles of observations: of latency, where units (users) have several, or of units' own values.

Requests of one user are alike, so the error of a quantile follows from users, not requests. The
method is the outer confidence interval of Deng, Knoblich and Lu (2018, arXiv 1803.06336, section
on quantiles): the share of observations at or below the sample quantile is a ratio metric over
clusters, whose delta-method error says which ranks bracket the quantile; the values at those ranks
bracket it in turn. No density is estimated.

A `GroupedHistogram` merges by adding whole numbers and has no state per unit: units are dealt by
their hash into `GROUPS` random groups, and the groups are the clusters (the random-groups estimate
of a variance). It sees every dependence within units. The price is known: the standard error has
GROUPS - 1 degrees of freedom, so it is itself uncertain by 6 % (and the confidence sequence waits
until 100 groups are filled), and values are told apart to 0.8 % only: where in its bucket a
quantile lies is a guess (tied values, such as whole milliseconds, all lie at one point of it),
which the error includes as half a bucket's width.

TIES. Counts and sums of units are tied: half of them may be 0, and the next value is far. Where a
quantile is at such a gap, the samples of two like arms lie on its two sides half of the time, and
the bracket of each reaches across it in one direction only. So the longer side of the bracket, not
half of both, is taken for the error (`tied`): at a gap half of like arms would differ otherwise (in
simulations 49 % with P(0) = 1/2, and none then). Of latency it would be a third too wide.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from services.experiments.statistics.estimates import Estimate, unknown
from services.experiments.statistics.moments import LARGEST

GROUPS = 128

# A bucket is the sign-free exponent and the first 7 bits of the mantissa: 128 per octave. It comes
# from the bits of the number, not from a logarithm, so it is the same on every machine.
_DROPPED_BITS = 52 - 7
_BUCKETS = 1 << (63 - _DROPPED_BITS)

_OUTER_Z = float(special.ndtri(0.975))


@dataclass(frozen=True, slots=True, eq=False)
class GroupedHistogram:
    """Counts of observations by random group of units and bucket of value. `+` merges."""

    keys: NDArray[np.int64]  # (k,) ascending: group * buckets + bucket
    counts: NDArray[np.int64]  # (k,) positive

    @staticmethod
    def of(values: ArrayLike, unit_hashes: ArrayLike) -> GroupedHistogram:
        """From observations (m,) between 0 and 10^12, and the hash of each one's unit (m,).

        The hash is a well-mixed unsigned 64-bit one with a salt that no experiment uses, or the
        groups would be arms. ValueError for other values.
        """
        v = np.asarray(values, dtype=np.float64) + 0.0  # -0.0 becomes 0.0
        hashes = np.asarray(unit_hashes, dtype=np.uint64)
        if v.shape != hashes.shape or v.ndim != 1:
            raise ValueError(f"{v.shape} values and {hashes.shape} units. Give a unit per value.")
        if not ((v >= 0) & (v <= LARGEST)).all():
            raise ValueError(
                f"a histogram holds values from 0 to {LARGEST:g}. Shift or drop others."
            )
        groups = (hashes % np.uint64(GROUPS)).astype(np.int64)
        keys, counts = np.unique(
            groups * _BUCKETS + (v.view(np.int64) >> _DROPPED_BITS), return_counts=True
        )
        return GroupedHistogram(keys, counts.astype(np.int64))

    def __add__(self, other: GroupedHistogram) -> GroupedHistogram:
        keys, places = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, places, np.concatenate([self.counts, other.counts]))
        return GroupedHistogram(keys, counts)

    def to_json(self) -> str:
        return json.dumps({"keys": self.keys.tolist(), "counts": self.counts.tolist()})

    @staticmethod
    def from_json(text: str) -> GroupedHistogram:
        """ValueError when the text is not of `to_json`."""
        try:
            fields = json.loads(text)
            keys, counts = (np.array(fields[name], np.int64) for name in ("keys", "counts"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is no histogram ({error!r}). Count it anew.") from error
        if keys.shape != counts.shape or keys.ndim != 1:
            raise ValueError(
                f"{keys.shape} keys and {counts.shape} counts are no histogram. Count it anew."
            )
        return GroupedHistogram(keys, counts)

    def quantile(self, q: float, units: int, *, tied: bool = False) -> Estimate:
        """The q-quantile of all observations; `units` are behind them (for the sequences)."""
        if not len(self.keys):
            return unknown(units)
        buckets, places = np.unique(self.keys % _BUCKETS, return_inverse=True)
        counts = np.bincount(places, weights=self.counts)
        ends = np.cumsum(counts)
        lows = (buckets << _DROPPED_BITS).view(np.float64)
        highs = ((buckets + 1) << _DROPPED_BITS).view(np.float64)
        highs[buckets == 0] = 0.0  # nothing else is in the bucket of 0

        def bucket_of(share: float) -> int:
            return min(int(np.searchsorted(ends, share * ends[-1])), len(ends) - 1)

        def at_rank(share: float) -> float:
            at = bucket_of(share)
            within = 1 - (ends[at] - share * ends[-1]) / counts[at]
            return float(lows[at] + within * (highs[at] - lows[at]))

        # The part of a bucket below the quantile, by the same interpolation, in every group.
        below = np.clip((q * ends[-1] - (ends - counts)) / counts, 0.0, 1.0)
        groups = self.keys // _BUCKETS
        totals = np.bincount(groups, weights=self.counts, minlength=GROUPS)
        at_or_below = np.bincount(groups, weights=self.counts * below[places], minlength=GROUPS)
        present = totals > 0
        found = _outer(q, at_or_below[present], totals[present], at_rank, units, tied)
        at = bucket_of(q)
        half = float(highs[at] - lows[at]) / 2
        return replace(found, variance=found.variance + half**2)


def _outer(
    q: float,
    at_or_below: NDArray[Any],
    totals: NDArray[Any],
    at_rank: Callable[[float], float],
    units: int,
    tied: bool,
) -> Estimate:
    """From clusters' counts (c,) to the quantile and its error by the values at outer ranks.

    The error is not known with a single cluster, or with too few observations beyond the quantile
    (an outer rank leaves the sample). It is 0 where both outer ranks fall on one value. Where all
    clusters agree, the share is as uncertain as `estimates.cautious` has it.
    """
    clusters = len(totals)
    not_known = Estimate(at_rank(q), float("inf"), float(units), 0.0)
    if clusters < 2:
        return not_known
    residuals = at_or_below - at_or_below.sum() / totals.sum() * totals
    # Delta method for Σ at_or_below / Σ totals over independent clusters.
    share_error = np.sqrt((residuals**2).sum() * clusters / (clusters - 1)) / totals.sum()
    share_error = float(share_error) or 1 / max(units, clusters)
    low, high = q - _OUTER_Z * share_error, q + _OUTER_Z * share_error
    if low <= 0 or high >= 1:
        return not_known
    value, lowest, highest = at_rank(q), at_rank(low), at_rank(high)
    width = 2 * max(highest - value, value - lowest) if tied else highest - lowest
    error = width / (2 * _OUTER_Z)
    return Estimate(value, error**2, float(units), clusters - 1.0)
