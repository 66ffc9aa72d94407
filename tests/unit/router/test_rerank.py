"""The list is the value model's, drawn as its record says; without ranking retrieval's order."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.value_model import diversified
from services.experiments.declare.parameters import EPSILON, PLACKETT_LUCE, Parameters
from services.experiments.lists.exploration import policy, rank_logits
from services.router.record import decision_record
from services.router.rerank import rerank
from tests.unit.router.conftest import candidates_of


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
