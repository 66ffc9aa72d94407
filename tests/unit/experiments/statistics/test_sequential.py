"""The confidence sequence: its mixture re-derived by integration, its error rate when peeked at."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, optimize, stats

from services.experiments.statistics.boundary_crossing import first_crossings
from services.experiments.statistics.effects import difference, interval
from services.experiments.statistics.estimates import Estimate, estimate, mean_estimate
from services.experiments.statistics.moments import Moments, moments_of
from services.experiments.statistics.sequential import (
    MIN_DOF,
    always_valid_p,
    confidence_sequence,
    critical_z,
    log_e_value,
    log_e_value_above,
    rho_for,
    stabilised,
)

Z = st.floats(-6, 6)
UNITS = st.floats(200, 1e6)
RHO = st.floats(1e-3, 1)


def effect_of(z: float, units: float) -> Estimate:
    """An effect z standard errors from zero, at a scale that must not matter."""
    return Estimate(z * 0.3, 0.09, units, units - 2)


def mixture(z: float, units: float, rho: float, low: float) -> float:
    """∫ exp(d S - n d²/2) g(d) dd over drifts d from `low`, where S = z sqrt(n) is the sum of n
    standardised contributions and g the normal density with deviation rho, cut off at `low`."""

    def integrand(drift: float) -> float:
        likelihood = math.exp(drift * z * math.sqrt(units) - units * drift**2 / 2)
        return likelihood * stats.norm.pdf(drift, scale=rho)

    x = units * rho**2
    centre, sd = z * x / (x + 1) / math.sqrt(units), rho / math.sqrt(x + 1)
    total, _ = integrate.quad(
        integrand,
        max(low, centre - 12 * sd),
        max(low, centre) + 12 * sd,
        points=[max(low, centre)],
        epsabs=0,
        epsrel=1e-12,
    )
    return total / stats.norm.sf(low / rho)


@settings(max_examples=40)
@given(Z, UNITS, RHO)
def test_the_e_value_is_the_gaussian_mixture(z: float, units: float, rho: float) -> None:
    expected = math.log(mixture(z, units, rho, -math.inf))
    assert log_e_value(effect_of(z, units), rho) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40)
@given(Z, UNITS, RHO)
def test_the_one_sided_e_value_is_the_mixture_over_positive_drifts(
    z: float, units: float, rho: float
) -> None:
    expected = math.log(mixture(z, units, rho, 0.0))
    assert log_e_value_above(effect_of(z, units), rho) == pytest.approx(expected, abs=1e-8)


@given(Z, UNITS, RHO, st.floats(0.001, 0.3))
def test_the_sequence_excludes_just_what_has_an_e_value_above_one_over_alpha(
    z: float, units: float, rho: float, alpha: float
) -> None:
    effect = effect_of(z, units)
    found = confidence_sequence(effect, rho, alpha)
    for end in (found.low, found.high):
        assert log_e_value(effect, rho, null=end) == pytest.approx(-math.log(alpha), rel=1e-9)


def test_it_is_the_papers_sequence_of_the_influence_function_with_unequal_arms() -> None:
    """Each unit's contribution written out, then Theorem 2.2 of arXiv 2103.06476 on their mean."""
    rng = np.random.default_rng(5)
    n, alpha, rho = 20_000, 0.05, 0.01
    treated = rng.random(n) < 0.1
    y = np.where(treated, rng.exponential(1.2, n), rng.exponential(1.0, n)).round(6)
    pi = treated.mean()
    mean_t, mean_c = y[treated].mean(), y[~treated].mean()
    contributions = (
        treated / pi * (y - mean_t) - ~treated / (1 - pi) * (y - mean_c) + mean_t - mean_c
    )
    radius = contributions.std() * math.sqrt(
        2 * (n * rho**2 + 1) / (n**2 * rho**2) * math.log(math.sqrt(n * rho**2 + 1) / alpha)
    )
    control, treatment = moments_of(y[~treated]), moments_of(y[treated])
    effect = difference(estimate(treatment), estimate(control))
    found = confidence_sequence(effect, rho, alpha)
    centre = contributions.mean()
    assert effect.value == pytest.approx(centre, rel=1e-9)
    # The paper's variance divides by n, Welch's by n - 1 in each arm.
    assert (found.low, found.high) == pytest.approx((centre - radius, centre + radius), rel=1e-3)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_rho_makes_the_sequence_narrowest_at_the_planned_sample(alpha: float) -> None:
    best = optimize.minimize_scalar(
        lambda log_rho: critical_z(5_000.0, math.exp(log_rho), alpha), bounds=(-8, 0)
    )
    assert critical_z(5_000.0, rho_for(5_000, alpha), alpha) == pytest.approx(best.fun, rel=1e-9)
    assert rho_for(5_000, alpha) == pytest.approx(math.exp(best.x), rel=1e-3)


@pytest.mark.parametrize("planned", [100, 1_000, 10_000])
def test_a_brownian_motion_leaves_it_with_at_most_alpha(planned: float) -> None:
    looks = np.geomspace(100, 10_000, 60)
    bounds = critical_z(looks, rho_for(planned), 0.05)
    assert 0.01 < first_crossings(looks, bounds).sum() <= 0.05


