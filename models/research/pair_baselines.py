"""What a model of item pairs must beat: popularity, transitions and nearest items, by counting.

A baseline is a `PairScorer`, fitted on the training pairs of protocol C (`item_pairs.py`) and
measured as the models are: the whole corpus ranked, the query item left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_matrix

from models.data.sequences import NextItemPairs
from models.research import item_pairs
from models.training.baselines import counting
from models.training.baselines.item_knn import (
    histories,
    interaction_matrix,
    item_knn,
    item_knn_scores,
)
from models.training.metrics import top_k
from models.training.prepared.sequence_evaluation import tie_order

PairScorer = Callable[[np.ndarray], np.ndarray]  # item rows int[B] -> scores float[B, n + 1]


def popularity_scorer(pairs: NextItemPairs, num_items: int) -> PairScorer:
    """How often each item follows another in training, the same for every query."""
    popular = next_counts(pairs, num_items).astype(np.float64)
    return lambda queries: np.tile(popular, (len(queries), 1))


def markov_scorer(pairs: NextItemPairs, num_items: int) -> PairScorer:
    """How often each item follows the query in training, ties by popularity."""
    ones = np.ones(len(pairs.train))
    transitions = csr_matrix(
        (ones, (pairs.train[:, 0], pairs.train[:, 1])), shape=(num_items + 1, num_items + 1)
    )
    popular = next_counts(pairs, num_items).astype(np.float64)
    return lambda queries: counting.markov_scores(transitions, popular, queries)


def item_knn_scorer(
    pairs: NextItemPairs, num_items: int, neighbours: int = 200, shrink: float = 0.0
) -> PairScorer:
    """Cosine of two items as sets of training pairs, in either place.

    Not as sets of users: one whose test pair is (a, b) nearly always has a and b in training pairs
    as well, which would tell that they belong together.
    """
    pair = np.repeat(np.arange(len(pairs.train)), 2)
    together = interaction_matrix(pair, pairs.train.ravel(), num_items)
    similarity = item_knn(together, neighbours, shrink)
    return lambda queries: item_knn_scores(similarity, histories(list(queries[:, None]), num_items))


def next_counts(pairs: NextItemPairs, num_items: int) -> np.ndarray:
    """int64[n + 1]: training pairs by their second item."""
    return np.bincount(pairs.train[:, 1], minlength=num_items + 1)


def evaluate(
    scorer: PairScorer, pairs: NextItemPairs, num_items: int, asked: np.ndarray
) -> dict[str, np.ndarray]:
    """As `item_pairs.evaluate`; equal scores stand in `tie_order`."""
    order = tie_order(next_counts(pairs, num_items))
    place = np.argsort(order)
    queries, of = np.unique(asked[:, 0], return_inverse=True)
    lists = []
    for start in range(0, len(queries), item_pairs.BLOCK):
        block = queries[start : start + item_pairs.BLOCK]
        scores = scorer(block)[:, order]
        lists.append(order[top_k(scores, max(item_pairs.CUTOFFS), list(place[block][:, None]))])
    return item_pairs.metrics(np.concatenate(lists)[of], pairs, asked)
