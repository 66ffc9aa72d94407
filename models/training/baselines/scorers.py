"""The counting baselines of retrieval, fitted on who chose what: each scores all items for users.

A fit takes the training events (user int[N] and item rows int[N], oldest first, row 0 unknown) and
the number of items n; what it gives scores U users, of whom it is told the newest item int[U] and
the items of the history, as float[U, n + 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from models.training.baselines import item_knn as knn
from models.training.baselines.counting import markov_scores, markov_transitions, popularity_scores
from models.training.baselines.ease import L2, ease_scores
from models.training.baselines.ease import ease as ease_weights

Counted = Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray]


def popularity(user: np.ndarray, rows: np.ndarray, num_items: int) -> Counted:
    """Counts of events, the same for everyone."""
    counts = popularity_scores(rows, num_items)
    return lambda last, seen: np.tile(counts, (len(last), 1))


def markov(user: np.ndarray, rows: np.ndarray, num_items: int) -> Counted:
    """Counts of transitions from the newest item, ties by popularity."""
    transitions = markov_transitions(user, rows, num_items)
    counts = popularity_scores(rows, num_items)
    return lambda last, seen: markov_scores(transitions, counts, last)


def item_knn(
    user: np.ndarray,
    rows: np.ndarray,
    num_items: int,
    neighbours: int = knn.NEIGHBOURS,
    shrink: float = 0.0,
) -> Counted:
    """Summed cosine of each item to the history's items."""
    matrix = knn.interaction_matrix(user, rows, num_items)
    similarity = knn.item_knn(matrix, neighbours, shrink)
    return lambda last, seen: knn.item_knn_scores(similarity, knn.histories(seen, num_items))


def ease(
    user: np.ndarray,
    rows: np.ndarray,
    num_items: int,
    l2: float = L2,
    dtype: type = np.float32,
) -> Counted:
    """The history times EASE's item-to-item weights, all of `dtype`."""
    matrix = knn.interaction_matrix(user, rows, num_items).astype(dtype)
    weights = ease_weights(matrix, l2, dtype)
    return lambda last, seen: ease_scores(weights, knn.histories(seen, num_items).astype(dtype))


FITS: Mapping[str, Callable[..., Counted]] = {
    "popularity": popularity,
    "markov": markov,
    "item_knn": item_knn,
    "ease": ease,
}
