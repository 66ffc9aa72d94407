"""Stage 6: from task probabilities to the list: value model, then diversity, then exploration.

Value of an item = p_click * (1 + like_weight * p_like). With `diversity` > 0 the list is filled
greedily: each place goes to the item with the largest value (relative to the best) minus
`diversity` times its mean genre similarity to the items above it. With `exploration` places are
drawn at random from the best of that order, with known probabilities (off-policy evaluation needs
them); they depend on ranks alone, because after diversification no score orders the list. An
unranked list is never explored: it is not the list that the experiment is about; nor is an
interleaved one (interleave.py).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from models.catalogue import ItemTable
from services.experiments.declare.parameters import EPSILON, NO_EXPLORATION, Parameters
from services.experiments.lists.exploration import (
    EpsilonGreedy,
    Exploration,
    PlackettLuce,
    rank_logits,
)
from services.router.request import Pool, RequestState

_GENERATOR = np.random.default_rng()  # of this process, seeded by the system

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


def diversified(scores: np.ndarray, genres: np.ndarray, diversity: float, count: int) -> np.ndarray:
    """Positions of a greedy list of `count`: scores float32[n], genres float32[n, G] unit rows.

    With p items chosen the next one maximises p * value - diversity * (sum of its similarities),
    which is the rule of the module's docstring times p, and which a choice changes by one row.
    """
    relative = scores / max(float(scores.max()), 1e-12)
    # A transposed copy: for a view numpy takes a routine that is slower at these sizes.
    change = relative - genres @ np.ascontiguousarray((genres * np.float32(diversity)).T)
    at = relative.argmax()
    chosen = [at]
    gain = np.zeros(len(scores))
    for _ in range(min(count, len(scores)) - 1):
        gain += change[at]
        gain[at] = -np.inf
        at = gain.argmax()
        chosen.append(at)
    return np.array(chosen)


@lru_cache(64)
def policy(parameters: Parameters) -> Exploration:
    """The exploration that these parameters ask for."""
    depth = parameters.rerank_exploration_depth
    if parameters.rerank_exploration == EPSILON:
        return EpsilonGreedy(parameters.rerank_epsilon, depth)
    return PlackettLuce(parameters.rerank_temperature, depth)


def rerank(
    state: RequestState, items: ItemTable, generator: np.random.Generator = _GENERATOR
) -> None:
    """Choose the final list and its scores."""
    candidates = state.candidates
    assert candidates is not None
    count = min(state.request.num_items, len(candidates.rows))
    parameters = state.parameters
    explored = parameters.rerank_exploration != NO_EXPLORATION and state.task_scores is not None
    depth = depth_of(parameters, count) if explored else count
    positions, scores = ranking(state, items, depth)
    if explored:
        positions = explore(state, positions, count, generator)
    state.final = positions
    state.scores = scores.take(positions)
    ids = items.ids
    state.item_ids = [ids[row] for row in candidates.rows.take(positions).tolist()]


def ranking(state: RequestState, items: ItemTable, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions of the `depth` best candidates, best first; the scores of all candidates)."""
    candidates = state.candidates
    assert candidates is not None
    if state.task_scores is None:
        return np.arange(min(depth, len(candidates.rows))), candidates.scores
    return order_of(state.parameters, state.tasks, state.task_scores, items, candidates.rows, depth)


def depth_of(parameters: Parameters, count: int) -> int:
    """How long a ranking is needed to show `count`."""
    if parameters.rerank_exploration == NO_EXPLORATION:
        return count
    return max(count, parameters.rerank_exploration_depth)


def order_of(
    parameters: Parameters,
    tasks: tuple[str, ...],
    task_scores: np.ndarray,
    items: ItemTable,
    rows: np.ndarray,
    depth: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the `depth` best of n candidates, best first, before any draw; and float32[n],
    the values of all. tasks, task_scores float32[n, tasks]: theirs; rows: int[n], of the item
    table. Off-policy evaluation (`what_if_log`) ranks logged candidates with it, too."""
    scores = values(tasks, task_scores, parameters.rerank_like_weight)
    if parameters.rerank_diversity == 0 or depth < 2:
        return top(scores, depth), scores
    # Items far below the cut cannot win enough by diversity to be worth looking at, and the work
    # grows with the square of those that are.
    near = top(scores, min(4 * depth, depth + NEAR))
    genres = items.unit_genres[rows[near]]
    return near[diversified(scores[near], genres, parameters.rerank_diversity, depth)], scores


def explore(
    state: RequestState, ranked: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Positions of a list of `count` drawn from the ranking; notes how."""
    drawn = policy(state.parameters).draw(_logits(len(ranked)), count, generator)
    state.explored, state.pool = drawn, Pool(ranked)
    return ranked[drawn.positions]


@lru_cache(1_000)
def _logits(length: int) -> np.ndarray:
    return rank_logits(length)
