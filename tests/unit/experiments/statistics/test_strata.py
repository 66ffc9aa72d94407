"""Strata: the weighted mean of within-stratum differences, and a ramp that deceives pooled arms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.experiments.statistics.effects import difference, interval, relative
from services.experiments.statistics.estimates import Estimate, estimate, mean_estimate
from services.experiments.statistics.moments import Moments, moments_of
from services.experiments.statistics.sequential import (
    always_valid_p,
    log_e_value,
    rho_for,
    stabilised,
)
from services.experiments.statistics.strata import stratified

RNG = np.random.default_rng(41)


def arm(units: int, mean: float) -> Estimate:
    return estimate(moments_of(RNG.normal(mean, 1, units).round(6)))


def test_it_is_the_weighted_mean_of_the_differences() -> None:
    strata = [(arm(30, 1.0), arm(300, 0.9)), (arm(200, 2.0), arm(250, 2.1))]
    w = np.array([30 * 300 / 330, 200 * 250 / 450])
    differences = [difference(t, c) for t, c in strata]
    effect = difference(*stratified(strata))
    assert effect.value == pytest.approx(w @ [d.value for d in differences] / w.sum(), rel=1e-12)
    assert effect.variance == pytest.approx(
        w**2 @ [d.variance for d in differences] / w.sum() ** 2, rel=1e-12
    )


@given(st.integers(2, 500), st.integers(2, 500))
def test_a_single_stratum_is_the_plain_comparison(treated: int, untreated: int) -> None:
    t, c = arm(treated, 5.0), arm(untreated, 5.0)
    share = treated / (treated + untreated)
    for compare in (difference, relative):
        plain, found = compare(t, c), compare(*stratified([(t, c)], share))
        assert found.value == pytest.approx(plain.value, rel=1e-9, nan_ok=True)
        assert (found.variance, found.n, found.dof) == pytest.approx(
            (plain.variance, plain.n, plain.dof), rel=1e-9
        )


def test_units_at_a_poor_split_count_for_what_they_weigh() -> None:
    """A ramp step of 1:99 weighs 0.0099 a unit, the planned half 0.25."""
    effect = difference(*stratified([(arm(100, 0.0), arm(9_900, 0.0))], share=0.5))
    assert effect.n == pytest.approx(10_000 * 0.01 * 0.99 / 0.25)


def test_a_stratum_without_an_arm_is_left_out() -> None:
    full = arm(50, 1.0), arm(60, 1.2)
    empty = estimate(Moments.empty(1)), arm(500, 9.0)
    assert difference(*stratified([full, empty])).value == difference(*stratified([full])).value
    assert not difference(*stratified([empty])).known
    assert not difference(*stratified([])).known


def test_a_ramp_on_a_drifting_metric_deceives_pooled_arms_only() -> None:
    """5, 20, 50 % of traffic treated while the rate goes 5, 7, 9 %: 400 A/A ramps of 60 looks."""
    rng = np.random.default_rng(43)
    runs, looks, batch = 400, 20, 500
    steps, pooled = [], [np.zeros((runs, 1))] * 4
    evidence = {"stratified": [], "pooled": []}
    rho = rho_for(3 * looks * batch)
    for share, rate in ((0.05, 0.05), (0.2, 0.07), (0.5, 0.09)):
        treated = rng.binomial(batch, share, (runs, looks))
        counts = [treated, rng.binomial(treated, rate)]
        counts += [batch - treated, rng.binomial(batch - treated, rate)]
        sums = [np.cumsum(c, axis=1).astype(float) for c in counts]
        in_all = [before[:, -1:] + now for before, now in zip(pooled, sums, strict=True)]
        step = stabilised(rates(*sums[:2]), rates(*sums[2:]))
        effects = {
            "stratified": difference(*stratified([*steps, step])),
            "pooled": difference(*stabilised(rates(*in_all[:2]), rates(*in_all[2:]))),
        }
        for name, effect in effects.items():
            evidence[name].append(log_e_value(effect, rho))
        steps.append(tuple(last(e) for e in step))
        pooled = in_all
    alarms = {
        name: (always_valid_p(np.concatenate(log_e, axis=1))[:, -1] <= 0.05).mean()
        for name, log_e in evidence.items()
    }
    assert alarms["stratified"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert alarms["pooled"] > 0.5
    usual = interval(last(effects["stratified"]))
    fixed = ((usual.low > 0) | (usual.high < 0)).mean()
    assert abs(fixed - 0.05) < 3 * math.sqrt(0.05 * 0.95 / runs)


def rates(units: np.ndarray, conversions: np.ndarray) -> Estimate:
    n = np.maximum(units, 2.0)
    p = conversions / n
    return mean_estimate(n, p, p * (1 - p) * n / (n - 1))


def last(estimates: Estimate) -> Estimate:
    """Of arrays (runs, looks), the last look (runs, 1)."""
    fields = estimates.value, estimates.variance, estimates.n, estimates.dof
    return Estimate(*(np.asarray(field)[:, -1:] for field in fields))


def test_an_arm_that_had_no_traffic_at_first_is_clocked_as_if_it_had_half() -> None:
    strata = [(arm(100, 0.0), arm(900, 0.0)), (arm(500, 0.0), arm(500, 0.0))]
    assert stratified(strata, share=0.0) == stratified(strata, share=0.5)
