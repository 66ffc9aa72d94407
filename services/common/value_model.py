"""From task probabilities to an order: the value model, then diversity. Pure functions.

Value of an item = p_click * (1 + like_weight * p_like). With `diversity` > 0 the order is made
greedily: each place goes to the item with the largest value (relative to the best) minus
`diversity` times its mean similarity to the items above it. The router orders lists with it,
and off-policy evaluation what the log says that they were drawn from.
"""

from __future__ import annotations

import numpy as np

from models.catalogue import ItemTable

NEAR = 150  # candidates below the cut that diversity may lift above it
PARTITION_FROM = 500  # candidates from which a full sort costs more than to find the bound first


def values(tasks: tuple[str, ...], task_scores: np.ndarray, like_weight: float) -> np.ndarray:
    """float32[n] values of candidates from their task probabilities [n, tasks]."""
    click = task_scores[:, tasks.index("click")]
    if "like" not in tasks:
        return click
    value = task_scores[:, tasks.index("like")] * np.float32(like_weight)
    value += 1.0
    value *= click
    return value


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` best scores, best first; equal scores keep their order."""
    if len(scores) >= PARTITION_FROM and count < len(scores) // 4:
        # The count-th best score bounds what must be sorted.
        bound = np.partition(scores, -count)[-count]
        near = np.flatnonzero(scores >= bound)
        return near[(-scores[near]).argsort(kind="stable")[:count]]
    return (-scores).argsort(kind="stable")[:count]


def diversified(scores: np.ndarray, units: np.ndarray, diversity: float, count: int) -> np.ndarray:
    """Positions of a greedy list of `count`: scores float32[n], units float32[n, V] unit rows.

    With p items chosen the next one maximises p * value - diversity * (sum of its similarities),
    which is the rule of the module's docstring times p, and which a choice changes by one row.
    """
    relative = scores / max(float(scores.max()), 1e-12)
    # A transposed copy: for a view numpy takes a routine that is slower at these sizes.
    change = relative - units @ np.ascontiguousarray((units * np.float32(diversity)).T)
    at = relative.argmax()
    chosen = [at]
    gain = np.zeros(len(scores))
    for _ in range(min(count, len(scores)) - 1):
        gain += change[at]
        gain[at] = -np.inf
        at = gain.argmax()
        chosen.append(at)
    return np.array(chosen)


def order_of(
    scores: np.ndarray,
    diversity: float,
    items: ItemTable,
    diverse_by: str,
    rows: np.ndarray,
    depth: int,
) -> np.ndarray:
    """Positions of the `depth` best of n candidates, best first, before any draw: by their values
    float32[n] and their values of the field `diverse_by`; rows: int[n], theirs in the item table.
    """
    if diversity == 0 or depth < 2:
        return top(scores, depth)
    # Items far below the cut cannot win enough by diversity to be worth looking at, and the work
    # grows with the square of those that are.
    near = top(scores, min(4 * depth, depth + NEAR))
    units = items.unit_values(diverse_by)[rows[near]]
    return near[diversified(scores[near], units, diversity, depth)]
