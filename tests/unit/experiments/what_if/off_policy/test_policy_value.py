"""Differences and ratios of estimates on one log know that it is one log."""

import numpy as np
import pytest

from services.experiments.what_if.off_policy.errors import InvalidLog
from services.experiments.what_if.off_policy.estimators import LoggedLists, rips
from services.experiments.what_if.off_policy.policy_value import (
    PolicyValue,
    difference,
    lift,
    on_policy,
    ratio,
)
from services.experiments.what_if.off_policy.weights import Requirements
from tests.unit.experiments.what_if.off_policy.populations import action_log, one_place

ANYTHING = Requirements(min_effective_sample_size=0)


def drawn(n: int = 2_000, seed: int = 0, per_unit: int = 4) -> LoggedLists:
    """Two items at one place; requests of a unit share how much they earn."""
    generator = np.random.default_rng(seed)
    actions = generator.integers(2, size=n)
    readiness = np.repeat(generator.gamma(2, 0.5, size=n // per_unit), per_unit)
    rewards = readiness * (1.0 + 0.2 * actions)
    target = np.array([0.3, 0.7])[actions]
    return one_place(rewards, np.full(n, 0.5), target, np.arange(n) // per_unit)


def both(log: LoggedLists) -> tuple[PolicyValue, PolicyValue]:
    target = rips(log, ANYTHING)
    return target, on_policy(log.rewards[:, 0], log.units)


def test_the_logged_policys_value_is_the_mean_and_its_error_that_of_units() -> None:
    log = drawn()
    _, logged = both(log)
    assert logged.value == pytest.approx(log.rewards.mean())
    sums = log.rewards.reshape(-1, 4).sum(axis=1)
    expected = sums.std(ddof=1) / np.sqrt(len(sums)) / 4
    assert logged.standard_error == pytest.approx(expected, rel=1e-9)
    assert logged.effective_sample_size == 500


def test_weights_of_one_make_no_difference() -> None:
    log = action_log(np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]]), np.array([[1.0, 3.0]]))
    made = difference(*both(log), log.units)
    assert made.value == pytest.approx(0)
    assert made.standard_error == pytest.approx(0)


def test_a_difference_is_that_of_pairs() -> None:
    """The error is that of sums over units of what each list adds to both, less the other."""
    log = drawn()
    target, logged = both(log)
    made = difference(target, logged, log.units)
    weights, rewards = (log.target / log.propensities)[:, 0], log.rewards[:, 0]
    of_target = weights * (rewards - target.value) / weights.mean()
    pairs = (of_target - (rewards - rewards.mean())).reshape(-1, 4).sum(axis=1)
    assert made.value == pytest.approx(target.value - logged.value)
    assert made.standard_error == pytest.approx(pairs.std(ddof=1) / np.sqrt(len(pairs)) / 4)


@pytest.mark.parametrize("seed", range(3))
def test_errors_of_differences_and_ratios_are_those_of_the_bootstrap(seed: int) -> None:
    log = drawn(seed=seed)
    target, logged = both(log)
    generator = np.random.default_rng(100 + seed)
    found = []
    for _ in range(400):
        units = generator.integers(500, size=500)
        rows = (units[:, None] * 4 + np.arange(4)).reshape(-1)
        weights, rewards = (log.target / log.propensities)[rows, 0], log.rewards[rows, 0]
        value = weights @ rewards / weights.sum()
        own = rewards.mean()
        found.append((value - own, value / own - 1))
    spread = np.std(found, axis=0)
    made = difference(target, logged, log.units)
    assert made.standard_error == pytest.approx(spread[0], rel=0.15)
    assert lift(target, logged, log.units).standard_error == pytest.approx(spread[1], rel=0.15)
    # Treated as independent the difference would look far less certain than it is.
    assert made.standard_error < 0.7 * np.hypot(target.standard_error, logged.standard_error)


def test_a_lift_is_a_ratio_less_one_with_the_same_error() -> None:
    log = drawn()
    target, logged = both(log)
    made, rate = lift(target, logged, log.units), ratio(target, logged, log.units)
    assert made.value == pytest.approx(rate.value - 1)
    assert (made.low, made.high) == pytest.approx((rate.low - 1, rate.high - 1))


def test_a_ratio_has_the_health_and_the_bias_of_the_worse() -> None:
    log = drawn()
    free, cut = rips(log, ANYTHING), rips(log, Requirements(1.2, 0))
    made = ratio(free, cut, log.units)
    assert made.bias_bound == pytest.approx(made.value * cut.bias_bound / cut.value)
    assert made.clipped_share == cut.clipped_share > 0
    assert made.effective_sample_size == min(free.effective_sample_size, cut.effective_sample_size)


def test_nothing_is_divided_by_nothing() -> None:
    log = drawn()
    target = rips(log, ANYTHING)
    nothing = on_policy(np.zeros(2_000), log.units)
    with pytest.raises(InvalidLog, match="is 0"):
        lift(target, nothing, log.units)
