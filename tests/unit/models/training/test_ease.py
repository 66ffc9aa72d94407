"""EASE: the closed form is the constrained minimum, and it recommends what goes together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from models.training.baselines.ease import ease, ease_scores
from models.training.baselines.item_knn import histories, interaction_matrix


def _world(seed: int, users: int = 40, items: int = 12) -> csr_matrix:
    rng = np.random.default_rng(seed)
    return interaction_matrix(rng.integers(0, users, 200), rng.integers(0, items + 1, 200), items)


@given(seed=st.integers(0, 10_000), l2=st.floats(0.1, 500))
@settings(max_examples=50)
def test_each_column_is_the_ridge_regression_on_the_other_items(seed: int, l2: float) -> None:
    matrix = _world(seed)
    x = matrix.toarray()
    weights = ease(matrix, l2)
    assert not weights.diagonal().any()
    for item in (1, 5):
        others = [j for j in range(x.shape[1]) if j != item]
        a = x[:, others]
        ridge = np.linalg.solve(a.T @ a + l2 * np.eye(len(others)), a.T @ x[:, item])
        np.testing.assert_allclose(weights[others, item], ridge, atol=1e-8)


def test_the_unknown_item_and_items_without_users_weigh_nothing() -> None:
    matrix = interaction_matrix(np.array([0, 0, 1]), np.array([1, 2, 1]), 4)
    weights = ease(matrix, 1.0)
    for row in (0, 3, 4):
        assert not weights[row].any()
        assert not weights[:, row].any()
    assert weights[1, 2] > 0


def test_scores_are_the_histories_times_the_weights() -> None:
    matrix = _world(0)
    weights = ease(matrix, 10.0)
    scores = ease_scores(weights, histories([np.array([1, 5]), np.array([], np.int64)], 12))
    np.testing.assert_allclose(scores[0], weights[1] + weights[5])
    assert not scores[1].any()


def test_single_precision_agrees() -> None:
    matrix = _world(3)
    single = ease(matrix, 20.0, np.float32)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, ease(matrix, 20.0), atol=1e-5)


@pytest.mark.parametrize("l2", [0.0, -1.0])
def test_a_penalty_that_is_not_positive_is_refused(l2: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        ease(_world(0), l2)
