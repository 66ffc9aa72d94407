"""Intervals cover as often as they say, pairing helps, and a seed fixes the answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from models.training.bootstrap import mean_interval, paired_interval, two_sample_interval


def test_a_95_percent_interval_covers_the_truth_in_95_percent_of_data_sets() -> None:
    rng = np.random.default_rng(0)
    worlds, truth = 600, 0.3
    covered = 0
    for world in range(worlds):
        users = (rng.random(200) < truth).astype(float)
        interval = mean_interval(users, resamples=400, seed=world)
        covered += interval.low <= truth <= interval.high
    # Percentile intervals of 200 users cover 94 to 95 %; outside these bounds once in 10^4 runs.
    assert binom.ppf(5e-5, worlds, 0.94) <= covered <= binom.ppf(1 - 5e-5, worlds, 0.955)


def test_of_normal_values_the_interval_is_the_textbook_one() -> None:
    values = np.random.default_rng(5).normal(size=1000)
    error = values.std() / np.sqrt(len(values))
    for level, deviations in ((0.95, 1.960), (0.8, 1.282)):
        interval = mean_interval(values, level=level, resamples=4000)
        assert interval.low == pytest.approx(values.mean() - deviations * error, abs=0.1 * error)
        assert interval.high == pytest.approx(values.mean() + deviations * error, abs=0.1 * error)


def test_no_difference_is_found_significant_in_about_five_percent() -> None:
    rng = np.random.default_rng(1)
    worlds, found = 400, 0
    for world in range(worlds):
        ease = rng.normal(size=150)
        a, b = (ease + 0.3 * rng.normal(size=150) for _ in range(2))
        found += paired_interval(a, b, resamples=400, seed=world).excludes_zero
    assert binom.ppf(5e-5, worlds, 0.045) <= found <= binom.ppf(1 - 5e-5, worlds, 0.06)


def test_pairing_removes_what_both_models_share() -> None:
    rng = np.random.default_rng(2)
    ease = rng.normal(size=500)
    a, b = ease + 0.1 + 0.1 * rng.normal(size=500), ease + 0.1 * rng.normal(size=500)
    paired = paired_interval(a, b)
    alone = mean_interval(a)
    assert paired.excludes_zero
    assert paired.mean == pytest.approx(a.mean() - b.mean())
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_the_same_seed_gives_the_same_interval_and_order_only_flips_it() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 3, 80))
    forth, back = paired_interval(a, b, seed=5), paired_interval(b, a, seed=5)
    assert forth == paired_interval(a, b, seed=5)
    assert forth != paired_interval(a, b, seed=6)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))


def test_seeds_that_disagree_widen_the_interval_only_when_seeds_are_drawn() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(size=(1, 400))
    agreeing, disagreeing = noise + np.zeros((5, 1)), noise + np.linspace(-1, 1, 5)[:, None]

    def width(values: np.ndarray, seeds: bool) -> float:
        interval = mean_interval(values, seeds=seeds)
        return interval.high - interval.low

    assert width(disagreeing, False) == pytest.approx(width(agreeing, False))
    assert width(agreeing, True) == pytest.approx(width(agreeing, False))
    assert width(disagreeing, True) > 3 * width(disagreeing, False)


def test_a_baseline_without_seeds_is_paired_with_the_mean_over_seeds() -> None:
    a, b = np.array([[1.0, 2, 3], [3.0, 4, 5]]), np.array([1.0, 1, 1])
    assert paired_interval(a, b).mean == pytest.approx(2.0)
    assert paired_interval(a, b).units == 3


def test_users_without_a_value_are_left_out_of_both_sides() -> None:
    a, b = np.array([1.0, np.nan, 3.0, 4.0]), np.array([0.0, 5.0, np.nan, 4.0])
    interval = paired_interval(a, b)
    assert interval.units == 2
    assert interval.mean == pytest.approx(0.5)
    assert mean_interval(np.full(3, np.nan)).units == 0


def test_other_users_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="not the same users"):
        paired_interval(np.zeros(3), np.zeros(4))


def test_a_drop_between_two_test_sets_has_the_textbook_interval() -> None:
    rng = np.random.default_rng(6)
    like, unlike = rng.normal(0.5, 1, size=800), rng.normal(0.2, 2, size=500)
    error = np.sqrt(like.var() / 800 + unlike.var() / 500)
    found = two_sample_interval(like, unlike, resamples=4000)
    mean = like.mean() - unlike.mean()
    assert found.mean == pytest.approx(mean)
    assert found.units == 1300
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)


def test_a_drop_keeps_the_two_sides_of_a_seed_together() -> None:
    # Each trained model drops by 0.1, from very different levels: seeds are no source of spread.
    levels = np.array([[0.1], [0.5], [0.9]])
    like, unlike = levels + np.zeros((3, 50)), levels - 0.1 + np.zeros((3, 70))
    found = two_sample_interval(like, unlike, seeds=True)
    assert (found.low, found.mean, found.high) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="cannot pair 3 seeds with 2"):
        two_sample_interval(like, unlike[:2])
    assert two_sample_interval(like, np.full((3, 4), np.nan)).units == 0
