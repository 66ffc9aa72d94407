"""The value model orders, diversity spreads, and ranking's absence keeps retrieval's order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from services.experiments.parameters import Parameters
from services.router.rerank import diversified, rerank, top, values
from tests.unit.router.conftest import candidates_of

SCORES = st_np.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(0, 1, width=32, allow_subnormal=False)
)


@given(scores=SCORES, count=st.integers(1, 60))
def test_top_equals_a_stable_sort(scores, count):
    count = min(count, len(scores))
    expected = sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
    assert top(scores, count).tolist() == expected


@given(scores=SCORES, count=st.integers(1, 60))
def test_without_genres_diversity_changes_nothing(scores, count):
    flat = np.zeros((len(scores), 3), np.float32)
    assert (
        diversified(scores, flat, 0.7, count).tolist()
        == np.argsort(-scores, kind="stable")[:count].tolist()
    )


def test_diversity_alternates_equal_items_of_two_genres():
    genres = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 1]]
    scores = np.array([1, 0.99, 0.98, 0.97, 0.96, 0.95], np.float32)
    assert diversified(scores, genres, 0.5, 4).tolist() == [0, 3, 1, 4]


def test_a_like_is_worth_what_the_parameter_says():
    scores = np.array([[0.5, 0.0], [0.4, 1.0]], np.float32)
    np.testing.assert_allclose(values(("click", "like"), scores, 3.0), [0.5, 1.6])
    np.testing.assert_allclose(values(("click",), scores[:, :1], 3.0), [0.5, 0.4])


def test_the_ranked_list_and_everything_beside_it_stay_aligned(items, state):
    state.candidates = candidates_of(items, list(range(1, 21)))
    state.tasks = ("click", "like")
    click = np.linspace(0, 1, 20, dtype=np.float32)
    state.task_scores = np.stack([click, np.zeros(20, np.float32)], axis=1)
    rerank(state, items)
    assert state.item_ids == [items.ids[row] for row in state.candidates.rows[state.final]]
    state.cut()
    state.cut()  # a second time changes nothing
    assert state.candidates.rows.tolist() == [20, 19, 18, 17, 16]
    np.testing.assert_array_equal(state.scores, click[::-1][:5])
    np.testing.assert_array_equal(state.task_scores[:, 0], click[::-1][:5])


def test_unranked_candidates_keep_retrievals_order(items, state):
    state.candidates = candidates_of(items, [9, 3, 27, 4, 11, 2])
    rerank(state, items)
    assert state.item_ids == [items.ids[row] for row in state.candidates.rows[state.final]]
    state.cut()
    state.cut()  # a second time changes nothing
    assert state.candidates.rows.tolist() == [9, 3, 27, 4, 11]
    np.testing.assert_array_equal(state.scores, state.candidates.scores)


def test_a_list_of_one_needs_no_diversity(items, state):
    state.parameters = Parameters(rerank_diversity=1.0)
    state.request.num_items = 1
    state.candidates = candidates_of(items, [5, 6])
    state.tasks = ("click", "like")
    state.task_scores = np.array([[0.1, 0.5], [0.2, 0.5]], np.float32)
    rerank(state, items)
    assert state.item_ids == [items.ids[row] for row in state.candidates.rows[state.final]]
    state.cut()
    state.cut()  # a second time changes nothing
    assert state.candidates.rows.tolist() == [6]
