"""The list is the value model's, drawn as its record says; without ranking retrieval's order."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.value_model import diversified
from services.experiments.declare.parameters import EPSILON, PLACKETT_LUCE
from services.experiments.lists.exploration import policy, rank_logits
from services.router.record import decision_record
from services.router.request import Pool, Ranking
from services.router.rerank import rerank
from tests.domains import production
from tests.unit.router.conftest import answered, pool_of


def test_the_ranked_list_and_everything_beside_it_stay_aligned(items, query):
    click = np.linspace(0, 1, 20, dtype=np.float32)
    scores = np.stack([click, np.zeros(20, np.float32)], axis=1)
    pool = pool_of(items, range(1, 21))
    odd = np.arange(20, dtype=np.uint8) % 2
    candidates = pool.candidates._replace(source=odd, interest=1 - odd, sources=("even", "odd"))
    shown = rerank(Ranking(Pool(candidates, 20), ("click", "like"), scores), query)
    assert shown.item_ids == [items.ids[row] for row in [20, 19, 18, 17, 16]]
    np.testing.assert_array_equal(shown.scores, click[::-1][:5])
    np.testing.assert_array_equal(shown.task_scores[:, 0], click[::-1][:5])
    assert shown.source.tolist() == [1, 0, 1, 0, 1]
    assert shown.interest.tolist() == [0, 1, 0, 1, 0]


def test_unranked_candidates_keep_retrievals_order(items, query):
    pool = pool_of(items, [9, 3, 27, 4, 11, 2])
    shown = rerank(Ranking(pool), query)
    assert shown.item_ids == [items.ids[row] for row in [9, 3, 27, 4, 11]]
    np.testing.assert_array_equal(shown.scores, pool.candidates.scores[:5])
    assert shown.task_scores is None


def test_a_list_of_one_needs_no_diversity(items, query):
    query = query._replace(parameters=production(rerank_diversity=1.0))
    query.request.asked.num_items = 1
    scores = np.array([[0.1, 0.5], [0.2, 0.5]], np.float32)
    shown = rerank(Ranking(pool_of(items, [5, 6]), ("click", "like"), scores), query)
    assert shown.item_ids == [items.ids[6]]


def ranked(query, parameters, generator=None):
    """The list of five of twenty candidates whose best is the last."""
    click = np.linspace(0, 1, 20, dtype=np.float32)
    scores = np.stack([click, np.zeros(20, np.float32)], axis=1)
    ranking = Ranking(pool_of(query.items, range(1, 21)), ("click", "like"), scores)
    generator = generator or np.random.default_rng(5)
    return rerank(ranking, query._replace(parameters=parameters), generator)


@pytest.mark.parametrize(
    "parameters",
    [
        production(rerank_exploration=EPSILON, rerank_epsilon=1.0, rerank_exploration_depth=3),
        production(rerank_exploration=EPSILON, rerank_epsilon=0.8, rerank_exploration_depth=50),
        production(rerank_exploration=PLACKETT_LUCE, rerank_temperature=1.0),
        production(rerank_exploration=PLACKETT_LUCE, rerank_diversity=0.3, rerank_temperature=1.0),
    ],
    ids=["shallow epsilon", "epsilon", "plackett-luce", "diverse plackett-luce"],
)
def test_an_explored_list_is_recorded_with_its_probabilities(items, query, parameters):
    shown = ranked(query, parameters)
    depth = max(5, parameters.rerank_exploration_depth)
    if parameters.rerank_diversity:
        genres = items.unit_values("genres", np.arange(1, 21))
        order = diversified(np.linspace(0, 1, 20, dtype=np.float32), genres, 0.3, depth)
    else:
        order = np.arange(20)[::-1][:depth]
    places = np.array([order.tolist().index(position) for position in shown.positions])
    assert places.tolist() != list(range(5))  # or the seed shows nothing
    expected = policy(parameters).propensities(places, rank_logits(len(order)))
    assert (expected < 1).any()
    record = decision_record(answered(query, shown))
    np.testing.assert_allclose(np.frombuffer(record.propensities, "<f4"), expected, rtol=1e-6)
    assert np.frombuffer(record.exploration.places, "<u2").tolist() == places.tolist()
    assert record.exploration.ranked == len(order)
    again = policy(  # rebuilt from the record alone
        production(
            rerank_exploration=record.exploration.kind,
            rerank_epsilon=record.exploration.strength,
            rerank_temperature=record.exploration.strength,
            rerank_exploration_depth=record.exploration.depth,
        )
    )
    recomputed = again.propensities(places, rank_logits(record.exploration.ranked))
    np.testing.assert_allclose(recomputed, expected, rtol=1e-5)
    assert len(set(shown.item_ids)) == 5


def test_a_list_without_exploration_was_certain(query):
    shown = ranked(query, production())
    assert shown.positions.tolist() == [19, 18, 17, 16, 15]
    record = decision_record(answered(query, shown))
    assert np.frombuffer(record.propensities, "<f4").tolist() == [1.0] * 5
    assert not record.HasField("exploration")


def test_an_unranked_list_is_not_explored(items, query):
    parameters = production(rerank_exploration=PLACKETT_LUCE, rerank_temperature=10.0)
    ranking = Ranking(pool_of(items, [9, 3, 27, 4, 11, 2]))
    shown = rerank(ranking, query._replace(parameters=parameters))
    assert shown.positions.tolist() == [0, 1, 2, 3, 4]
    assert shown.draw is None


def test_each_request_draws_anew(query):
    parameters = production(rerank_exploration=PLACKETT_LUCE, rerank_temperature=10.0)
    generator = np.random.default_rng(1)
    lists = {tuple(ranked(query, parameters, generator).item_ids) for _ in range(20)}
    assert len(lists) == 20
