"""Weights that carry no estimate are refused, with the reason."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from services.experiments.what_if.off_policy.actions import ips
from services.experiments.what_if.off_policy.errors import (
    InvalidLog,
    MissingSupport,
    TooFewEffectiveSamples,
)
from services.experiments.what_if.off_policy.logs import LoggedActions, Requirements
from services.experiments.what_if.off_policy.weights import (
    check_support,
    effective_sample_size,
    mean_error,
)


def uniform_log(n: int, target: list[float], seed: int = 0) -> LoggedActions:
    actions = np.random.default_rng(seed).integers(0, len(target), size=n)
    return LoggedActions(
        actions, np.ones(n), np.full(n, 1 / len(target)), np.array(target)[actions]
    )


@given(arrays(float, st.integers(1, 30), elements=st.floats(0.01, 100)), st.floats(0.1, 10))
def test_the_effective_sample_size_lies_between_one_and_n_at_any_scale(
    weights: np.ndarray, scale: float
) -> None:
    effective = effective_sample_size(weights)
    assert 1 - 1e-9 <= effective <= len(weights) + 1e-9
    assert effective_sample_size(scale * weights) == pytest.approx(effective)


def test_equal_weights_are_worth_their_number_and_one_large_weight_one() -> None:
    assert effective_sample_size(np.full(50, 3.0)) == pytest.approx(50)
    assert effective_sample_size(np.array([1e9] + [1.0] * 49)) == pytest.approx(1)
    assert effective_sample_size(np.zeros(5)) == 0
    # (1 + 2 + 3)^2 / (1 + 4 + 9), and with the first two of one unit (3 + 3)^2 / (9 + 9).
    weights = np.array([1.0, 2.0, 3.0])
    assert effective_sample_size(weights) == pytest.approx(36 / 14)
    assert effective_sample_size(weights, np.array([5, 5, 8])) == pytest.approx(2)


def test_the_error_of_a_mean_over_units_is_that_of_their_sums() -> None:
    values = np.random.default_rng(0).normal(size=60)
    values -= values.mean()
    units = np.arange(60) // 6
    sums = values.reshape(10, 6).sum(axis=1)
    assert mean_error(values, units) == pytest.approx(sums.std(ddof=1) * np.sqrt(10) / 60)


def test_a_few_large_weights_are_refused_with_the_arithmetic() -> None:
    n = 10_000
    propensities = np.full(n, 0.5)
    propensities[0] = 1e-6
    log = LoggedActions(np.zeros(n, dtype=int), np.ones(n), propensities, np.full(n, 0.5))
    with pytest.raises(TooFewEffectiveSamples, match=r"10,000 .* only 1\.0 .* at least 100") as e:
        ips(log)
    assert e.value.effective < 2
    assert e.value.minimum == 100
    assert ips(log, Requirements(clip=5)).effective_sample_size > 9_000


def test_the_effective_sample_size_is_compared_with_the_declared_minimum() -> None:
    log = uniform_log(300, [0.7, 0.1, 0.1, 0.1])
    effective = ips(log).effective_sample_size
    assert ips(log, Requirements(min_effective_sample_size=effective - 1)).n == 300
    with pytest.raises(TooFewEffectiveSamples):
        ips(log, Requirements(min_effective_sample_size=effective + 1))


def test_a_target_that_leaves_what_was_logged_is_refused_by_its_mean_weight() -> None:
    """0.4 of the target is on an action that was never logged: no row shows it, the mean does."""
    log = uniform_log(2_000, [0.2, 0.2, 0.2])
    with pytest.raises(MissingSupport, match=r"mean 0\.6.* about 4\d\.\d%|about 40"):
        ips(log)


def test_a_target_that_was_never_followed_is_refused() -> None:
    log = uniform_log(500, [0.0, 0.0])
    with pytest.raises(MissingSupport, match="every weight is 0"):
        ips(log)


def test_propensities_that_are_too_small_are_refused_by_the_mean_weight() -> None:
    with pytest.raises(InvalidLog, match="too small"):
        ips(uniform_log(2_000, [0.5, 0.6, 0.5]))


@pytest.mark.parametrize("seed", range(20))
def test_full_support_is_not_refused(seed: int) -> None:
    assert ips(uniform_log(2_000, [0.9, 0.08, 0.01, 0.01], seed)).value > 0


def test_missing_support_names_the_action() -> None:
    logging = np.array([[0.5, 0.5, 0.0], [0.2, 0.0, 0.8]])
    check_support(logging, np.array([[0.1, 0.9, 0.0], [1.0, 0.0, 0.0]]))
    target = np.array([[0.1, 0.6, 0.3], [0.9, 0.1, 0.0]])
    with pytest.raises(MissingSupport, match=r"20\.00% .* action 2"):
        check_support(logging, target)
    with pytest.raises(MissingSupport, match="most of it on shoes"):
        check_support(logging, target, names=["hats", "coats", "shoes"])
    check_support(logging, target, at_most=0.2)


@pytest.mark.parametrize(
    "wrong", [{"clip": 0.0}, {"clip": float("nan")}, {"confidence": 1.0}, {"confidence": 0.0}]
)
def test_requirements_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidLog):
        Requirements(**wrong)
