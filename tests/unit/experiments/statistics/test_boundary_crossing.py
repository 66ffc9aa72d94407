"""Crossing probabilities against published designs, single looks and a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from services.experiments.statistics.boundary_crossing import first_crossings


@pytest.mark.parametrize(
    ("looks", "error_rate"), [(1, 0.05), (2, 0.083), (5, 0.142), (10, 0.193), (20, 0.248)]
)
def test_peeking_at_a_five_percent_test_errs_as_armitage_found(
    looks: int, error_rate: float
) -> None:
    """Armitage, McPherson, Rowe 1969, table 2."""
    found = first_crossings(np.arange(1, looks + 1), np.full(looks, 1.96)).sum()
    assert found == pytest.approx(error_rate, abs=6e-4)


@pytest.mark.parametrize("design", ["pocock", "obrien fleming"])
def test_group_sequential_designs_of_five_looks_keep_five_percent(design: str) -> None:
    """Constants of Jennison and Turnbull 2000, tables 2.1 and 2.3."""
    looks = np.arange(1.0, 6.0)
    bounds = np.full(5, 2.413) if design == "pocock" else 2.040 * np.sqrt(5 / looks)
    assert first_crossings(looks, bounds).sum() == pytest.approx(0.05, abs=1e-4)


def test_a_single_look_is_the_normal_tail() -> None:
    drift, units, bound = 0.1, 400.0, 1.7
    mean = drift * math.sqrt(units)
    expected = stats.norm.sf(bound - mean) + stats.norm.cdf(-bound - mean)
    assert first_crossings([units], [bound], drift) == pytest.approx([expected], abs=1e-12)


def test_uneven_looks_with_drift_are_as_simulated() -> None:
    units, bounds = (
        np.array([10.0, 15.0, 60.0, 61.0, 200.0]),
        np.array([2.5, 1.8, np.inf, 1.9, 2.2]),
    )
    rng = np.random.default_rng(4)
    steps = np.diff(units, prepend=0)
    z = np.cumsum(rng.normal(0.15 * steps, np.sqrt(steps), (200_000, 5)), axis=1) / np.sqrt(units)
    out = np.abs(z) >= bounds
    first = np.where(out.any(axis=1), out.argmax(axis=1), 5)
    simulated = np.bincount(first, minlength=6)[:5] / len(first)
    found = first_crossings(units, bounds, 0.15)
    assert found[2] == pytest.approx(0, abs=1e-9)
    assert found == pytest.approx(simulated, abs=4 * math.sqrt(0.25 / 200_000))


def test_the_unit_of_the_sample_does_not_matter() -> None:
    units, bounds = np.array([1.0, 2.0, 5.0]), np.array([2.0, 2.0, 2.0])
    assert first_crossings(units * 1e6, bounds, 1e-3) == pytest.approx(
        first_crossings(units, bounds, 1.0), rel=1e-9
    )


def test_looks_that_bring_next_to_nothing_cost_and_change_nothing() -> None:
    z = 2.0
    plain = first_crossings([100.0, 200.0, 300.0], [z] * 3)
    crowded = first_crossings([100.0, 100.0, 100.001, 200.0, 200.001, 300.0], [z] * 6)
    assert crowded[[1, 2, 4]].tolist() == [0.0] * 3
    np.testing.assert_allclose(crowded[[0, 3, 5]], plain, rtol=1e-4)
