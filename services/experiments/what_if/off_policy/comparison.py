"""Differences and ratios of estimates on one log, with errors that know that it is one log.

Two estimates on the same requests go up and down together: the error of their difference is not
that of independent ones. To first order an estimate is off by the mean of its influence values, so
a smooth function of two estimates is off by the mean of what the chain rule makes of both (the
delta method), request by request; sums of a unit's values are the independent ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from services.experiments.what_if.off_policy.errors import InvalidLog
from services.experiments.what_if.off_policy.estimate import Estimate, interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """A difference or a lift, with a normal interval at a fixed horizon. bias_bound: at most so
    much of it may be the work of clipping; not part of the interval."""

    value: float
    standard_error: float
    low: float
    high: float
    bias_bound: float


def on_policy(rewards: np.ndarray, like: Estimate, units: np.ndarray | None) -> Estimate:
    """The logging policy's own value, the mean of float64[n] rewards: what weights of 1 make, with
    the confidence of the estimate that it will be compared to."""
    value = float(rewards.mean())
    influence = rewards - value
    error, low, high = interval(value, influence, units, like.confidence)
    n = len(rewards)
    worth = float(n if units is None else len(np.unique(units)))
    return Estimate(
        "logged", value, error, low, high, like.confidence, n, worth, 1.0, 0.0, 0.0, 0.0, influence
    )


def ratio(one: Estimate, other: Estimate, units: np.ndarray | None) -> Estimate:
    """`one` / `other` of a ratio metric under one policy (clicks per impression). The health is
    that of the worse of both. Raises InvalidLog when `other` is 0."""
    value = _divided(one, other)
    influence = (one.influence - value * other.influence) / other.value
    error, low, high = interval(value, influence, units, one.confidence)
    return replace(
        one,
        value=value,
        standard_error=error,
        low=low,
        high=high,
        effective_sample_size=min(one.effective_sample_size, other.effective_sample_size),
        largest_weight=max(one.largest_weight, other.largest_weight),
        clipped_share=max(one.clipped_share, other.clipped_share),
        lost_mass=max(one.lost_mass, other.lost_mass),
        bias_bound=(one.bias_bound + abs(value) * other.bias_bound) / abs(other.value),
        influence=influence,
    )


def difference(one: Estimate, other: Estimate, units: np.ndarray | None) -> Comparison:
    """`one` - `other`, both of the same log in the same order."""
    value = one.value - other.value
    error, low, high = interval(value, one.influence - other.influence, units, one.confidence)
    return Comparison(value, error, low, high, one.bias_bound + other.bias_bound)


def lift(one: Estimate, other: Estimate, units: np.ndarray | None) -> Comparison:
    """`one` / `other` - 1. Raises InvalidLog when `other` is 0."""
    made = ratio(one, other, units)
    return Comparison(
        made.value - 1, made.standard_error, made.low - 1, made.high - 1, made.bias_bound
    )


def _divided(one: Estimate, other: Estimate) -> float:
    if not other.value:
        raise InvalidLog(
            "What is divided by is 0: nothing of it was logged. Evaluate another metric, or log "
            "longer."
        )
    return one.value / other.value
