"""Who is asked what in retrieval, and recall, AUC and Markov against values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import roc_auc_score

from models.training.baselines.counting import markov_scores, markov_transitions, popularity_scores
from models.training.metrics import auc, recall_at, row_log_loss
from models.training.replay import replay
from models.training.retrieval_cases import retrieval_cases
from tests.unit.models import synthetic


def test_recall_by_hand() -> None:
    scores = np.array([[9.0, 5, 4, 3, 2, 1], [9.0, 1, 2, 3, 4, 5]])
    seen = [np.array([1]), np.array([], int)]
    targets = [np.array([2, 3, 5]), np.array([1])]
    # User 1 sees items 2, 3 (item 1 is seen, row 0 no item): 2 of 3. User 2 sees 5, 4: none.
    estimate = recall_at(scores, seen, targets, k=2)
    assert estimate.mean == pytest.approx((2 / 3 + 0) / 2)
    assert estimate.users == 2
    assert estimate.standard_error == pytest.approx(np.std([2 / 3, 0], ddof=1) / math.sqrt(2))


def test_auc_by_hand() -> None:
    # Pairs: .8 > .3, .8 > .5, .5 > .3, .5 = .5 (half): 3.5 of 4.
    assert auc(np.array([1, 1, 0, 0]), np.array([0.8, 0.5, 0.3, 0.5])) == 3.5 / 4


def test_auc_of_one_class_is_not_a_number() -> None:
    assert math.isnan(auc(np.ones(3), np.arange(3.0)))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_auc_and_log_loss_agree_with_scikit_learn(pairs: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in pairs])
    scores = np.array([(score + 1) / 8 for _, score in pairs])
    assert row_log_loss(labels, scores).mean() == pytest.approx(
        sk_log_loss(labels, scores, labels=[0, 1])
    )
    if 0 < labels.sum() < len(labels):
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_markov_follows_transitions_and_breaks_ties_by_popularity() -> None:
    user = np.array([0, 1, 0, 1, 0, 2, 2])
    rows = np.array([1, 1, 2, 2, 3, 4, 3])
    popular = popularity_scores(rows, 4)
    assert popular.tolist() == [0, 2, 2, 2, 1]
    scores = markov_scores(markov_transitions(user, rows, 4), popular, np.array([1, 0]))
    assert np.argsort(-scores[0], kind="stable").tolist() == [2, 1, 3, 4, 0]
    assert np.argsort(-scores[1], kind="stable")[:3].tolist() == [1, 2, 3]


def test_a_case_has_its_whole_past_as_history_and_only_later_events_as_targets() -> None:
    data = synthetic.dataset()
    examples = replay(data)
    cases = retrieval_cases(examples, data.train_until_ms)
    users = np.unique(examples.user[examples.time_ms >= data.train_until_ms])
    assert 0 < len(cases.targets) <= len(users)
    for u, (seen, targets) in enumerate(zip(cases.seen, cases.targets, strict=True)):
        assert not set(seen) & set(targets)
        history = cases.batch.history[u]
        assert set(history[history > 0]) <= set(seen)
        assert cases.last[u] == history[0]
        assert len(seen) >= 3 * len(targets)
