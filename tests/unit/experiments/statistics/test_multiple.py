"""Adjusted p-values against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from services.experiments.statistics.multiple import benjamini_hochberg, holm

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(P_VALUES, st.floats(0.001, 0.999))
def test_holm_rejects_what_its_step_down_procedure_rejects(
    p_values: list[float], alpha: float
) -> None:
    rejected, left = set[int](), len(p_values)
    for i in sorted(range(len(p_values)), key=p_values.__getitem__):
        if p_values[i] * left > alpha:
            break
        rejected.add(i)
        left -= 1
    assert set(np.flatnonzero(holm(p_values) <= alpha)) == rejected


@given(P_VALUES, st.floats(0.001, 0.999))
def test_benjamini_hochberg_rejects_what_its_step_up_procedure_rejects(
    p_values: list[float], q: float
) -> None:
    ordered, m = sorted(p_values), len(p_values)
    small = [k for k in range(m) if ordered[k] * (m / (k + 1)) <= q]
    threshold = ordered[max(small)] if small else -1.0
    assert ((benjamini_hochberg(p_values) <= q) == (np.array(p_values) <= threshold)).all()


@given(P_VALUES)
def test_it_agrees_with_scipy_and_holm_is_stricter(p_values: list[float]) -> None:
    ours = benjamini_hochberg(p_values)
    assert ours == pytest.approx(stats.false_discovery_control(p_values), abs=1e-9)
    assert (holm(p_values) >= ours - 1e-12).all()


def test_holm_of_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_no_metric_needs_no_correction() -> None:
    assert len(holm([])) == len(benjamini_hochberg([])) == 0
