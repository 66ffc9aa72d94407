"""Quantiles: their values, and errors that know that requests of one user are alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from services.experiments.statistics.effects import difference, interval
from services.experiments.statistics.estimates import estimate
from services.experiments.statistics.moments import moments_of
from services.experiments.statistics.quantiles import GROUPS, GroupedHistogram

OBSERVATIONS = st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 2**64 - 1)), max_size=40)
USERS, REQUESTS = 400, 10


def histogram(observations: list[tuple[float, int]]) -> GroupedHistogram:
    return GroupedHistogram.of(
        [value for value, _ in observations],
        np.array([unit for _, unit in observations], dtype=np.uint64),
    )


def same(a: GroupedHistogram, b: GroupedHistogram) -> bool:
    return a.to_json() == b.to_json()


def latencies(
    rng: np.random.Generator, users: int = USERS
) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
    """REQUESTS latencies of each user, who is slow or fast throughout; hashed user ids."""
    level = rng.normal(3, 0.5, (users, 1))
    values = np.exp(level + rng.normal(0, 0.5, (users, REQUESTS)))
    hashes = rng.integers(0, 2**64, users, dtype=np.uint64)
    return values.ravel(), np.repeat(hashes, REQUESTS)


@settings(max_examples=50)
@given(OBSERVATIONS, OBSERVATIONS, OBSERVATIONS)
def test_merged_histograms_are_those_of_all_observations_in_any_order(
    a: list[tuple[float, int]], b: list[tuple[float, int]], c: list[tuple[float, int]]
) -> None:
    x, y, z = histogram(a), histogram(b), histogram(c)
    assert same((x + y) + z, histogram(c + b + a))
    assert same(x + (y + z), (z + x) + y)
    assert same(x + histogram([]), x)
    assert (x + y).counts.sum() == len(a) + len(b)


@given(OBSERVATIONS)
def test_a_restart_reads_back_what_was_written(observations: list[tuple[float, int]]) -> None:
    written = histogram(observations)
    assert same(GroupedHistogram.from_json(written.to_json()), written)


@given(st.floats(1e-300, 1e12), st.floats(0.01, 0.99))
def test_a_value_is_told_to_within_one_part_in_128(value: float, q: float) -> None:
    found = histogram([(value, 1)] * 3).quantile(q, units=1).value
    assert abs(found / value - 1) <= 1 / 128


@pytest.mark.parametrize("q", [0.05, 0.5, 0.9, 0.99])
def test_it_finds_the_quantile_of_numpy(q: float) -> None:
    values, units = latencies(np.random.default_rng(2))
    expected = np.quantile(values, q, method="inverted_cdf")
    found = GroupedHistogram.of(values, units).quantile(q, USERS)
    assert found.value == pytest.approx(expected, rel=1 / 128)
    assert (found.n, found.dof) == (USERS, len(np.unique(units % np.uint64(GROUPS))) - 1)


def test_one_observation_per_unit_has_the_error_of_order_statistics() -> None:
    """Then the rank of the median is binomial: ranks n/2 ± 1.96 sqrt(n/4) bracket it."""
    values, errors = np.arange(1.0, 10_001.0), []
    for seed in range(30):
        hashes = np.random.default_rng(seed).integers(0, 2**64, 10_000, dtype=np.uint64)
        found = GroupedHistogram.of(values, hashes).quantile(0.5, 10_000)
        assert found.value == pytest.approx(5_000, rel=1 / 128)
        errors.append(found.variance - 16**2)  # half a bucket's width, which is 32 here
    assert math.sqrt(np.mean(errors)) == pytest.approx(math.sqrt(1e4 / 4), rel=0.06)


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_the_error_is_the_spread_over_repetitions(q: float) -> None:
    rng = np.random.default_rng(29)
    found, naive = [], []
    for _ in range(300):
        values, units = latencies(rng)
        found.append(GroupedHistogram.of(values, units).quantile(q, USERS))
        alone = rng.integers(0, 2**64, len(values), dtype=np.uint64)
        naive.append(GroupedHistogram.of(values, alone).quantile(q, len(values)))
    spread = np.std([e.value for e in found])
    assert np.mean(np.sqrt([e.variance for e in found])) == pytest.approx(spread, rel=0.12)
    if q == 0.5:  # as if requests were independent
        assert np.mean(np.sqrt([e.variance for e in naive])) < 0.6 * spread


def test_two_arms_alike_differ_in_one_of_twenty_tests() -> None:
    rng = np.random.default_rng(31)
    alarms = 0
    for _ in range(300):
        arms = [GroupedHistogram.of(*latencies(rng)).quantile(0.9, USERS) for _ in range(2)]
        found = interval(difference(*arms))
        alarms += float(found.low) > 0 or float(found.high) < 0
    assert abs(alarms / 300 - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 300)


def test_the_error_is_from_the_ratio_metric_of_units_through_the_outer_ranks() -> None:
    """Deng, Knoblich, Lu 2018 step by step, with few units of unequal size, each its own group."""
    rng = np.random.default_rng(8)
    units = np.repeat(np.arange(9), rng.integers(500, 4000, 9))
    values = np.exp(rng.normal(0, 1, len(units)) + 0.3 * rng.normal(0, 1, 9)[units])
    median = np.quantile(values, 0.5, method="inverted_cdf")
    below = np.bincount(units, weights=values <= median)
    share = estimate(moments_of(below, np.bincount(units)), "ratio")
    reach = stats.norm.ppf(0.975) * math.sqrt(share.variance)
    low, high = np.quantile(values, [0.5 - reach, 0.5 + reach], method="inverted_cdf")
    found = GroupedHistogram.of(values, units).quantile(0.5, 9)
    assert found.value == pytest.approx(median, rel=1 / 128)
    assert math.sqrt(found.variance) == pytest.approx(
        (high - low) / (2 * stats.norm.ppf(0.975)), rel=0.02
    )


@pytest.mark.parametrize("q", [0.002, 0.985, 0.999])
def test_too_few_observations_beyond_the_quantile_have_no_error(q: float) -> None:
    values, units = latencies(np.random.default_rng(1), users=20)
    found = GroupedHistogram.of(values, units).quantile(q, 20)
    assert (found.variance, found.dof) == (math.inf, 0)


def test_without_observations_nothing_is_known() -> None:
    assert math.isnan(histogram([]).quantile(0.5, 0).value)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"keys": [1], "counts": []}', '{"keys": 1, "counts": 1}']
)
def test_text_that_holds_no_histogram_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Count it anew"):
        GroupedHistogram.from_json(text)


def test_what_no_histogram_holds_is_refused() -> None:
    one = np.array([1], dtype=np.uint64)
    with pytest.raises(ValueError, match="Shift or drop"):
        GroupedHistogram.of([-1.0], one)
    with pytest.raises(ValueError, match="Shift or drop"):
        GroupedHistogram.of([math.inf], one)
    with pytest.raises(ValueError, match="a unit per value"):
        GroupedHistogram.of([1.0, 2.0], one)


def test_tied_values_are_no_certain_difference() -> None:
    """Whole milliseconds: both medians are 10, whatever part of the observations lies below."""
    rng = np.random.default_rng(0)
    units = 20_000
    found = []
    for shares in ((0.1, 0.8, 0.1), (0.15, 0.8, 0.05)):
        values = rng.choice([9.0, 10.0, 11.0], units, p=shares)
        hashes = rng.integers(0, 2**64, units, dtype=np.uint64)
        found.append(GroupedHistogram.of(values, hashes).quantile(0.5, units))
    one, two = found
    error = np.sqrt(one.variance + two.variance)
    assert abs(one.value - two.value) < error
    for each in found:
        assert abs(each.value - 10.0) < 2 * np.sqrt(each.variance)


def test_at_a_gap_between_tied_values_like_arms_do_not_differ() -> None:
    """Half of the units have 0 and the others at least 1: a median is on either side by chance."""
    rng = np.random.default_rng(2)
    alarms, runs, units = 0, 200, 2000
    for _ in range(runs):
        arms = [
            GroupedHistogram.of(
                rng.geometric(0.5, units) - 1.0, rng.integers(0, 2**64, units, dtype=np.uint64)
            ).quantile(0.5, units, tied=True)
            for _ in range(2)
        ]
        found = interval(difference(*arms), 0.05)
        alarms += not float(found.low) <= 0 <= float(found.high)
    assert alarms <= 0.05 * runs


def test_where_most_have_nothing_the_quantile_is_0() -> None:
    values = np.repeat([0.0, 5.0], [900, 100])
    hashes = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    assert GroupedHistogram.of(values, hashes).quantile(0.5, 1000, tied=True).value == 0
