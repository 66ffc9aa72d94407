"""CUPED: the regression with one slope for all arms, and the saving of rho²."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from services.experiments.statistics.cuped import adjusted_estimates, correlation, theta
from services.experiments.statistics.effects import difference
from services.experiments.statistics.estimates import estimate
from services.experiments.statistics.moments import Moments, moments_of

RNG = np.random.default_rng(23)
N = 3_000


def data(effect: float, slope: float) -> tuple[NDArray[np.int64], ...]:
    """Arms (three, unequal), metric and covariate of N units."""
    arms = RNG.choice(3, N, p=[0.5, 0.3, 0.2])
    x = RNG.gamma(2, 2, N).round(6)
    y = (slope * x + effect * (arms == 1) + RNG.normal(0, 1, N)).round(6)
    return arms, y, x


def moments_by_arm(arms: NDArray[np.int64], *columns: NDArray[np.float64]) -> list[Moments]:
    return [moments_of(*(column[arms == arm] for column in columns)) for arm in np.unique(arms)]


def test_it_is_the_regression_on_arms_and_covariate() -> None:
    """Least squares of y on a constant per arm and x: same slope and differences."""
    arms, y, x = data(0.2, 0.7)
    design = np.column_stack([*(arms == a for a in range(3)), x]).astype(float)
    (*constants, slope), *_ = np.linalg.lstsq(design, y)
    moments = moments_by_arm(arms, y, x)
    adjusted = adjusted_estimates(moments)
    assert theta(moments) == pytest.approx(slope, rel=1e-9)
    for arm in (1, 2):
        effect = difference(adjusted[arm], adjusted[0])
        assert effect.value == pytest.approx(constants[arm] - constants[0], abs=1e-9)


def test_the_variance_is_that_of_the_adjusted_units() -> None:
    arms, y, x = data(0.2, 0.7)
    moments = moments_by_arm(arms, y, x)
    residual = y - theta(moments) * (x - x.mean())
    for arm, found in enumerate(adjusted_estimates(moments)):
        units = residual[arms == arm]
        assert found.value == pytest.approx(units.mean(), abs=1e-9)
        assert found.variance == pytest.approx(units.var(ddof=1) / len(units), rel=1e-9)


def test_it_saves_rho_squared_of_the_variance() -> None:
    _, y, x = data(0.0, 0.7)
    moments = moments_of(y, x)
    rho = np.corrcoef(y, x)[0, 1]
    (adjusted,) = adjusted_estimates([moments])
    assert correlation([moments]) == pytest.approx(rho, rel=1e-9)
    assert adjusted.variance / estimate(moments).variance == pytest.approx(1 - rho**2, rel=1e-9)


def test_the_effect_itself_does_not_pose_as_correlation() -> None:
    """With arms far apart the slope is still the one within arms."""
    arms, y, x = data(1_000.0, 0.7)
    without = theta(moments_by_arm(arms, (y - 1_000 * (arms == 1)).round(6), x))
    assert theta(moments_by_arm(arms, y, x)) == pytest.approx(without, rel=1e-6)


def test_it_removes_a_chance_imbalance_of_the_covariate() -> None:
    """y is x alone: arms that differ in x by chance do not differ once adjusted."""
    arms, _, x = data(0.0, 0.0)
    moments = moments_by_arm(arms, 2 * x, x)
    values = [e.value for e in adjusted_estimates(moments)]
    assert values == pytest.approx([2 * x.mean()] * 3, rel=1e-9)
    assert estimate(moments[1]).value != pytest.approx(estimate(moments[0]).value, rel=1e-3)


def test_a_ratio_is_adjusted_through_its_linear_form() -> None:
    arms = RNG.integers(0, 2, N)
    x = RNG.poisson(4, N).astype(float)
    views = RNG.poisson(x + 1) + 1.0
    clicks = RNG.binomial(views.astype(int), (0.05 + 0.05 * x).clip(0, 1)).astype(float)
    moments = moments_by_arm(arms, clicks, views, x)
    linear = np.empty(N)
    for a in (0, 1):
        of = arms == a
        r = clicks[of].sum() / views[of].sum()
        linear[of] = r + (clicks[of] - r * views[of]) / views[of].mean()
    expected = adjusted_estimates(moments_by_arm(arms, linear, x))
    for found, wanted, plain in zip(
        adjusted_estimates(moments, "ratio"), expected, moments, strict=True
    ):
        # The linear form itself is rounded to the grid of millionths here.
        assert found.value == pytest.approx(wanted.value, abs=1e-6)
        assert found.variance == pytest.approx(wanted.variance, rel=1e-5)
        assert found.variance < estimate(plain, "ratio").variance


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_a_constant_covariate_changes_nothing(kind: str) -> None:
    arms, y, _ = data(0.2, 0.7)
    columns = (y, np.ones(N)) if kind == "mean" else (y, y + 50, np.ones(N))
    moments = moments_by_arm(arms, *columns)
    assert theta(moments, kind) == correlation(moments, kind) == 0
    assert [e.value for e in adjusted_estimates(moments, kind)] == pytest.approx(
        [estimate(m, kind).value for m in moments]
    )


def test_an_empty_arm_is_unknown_and_leaves_the_others_alone() -> None:
    arms, y, x = data(0.2, 0.7)
    moments = moments_by_arm(arms, y, x)
    *others, empty = adjusted_estimates([*moments, Moments.empty(2)])
    assert others == adjusted_estimates(moments)
    assert math.isnan(empty.value)
    assert empty.dof == 0
