"""Importance weights, and whether they carry an estimate.

Under the logging policy a weight w = target / propensity has the mean 1, if the propensities are
true and the target does nothing that the logging policy never does. Both refusals and the bias of
clipping rest on this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from services.experiments.what_if.off_policy.errors import (
    InvalidLog,
    MissingSupport,
    TooFewEffectiveSamples,
)

# Records keep float32: sums and ratios of such probabilities are right to about this much.
TOLERANCE = 1e-5

# Standard errors between the mean weight and 1 that are no accident. More than the usual 3, because
# weights are skewed: a large one that was not drawn also lowers the mean.
MEAN_WEIGHT_ERRORS = 5.0


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an estimate must satisfy and how it is made.

    clip: weights are cut at this value; no cut by default. min_effective_sample_size: below it the
    estimate is refused. Raises InvalidLog.
    """

    clip: float = math.inf
    min_effective_sample_size: float = 100.0

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise InvalidLog(f"clip is {self.clip}. Give a weight above 0.")


DEFAULT = Requirements()


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Weights in use, float64[n], and what was done to them.

    effective_sample_size: Kish's. largest: before clipping. clipped_share: of the lists.
    lost_mass: the part of the target policy's behaviour that clipping ignores, 1 - mean(clipped
    weight), which is far better known than the mean of what was cut off because the mean of all is
    1. What clipping can do to an estimate is at most lost_mass times the largest residual.
    """

    values: np.ndarray
    effective_sample_size: float
    largest: float
    clipped_share: float
    lost_mass: float


def effective_sample_size(weights: np.ndarray, units: np.ndarray) -> float:
    """(sum w)^2 / sum w^2 of the units' sums of weights: how many equally weighted units would be
    as good (Kish 1965)."""
    weights = sums_by_unit(weights, units)
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def sums_by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """float64[distinct units]: sums of `values` [n]."""
    _, numbers = np.unique(units, return_inverse=True)
    return np.bincount(numbers, weights=values)


def healthy(raw: np.ndarray, units: np.ndarray, requirements: Requirements) -> Weights:
    """Clip weights float64[n] and refuse those that cannot carry an estimate.

    Raises TooFewEffectiveSamples (of the weights as used), MissingSupport (the mean weight is far
    below 1) or InvalidLog (far above 1).
    """
    largest = float(raw.max())
    if largest <= 0:
        raise MissingSupport(
            "The target policy does nothing of what was logged: every weight is 0. Log with "
            "exploration that reaches it, or evaluate a target that stays within what was logged."
        )
    used = np.minimum(raw, requirements.clip)
    effective = effective_sample_size(used, units)
    minimum = requirements.min_effective_sample_size
    if not effective >= minimum:  # nor where a weight is NaN
        raise TooFewEffectiveSamples(effective, minimum, len(raw), largest)
    _check_mean(raw, units)
    clipped = bool(largest > requirements.clip)
    return Weights(
        used,
        effective,
        largest,
        clipped_share=float((raw > requirements.clip).mean()),
        lost_mass=max(0.0, 1 - float(used.mean())) if clipped else 0.0,
    )


def mean_error(centred: np.ndarray, units: np.ndarray) -> float:
    """Standard error of a mean from centred values [n]; sums of units are the independent ones."""
    n = len(centred)
    centred = sums_by_unit(centred, units)
    independent = len(centred)
    if independent < 2:
        return float("inf")
    return float(np.sqrt(centred @ centred * independent / (independent - 1))) / n


def _check_mean(raw: np.ndarray, units: np.ndarray) -> None:
    mean = float(raw.mean())
    slack = MEAN_WEIGHT_ERRORS * mean_error(raw - mean, units) + TOLERANCE
    if mean < 1 - slack:
        raise MissingSupport(
            f"The weights have the mean {mean:.3f} instead of 1: about {1 - mean:.1%} of what the "
            "target policy does was never logged. Log with exploration that reaches it, or "
            "evaluate a target that stays within what was logged."
        )
    if mean > 1 + slack:
        raise InvalidLog(
            f"The weights have the mean {mean:.3f} instead of 1: the logged propensities are too "
            "small or the target's probabilities too large. Check where they come from."
        )
