"""Is one model better than another? Paired bootstrap over users.

Two models are measured on the same users, so only the users' differences are drawn: pairing
removes the large spread between easy and hard users that both models share. With several seeds
the mean over seeds of each user's value is compared; `seeds=True` draws seeds too: about the
training procedure rather than about these trained models (with three seeds, a rough answer). A
drop between two test sets has other users on each side, who are drawn independently.

Not guaranteed: percentile intervals are a little too narrow below about 50 users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
BLOCK = 2_000_000  # weights that are held at once


@dataclass(frozen=True)
class Interval:
    """A mean with its percentile interval over `units` users."""

    mean: float
    low: float
    high: float
    units: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


_NOTHING = Interval(float("nan"), float("nan"), float("nan"), 0)  # of no user at all


def mean_interval(
    values: np.ndarray,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    seeds: bool = False,
) -> Interval:
    """Interval of the mean of float[U], or of float[S, U] (S seeds on the same users).

    NaN values are left out of the mean they would enter; a user who is NaN for every seed is not
    drawn. The same arguments give the same interval.
    """
    table = np.atleast_2d(np.asarray(values, np.float64))
    table = table[:, ~np.isnan(table).all(axis=0)]
    if not table.shape[1]:
        return _NOTHING
    rng = np.random.default_rng(seed)
    means = _over_drawn_seeds(_resampled(table, resamples, rng), rng, seeds)
    return Interval(_mean(table), *_bounds(means, level), table.shape[1])


def paired_interval(
    first: np.ndarray | Sequence[np.ndarray],
    second: np.ndarray | Sequence[np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
    seeds: bool = False,
) -> Interval:
    """Interval of mean(first - second) over the same users: float[U] or one array per seed.

    With unequal numbers of seeds (a baseline without a seed) each side's mean over seeds is
    compared. Users that are NaN on one side are left out.
    """
    a = np.atleast_2d(np.asarray(first, np.float64))
    b = np.atleast_2d(np.asarray(second, np.float64))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"not the same users: {a.shape[1]} values against {b.shape[1]}")
    if len(a) != len(b):
        if seeds and 1 not in (len(a), len(b)):
            raise ValueError(f"cannot pair {len(a)} seeds with {len(b)}")
        if not seeds:
            a, b = _over_seeds(a), _over_seeds(b)
    return mean_interval(a - b, LEVEL, resamples, seed, seeds)


def two_sample_interval(
    first: np.ndarray | Sequence[np.ndarray],
    second: np.ndarray | Sequence[np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
    seeds: bool = False,
) -> Interval:
    """Interval of mean(first) - mean(second) over different users: float[U] or [S, U] each.

    The users of each side are drawn on their own. Row s of both sides is the same trained model, so
    that `seeds=True` draws the rows of both together; ValueError when they have not equally many.
    Given each side as a difference of two models, it is the interval of the difference of drops.
    """
    sides = [np.atleast_2d(np.asarray(side, np.float64)) for side in (first, second)]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"cannot pair {len(sides[0])} seeds with {len(sides[1])}")
    sides = [side[:, ~np.isnan(side).all(axis=0)] for side in sides]
    if not all(side.shape[1] for side in sides):
        return _NOTHING
    rng = np.random.default_rng(seed)
    drawn = [_resampled(side, resamples, rng) for side in sides]
    means = _over_drawn_seeds(drawn[0] - drawn[1], rng, seeds)
    mean = float(np.nanmean(np.nanmean(sides[0], axis=1) - np.nanmean(sides[1], axis=1)))
    return Interval(mean, *_bounds(means, LEVEL), sum(side.shape[1] for side in sides))


def _bounds(means: np.ndarray, level: float) -> tuple[float, float]:
    """The ends of the percentile interval of resampled means."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(table: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """float64[resamples, S]: each row's mean with the columns redrawn."""
    users = table.shape[1]
    known = ~np.isnan(table)
    values = np.where(known, table, 0.0)
    out = np.empty((resamples, len(table)))
    step = max(1, BLOCK // users)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        # How often each user is drawn: the same draw for every seed keeps the pairing.
        weights = np.empty((size, users))
        for row in weights:
            row[:] = np.bincount(rng.integers(0, users, users), minlength=users)
        total, count = weights @ values.T, weights @ known.T.astype(np.float64)
        with np.errstate(invalid="ignore"):
            out[start : start + size] = total / count
    return out


def _over_drawn_seeds(means: np.ndarray, rng: np.random.Generator, seeds: bool) -> np.ndarray:
    """float64[resamples]: means[resamples, S] over the seeds or, if `seeds`, over redrawn ones."""
    if seeds:
        means = np.take_along_axis(means, rng.integers(0, means.shape[1], means.shape), axis=1)
    return np.nanmean(means, axis=1)


def _mean(table: np.ndarray) -> float:
    """Mean over seeds of the mean over users."""
    return float(np.nanmean(np.nanmean(table, axis=1)))


def _over_seeds(table: np.ndarray) -> np.ndarray:
    """float64[1, U]: each user's mean over seeds, NaN where no seed has a value."""
    known = ~np.isnan(table)
    count = known.sum(axis=0)
    total = np.where(known, table, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)[None, :]