@given(st.lists(st.floats(-5, 20), min_size=1, max_size=30))
def test_the_p_value_is_that_of_the_best_look_so_far(log_e: list[float]) -> None:
    p = always_valid_p(np.array(log_e))
    assert p == pytest.approx([min(1, math.exp(-max(log_e[: k + 1]))) for k in range(len(log_e))])
    assert (np.diff(p) <= 0).all()


def test_too_little_data_say_nothing() -> None:
    few = Estimate(9.0, 0.01, MIN_DOF + 1, MIN_DOF - 1)
    found = confidence_sequence(few, 0.1)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert log_e_value(few, 0.1) == log_e_value_above(few, 0.1) == 0


def converted(conversions: int, units: int) -> Estimate:
    return estimate(moments_of(np.arange(units) < conversions))


def test_a_small_arm_without_conversions_yet_is_no_evidence() -> None:
    """Welch's variance alone would call 0 of 200 against 20 of 1,000 beyond doubt."""
    treatment, control = converted(0, 200), converted(20, 1_000)
    rho = rho_for(1_200)
    assert log_e_value(difference(treatment, control), rho) > math.log(20)
    assert log_e_value(difference(*stabilised(treatment, control)), rho) < math.log(20)


def test_an_arm_that_never_converts_is_found_out() -> None:
    broken = difference(*stabilised(converted(0, 5_000), converted(500, 5_000)))
    assert log_e_value(broken, rho_for(10_000)) > math.log(1_000)


VARIANCES = st.floats(0, 5, allow_subnormal=False)  # those lose digits when they are multiplied


@given(VARIANCES, VARIANCES, st.integers(2, 5_000), st.integers(2, 5_000))
def test_stabilising_never_lowers_a_variance_and_leaves_equal_ones(
    var_t: float, var_c: float, n_t: int, n_c: int
) -> None:
    t, c = mean_estimate(n_t, 1.0, var_t), mean_estimate(n_c, 1.0, var_c)
    for before, after in zip((t, c), stabilised(t, c), strict=True):
        assert after.variance >= before.variance * (1 - 1e-12)
        assert after.variance * after.n <= max(var_t, var_c) * (1 + 1e-12)
        assert (after.value, after.n, after.dof) == (before.value, before.n, before.dof)


@pytest.mark.parametrize("other", [converted(3, 50), converted(0, 50)])
def test_an_arm_without_units_says_nothing(other: Estimate) -> None:
    nothing = difference(*stabilised(estimate(Moments.empty(1)), other))
    assert log_e_value(nothing, 0.05) == 0


def peeked(
    values: NDArray[np.float64], treated: NDArray[np.bool_], looks: int
) -> tuple[float, float, float]:
    """Share of runs (rows) in which any look (of equal batches of columns) finds an effect: by the
    confidence sequence, one-sided evidence, and the fixed-horizon test."""
    runs, units = values.shape

    def arm(mask: NDArray[np.bool_]) -> Estimate:
        blocks = (mask.reshape(runs, looks, -1), (values * mask).reshape(runs, looks, -1))
        n, total = (np.cumsum(block.sum(axis=2), axis=1) for block in blocks)
        squares = np.cumsum((blocks[1] ** 2).sum(axis=2), axis=1)
        mean = total / n
        return mean_estimate(n.astype(float), mean, (squares - n * mean**2) / (n - 1))

    arms = arm(treated), arm(~treated)
    effect = difference(*stabilised(*arms))
    rho = rho_for(units / 2)
    sequence = always_valid_p(log_e_value(effect, rho))[:, -1] <= 0.05
    one_sided = always_valid_p(log_e_value_above(effect, rho))[:, -1] <= 0.05
    usual = interval(difference(*arms))
    fixed = ((np.asarray(usual.low) > 0) | (np.asarray(usual.high) < 0)).any(axis=1)
    return float(sequence.mean()), float(one_sided.mean()), float(fixed.mean())


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("metric", ["binary", "heavy tail"])
def test_peeking_after_every_batch_keeps_the_error_rate(metric: str, share: float) -> None:
    rng = np.random.default_rng(17)
    shape = (400, 8_000)
    values = (
        (rng.random(shape) < 0.03).astype(float)
        if metric == "binary"
        else np.exp(rng.normal(0, 1.5, shape))
    )
    sequence, one_sided, fixed = peeked(values, rng.random(shape) < share, looks=20)
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert sequence <= allowed
    assert one_sided <= allowed
    assert fixed > 0.15


def test_an_effect_is_found_in_its_direction_only() -> None:
    up, down = effect_of(5.0, 2_000), effect_of(-5.0, 2_000)
    rho = rho_for(2_000)
    assert log_e_value_above(up, rho) > math.log(20) > 0 > log_e_value_above(down, rho)
    assert log_e_value_above(up, rho) > log_e_value(up, rho)
    assert log_e_value_above(replace(up, value=0.0), rho) < 0


def test_many_looks_at_once_are_as_one_by_one() -> None:
    z, units = np.array([1.0, 4.0, -3.0]), np.array([300.0, 3_000.0, 50.0])
    together = confidence_sequence(Estimate(z, np.ones(3), units, units - 2), 0.05)
    for i in range(3):
        alone = confidence_sequence(Estimate(z[i], 1.0, units[i], units[i] - 2), 0.05)
        assert (together.low[i], together.high[i]) == (alone.low, alone.high)
