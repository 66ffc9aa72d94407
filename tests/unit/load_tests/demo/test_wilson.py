"""Wilson's interval (load_tests/demo/wilson.py) against its defining equation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from load_tests.demo.wilson import wilson_interval


@given(st.integers(2, 10_000), st.data())
def test_its_bounds_are_the_rates_that_a_score_test_just_accepts(
    n: int, data: st.DataObject
) -> None:
    successes = data.draw(st.integers(1, n - 1))
    for bound in wilson_interval(successes, n):
        score = (successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
        assert abs(score) == pytest.approx(norm.ppf(0.975), rel=1e-6)


def test_without_trials_every_rate_is_possible() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(2, 1), (-1, 1), (1, 0)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="must"):
        wilson_interval(successes, n)
