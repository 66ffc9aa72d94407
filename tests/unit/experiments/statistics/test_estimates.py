"""An arm's value and its variance: means as scipy has them, ratios by the delta method."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from services.experiments.statistics.estimates import estimate, ratio_estimate
from services.experiments.statistics.moments import Moments, moments_of

RNG = np.random.default_rng(7)


def test_a_mean_has_its_standard_error() -> None:
    x = RNG.lognormal(0, 1, 500).round(6)
    found = estimate(moments_of(x))
    assert found.value == pytest.approx(x.mean(), rel=1e-12)
    assert math.sqrt(found.variance) == pytest.approx(stats.sem(x), rel=1e-12)
    assert (found.n, found.dof) == (500, 499)


def test_a_rate_has_the_binomial_variance() -> None:
    found = estimate(moments_of([1.0] * 30 + [0.0] * 70))
    assert found.value == 0.3
    assert found.variance == pytest.approx(0.3 * 0.7 / 99, rel=1e-12)


def test_a_ratios_variance_is_that_of_its_gradient() -> None:
    """g' S g / n with the gradient of x/y taken by central differences, not from the formula."""
    y = RNG.poisson(5, 400) + 1.0
    x = RNG.binomial(y.astype(int), 0.3).astype(float)
    mean = np.array([x.mean(), y.mean()])
    step = 1e-5
    gradient = np.array(
        [
            ((mean + d)[0] / (mean + d)[1] - (mean - d)[0] / (mean - d)[1]) / (2 * step)
            for d in (np.array([step, 0]), np.array([0, step]))
        ]
    )
    found = estimate(moments_of(x, y), "ratio")
    assert found.value == pytest.approx(x.sum() / y.sum(), rel=1e-12)
    assert found.variance == pytest.approx(gradient @ np.cov(x, y) @ gradient / 400, rel=1e-8)


def test_a_ratio_to_a_constant_is_a_mean() -> None:
    x = RNG.normal(3, 1, 100).round(6)
    ratio = estimate(moments_of(x, np.full(100, 2.0)), "ratio")
    mean = estimate(moments_of(x))
    assert ratio.value == pytest.approx(mean.value / 2, rel=1e-12)
    assert ratio.variance == pytest.approx(mean.variance / 4, rel=1e-12)


def test_the_delta_method_covers_the_true_ratio() -> None:
    """Clicks per view over 3,000 data sets of 200 users whose rates differ: the standard error is
    the spread of the estimates, and that of independent views is far too small."""
    rng = np.random.default_rng(3)
    views = rng.poisson(6, (3_000, 200)) + 1.0
    clicks = rng.binomial(views.astype(int), rng.beta(2, 8, views.shape))
    found = ratio_estimate(
        200.0,
        clicks.mean(axis=1),
        views.mean(axis=1),
        clicks.var(axis=1, ddof=1),
        views.var(axis=1, ddof=1),
        ((clicks - clicks.mean(axis=1, keepdims=True)) * views).sum(axis=1) / 199,
    )
    spread = np.std(found.value)
    assert np.sqrt(found.variance).mean() == pytest.approx(spread, rel=0.05)
    rate = clicks.sum(axis=1) / views.sum(axis=1)
    naive = np.sqrt(rate * (1 - rate) / views.sum(axis=1)).mean()
    assert naive < 0.8 * spread


@pytest.mark.parametrize(
    "moments", [Moments.empty(2), moments_of([1.0], [1.0]), moments_of([1.0, 2.0], [0.0, 0.0])]
)
def test_without_units_or_denominator_nothing_is_known(moments: Moments) -> None:
    found = estimate(moments, "ratio")
    assert math.isnan(found.value)
    assert (found.variance, found.dof) == (math.inf, 0)


def test_without_spread_the_error_is_not_known() -> None:
    assert not estimate(moments_of([0.0] * 50)).known
    assert estimate(moments_of([0.0] * 50 + [1.0])).known
