"""What an arm's moments say of a metric: a value and the variance of that value.

Everything downstream (effects, intervals, sequences) takes an `Estimate` and does not know whether
it is of a mean, a ratio, a quantile, or adjusted by CUPED. Fields are floats, or arrays of one
shape where many looks or many experiments are treated at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.experiments.statistics.moments import Moments

Real: TypeAlias = float | NDArray[np.float64]
Kind: TypeAlias = Literal["mean", "ratio"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated number. It is asymptotically the mean of `n` independent contributions."""

    value: Real
    variance: Real  # of the value (its squared standard error), not of a unit
    n: Real  # units behind it
    dof: Real  # degrees of freedom of the variance; 0 where it is not known
    # Variance of an error that is the same in all arms of a comparison (of CUPED's common mean):
    # differences do not have it, lifts do. It is not in `variance`.
    common: Real = 0.0

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether there is an error to speak of. Where not, every interval is the whole line."""
        v = np.asarray(self.variance)
        return np.asarray((np.asarray(self.dof) > 0) & (v > 0) & np.isfinite(v))


def mean_estimate(n: Real, mean: Real, variance: Real) -> Estimate:
    """Of a mean or a rate: `variance` is a unit's sample variance (with n - 1)."""
    return Estimate(mean, variance / n, n, np.maximum(n - 1.0, 0.0))


def cautious(found: Estimate, step: Real, middle: float = 0.5) -> Estimate:
    """As if one event more had been seen: value moves by step / n, variance by (step / n)².

    `step` is what an event adds to a unit's contribution. What has not happened among n units may
    still happen to one of n. Without this, an arm in which no unit ever failed (or every one) has a
    variance of 0, and nothing can be said of it, or far too much. It is the thought of Agresti and
    Caffo (2000), which add a failed and a good unit to each arm: here, too, the value moves towards
    `middle`, where a share is as uncertain as it can be, so that an event is taken away where most
    units have one. It fades with n. An arm of which nothing is known stays so.
    """
    moved = np.asarray(step) / np.maximum(found.n, 1.0)
    towards = np.clip(2 * (middle - np.asarray(found.value)), -1.0, 1.0)
    return replace(
        found,
        value=(found.value + towards * moved)[()],
        variance=(found.variance + moved**2)[()],
    )


def ratio_estimate(
    n: Real,
    numerator: Real,
    denominator: Real,
    numerator_variance: Real,
    denominator_variance: Real,
    covariance: Real,
) -> Estimate:
    """Of Σ numerator / Σ denominator where units, not what the denominator counts, are independent.

    Arguments are per-unit sample means, variances and covariance. To first order the ratio r is
    the mean of (x - r y) / mean(y), whose variance is the delta method's (Deng, Knoblich, Lu 2018,
    arXiv 1803.06336, section 3).
    """
    r = numerator / denominator
    residual = numerator_variance - 2 * r * covariance + r * r * denominator_variance
    return mean_estimate(n, r, np.maximum(residual, 0.0) / (denominator * denominator))


def estimate(moments: Moments, kind: Kind = "mean") -> Estimate:
    """An arm's value: of column 0, or of the ratio of columns 0 and 1.

    Without two units, or with a denominator of zero, there is no value: NaN with infinite variance
    and no degree of freedom.
    """
    if not can_be_estimated(moments, kind):
        return unknown(moments.n)
    if kind == "mean":
        return mean_estimate(float(moments.n), moments.mean(), moments.covariance())
    return ratio_estimate(
        float(moments.n),
        moments.mean(0),
        moments.mean(1),
        moments.covariance(0, 0),
        moments.covariance(1, 1),
        moments.covariance(0, 1),
    )


def can_be_estimated(moments: Moments, kind: Kind) -> bool:
    """Whether there are two units and, of a ratio, something to divide by."""
    return moments.n >= 2 and (kind == "mean" or moments.sums[1] != 0)


def unknown(n: int) -> Estimate:
    return Estimate(float("nan"), float("inf"), float(n), 0.0)


def linearised(moments: Moments, kind: Kind) -> tuple[float, ...]:
    """Weights of the metric's own columns that make it a mean to first order (delta method): a unit
    contributes weights · (row - mean). Needs `can_be_estimated`."""
    if kind == "mean":
        return (1.0,)
    r = moments.mean(0) / moments.mean(1)
    return 1 / moments.mean(1), -r / moments.mean(1)
