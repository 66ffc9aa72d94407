"""What a learned model must beat: popularity, a first-order Markov chain, logistic regression."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression


def popularity_scores(rows: np.ndarray, num_items: int) -> np.ndarray:
    """float64[n + 1]: how often each item row was clicked."""
    return np.bincount(rows, minlength=num_items + 1).astype(np.float64)


def markov_transitions(user: np.ndarray, rows: np.ndarray, num_items: int) -> csr_matrix:
    """Counts [n + 1, n + 1] of (item, the same user's next item); events oldest first."""
    order = np.argsort(user, kind="stable")
    user, rows = user[order], rows[order]
    same = (user[1:] == user[:-1]) & (rows[1:] > 0) & (rows[:-1] > 0)
    pair = (np.ones(int(same.sum())), (rows[:-1][same], rows[1:][same]))
    return csr_matrix(pair, shape=(num_items + 1, num_items + 1))


def markov_scores(transitions: csr_matrix, popular: np.ndarray, last: np.ndarray) -> np.ndarray:
    """float64[U, n + 1]: transitions from each user's last item, ties broken by popularity."""
    return np.asarray(transitions[last].todense()) + popular / (popular.max() + 1.0)


class OneHotRegression:
    """Logistic regression on one-hot user and item and the item's values (L2, scikit-learn)."""

    def __init__(self, num_users: int, values: np.ndarray, strength: float = 1.0) -> None:
        """`values` float[n + 1, V] of every item row; `strength` is scikit-learn's C."""
        self._num_users, self._values = num_users, csr_matrix(values)
        # Newton steps: rare values need many of L-BFGS's, which stops too early at tol=1e-3.
        self._model = LogisticRegression(C=strength, max_iter=1000, tol=1e-5, solver="newton-cg")

    def _columns(self, user: np.ndarray, rows: np.ndarray) -> csr_matrix:
        n, at = len(user), np.arange(len(user))
        users = csr_matrix((np.ones(n), (at, user)), shape=(n, self._num_users))
        shape = (n, self._values.shape[0])
        known = rows > 0
        items = csr_matrix((np.ones(known.sum()), (at[known], rows[known])), shape=shape)
        return hstack([users, items, self._values[rows]]).tocsr()

    def fit(self, user: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> OneHotRegression:
        self._model.fit(self._columns(user, rows), labels)
        return self

    def predict(self, user: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Probability of the positive class, float64[N]."""
        return self._model.predict_proba(self._columns(user, rows))[:, 1]
