"""Moments: exact whatever the order, the shards, the restarts and the way they were counted."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.experiments.statistics.moments import (
    LARGEST,
    SCALE,
    Moments,
    moments_of,
    on_grid,
)

VALUES = st.one_of(
    st.floats(-LARGEST, LARGEST),
    st.floats(-10, 10),
    st.integers(-3, 3).map(float),
    st.sampled_from([LARGEST, -LARGEST, 2**20 / SCALE, -(2**20) / SCALE, 5e-7, -0.0]),
)
ROWS = st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=30)


def counted(rows: list[tuple[float, ...]], columns: int = 3) -> Moments:
    """One unit after the other."""
    moments = Moments.empty(columns)
    for row in rows:
        steps = tuple(on_grid(value) for value in row)
        products = tuple(a * b for a, b in combinations_with_replacement(steps, 2))
        moments += Moments(1, steps, products)
    return moments


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_units_changes_no_bit(
    rows: list[tuple[float, ...]], shuffler: random.Random
) -> None:
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert counted(shuffled) == counted(rows)


@settings(max_examples=50)
@given(ROWS, ROWS, ROWS)
def test_merging_is_associative_commutative_and_equals_the_whole(
    a: list[tuple[float, ...]], b: list[tuple[float, ...]], c: list[tuple[float, ...]]
) -> None:
    x, y, z = counted(a), counted(b), counted(c)
    assert (x + y) + z == x + (y + z) == (z + x) + y == counted(a + b + c)
    assert x + Moments.empty(3) == x


@given(ROWS)
def test_arrays_give_the_same_bits_as_units_one_by_one(rows: list[tuple[float, ...]]) -> None:
    assert moments_of(*np.array(rows).reshape(-1, 3).T) == counted(rows)


def test_long_arrays_of_large_values_are_summed_exactly() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-LARGEST, LARGEST, 20_000)
    y = np.exp(rng.normal(0, 4, 20_000))
    moments = moments_of(x, y)
    steps = [(on_grid(a), on_grid(b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert moments.sums == (sum(a for a, _ in steps), sum(b for _, b in steps))
    assert moments.products == (
        sum(a * a for a, _ in steps),
        sum(a * b for a, b in steps),
        sum(b * b for _, b in steps),
    )


@given(ROWS)
def test_a_restart_reads_back_what_was_written(rows: list[tuple[float, ...]]) -> None:
    moments = counted(rows)
    assert Moments.from_json(moments.to_json()) == moments


@settings(max_examples=50)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=20))
def test_mean_and_covariance_are_the_exact_ones_rounded_once(
    rows: list[tuple[float, float]],
) -> None:
    moments = counted(rows, columns=2)
    x, y = ([Fraction(on_grid(row[i]), SCALE) for row in rows] for i in (0, 1))
    n = len(rows)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    exact = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / (n - 1)
    assert moments.mean(0) == float(mean_x)
    assert moments.covariance(0, 1) == moments.covariance(1, 0) == float(exact)


def test_the_variance_of_values_far_from_zero_has_no_cancellation() -> None:
    values = 1e9 + np.arange(5.0)
    assert moments_of(values).covariance() == 2.5


def test_too_few_units_have_no_mean_or_variance() -> None:
    assert math.isnan(Moments.empty(1).mean())
    assert math.isnan(moments_of([1.0]).covariance())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.1 * LARGEST])
def test_values_that_no_metric_has_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not a metric's value"):
        on_grid(value)
    with pytest.raises(ValueError, match="not a metric's value"):
        moments_of([0.0, value])


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        Moments.empty(1) + Moments.empty(2)
    with pytest.raises(ValueError, match="shape"):
        moments_of([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="one axis"):
        moments_of([[1.0]])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"n": 1, "sums": ["1"], "products": []}',
        '{"n": -1, "sums": [], "products": []}',
    ],
)
def test_text_that_holds_no_moments_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Count them anew"):
        Moments.from_json(text)
