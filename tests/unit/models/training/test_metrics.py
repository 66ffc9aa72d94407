"""Metrics against fixtures computed by hand, scikit-learn and the laws that define them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from models.training import metrics as m

LISTS = np.array([[3, 1, 4, 2], [5, 2, 1, 3], [1, 2, 0, 0]])
TARGETS = [np.array([1, 2, 9]), np.array([3]), np.array([4])]


def test_retrieval_metrics_by_hand_with_several_targets() -> None:
    got = m.list_metrics(LISTS, TARGETS, cutoffs=(2, 4))
    d = [1 / math.log2(p + 1) for p in (1, 2, 3, 4)]
    # User 1 finds item 1 at place 2 and item 2 at place 4; user 2 item 3 at place 4; user 3 none.
    assert got["recall@2"].tolist() == pytest.approx([1 / 3, 0, 0])
    assert got["recall@4"].tolist() == pytest.approx([2 / 3, 1, 0])
    assert got["hr@2"].tolist() == [1, 0, 0]
    assert got["hr@4"].tolist() == [1, 1, 0]
    assert got["ndcg@2"].tolist() == pytest.approx([d[1] / (d[0] + d[1]), 0, 0])
    assert got["ndcg@4"].tolist() == pytest.approx([(d[1] + d[3]) / sum(d[:3]), d[3], 0])
    assert got["ndcg_comirec@4"].tolist() == pytest.approx([(d[1] + d[3]) / (d[0] + d[1]), d[3], 0])
    assert got["map@2"].tolist() == pytest.approx([(1 / 2) / 2, 0, 0])
    assert got["map@4"].tolist() == pytest.approx([(1 / 2 + 2 / 4) / 3, 1 / 4, 0])


def test_a_user_without_targets_has_no_value_rather_than_zero() -> None:
    got = m.list_metrics(LISTS[:1], [np.array([], int)], cutoffs=(2,))
    assert all(np.isnan(values).all() for values in got.values())


def test_a_list_shorter_than_the_cutoff_is_refused() -> None:
    with pytest.raises(ValueError, match="lists of 5"):
        m.list_metrics(LISTS, TARGETS, cutoffs=(5,))


scores_matrix = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(3, 9)), elements=st.integers(-3, 3)
)


@given(scores_matrix, st.integers(1, 10), st.data())
def test_top_k_equals_a_stable_sort_of_what_is_not_excluded(
    scores: np.ndarray, k: int, data: st.DataObject
) -> None:
    users, width = scores.shape
    excluded = [
        np.array(data.draw(st.lists(st.integers(1, width - 1))), np.int64) for _ in range(users)
    ]
    before = scores.copy()
    lists = m.top_k(scores, k, excluded)
    assert (scores == before).all()
    for u in range(users):
        rows = [r for r in range(1, width) if r not in excluded[u]]
        expected = sorted(rows, key=lambda r: (-scores[u, r], r))[:k]
        assert [r for r in lists[u] if r] == expected
        assert lists[u].tolist() == expected + [0] * (lists.shape[1] - len(expected))


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        m.top_k(np.array([[0.0, np.nan, 1.0]]), 1)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_ndcg_recall_and_map_agree_with_scikit_learn(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    width = 9
    scores = rng.permutation(width * 2)[: width + 1].astype(float)[None, :]
    relevant = rng.random(width) < 0.4
    if not relevant.any():
        relevant[0] = True
    targets = [np.flatnonzero(relevant) + 1]
    got = m.list_metrics(m.top_k(scores, width), targets, cutoffs=(n, width))
    expected = sk.ndcg_score(relevant[None, :].astype(int), scores[:, 1:], k=n)
    assert got[f"ndcg@{n}"][0] == pytest.approx(expected)
    assert got[f"map@{width}"][0] == pytest.approx(
        sk.average_precision_score(relevant, scores[0, 1:])
    )
    top = m.top_k(scores, n)[0] - 1
    predicted = np.zeros(width, bool)
    predicted[top] = True
    assert got[f"recall@{n}"][0] == pytest.approx(sk.recall_score(relevant, predicted))


@given(st.integers(0, 10_000))
def test_the_laws_between_the_list_metrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lists = np.stack([rng.permutation(12)[:8] + 1 for _ in range(6)])
    targets = [rng.integers(1, 13, rng.integers(1, 5)) for _ in range(6)]
    got = m.list_metrics(lists, targets, cutoffs=(3, 8))
    for values in got.values():
        assert (values >= 0).all()
        assert (values <= 1 + 1e-12).all()
    assert (got["recall@3"] <= got["recall@8"]).all()
    assert (got["recall@8"] <= got["hr@8"] + 1e-12).all()
    # Fewer places to normalise by: never below the standard form.
    assert (got["ndcg_comirec@8"] >= got["ndcg@8"] - 1e-12).all()


def test_head_and_tail_recall_by_hand() -> None:
    counts = np.array([0, 9, 5, 4, 3, 2, 1, 1, 1, 1, 1])  # ten items: the head is item 1
    head = m.head_items(counts)
    assert np.flatnonzero(head).tolist() == [1]
    assert m.slice_recall(LISTS, TARGETS, head, 4).tolist() == pytest.approx(
        [1, np.nan, np.nan], nan_ok=True
    )
    assert m.slice_recall(LISTS, TARGETS, ~head, 4).tolist() == pytest.approx([1 / 2, 1, 0])


def test_coverage_and_gini_by_hand() -> None:
    exposed = m.exposures(np.array([[1, 2], [1, 0]]), 4)
    assert exposed.tolist() == [2, 1, 0, 0]
    assert m.coverage(exposed) == 0.5
    # Ascending 0 0 1 2 with weights -3 -1 1 3: (1 + 6) / (4 * 3).
    assert m.gini(exposed) == pytest.approx(7 / 12)
    assert m.gini(np.full(7, 3)) == pytest.approx(0)
    assert m.gini(np.array([0, 0, 5])) == pytest.approx(2 / 3)
    assert math.isnan(m.gini(np.zeros(3)))


@given(st.lists(st.integers(0, 9), min_size=2, max_size=12).filter(any))
def test_gini_is_half_the_relative_mean_difference(values: list[int]) -> None:
    x = np.array(values, float)
    expected = np.abs(x[:, None] - x[None, :]).mean() / (2 * x.mean())
    assert m.gini(x) == pytest.approx(expected)


def test_intra_list_diversity_by_hand() -> None:
    category = np.array([0, 7, 7, 8, 9, 9])
    lists = np.array([[1, 2, 3], [4, 5, 0], [1, 0, 0], [1, 3, 4]])
    # Pairs: 7-7 same, two differ: 2/3; 9-9 same: 0; one item: none; all differ: 1.
    got = m.intra_list_diversity(lists, category)
    assert got.tolist() == pytest.approx([2 / 3, 0, np.nan, 1], nan_ok=True)
    values = np.eye(10)[category]
    values[0] = 0
    assert m.value_diversity(lists, values).tolist() == pytest.approx(got.tolist(), nan_ok=True)


def test_interest_cosine_by_hand() -> None:
    vectors = np.array([[[1.0, 0], [0, 3], [-2, 0]], [[1.0, 1], [2, 2], [4, 4]]])
    assert m.interest_cosine(vectors).tolist() == pytest.approx([-1 / 3, 1])
    assert np.isnan(m.interest_cosine(vectors[:, :1])).all()


rows = st.lists(
    st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=40
)


def _columns(values: list[tuple[bool, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores, user = zip(*values, strict=True)
    return np.array(labels), (np.array(scores) + 1) / 8, np.array(user) * 5 + 2


@given(rows)
def test_gauc_equals_the_weighted_mean_of_scikit_learns_auc(
    values: list[tuple[bool, int, int]],
) -> None:
    labels, scores, user = _columns(values)
    aucs, weights = [], []
    for u in np.unique(user):
        mine = user == u
        if 0 < labels[mine].sum() < mine.sum():  # one-class users are skipped
            aucs.append(sk.roc_auc_score(labels[mine], scores[mine]))
            weights.append(mine.sum())
    found, _ = m.ranking_metrics(labels, scores, user)
    if not aucs:
        assert math.isnan(found["gauc"])
        assert math.isnan(found["uauc"])
        return
    assert found["gauc"] == pytest.approx(np.average(aucs, weights=weights))
    assert found["uauc"] == pytest.approx(np.mean(aucs))


@given(rows)
def test_user_values_have_the_metric_as_their_mean(values: list[tuple[bool, int, int]]) -> None:
    labels, scores, user = _columns(values)
    metrics, per_unit = m.ranking_metrics(labels, scores, user)
    assert metrics["log_loss"] == pytest.approx(sk.log_loss(labels, scores, labels=[0, 1]))
    assert per_unit["log_loss"].mean() == pytest.approx(metrics["log_loss"])
    if 0 < labels.sum() < len(labels):
        assert metrics["auc"] == pytest.approx(sk.roc_auc_score(labels, scores))
        assert per_unit["auc"].mean() == pytest.approx(metrics["auc"])
    gauc = per_unit["gauc"]
    mean = math.nan if np.isnan(gauc).all() else np.nanmean(gauc)
    assert metrics["gauc"] == pytest.approx(mean, nan_ok=True)


def test_user_values_of_gauc_by_hand() -> None:
    # AUC 1 over three rows, AUC 0 over two: mean .6, mean rows 2.5.
    labels, scores = np.array([1, 0, 0, 1, 0]), np.array([0.9, 0.1, 0.2, 0.3, 0.7])
    _, units = m.ranking_metrics(labels, scores, np.array([4, 4, 4, 9, 9]))
    assert units["gauc"].tolist() == pytest.approx([0.6 + 0.4 * 3 / 2.5, 0.6 - 0.6 * 2 / 2.5])


def test_gauc_of_one_user_is_the_auc() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(50) < 0.4, rng.integers(0, 9, 50)
    found, _ = m.ranking_metrics(labels, scores, np.zeros(50, int))
    assert found["gauc"] == pytest.approx(m.auc(labels, scores))


def test_the_spread_of_user_values_is_the_sampling_error_of_auc() -> None:
    rng = np.random.default_rng(1)
    users, per_user, worlds = 150, 8, 300
    estimates, errors = [], []
    for _ in range(worlds):
        user = np.repeat(np.arange(users), per_user)
        taste = rng.normal(size=users)[user]  # rows of a user are not independent
        labels = rng.random(len(user)) < 1 / (1 + np.exp(-taste))
        scores = labels + taste + 2 * rng.normal(size=len(user))
        units = m.unit_auc(labels, scores, user)
        estimates.append(units.mean())
        errors.append(units.std(ddof=1) / math.sqrt(users))
    # The standard deviation of 300 estimates is itself known to about 4 %.
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.15)


def test_calibration_error_by_hand() -> None:
    labels, p = np.array([1, 0, 1, 1]), np.array([0.1, 0.3, 0.6, 1.0])
    # Two bins of equal width: |.5 - .2| and |1 - .8|, two rows each.
    assert m.calibration_error(labels, p, bins=2) == pytest.approx((0.3 + 0.2) / 2)
    assert m.calibration_error(labels, p, bins=2, equal_mass=True) == pytest.approx(0.25)
    # One probability for all rows is one bin, and its gap the distance from the base rate.
    assert m.calibration_error(labels, np.full(4, 0.5), equal_mass=True) == pytest.approx(0.25)


def test_true_probabilities_are_calibrated_and_overconfident_ones_are_not() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(50_000)
    labels = rng.random(50_000) < p
    for equal_mass in (False, True):
        assert m.calibration_error(labels, p, equal_mass=equal_mass) < 0.01
        assert m.calibration_error(labels, p > 0.5, equal_mass=equal_mass) > 0.2
