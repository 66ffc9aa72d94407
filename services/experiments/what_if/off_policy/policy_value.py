"""What a policy earns by a log, and differences and ratios of that with errors that know that it
is one log.

Two values on the same lists go up and down together: the error of their difference is not that of
independent ones. To first order a value is off by the mean of its influence values, so a smooth
function of two values is off by the mean of what the chain rule makes of both (the delta method),
list by list; sums of a unit's values are the independent ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np

from services.experiments.what_if.off_policy.errors import InvalidLog
from services.experiments.what_if.off_policy.weights import mean_error

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyValue:
    """The value of a policy: mean reward per list.

    low, high: normal interval, value ± z * standard_error, at a fixed horizon: not for peeking.
    n: lists. effective_sample_size, largest_weight, clipped_share, lost_mass: see `Weights`.
    bias_bound: at most this much of `value` may be the work of clipping (with the rewards that were
    seen); it is not part of the interval. influence: float64[n], value - truth is to first order
    their mean, which is about zero.
    """

    value: float
    standard_error: float
    low: float
    high: float
    confidence: float = CONFIDENCE
    n: int
    effective_sample_size: float
    largest_weight: float = 1.0
    clipped_share: float = 0.0
    lost_mass: float = 0.0
    bias_bound: float = 0.0
    influence: np.ndarray = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A difference or a lift, with a normal interval at a fixed horizon. bias_bound: at most so
    much of it may be the work of clipping; not part of the interval."""

    value: float
    standard_error: float
    low: float
    high: float
    bias_bound: float


def on_policy(rewards: np.ndarray, units: np.ndarray) -> PolicyValue:
    """The logging policy's own value, the mean of float64[n] rewards: what weights of 1 make."""
    value = float(rewards.mean())
    influence = rewards - value
    error, low, high = interval(value, influence, units)
    return PolicyValue(
        value=value,
        standard_error=error,
        low=low,
        high=high,
        n=len(rewards),
        effective_sample_size=float(len(np.unique(units))),
        influence=influence,
    )


def ratio(one: PolicyValue, other: PolicyValue, units: np.ndarray) -> PolicyValue:
    """`one` / `other` of a ratio metric under one policy (clicks per impression). The health is
    that of the worse of both. Raises InvalidLog when `other` is 0."""
    if not other.value:
        raise InvalidLog(
            "What is divided by is 0: nothing of it was logged. Evaluate another metric, or log "
            "longer."
        )
    value = one.value / other.value
    influence = (one.influence - value * other.influence) / other.value
    error, low, high = interval(value, influence, units)
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


def difference(one: PolicyValue, other: PolicyValue, units: np.ndarray) -> Comparison:
    """`one` - `other`, both of the same log in the same order."""
    influence = one.influence - other.influence
    bias_bound = one.bias_bound + other.bias_bound
    return _comparison(one.value - other.value, influence, units, bias_bound)


def lift(one: PolicyValue, other: PolicyValue, units: np.ndarray) -> Comparison:
    """`one` / `other` - 1. Raises InvalidLog when `other` is 0."""
    made = ratio(one, other, units)
    return _comparison(made.value - 1, made.influence, units, made.bias_bound)


def _comparison(
    value: float, influence: np.ndarray, units: np.ndarray, bias_bound: float
) -> Comparison:
    error, low, high = interval(value, influence, units)
    return Comparison(value=value, standard_error=error, low=low, high=high, bias_bound=bias_bound)


def interval(value: float, influence: np.ndarray, units: np.ndarray) -> tuple[float, float, float]:
    """Standard error and bounds of a value with these influence values."""
    error = mean_error(influence, units)
    return error, value - _Z * error, value + _Z * error
