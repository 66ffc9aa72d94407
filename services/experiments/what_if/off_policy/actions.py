"""Estimators for one action per decision: IPS, SNIPS, DR, and cross-fitting for DR's model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from services.experiments.what_if.off_policy.errors import InvalidLog
from services.experiments.what_if.off_policy.estimate import Estimate, estimate
from services.experiments.what_if.off_policy.logs import (
    TOLERANCE,
    LoggedActions,
    Requirements,
    floats,
)
from services.experiments.what_if.off_policy.weights import healthy

Model = TypeVar("Model")

DEFAULT = Requirements()


def ips(log: LoggedActions, requirements: Requirements = DEFAULT) -> Estimate:
    """Inverse propensity scoring: mean of w * reward (Horvitz and Thompson 1952).

    Unbiased without clipping; with it, rewards >= 0 are undervalued. Raises OffPolicyRefused.
    """
    weights = healthy(log.target / log.propensities, log.units, requirements)
    earned = weights.values * log.rewards
    value = float(earned.mean())
    return estimate(
        "IPS", value, earned - value, _largest(log.rewards), weights, log.units, requirements
    )


def snips(log: LoggedActions, requirements: Requirements = DEFAULT) -> Estimate:
    """Self-normalised IPS: sum of w * reward / sum of w (Swaminathan and Joachims, NIPS 2015).

    Its bias is of the order 1 / effective sample size; it stays within the range of the rewards
    and does not move when a constant is added to all of them. Raises OffPolicyRefused.
    """
    weights = healthy(log.target / log.propensities, log.units, requirements)
    mean = float(weights.values.mean())
    value = float((weights.values * log.rewards).mean()) / mean
    return estimate(
        "SNIPS",
        value,
        weights.values * (log.rewards - value) / mean,
        _largest(log.rewards - value),
        weights,
        log.units,
        requirements,
    )


def doubly_robust(
    log: LoggedActions,
    predictions: np.ndarray,
    target_probabilities: np.ndarray,
    requirements: Requirements = DEFAULT,
) -> Estimate:
    """Doubly robust: mean of  sum_a target(a) q(a) + w * (reward - q(logged)).

    Dudik, Langford and Li (1103.4601). Unbiased if the propensities are right, whatever the model;
    its variance is small if the model is good.

    predictions: float64[n, A], reward that a model expects of every action; the model must not have
    seen the decision it predicts (`cross_fit`). target_probabilities: float64[n, A] or [A].
    Raises OffPolicyRefused.
    """
    n, actions = len(log.rewards), predictions.shape[-1]
    predictions = floats("predictions", predictions, (n, actions))
    target_probabilities = np.broadcast_to(target_probabilities, (n, actions))
    if log.actions.min() < 0 or log.actions.max() >= actions:
        raise InvalidLog(
            f"actions run from {log.actions.min()} to {log.actions.max()}, predictions are for "
            f"{actions}. Number the actions as the columns of the predictions."
        )
    rows = np.arange(n)
    if np.abs(target_probabilities[rows, log.actions] - log.target).max() > TOLERANCE:
        raise InvalidLog(
            "target_probabilities of the logged actions are not the log's target. Take both from "
            "one policy."
        )
    if np.abs(target_probabilities.sum(axis=1) - 1).max() > TOLERANCE * actions:
        raise InvalidLog("target_probabilities do not add up to 1. Give those of all actions.")
    weights = healthy(log.target / log.propensities, log.units, requirements)
    residuals = log.rewards - predictions[rows, log.actions]
    expected = np.einsum("na,na->n", target_probabilities, predictions)
    earned = expected + weights.values * residuals
    value = float(earned.mean())
    return estimate(
        "DR", value, earned - value, _largest(residuals), weights, log.units, requirements
    )


def folds_of(units: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    """int64[n] in [0, folds): a fold per unit, so that no unit is on both sides; sizes (in units)
    differ by at most one. InvalidLog if there are fewer units than folds, or fewer than 2 folds."""
    distinct, numbers = np.unique(units, return_inverse=True)
    if not 2 <= folds <= len(distinct):
        raise InvalidLog(
            f"{folds} folds of {len(distinct)} units. Give at least 2, and not more than units."
        )
    fold_by_unit = generator.permutation(np.arange(len(distinct)) % folds)
    return np.asarray(fold_by_unit[numbers], dtype=np.int64)


def cross_fit(
    folds: np.ndarray,
    fit: Callable[[np.ndarray], Model],
    predict: Callable[[Model, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Predictions [n, ...] by models that have not seen what they predict (Chernozhukov et al.
    1608.00060).

    folds: int64[n]. fit(rows) makes a model from these rows of the caller's data; predict(model,
    rows) gives an array [len(rows), ...].
    """
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise InvalidLog("There is one fold. Give at least two: a model must not see its test.")
    parts = {}
    for number in numbers.tolist():
        rows = np.flatnonzero(folds == number)
        parts[number] = (rows, predict(fit(np.flatnonzero(folds != number)), rows))
    first = next(iter(parts.values()))[1]
    result = np.empty((len(folds), *first.shape[1:]), dtype=np.float64)
    for rows, predicted in parts.values():
        result[rows] = predicted
    return result


def _largest(rewards: np.ndarray) -> float:
    return float(np.abs(rewards).max())
