"""ItemKNN: cosine by hand, neighbours, unknown items."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.training.baselines import item_knn as knn

# user 0: items 1, 2; user 1: items 1, 2, 3; user 2: item 3; 1 twice, and an unknown item.
USER = np.array([0, 0, 0, 1, 1, 1, 2, 2])
ROWS = np.array([1, 2, 1, 1, 2, 3, 3, 0])


def test_repeats_count_once_and_the_unknown_item_never() -> None:
    matrix = knn.interaction_matrix(USER, ROWS, 4).toarray()
    expected = [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 0]]
    assert matrix.tolist() == expected


def test_similarity_is_the_cosine_of_user_sets() -> None:
    similarity = knn.item_knn(knn.interaction_matrix(USER, ROWS, 4)).toarray()
    expected = np.zeros((5, 5))
    expected[1, 2] = expected[2, 1] = 1.0
    expected[1, 3] = expected[3, 1] = expected[2, 3] = expected[3, 2] = 0.5
    np.testing.assert_allclose(similarity, expected)


def test_shrinkage_lowers_pairs_with_little_evidence() -> None:
    similarity = knn.item_knn(knn.interaction_matrix(USER, ROWS, 4), shrink=2.0).toarray()
    assert similarity[1, 2] == pytest.approx(2 / (2 + 2))
    assert similarity[1, 3] == pytest.approx(1 / (2 + 2))


@given(seed=st.integers(0, 10_000), neighbours=st.integers(1, 12), block=st.integers(1, 20))
def test_each_item_keeps_its_nearest_whatever_the_block(
    seed: int, neighbours: int, block: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = knn.interaction_matrix(rng.integers(0, 15, 60), rng.integers(0, 11, 60), 10)
    dense = matrix.toarray()
    norm = np.linalg.norm(dense, axis=0)
    cosine = np.divide(dense.T @ dense, np.outer(norm, norm), where=np.outer(norm, norm) > 0,
                       out=np.zeros((11, 11)))  # fmt: skip
    np.fill_diagonal(cosine, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "BLOCK_ROWS", block)
        similarity = knn.item_knn(matrix, neighbours).toarray()
    for item in range(11):
        kept = similarity[:, item]
        np.testing.assert_allclose(
            np.sort(kept)[::-1][:neighbours], np.sort(cosine[item])[::-1][:neighbours]
        )
        assert (kept > 0).sum() <= neighbours
        np.testing.assert_allclose(kept[kept > 0], cosine[item][kept > 0])


def test_an_items_score_sums_over_the_history() -> None:
    similarity = knn.item_knn(knn.interaction_matrix(USER, ROWS, 4))
    history = knn.histories([np.array([1, 3, 1]), np.array([], np.int64), np.array([0])], 4)
    scores = knn.item_knn_scores(similarity, history)
    assert scores.shape == (3, 5)
    np.testing.assert_allclose(scores[0], [0, 0.5, 1.5, 0.5, 0])
    assert not scores[1:].any()


def test_no_events_give_no_similarity() -> None:
    none = np.empty(0, np.int64)
    assert knn.item_knn(knn.interaction_matrix(none, none, 4)).nnz == 0
