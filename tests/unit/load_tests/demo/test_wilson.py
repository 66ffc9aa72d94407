"""Wilson's interval (load_tests/demo/wilson.py) against its defining equation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from load_tests.demo.wilson import wilson_interval


@given(st.integers(1, 10_000), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_it_agrees_with_scipy(n: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, n))
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-12
    )


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


@pytest.mark.parametrize(("successes", "n", "confidence"), [(2, 1, 0.95), (-1, 1, 0.95), (0, 1, 1)])
def test_impossible_counts_are_refused(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"impossible|between 0 and 1"):
        wilson_interval(successes, n, confidence)
