"""What was logged, as arrays that have been checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from services.experiments.what_if.off_policy.errors import InvalidLog

# Records keep float32: sums and ratios of such probabilities are right to about this much.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class LoggedActions:
    """n decisions, each of which chose one action.

    actions: int64[n]. rewards: float64[n]. propensities: float64[n] in (0, 1], the logging
    policy's probability of the logged action. target: float64[n] in [0, 1], the target policy's
    probability of the same action. units: int64[n] or None, who was asked: decisions of one unit
    are not independent, and with units the standard errors allow for that. Raises InvalidLog.
    """

    actions: np.ndarray
    rewards: np.ndarray
    propensities: np.ndarray
    target: np.ndarray
    units: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.rewards)
        _set(self, "actions", integers("actions", self.actions, (n,)))
        _check_log(self, (n,))


@dataclass(frozen=True, slots=True, eq=False)
class LoggedSlates:
    """n lists of k places.

    slates: int64[n, k], the item (or its position in the logging policy's ranking) at each place,
    none twice in a list. rewards: float64[n, k], what each place earned; a reward of the whole list
    belongs to the last place. propensities and target: float64[n, k], the logging and the target
    policy's probability of the item at its place given those above it. units: see LoggedActions.
    A shorter list is filled up with items -1, -2, ... of propensity and target 1 and reward 0 (not
    for the pseudo-inverse, whose items are numbered from 0). Raises InvalidLog.
    """

    slates: np.ndarray
    rewards: np.ndarray
    propensities: np.ndarray
    target: np.ndarray
    units: np.ndarray | None = None

    def __post_init__(self) -> None:
        slates = np.asarray(self.slates)
        if slates.ndim != 2 or not slates.shape[1]:
            raise InvalidLog(f"slates have the shape {slates.shape}. Give them as [lists, places].")
        _set(self, "slates", integers("slates", slates, slates.shape))
        ordered = np.sort(slates, axis=1)
        if (ordered[:, 1:] == ordered[:, :-1]).any():
            raise InvalidLog("A logged list shows an item twice. Leave such lists out.")
        _check_log(self, slates.shape)

    def whole(self) -> LoggedActions:
        """The same log with each list as one action, numbered in order of first appearance."""
        _, numbers = np.unique(self.slates, axis=0, return_inverse=True)
        return LoggedActions(
            numbers.reshape(-1),
            self.rewards.sum(axis=1),
            self.propensities.prod(axis=1),
            self.target.prod(axis=1),
            self.units,
        )


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an estimate must satisfy and how it is made.

    clip: weights are cut at this value; no cut by default. min_effective_sample_size: below it the
    estimate is refused. confidence: of the interval. Raises InvalidLog.
    """

    clip: float = math.inf
    min_effective_sample_size: float = 100.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise InvalidLog(f"clip is {self.clip}. Give a weight above 0.")
        if not 0 < self.confidence < 1:
            raise InvalidLog(f"confidence is {self.confidence}. Give a number between 0 and 1.")


def integers(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`values` as int64 of this shape; InvalidLog if they are not."""
    array = np.asarray(values)
    if array.shape != shape or not np.issubdtype(array.dtype, np.integer):
        raise InvalidLog(
            f"{name} have the shape {array.shape} and type {array.dtype}. Give whole numbers of "
            f"the shape {shape}."
        )
    return array.astype(np.int64, copy=False)


def floats(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`values` as finite float64 of this shape; InvalidLog if they are not."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise InvalidLog(f"{name} have the shape {array.shape}. Give them in the shape {shape}.")
    if not np.isfinite(array).all():
        raise InvalidLog(f"{name} hold a number that is not finite. Leave such decisions out.")
    return array


def _check_log(log: LoggedActions | LoggedSlates, shape: tuple[int, ...]) -> None:
    """Convert and check the fields that both logs have."""
    if not shape[0]:
        raise InvalidLog("The log is empty. Give at least one decision.")
    for name in ("rewards", "propensities", "target"):
        _set(log, name, floats(name, getattr(log, name), shape))
    if log.propensities.min() <= 0 or log.propensities.max() > 1 + TOLERANCE:
        raise InvalidLog(
            f"propensities run from {log.propensities.min()} to {log.propensities.max()}. What was "
            "logged had a probability above 0 and at most 1: leave out decisions without one."
        )
    if log.target.min() < 0 or log.target.max() > 1 + TOLERANCE:
        raise InvalidLog(
            f"target runs from {log.target.min()} to {log.target.max()}. Give probabilities."
        )
    if log.units is not None:
        _set(log, "units", integers("units", log.units, (shape[0],)))


def _set(log: LoggedActions | LoggedSlates, name: str, value: np.ndarray) -> None:
    object.__setattr__(log, name, value)
