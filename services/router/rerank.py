"""Stage 6: from task scores to the list: value model and diversity, then exploration.

The order is the value model's (services/common/value_model.py). With `exploration` places are drawn
at random from the best of that order, with known probabilities (off-policy evaluation needs them);
they depend on ranks alone, because after diversification no score orders the list. An unranked
list is never explored: it is not the list that the experiment is about; nor is an interleaved one
(interleave.py).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from services.common.value_model import order_of
from services.experiments.declare.parameters import EXPLORE, NO_EXPLORATION, Parameters
from services.experiments.lists.exploration import depth_of, policy, rank_logits
from services.router.request import Draw, Query, Ranking, Shown, show

_GENERATOR = np.random.default_rng()  # of this process, seeded by the system


def rerank(ranking: Ranking, query: Query, generator: np.random.Generator = _GENERATOR) -> Shown:
    """The list, drawn or not, and its scores."""
    parameters, kind = query.parameters, query.parameters.rerank_exploration
    count = min(query.num_items, len(ranking.pool.candidates.rows))
    if ranking.task_scores is not None:
        query.read.update((EXPLORE, kind))
        if kind != NO_EXPLORATION:
            ranked, scores = order(ranking, parameters, query, depth_of(parameters, count))
            explored = policy(parameters).draw(_logits(len(ranked)), count, generator)
            return show(ranking, ranked[explored.positions], scores, query, Draw(ranked, explored))
    return show(ranking, *order(ranking, parameters, query, count), query)


def order(
    ranking: Ranking, parameters: Parameters, query: Query, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """(positions of the `depth` best candidates, best first; the scores of all candidates)."""
    candidates = ranking.pool.candidates
    if ranking.task_scores is None:
        return np.arange(min(depth, len(candidates.rows))), candidates.scores
    scores = query.value(ranking.tasks, ranking.task_scores, parameters.weights)
    items, diverse_by, rows = query.items, query.value_model.diverse_by, candidates.rows
    return order_of(scores, parameters.rerank_diversity, items, diverse_by, rows, depth), scores


@lru_cache(1_000)
def _logits(length: int) -> np.ndarray:
    return rank_logits(length)
