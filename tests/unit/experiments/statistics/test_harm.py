"""Guardrails: what fails is found, what never fails holds, and harm at the margin is no breach."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.experiments.statistics.cuped import adjusted_estimates
from services.experiments.statistics.effects import contrast, difference, interval, relative
from services.experiments.statistics.estimates import Estimate, cautious, estimate, mean_estimate
from services.experiments.statistics.harm import PLANNED_UNITS, Allowed, excess, harm_sequence
from services.experiments.statistics.moments import moments_of
from services.experiments.statistics.sequential import (
    confidence_sequence,
    log_e_value,
    log_e_value_above,
    rho_for,
    stabilised,
)

RHO = rho_for(PLANNED_UNITS)
ONE_POINT = Allowed(0.01, absolute=True, lower_is_better=True)
A_TENTH = Allowed(0.1, absolute=False, lower_is_better=True)


def steady(t: tuple[int, int], c: tuple[int, int], step: float = 1.0) -> tuple[Estimate, Estimate]:
    """Of (failed, units)."""
    return stabilised(*(cautious(estimate(moments_of(np.arange(n) < k)), step) for k, n in (t, c)))


@pytest.mark.parametrize("allowed", [ONE_POINT, A_TENTH])
@pytest.mark.parametrize(
    ("failed", "control"), [((1000, 1000), (0, 1000)), ((300, 1000), (0, 1000)),
                            ((300, 1000), (1, 1000)), ((200, 200), (0, 1800))]
)  # fmt: skip
def test_an_arm_that_plainly_fails_is_found_whatever_control_has(
    allowed: Allowed, failed: tuple[int, int], control: tuple[int, int]
) -> None:
    assert log_e_value_above(excess(*steady(failed, control), allowed), RHO) > math.log(20)


def test_arms_that_both_fail_always_or_never_harm_nobody() -> None:
    for k in (0, 1000):
        for allowed in (ONE_POINT, A_TENTH):
            assert log_e_value_above(excess(*steady((k, 1000), (k, 1000)), allowed), RHO) < 0


@pytest.mark.parametrize(("n_t", "n_c"), [(500, 500), (500, 4500)])
def test_nothing_seen_rules_out_a_small_multiple_of_three_over_n(n_t: int, n_c: int) -> None:
    """The rule of three, for every look at once."""
    beyond = harm_sequence(*steady((0, n_t), (0, n_c)), ONE_POINT, RHO)
    assert 3 / n_t < beyond.high < 5 / n_t


def test_a_share_cannot_be_shown_of_a_control_that_may_be_zero() -> None:
    both = steady((0, 5000), (0, 5000))
    assert confidence_sequence(excess(*both, A_TENTH), RHO).high > 0
    assert harm_sequence(*both, A_TENTH, RHO) == harm_sequence(
        *steady((0, 3), (0, 3)), A_TENTH, RHO
    )  # the whole line
    some = harm_sequence(*steady((300, 1000), (0, 1000)), A_TENTH, RHO)
    assert some.low > 1
    assert some.high == math.inf


@given(
    st.floats(0.2, 3), st.floats(0.2, 3), st.floats(1e-5, 0.05), st.floats(1e-5, 0.05),
    st.floats(0, 0.02), st.booleans(),
)  # fmt: skip
def test_the_ends_of_a_share_are_the_margins_that_the_sequence_just_does_not_exclude(
    t: float, c: float, var_t: float, var_c: float, common: float, lower: bool
) -> None:
    arms = [Estimate(v, var, 900.0, 899.0, common) for v, var in ((t, var_t), (c, var_c))]
    found = harm_sequence(*arms, Allowed(0.0, False, lower), RHO)
    for end in (found.low, found.high):
        if math.isfinite(end) and (lower or end < 1) and (not lower or end > -1):
            beyond = confidence_sequence(excess(*arms, Allowed(end, False, lower)), RHO)
            nearest = min(abs(beyond.low), abs(beyond.high))
            assert nearest == pytest.approx(0, abs=1e-6 * (1 + abs(end)))


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize(
    ("treated", "control", "allowed"),
    [
        (0.001, 0.001, Allowed(0.0, True, True)),
        (0.011, 0.01, A_TENTH),
        (0.01, 0.0, ONE_POINT),
    ],
)
def test_harm_of_just_what_is_allowed_is_seldom_a_breach_and_seldom_said_to_hold(
    treated: float, control: float, allowed: Allowed, share: float
) -> None:
    rng = np.random.default_rng(4)
    runs, steps = 600, np.diff(np.geomspace(200, 100_000, 60).astype(int), prepend=0)
    entered = rng.binomial(steps, share, (runs, len(steps)))
    entered[:, 0] = np.maximum(entered[:, 0], 2)
    arms = []
    for new, rate in ((entered, treated), (steps - entered, control)):
        n = np.cumsum(new, axis=1).astype(float)
        p = np.cumsum(rng.binomial(new, rate), axis=1) / n
        arms.append(cautious(mean_estimate(n, p, p * (1 - p) * n / (n - 1)), 1.0))
    beyond = excess(*stabilised(*arms), allowed)
    breached = np.asarray(log_e_value_above(beyond, RHO)) >= math.log(20)
    holds = np.asarray(confidence_sequence(beyond, RHO).high) < 0
    most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert breached.any(axis=1).mean() <= most
    assert holds.any(axis=1).mean() <= most


@given(st.integers(2, 10_000), st.floats(0, 1), st.floats(0.1, 5))
def test_caution_moves_a_value_by_no_more_than_an_event_and_makes_nothing_more_certain(
    n: int, value: float, step: float
) -> None:
    before = mean_estimate(n, value, value * (1 - value))
    after = cautious(before, step)
    assert abs(after.value - value) <= step / n * (1 + 1e-9)
    assert after.variance == pytest.approx(before.variance + (step / n) ** 2)
    assert (after.n, after.dof) == (before.n, before.dof)
    assert (after.value - value) * (0.5 - value) >= 0


def test_a_contrast_with_one_is_the_difference() -> None:
    t, c = steady((30, 900), (20, 1000))
    assert contrast(t, c, 1.0) == difference(t, c)
    twice = contrast(t, c, 2.0)
    assert twice.value == pytest.approx(t.value - 2 * c.value)
    assert twice.variance == pytest.approx(t.variance + 4 * c.variance)


@pytest.mark.parametrize("lift", [0.05, 1.0])
def test_lifts_with_cuped_cover_however_large(lift: float) -> None:
    """The error of the common mean is in both arms: no difference has it, a large lift does."""
    rng = np.random.default_rng(2)
    runs, n, hits, never_excluded = 600, 1000, 0, 0
    for _ in range(runs):
        treated = rng.random(n) < 0.5
        x = rng.normal(5, 1, n)
        y = 2 * x + rng.normal(0, 0.46, n) + 10 * lift * treated
        arms = adjusted_estimates([moments_of(y[k], x[k]) for k in (treated, ~treated)])
        found = relative(*arms)
        within = interval(found)
        hits += within.low <= lift <= within.high
        never_excluded += log_e_value(found, RHO, null=lift) < math.log(20)
        assert difference(*arms).variance == arms[0].variance + arms[1].variance
    spread = 3 * math.sqrt(0.05 * 0.95 / runs)
    assert hits / runs == pytest.approx(0.95, abs=spread)
    assert never_excluded / runs > 0.98
