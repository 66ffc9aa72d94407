"""What every estimator returns, and the interval around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from services.experiments.what_if.off_policy.logs import Requirements
from services.experiments.what_if.off_policy.weights import Weights, mean_error


@dataclass(frozen=True, slots=True)
class Estimate:
    """The value of a target policy: mean reward per decision (or per list).

    low, high: normal interval, value ± z * standard_error, at a fixed horizon: not for peeking.
    effective_sample_size, largest_weight, clipped_share, lost_mass: see `Weights`. bias_bound: at
    most this much of `value` may be the work of clipping (with the rewards that were seen); it is
    not part of the interval. influence: float64[n], see `estimate`; with those of another estimate
    on the same log it tells the error of their difference (`comparison`).
    """

    estimator: str
    value: float
    standard_error: float
    low: float
    high: float
    confidence: float
    n: int
    effective_sample_size: float
    largest_weight: float
    clipped_share: float
    lost_mass: float
    bias_bound: float
    influence: np.ndarray = field(compare=False, repr=False)


def estimate(
    estimator: str,
    value: float,
    influence: np.ndarray,
    largest_reward: float,
    weights: Weights,
    units: np.ndarray | None,
    requirements: Requirements,
) -> Estimate:
    """An estimate from its influence values float64[n], which sum to about zero.

    To first order value - truth is the mean of the influence values, so their standard error is
    the estimate's: for IPS exactly, for self-normalised estimators by the delta method.
    largest_reward: of |reward|, or of the residual where a prediction is subtracted.
    """
    error, low, high = interval(value, influence, units, requirements.confidence)
    return Estimate(
        estimator,
        value,
        error,
        low,
        high,
        requirements.confidence,
        len(influence),
        weights.effective_sample_size,
        weights.largest,
        weights.clipped_share,
        weights.lost_mass,
        weights.lost_mass * largest_reward,
        influence,
    )


def interval(
    value: float, influence: np.ndarray, units: np.ndarray | None, confidence: float
) -> tuple[float, float, float]:
    """Standard error and bounds of a value with these influence values."""
    error = mean_error(influence, units)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return error, value - z * error, value + z * error
