"""Sample sizes reach the power they were asked for; forecasts of the sequence are as simulated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from services.experiments.statistics.power import (
    LOOKS,
    binary_variance,
    contribution_variance,
    detection_chance,
    expected_units,
    sample_size,
    sequential_sample,
)
from services.experiments.statistics.sequential import critical_z


@given(
    st.floats(0.01, 0.5),
    st.floats(0.1, 4),
    st.floats(0.1, 4),
    st.floats(0.01, 0.1),
    st.floats(0.5, 0.95),
    st.floats(0.05, 0.95),
)
def test_the_sample_has_the_power_asked_for(
    effect: float, var_t: float, var_c: float, alpha: float, power: float, share: float
) -> None:
    size = sample_size(effect, var_t, var_c, alpha=alpha, power=power, share=share)

    def power_of(units: int) -> float:
        """Of the normal test in the effect's direction."""
        se = math.sqrt((var_t / share + var_c / (1 - share)) / units)
        return float(stats.norm.sf(stats.norm.isf(alpha / 2) - effect / se))

    assert power_of(size) >= power - 1e-9
    if size > 2:  # rounding up adds less than one to each arm
        assert power_of(size - 2) < power


def test_the_textbook_sample_for_ten_against_eleven_percent() -> None:
    """(1.95996 + 0.84162)² (0.1·0.9 + 0.11·0.89) / 0.01² = 14,748.6 per arm."""
    assert sample_size(0.01, binary_variance(0.11), binary_variance(0.10)) == 2 * 14_749


def test_a_covariate_saves_rho_squared() -> None:
    plain, saved = (sample_size(0.01, 1.0, 1.0, cuped_rho=rho) for rho in (0.0, 0.6))
    assert saved / plain == pytest.approx(1 - 0.36, rel=1e-4)


def test_more_units_in_the_arm_that_varies_more_need_fewer_in_all() -> None:
    """The best share is proportional to the standard deviations: 2 to 1 here."""
    totals = {s: contribution_variance(4.0, 1.0, s) for s in (0.5, 0.6, 2 / 3, 0.7)}
    assert min(totals, key=totals.__getitem__) == 2 / 3
    assert totals[2 / 3] == pytest.approx((2 + 1) ** 2)


@pytest.mark.parametrize("power", [0.8, 0.95])
def test_the_sequences_forecast_is_what_a_simulation_finds(power: float) -> None:
    var_t, var_c, effect, share = 2.0, 1.0, 0.05, 0.3
    plan = sequential_sample(effect, var_t, var_c, power=power, share=share)
    units = np.linspace(0, plan.units, LOOKS + 1)[1:]
    step = units[0]
    drift = effect / math.sqrt(contribution_variance(var_t, var_c, share))
    rng = np.random.default_rng(9)
    walks = np.cumsum(rng.normal(drift * step, math.sqrt(step), (4_000, LOOKS)), axis=1)
    together = share * var_t + (1 - share) * var_c + share * (1 - share) * effect**2
    taken = contribution_variance(max(var_t, together), max(var_c, together), share)
    widened = math.sqrt(taken / contribution_variance(var_t, var_c, share))
    assert widened > 1.02
    out = np.abs(walks / np.sqrt(units)) >= widened * critical_z(units, plan.rho, 0.05)
    found = out.any(axis=1)
    stopped = units[np.where(found, out.argmax(axis=1), LOOKS - 1)]
    assert found.mean() == pytest.approx(power, abs=3 * math.sqrt(power * (1 - power) / 4_000))
    assert stopped.mean() == pytest.approx(plan.expected_units, rel=0.03)


def test_the_sequence_pays_for_being_watched_but_stops_early() -> None:
    fixed = sample_size(0.01, 1.0, 1.0)
    plan = sequential_sample(0.01, 1.0, 1.0)
    assert 1.4 * fixed < plan.units < 2 * fixed
    assert plan.expected_units < 1.15 * fixed


def test_the_chance_of_a_finding_grows_to_certainty() -> None:
    chance = detection_chance(np.linspace(1_000, 200_000, 40), 0.05, 4.0, rho=0.02)
    assert (np.diff(chance) >= 0).all()
    assert chance[-1] == pytest.approx(1, abs=1e-3)


def test_expected_units_of_a_chance_by_hand() -> None:
    """Half stop at 10, a quarter at 20, the others see all 40."""
    assert expected_units([10, 20, 40], [0.5, 0.75, 0.75]) == 10 / 2 + 20 / 4 + 40 / 4


def test_plans_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="smallest of use"):
        sample_size(0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"0\.8 is usual"):
        sample_size(0.1, 1.0, 1.0, power=80)
    with pytest.raises(ValueError, match="correlation"):
        sample_size(0.1, 1.0, 1.0, cuped_rho=1)
    with pytest.raises(ValueError, match="not percent"):
        binary_variance(10)
