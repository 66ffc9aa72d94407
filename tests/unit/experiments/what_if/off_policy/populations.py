"""Logs in which every outcome occurs exactly as often as it is probable.

On such a log an unbiased estimator gives the true value itself, not nearly it: expectations are
checked without drawing anything.
"""

from collections.abc import Callable
from itertools import permutations

import numpy as np

from services.experiments.what_if.off_policy.logs import LoggedActions, LoggedSlates

ROWS = 2_400


def action_log(
    logging: np.ndarray, target: np.ndarray, rewards: np.ndarray, rows: int = ROWS
) -> LoggedActions:
    """Contexts equally often; in each, actions by `logging` [contexts, A] and then the reward
    `rewards` [contexts, A]. Probabilities times rows per context must be whole numbers."""
    contexts, actions = logging.shape
    counts = logging * rows / contexts
    assert np.allclose(counts, np.rint(counts))
    context, action = np.divmod(np.arange(contexts * actions), actions)
    which = np.repeat(np.arange(len(context)), np.rint(counts).astype(int).reshape(-1))
    c, a = context[which], action[which]
    return LoggedActions(a, rewards[c, a], logging[c, a], target[c, a])


def contexts_of(logging: np.ndarray, rows: int = ROWS) -> np.ndarray:
    """int64[rows]: the context of every row of `action_log`."""
    contexts = len(logging)
    return np.repeat(np.arange(contexts), rows // contexts)


def slate_log(
    logging: np.ndarray,
    target: np.ndarray,
    reward: Callable[[tuple[int, ...]], list[float]],
    places: int,
    rows: int = ROWS,
) -> LoggedSlates:
    """Lists of `places` items drawn without replacement in proportion to `logging` [items], each
    as often as it is probable, with rewards float[places] by `reward`; the target draws in
    proportion to `target` [items]. Probabilities times rows must be whole numbers."""
    items = len(logging)
    slates = np.array(list(permutations(range(items), places)))
    propensities, targets = (given_above(w, slates) for w in (logging, target))
    counts = propensities.prod(axis=1) * rows
    assert np.allclose(counts, np.rint(counts))
    rewards = np.array([reward(tuple(s)) for s in slates.tolist()])
    which = np.repeat(np.arange(len(slates)), np.rint(counts).astype(int))
    return LoggedSlates(slates[which], rewards[which], propensities[which], targets[which])


def given_above(weights: np.ndarray, slates: np.ndarray) -> np.ndarray:
    """Probability of every item among those not above it, in proportion to weights."""
    drawn = weights[slates]
    left = weights.sum() - np.cumsum(drawn, axis=1) + drawn
    return np.divide(drawn, left, out=np.zeros_like(drawn), where=left > 1e-12)


def slate_value(
    target: np.ndarray, reward: Callable[[tuple[int, ...]], list[float]], places: int
) -> float:
    """The true value of drawing in proportion to `target`."""
    slates = np.array(list(permutations(range(len(target)), places)))
    probabilities = given_above(target, slates).prod(axis=1)
    return float(sum(p * sum(reward(tuple(s))) for p, s in zip(probabilities, slates.tolist())))  # noqa: B905
