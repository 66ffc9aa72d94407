"""Logs in which every outcome occurs exactly as often as it is probable.

On such a log an unbiased estimator gives the true value itself, not nearly it: expectations are
checked without drawing anything.
"""

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import numpy as np

from services.experiments.what_if.off_policy.estimators import LoggedLists

ROWS = 2_400


class ListLog(NamedTuple):
    """Lists int64[n, k] of items, and what the estimators see of them."""

    items: np.ndarray
    log: LoggedLists


def one_place(
    rewards: np.ndarray,
    propensities: np.ndarray,
    target: np.ndarray,
    units: np.ndarray | None = None,
) -> LoggedLists:
    """A log of lists of one place, from columns [n]; units: each list another one's."""
    units = np.arange(len(rewards)) if units is None else units
    return LoggedLists(rewards[:, None], propensities[:, None], target[:, None], units)


def action_log(
    logging: np.ndarray, target: np.ndarray, rewards: np.ndarray, rows: int = ROWS
) -> LoggedLists:
    """Contexts equally often; in each, one item by `logging` [contexts, A] and then the reward
    `rewards` [contexts, A]. Probabilities times rows per context must be whole numbers."""
    contexts, actions = logging.shape
    counts = logging * rows / contexts
    assert np.allclose(counts, np.rint(counts))
    context, action = np.divmod(np.arange(contexts * actions), actions)
    which = np.repeat(np.arange(len(context)), np.rint(counts).astype(int).reshape(-1))
    c, a = context[which], action[which]
    return one_place(rewards[c, a], logging[c, a], target[c, a])


def list_log(
    logging: np.ndarray,
    target: np.ndarray,
    reward: Callable[[tuple[int, ...]], list[float]],
    places: int,
    rows: int = ROWS,
) -> ListLog:
    """Lists of `places` items drawn without replacement in proportion to `logging` [items], each
    as often as it is probable, with rewards float[places] by `reward`; the target draws in
    proportion to `target` [items]. Probabilities times rows must be whole numbers."""
    items = len(logging)
    lists = np.array(list(permutations(range(items), places)))
    propensities, targets = (given_above(w, lists) for w in (logging, target))
    counts = propensities.prod(axis=1) * rows
    assert np.allclose(counts, np.rint(counts))
    rewards = np.array([reward(tuple(s)) for s in lists.tolist()])
    which = np.repeat(np.arange(len(lists)), np.rint(counts).astype(int))
    log = LoggedLists(rewards[which], propensities[which], targets[which], np.arange(len(which)))
    return ListLog(lists[which], log)


def given_above(weights: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Probability of every item among those not above it, in proportion to weights."""
    drawn = weights[lists]
    left = weights.sum() - np.cumsum(drawn, axis=1) + drawn
    return np.divide(drawn, left, out=np.zeros_like(drawn), where=left > 1e-12)


def list_value(
    target: np.ndarray, reward: Callable[[tuple[int, ...]], list[float]], places: int
) -> float:
    """The true value of drawing in proportion to `target`."""
    lists = np.array(list(permutations(range(len(target)), places)))
    probabilities = given_above(target, lists).prod(axis=1)
    return float(
        sum(p * sum(reward(tuple(s))) for p, s in zip(probabilities, lists.tolist(), strict=True))
    )
