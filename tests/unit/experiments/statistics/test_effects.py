"""Effects and fixed-horizon intervals: scipy's Welch test, and lifts by the delta method."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from services.experiments.statistics.effects import (
    Interval,
    difference,
    interval,
    is_implausible,
    relative,
)
from services.experiments.statistics.estimates import Estimate, estimate
from services.experiments.statistics.moments import moments_of

RNG = np.random.default_rng(11)
WHOLE_LINE = (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("treated", "untreated"),
    [
        (RNG.lognormal(0.1, 1, 300), RNG.lognormal(0, 1, 500)),
        (RNG.normal(0, 3, 5), RNG.normal(0, 1, 40)),
        (RNG.binomial(1, 0.3, 200), RNG.binomial(1, 0.2, 900)),
        (np.zeros(50), RNG.binomial(1, 0.2, 900)),
    ],
)
def test_it_is_welchs_test(treated: np.ndarray, untreated: np.ndarray) -> None:
    t, c = treated.astype(float).round(6), untreated.astype(float).round(6)
    effect = difference(estimate(moments_of(t)), estimate(moments_of(c)))
    theirs = stats.ttest_ind(t, c, equal_var=False)
    bounds = theirs.confidence_interval(0.9)
    found = interval(effect, alpha=0.1)
    assert effect.dof == pytest.approx(theirs.df, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high), abs=1e-9)


@given(st.floats(-5, 5), st.floats(0.01, 10), st.floats(3, 1e6), st.floats(0.001, 0.5))
def test_the_interval_is_students(value: float, variance: float, dof: float, alpha: float) -> None:
    effect = Estimate(value, variance, dof + 1, dof)
    found = interval(effect, alpha)
    theirs = stats.t.interval(1 - alpha, dof, value, math.sqrt(variance))
    assert (found.low, found.high) == pytest.approx(theirs, rel=1e-6, abs=1e-9)


def test_a_lifts_variance_is_that_of_its_gradient() -> None:
    t, c = Estimate(1.3, 0.002, 800.0, 799.0), Estimate(1.1, 0.001, 900.0, 899.0)
    step = 1e-6
    by_t = ((1.3 + step) / 1.1 - (1.3 - step) / 1.1) / (2 * step)
    by_c = (1.3 / (1.1 + step) - 1.3 / (1.1 - step)) / (2 * step)
    lift = relative(t, c)
    assert lift.value == pytest.approx(1.3 / 1.1 - 1, rel=1e-12)
    assert lift.variance == pytest.approx(by_t**2 * 0.002 + by_c**2 * 0.001, rel=1e-8)
    assert lift.n == 1700


def test_a_lift_does_not_change_with_the_unit_of_the_metric() -> None:
    t, c = Estimate(1.3, 0.002, 800.0, 799.0), Estimate(1.1, 0.001, 900.0, 899.0)
    scaled = [Estimate(e.value * 60, e.variance * 3600, e.n, e.dof) for e in (t, c)]
    one, other = relative(t, c), relative(*scaled)
    assert other.value == pytest.approx(one.value)
    assert (other.variance, other.dof) == pytest.approx((one.variance, one.dof))


def test_a_control_near_zero_has_no_lift() -> None:
    lift = relative(Estimate(1.0, 0.1, 100.0, 99.0), Estimate(0.3, 0.01, 100.0, 99.0))
    assert math.isnan(lift.value)
    assert _ends(interval(lift)) == WHOLE_LINE


def test_an_arm_without_units_leaves_the_effect_open() -> None:
    effect = difference(estimate(moments_of([])), estimate(moments_of([0.0, 1.0] * 50)))
    assert _ends(interval(effect)) == WHOLE_LINE


def test_two_arms_without_spread_leave_the_effect_open() -> None:
    """Neither has converted yet: that they are equal is not certain."""
    effect = difference(estimate(moments_of([0.0] * 9)), estimate(moments_of([0.0] * 9)))
    assert _ends(interval(effect)) == WHOLE_LINE


def test_many_effects_at_once_are_as_one_by_one() -> None:
    values, variances = np.array([0.1, -0.2, 0.0]), np.array([0.01, 0.02, 0.0])
    dofs = np.array([10.0, 1e6, 0.0])
    together = interval(Estimate(values, variances, dofs + 1, dofs))
    for i in range(3):
        alone = interval(Estimate(values[i], variances[i], dofs[i] + 1, dofs[i]))
        assert (together.low[i], together.high[i]) == _ends(alone)


@pytest.mark.parametrize(
    ("low", "high", "minimal_effect", "implausible"),
    [
        (-0.15, -0.11, 0.01, True),
        (-math.inf, math.inf, 0.01, False),
        (0.11, 0.15, 0.01, True),
        (0.09, 0.15, 0.01, False),
    ],
)
def test_a_lift_is_implausible_when_no_plausible_one_is_left(
    low: float, high: float, minimal_effect: float, implausible: bool
) -> None:
    assert is_implausible(Interval(low, high), minimal_effect) is implausible


def _ends(found: Interval) -> tuple[float, float]:
    return float(found.low), float(found.high)
