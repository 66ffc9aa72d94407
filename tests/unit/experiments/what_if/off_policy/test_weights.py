"""Weights that carry no estimate are refused, with the reason."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from services.experiments.what_if.off_policy.errors import (
    InvalidLog,
    MissingSupport,
    TooFewEffectiveSamples,
)
from services.experiments.what_if.off_policy.estimators import LoggedLists, rips
from services.experiments.what_if.off_policy.weights import (
    Requirements,
    effective_sample_size,
    mean_error,
)
from tests.unit.experiments.what_if.off_policy.populations import one_place


def uniform_log(n: int, target: list[float], seed: int = 0) -> LoggedLists:
    """Lists of one place with one of so many items, each as probable."""
    items = np.random.default_rng(seed).integers(0, len(target), size=n)
    return one_place(np.ones(n), np.full(n, 1 / len(target)), np.array(target)[items])


@given(arrays(float, st.integers(1, 30), elements=st.floats(0.01, 100)), st.floats(0.1, 10))
def test_the_effective_sample_size_lies_between_one_and_n_at_any_scale(
    weights: np.ndarray, scale: float
) -> None:
    units = np.arange(len(weights))
    effective = effective_sample_size(weights, units)
    assert 1 - 1e-9 <= effective <= len(weights) + 1e-9
    assert effective_sample_size(scale * weights, units) == pytest.approx(effective)


def test_equal_weights_are_worth_their_number_and_one_large_weight_one() -> None:
    units = np.arange(50)
    assert effective_sample_size(np.full(50, 3.0), units) == pytest.approx(50)
    assert effective_sample_size(np.array([1e9] + [1.0] * 49), units) == pytest.approx(1)
    assert effective_sample_size(np.zeros(50), units) == 0
    # (1 + 2 + 3)^2 / (1 + 4 + 9), and with the first two of one unit (3 + 3)^2 / (9 + 9).
    weights = np.array([1.0, 2.0, 3.0])
    assert effective_sample_size(weights, units[:3]) == pytest.approx(36 / 14)
    assert effective_sample_size(weights, np.array([5, 5, 8])) == pytest.approx(2)


def test_the_error_of_a_mean_over_units_is_that_of_their_sums() -> None:
    values = np.random.default_rng(0).normal(size=60)
    values -= values.mean()
    units = np.arange(60) // 6
    sums = values.reshape(10, 6).sum(axis=1)
    assert mean_error(values, units) == pytest.approx(sums.std(ddof=1) * np.sqrt(10) / 60)
    assert mean_error(values, np.zeros(60, int)) == np.inf  # one unit has no spread


def test_a_few_large_weights_are_refused_with_the_arithmetic() -> None:
    n = 10_000
    propensities = np.full(n, 0.5)
    propensities[0] = 1e-6
    log = one_place(np.ones(n), propensities, np.full(n, 0.5))
    with pytest.raises(TooFewEffectiveSamples, match=r"10,000 .* only 1\.0 .* at least 100") as e:
        rips(log)
    assert e.value.effective < 2
    assert e.value.minimum == 100
    assert rips(log, Requirements(clip=5)).effective_sample_size > 9_000


def test_the_effective_sample_size_is_compared_with_the_declared_minimum() -> None:
    log = uniform_log(300, [0.7, 0.1, 0.1, 0.1])
    effective = rips(log).effective_sample_size
    assert rips(log, Requirements(min_effective_sample_size=effective - 1)).n == 300
    with pytest.raises(TooFewEffectiveSamples):
        rips(log, Requirements(min_effective_sample_size=effective + 1))


def test_a_target_that_leaves_what_was_logged_is_refused_by_its_mean_weight() -> None:
    """0.4 of the target is on an action that was never logged: no row shows it, the mean does."""
    log = uniform_log(2_000, [0.2, 0.2, 0.2])
    with pytest.raises(MissingSupport, match=r"mean 0\.6.* about 4\d\.\d%|about 40"):
        rips(log)


def test_a_target_that_was_never_followed_is_refused() -> None:
    log = uniform_log(500, [0.0, 0.0])
    with pytest.raises(MissingSupport, match="every weight is 0"):
        rips(log)


def test_propensities_that_are_too_small_are_refused_by_the_mean_weight() -> None:
    with pytest.raises(InvalidLog, match="too small"):
        rips(uniform_log(2_000, [0.5, 0.6, 0.5]))


@pytest.mark.parametrize("seed", range(20))
def test_full_support_is_not_refused(seed: int) -> None:
    assert rips(uniform_log(2_000, [0.9, 0.08, 0.01, 0.01], seed)).value > 0


@pytest.mark.parametrize("wrong", [{"clip": 0.0}, {"clip": float("nan")}])
def test_requirements_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidLog):
        Requirements(**wrong)
