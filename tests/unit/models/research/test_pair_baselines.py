"""Counting baselines of item pairs: by hand, and as the models are measured."""

from __future__ import annotations

import numpy as np
import pytest

from models.data.sequences import NextItemPairs
from models.research import item_pairs
from models.research.pair_baselines import (
    evaluate,
    item_knn_scorer,
    markov_scorer,
    popularity_scorer,
)

ITEMS = 60
NOBODY = np.zeros(0, np.int64)
TRAIN = np.array([[1, 2]] * 3 + [[1, 3]] + [[4, 3]] * 4 + [[2, 5]])


def data(train: np.ndarray = TRAIN) -> NextItemPairs:
    return NextItemPairs(train, train[:1], train[:1], NOBODY, NOBODY, NOBODY)


def test_popularity_counts_what_comes_second_and_markov_what_comes_after_the_query() -> None:
    popular = popularity_scorer(data(), ITEMS)(np.array([1, 4]))
    assert popular[0, 1:6].tolist() == [0, 3, 5, 0, 1]
    assert (popular[0] == popular[1]).all()
    markov = markov_scorer(data(), ITEMS)(np.array([1, 9]))
    assert np.argsort(-markov[0])[:3].tolist() == [2, 3, 5], "unseen transitions by popularity"
    assert np.argsort(-markov[1])[:3].tolist() == [3, 2, 5], "a query that nothing follows too"


def test_item_knn_is_the_cosine_of_two_items_as_sets_of_pairs() -> None:
    scores = item_knn_scorer(data(), ITEMS)(np.array([1, 2]))
    assert scores[0, 2] == scores[1, 1] == pytest.approx(3 / np.sqrt(4 * 4))
    assert scores[0, 3] == pytest.approx(1 / np.sqrt(4 * 5))
    assert scores[1, 5] == pytest.approx(1 / np.sqrt(4 * 1))
    assert np.count_nonzero(scores) == 4
    shrunk = item_knn_scorer(data(), ITEMS, neighbours=1, shrink=2.0)(np.array([1]))
    assert shrunk[0, 2] == pytest.approx(3 / (4 + 2))
    assert shrunk[0, 3] == 0.0, "item 3's nearest is 4"


def test_a_baseline_is_measured_as_a_model_of_the_same_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    pairs = data(rng.integers(1, ITEMS + 1, (400, 2)))
    asked = rng.integers(1, ITEMS + 1, (150, 2))
    table = rng.random((ITEMS + 1, ITEMS + 1))  # no ties
    lists = []
    for query in asked[:, 0]:
        order = np.argsort(-table[query])
        lists.append(order[(order != 0) & (order != query)][:50])
    expected = item_pairs.metrics(np.array(lists), pairs, asked)
    monkeypatch.setattr(item_pairs, "BLOCK", 7)
    found = evaluate(lambda queries: table[queries], pairs, ITEMS, asked)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_equal_scores_are_not_ordered_by_row() -> None:
    asked = np.stack([np.full(ITEMS - 1, 1), np.arange(2, ITEMS + 1)], axis=1)
    pairs = data(np.array([[2, 1], [1, ITEMS]]))
    found = evaluate(lambda queries: np.zeros((len(queries), ITEMS + 1)), pairs, ITEMS, asked)
    assert found["recall@10"].sum() == 10
    assert found["recall@10"][-1] == 1, "the one that training counts is first"
    assert found["recall@10"][:9].sum() < 9
