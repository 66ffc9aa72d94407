"""Importance weights, and whether they carry an estimate.

Under the logging policy a weight w = target / propensity has the mean 1, if the propensities are
true and the target does nothing that the logging policy never does. Both refusals and the bias of
clipping rest on this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.experiments.what_if.off_policy.errors import (
    InvalidLog,
    MissingSupport,
    TooFewEffectiveSamples,
)
from services.experiments.what_if.off_policy.logs import TOLERANCE, Requirements

# Standard errors between the mean weight and 1 that are no accident. More than the usual 3, because
# weights are skewed: a large one that was not drawn also lowers the mean.
MEAN_WEIGHT_ERRORS = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Weights in use, float64[n], and what was done to them.

    effective_sample_size: Kish's. largest: before clipping. clipped_share: of the decisions.
    lost_mass: the part of the target policy's behaviour that clipping ignores, 1 - mean(clipped
    weight), which is far better known than the mean of what was cut off because the mean of all is
    1. What clipping can do to an estimate is at most lost_mass times the largest |reward| (or
    residual, for estimators that subtract a prediction).
    """

    values: np.ndarray
    effective_sample_size: float
    largest: float
    clipped_share: float
    lost_mass: float


def effective_sample_size(weights: np.ndarray, units: np.ndarray | None = None) -> float:
    """(sum w)^2 / sum w^2: how many equally weighted decisions would be as good (Kish 1965).

    With units, of the sums of their weights: how many units would be.
    """
    if units is not None:
        weights = sums_by_unit(weights, units)
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def sums_by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """float64[distinct units]: sums of `values` [n]."""
    _, numbers = np.unique(units, return_inverse=True)
    return np.bincount(numbers, weights=values)


def healthy(raw: np.ndarray, units: np.ndarray | None, requirements: Requirements) -> Weights:
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
    if effective < minimum:
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


def mean_error(centred: np.ndarray, units: np.ndarray | None) -> float:
    """Standard error of a mean from centred values [n]; sums of units are the independent ones."""
    n = len(centred)
    if units is not None:
        centred = sums_by_unit(centred, units)
    independent = len(centred)
    if independent < 2:
        return float("inf")
    return float(np.sqrt(centred @ centred * independent / (independent - 1))) / n


def check_support(
    logging: np.ndarray, target: np.ndarray, names: list[str] | None = None, at_most: float = 0.0
) -> None:
    """Refuse a target that does what the logging policy never does, where both are known.

    logging, target: float64[..., A] probabilities of all actions, per decision or once for all.
    at_most: target mass without support that is tolerated (mean over decisions). Raises
    MissingSupport and names the worst action.
    """
    mass = np.where(np.asarray(logging) > 0, 0.0, np.asarray(target))
    by_action = mass.reshape(-1, mass.shape[-1]).mean(axis=0)
    if by_action.sum() > at_most:
        worst = int(by_action.argmax())
        raise MissingSupport(
            f"The target policy spends {by_action.sum():.2%} of its probability on actions that "
            f"the logging policy never takes, most of it on "
            f"{names[worst] if names else f'action {worst}'}. Log with exploration over these "
            "actions, or evaluate a target without them."
        )


def _check_mean(raw: np.ndarray, units: np.ndarray | None) -> None:
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
