"""The value model orders, diversity spreads, and ranking's absence keeps retrieval's order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from services.experiments.declare.parameters import EPSILON, PLACKETT_LUCE, Parameters
from services.experiments.lists.exploration import rank_logits
from services.router.record import decision_record
from services.router.rerank import PARTITION_FROM, diversified, policy, rerank, top, values
from tests.unit.router.conftest import candidates_of

UNIT = st.floats(0, 1, width=32, allow_subnormal=False)
SCORES = st_np.arrays(np.float32, st.integers(1, 60), elements=UNIT)
# As many as are not sorted whole, with ties at every place of the cut.
MANY = st_np.arrays(
    np.float32, st.integers(PARTITION_FROM, 700), elements=UNIT | st.sampled_from([0.25, 0.5])
)


@given(scores=SCORES | MANY, count=st.integers(1, 60))
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


def ranked(state, items, parameters):
    """Twenty candidates whose best is the last; a list of five."""
    state.candidates = candidates_of(items, list(range(1, 21)))
    state.tasks = ("click",)
    state.task_scores = np.linspace(0, 1, 20, dtype=np.float32)[:, None]
    state.parameters = parameters
    rerank(state, items, np.random.default_rng(5))
    return 19 - state.final  # places in the ranking


@pytest.mark.parametrize(
    "parameters",
    [
        Parameters(rerank_exploration=EPSILON, rerank_epsilon=1.0, rerank_exploration_depth=3),
        Parameters(rerank_exploration=EPSILON, rerank_epsilon=0.8, rerank_exploration_depth=50),
        Parameters(rerank_exploration=PLACKETT_LUCE, rerank_temperature=1.0),
        Parameters(rerank_exploration=PLACKETT_LUCE, rerank_diversity=0.3, rerank_temperature=1.0),
    ],
    ids=["shallow epsilon", "epsilon", "plackett-luce", "diverse plackett-luce"],
)
def test_an_explored_list_is_recorded_with_its_probabilities(items, state, parameters):
    ranked(state, items, parameters)
    depth = max(5, parameters.rerank_exploration_depth)
    if parameters.rerank_diversity:
        genres = items.unit_genres[1:21]
        order = diversified(np.linspace(0, 1, 20, dtype=np.float32), genres, 0.3, depth)
    else:
        order = np.arange(20)[::-1][:depth]
    places = np.array([order.tolist().index(position) for position in state.final])
    assert places.tolist() != list(range(5))  # or the seed shows nothing
    expected = policy(parameters).propensities(places, rank_logits(len(order)))
    assert (expected < 1).any()
    record = decision_record(state)
    np.testing.assert_allclose(np.frombuffer(record.propensities, "<f4"), expected, rtol=1e-6)
    assert np.frombuffer(record.exploration.places, "<u2").tolist() == places.tolist()
    assert record.exploration.ranked == len(order)
    again = policy(  # rebuilt from the record alone
        Parameters(
            rerank_exploration=record.exploration.kind,
            rerank_epsilon=record.exploration.strength,
            rerank_temperature=record.exploration.strength,
            rerank_exploration_depth=record.exploration.depth,
        )
    )
    recomputed = again.propensities(places, rank_logits(record.exploration.ranked))
    np.testing.assert_allclose(recomputed, expected, rtol=1e-5)
    assert len(set(state.item_ids)) == 5


def test_a_list_without_exploration_was_certain(items, state):
    assert ranked(state, items, Parameters()).tolist() == [0, 1, 2, 3, 4]
    record = decision_record(state)
    assert np.frombuffer(record.propensities, "<f4").tolist() == [1.0] * 5
    assert not record.HasField("exploration")


def test_an_unranked_list_is_not_explored(items, state):
    state.candidates = candidates_of(items, [9, 3, 27, 4, 11, 2])
    state.parameters = Parameters(rerank_exploration=PLACKETT_LUCE, rerank_temperature=10.0)
    rerank(state, items)
    assert state.final.tolist() == [0, 1, 2, 3, 4]
    assert state.explored is None


def test_each_request_draws_anew(items, state):
    parameters = Parameters(rerank_exploration=PLACKETT_LUCE, rerank_temperature=10.0)
    lists = set()
    generator = np.random.default_rng(1)
    for _ in range(20):
        state.candidates = candidates_of(items, list(range(1, 21)))
        state.tasks = ("click",)
        state.task_scores = np.linspace(0, 1, 20, dtype=np.float32)[:, None]
        state.parameters = parameters
        rerank(state, items, generator)
        lists.add(tuple(state.item_ids))
    assert len(lists) == 20
