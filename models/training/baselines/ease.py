"""EASE baseline: the item-to-item linear model with a zero diagonal, in closed form.

"Embarrassingly Shallow Autoencoders for Sparse Data", WWW'19, arXiv 1905.03375, eq. 6-8. Memory is
that of two dense n x n matrices at most (n = 12,000: 1.2 GB in float64).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack
from scipy.sparse import csr_matrix

L2 = 250.0


def ease(interactions: csr_matrix, l2: float = L2, dtype: type = np.float64) -> np.ndarray:
    """B [n + 1, n + 1]: minimises |X - X B|^2 + l2 |B|^2 under diag(B) = 0.

    With P = (X'X + l2 I)^-1, B_ij = -P_ij / P_jj off the diagonal. `l2` must be positive.
    `interactions` X as of `interaction_matrix`; an item that nobody chose has zero weights.
    """
    if l2 <= 0:
        raise ValueError(f"l2 must be positive, is {l2}")
    gram = np.asfortranarray((interactions.T @ interactions).toarray().astype(dtype, copy=False))
    gram[np.diag_indices_from(gram)] += l2
    potrf, potri = lapack.get_lapack_funcs(("potrf", "potri"), (gram,))
    factor, failed = potrf(gram, lower=True, overwrite_a=True, clean=False)
    if failed:
        raise ValueError(f"X'X + {l2} I is not positive definite in {np.dtype(dtype).name}")
    inverse, _ = potri(factor, lower=True, overwrite_c=True)
    for i in range(len(inverse)):  # LAPACK fills the lower half only
        inverse[i, i + 1 :] = inverse[i + 1 :, i]
    inverse /= -inverse.diagonal().copy()
    np.fill_diagonal(inverse, 0.0)
    return inverse


def ease_scores(weights: np.ndarray, history: csr_matrix) -> np.ndarray:
    """[U, n + 1] = X B of the users' histories (`item_knn.histories`)."""
    return np.asarray(history @ weights)
