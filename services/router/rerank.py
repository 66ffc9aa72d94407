"""Stage 6: from task probabilities to the list: value model and diversity, then exploration.

The order is the value model's (services/common/value_model.py). With `exploration` places are drawn
at random from the best of that order, with known probabilities (off-policy evaluation needs them);
they depend on ranks alone, because after diversification no score orders the list. An unranked
list is never explored: it is not the list that the experiment is about; nor is an interleaved one
(interleave.py).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from models.catalogue import ItemTable
from services.common.value_model import order_of, values
from services.experiments.declare.parameters import NO_EXPLORATION
from services.experiments.lists.exploration import depth_of, policy, rank_logits
from services.router.request import Pool, RequestState

_GENERATOR = np.random.default_rng()  # of this process, seeded by the system


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
    parameters = state.parameters
    scores = values(state.tasks, state.task_scores, parameters.rerank_like_weight)
    return order_of(scores, parameters.rerank_diversity, items, candidates.rows, depth), scores


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
