"""Stage 6: from task probabilities to the list: value model, then diversity.

Value of an item = p_click * (1 + like_weight * p_like). With `diversity` > 0 the list is filled
greedily: each place goes to the item with the largest value (relative to the best) minus
`diversity` times its mean genre similarity to the items above it.
"""

from __future__ import annotations

import numpy as np

from models.catalogue import ItemTable
from services.router.request import RequestState


def values(tasks: tuple[str, ...], task_scores: np.ndarray, like_weight: float) -> np.ndarray:
    """float32[n] values of candidates from their task probabilities [n, tasks]."""
    click = task_scores[:, tasks.index("click")]
    if "like" not in tasks:
        return click
    return click * (1.0 + like_weight * task_scores[:, tasks.index("like")])


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` best scores, best first; equal scores keep their order."""
    if count < len(scores) // 4:
        # The count-th best score bounds what must be sorted.
        bound = np.partition(scores, -count)[-count]
        near = np.flatnonzero(scores >= bound)
        return near[np.argsort(-scores[near], kind="stable")[:count]]
    return np.argsort(-scores, kind="stable")[:count]


def diversified(scores: np.ndarray, genres: np.ndarray, diversity: float, count: int) -> np.ndarray:
    """Positions of a greedy list of `count`: scores float32[n], genres float32[n, G] unit rows.

    With p items chosen the next one maximises p * value - diversity * (sum of its similarities),
    which is the rule of the module's docstring times p, and which a choice changes by one row.
    """
    relative = scores.astype(np.float64) / max(float(scores.max()), 1e-12)
    change = relative - diversity * (genres @ genres.T)
    gain = np.zeros(len(scores))
    at = int(relative.argmax())
    chosen = [at]
    while len(chosen) < min(count, len(scores)):
        gain += change[at]
        gain[at] = -np.inf
        at = int(gain.argmax())
        chosen.append(at)
    return np.array(chosen)


def rerank(state: RequestState, items: ItemTable) -> None:
    """Cut the candidates to the final list, with its scores."""
    candidates = state.candidates
    assert candidates is not None
    count = min(state.request.num_items, len(candidates.rows))
    parameters = state.parameters
    if state.task_scores is None:
        scores = candidates.scores
        positions = np.arange(count)
    else:
        scores = values(state.tasks, state.task_scores, parameters.rerank_like_weight)
        if parameters.rerank_diversity > 0 and count > 1:
            # Items far below the cut cannot win enough by diversity to be worth looking at.
            near = top(scores, 4 * count)
            genres = items.features["genres"][candidates.rows[near]]
            lengths = np.sqrt(np.einsum("ij,ij->i", genres, genres))
            unit = genres / np.maximum(lengths, 1e-6)[:, None]  # no genre: stays zero
            positions = near[diversified(scores[near], unit, parameters.rerank_diversity, count)]
        else:
            positions = top(scores, count)
        state.task_scores = state.task_scores[positions]
    state.scores = scores[positions]
    state.candidates = candidates.take(positions)
