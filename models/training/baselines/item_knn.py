"""ItemKNN baseline: items that the same users chose, by cosine.

"Item-based top-N recommendation algorithms", Deshpande and Karypis, TOIS'04; the implicit form: an
item is the set of its users.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix

NEIGHBOURS = 200
BLOCK_ROWS = 2048  # items whose similarities to all others are held at once


def interaction_matrix(user: np.ndarray, rows: np.ndarray, num_items: int) -> csr_matrix:
    """Who chose what: ones in [users, n + 1]; repeats count once, row 0 (unknown) never."""
    known = rows > 0
    shape = (int(user.max(initial=-1)) + 1, num_items + 1)
    matrix = csr_matrix((np.ones(int(known.sum())), (user[known], rows[known])), shape=shape)
    matrix.data[:] = 1.0  # duplicates were summed
    return matrix


def histories(seen: Sequence[np.ndarray], num_items: int) -> csr_matrix:
    """The same matrix of item rows per user, for scoring: float64[len(seen), n + 1]."""
    user = np.repeat(np.arange(len(seen)), [len(rows) for rows in seen])
    rows = np.concatenate([np.empty(0, np.int64), *seen])
    matrix = interaction_matrix(user, rows, num_items)
    matrix.resize(len(seen), num_items + 1)
    return matrix


def item_knn(
    interactions: csr_matrix, neighbours: int = NEIGHBOURS, shrink: float = 0.0
) -> csr_matrix:
    """Similarities [n + 1, n + 1]: |U_i & U_j| / (sqrt(|U_i| |U_j|) + shrink), zero diagonal.

    Each column keeps its item's `neighbours` largest, so that an item is scored by the history's
    items among its own nearest. `shrink` pulls pairs with little evidence towards 0.
    """
    users = interactions.T.tocsr()
    root = np.sqrt(np.asarray(interactions.sum(0)).ravel())
    blocks = []
    for start in range(0, users.shape[0], BLOCK_ROWS):
        common = (users[start : start + BLOCK_ROWS] @ interactions).tocoo()
        row = common.row + start
        value = common.data / (root[row] * root[common.col] + shrink)
        keep = row != common.col
        row, column, value = row[keep], common.col[keep], value[keep]
        # Within each row (an item), the largest first; then the place within the row.
        order = np.lexsort((column, -value, row))
        row, column, value = row[order], column[order], value[order]
        place = np.arange(len(row)) - np.searchsorted(row, row, side="left")
        near = place < neighbours
        blocks.append((row[near], column[near], value[near]))
    item, other, value = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return csr_matrix((value, (other, item)), shape=(users.shape[0], users.shape[0]))


def item_knn_scores(similarity: csr_matrix, history: csr_matrix) -> np.ndarray:
    """float64[U, n + 1]: the summed similarity of each item to the user's history."""
    return (history @ similarity).toarray()
