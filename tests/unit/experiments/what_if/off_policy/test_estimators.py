"""Estimators of lists: exact where their assumption holds, and only there."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from services.experiments.what_if.off_policy.errors import (
    InvalidLog,
    MissingSupport,
    TooFewEffectiveSamples,
)
from services.experiments.what_if.off_policy.estimators import LoggedLists, item_position, rips
from services.experiments.what_if.off_policy.policy_value import PolicyValue
from services.experiments.what_if.off_policy.weights import Requirements
from tests.unit.experiments.what_if.off_policy.populations import (
    action_log,
    given_above,
    list_log,
    list_value,
    one_place,
)

PLACES, ITEMS = 3, 4
UNIFORM = np.ones(ITEMS)
TARGET = np.array([4.0, 2.0, 1.0, 0.5])
ATTRACTION = np.array([0.1, 0.5, 0.3, 0.9])
EXAMINATION = np.array([1.0, 0.6, 0.3])
ANY = Requirements(min_effective_sample_size=0)
# Of one place: in each of two contexts the probabilities and rewards of three items.
ONE_LOGGED = np.array([[0.5, 0.25, 0.25], [0.1, 0.3, 0.6]])
ONE_TARGET = np.array([[0.2, 0.2, 0.6], [0.5, 0.5, 0.0]])
ONE_REWARDS = np.array([[1.0, 3.0, 0.5], [2.0, 0.0, 4.0]])
ONE_TRUTH = float((ONE_TARGET * ONE_REWARDS).sum() / 2)

Reward = Callable[[tuple[int, ...]], list[float]]


def additive(items: tuple[int, ...]) -> list[float]:
    """Position-based model: what item-position assumes."""
    return [float(EXAMINATION[k] * ATTRACTION[item]) for k, item in enumerate(items)]


def cascade(items: tuple[int, ...]) -> list[float]:
    """The user goes on only if nothing above attracted: what RIPS assumes."""
    still = np.cumprod([1.0, *(1 - ATTRACTION[list(items)])])[:-1]
    return [float(s * ATTRACTION[item]) for s, item in zip(still, items, strict=True)]


def looks_down(items: tuple[int, ...]) -> list[float]:
    """The first place earns by the last item: neither assumption holds."""
    return [float(ATTRACTION[items[0]] * ATTRACTION[items[-1]]), 0.0, 0.0]


def marginals(weights: np.ndarray) -> np.ndarray:
    """float64[PLACES, ITEMS] of drawing in proportion to weights, summed over all lists."""
    lists = np.array(list(permutations(range(ITEMS), PLACES)))
    result = np.zeros((PLACES, ITEMS))
    for one, probability in zip(lists, given_above(weights, lists).prod(axis=1), strict=True):
        result[np.arange(PLACES), one] += probability
    return result


def with_marginals(reward: Reward) -> LoggedLists:
    """The same log as RIPS gets, with the probabilities that item-position takes."""
    items, log = list_log(UNIFORM, TARGET, reward, PLACES)
    of, to = (marginals(w)[np.arange(PLACES), items] for w in (UNIFORM, TARGET))
    return LoggedLists(log.rewards, of, to, log.units)


def random_log(n: int, seed: int) -> LoggedLists:
    generator = np.random.default_rng(seed)
    items = np.array([generator.permutation(ITEMS)[:PLACES] for _ in range(n)])
    return LoggedLists(
        generator.random((n, PLACES)),
        given_above(UNIFORM, items),
        given_above(TARGET, items),
        np.arange(n),
    )


def random_one_place(n: int = 400, seed: int = 0) -> LoggedLists:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(4, 3.0))
    target = generator.dirichlet(np.full(4, 3.0))
    items = generator.choice(4, size=n, p=probabilities)
    return one_place(generator.normal(items, 1.0), probabilities[items], target[items])


# What each assumes.


def test_rips_is_exact_iff_no_place_looks_down() -> None:
    for reward in (additive, cascade):
        _, log = list_log(UNIFORM, TARGET, reward, PLACES)
        assert rips(log).value == pytest.approx(list_value(TARGET, reward, PLACES), rel=1e-10)
    _, log = list_log(UNIFORM, TARGET, looks_down, PLACES)
    assert abs(rips(log).value / list_value(TARGET, looks_down, PLACES) - 1) > 0.05


def test_item_position_is_exact_iff_a_place_earns_by_its_item_alone() -> None:
    truth = list_value(TARGET, additive, PLACES)
    assert item_position(with_marginals(additive)).value == pytest.approx(truth, rel=1e-10)
    for reward in (cascade, looks_down):
        truth = list_value(TARGET, reward, PLACES)
        assert abs(item_position(with_marginals(reward)).value / truth - 1) > 0.005


def test_fewer_factors_leave_more_effective_samples() -> None:
    _, log = list_log(UNIFORM, TARGET, additive, PLACES)
    mine = item_position(with_marginals(additive))
    assert mine.effective_sample_size > rips(log).effective_sample_size


def test_item_position_refuses_marginals_of_another_policy() -> None:
    log = with_marginals(additive)
    shape = log.rewards.shape
    wrong = replace(log, propensities=np.full(shape, 0.1), target=np.full(shape, 0.25))
    with pytest.raises(InvalidLog, match="too small"):
        item_position(wrong)


def test_on_lists_of_one_place_both_give_the_true_value_of_a_log_in_proportion() -> None:
    log = action_log(ONE_LOGGED, ONE_TARGET, ONE_REWARDS)
    for estimator in (rips, item_position):
        assert estimator(log).value == pytest.approx(ONE_TRUTH, rel=1e-12)


# Values and errors by other formulas.


def test_rips_by_a_plain_loop() -> None:
    n = 500
    log = random_log(n, 5)
    value = 0.0
    for k in range(PLACES):
        sum_w = sum_wr = 0.0
        for i in range(n):
            w = 1.0
            for j in range(k + 1):
                w *= log.target[i, j] / log.propensities[i, j]
            sum_w += w
            sum_wr += w * log.rewards[i, k]
        value += sum_wr / sum_w
    assert rips(log).value == pytest.approx(value, rel=1e-12)


def test_the_standard_error_of_rips_is_that_of_the_jackknife() -> None:
    n = 300
    log = random_log(n, 6)
    parts = [
        rips(
            LoggedLists(log.rewards[k], log.propensities[k], log.target[k], log.units[k]), ANY
        ).value
        for k in ~np.eye(n, dtype=bool)
    ]
    jackknife = np.sqrt((n - 1) / n * ((parts - np.mean(parts)) ** 2).sum())
    assert rips(log, ANY).standard_error == pytest.approx(jackknife, rel=0.02)


def test_the_standard_error_of_one_place_is_that_of_a_ratio_of_means() -> None:
    log = random_one_place()
    w = (log.target / log.propensities)[:, 0]
    x, y = w * log.rewards[:, 0], w
    covariance = np.cov(x, y)
    ratio = x.mean() / y.mean()
    variance = (
        covariance[0, 0] - 2 * ratio * covariance[0, 1] + ratio**2 * covariance[1, 1]
    ) / y.mean() ** 2
    assert rips(log).value == pytest.approx(ratio, rel=1e-12)
    assert rips(log).standard_error == pytest.approx(np.sqrt(variance / len(w)), rel=1e-9)


def test_the_interval_is_normal() -> None:
    log = random_one_place()
    made = rips(log)
    np.testing.assert_allclose(
        [made.low, made.high],
        norm.interval(made.confidence, made.value, made.standard_error),
        rtol=1e-12,
    )


@given(st.floats(-50, 50), st.integers(0, 50))
@settings(max_examples=30)
def test_a_constant_in_all_rewards_moves_the_value_which_stays_in_their_range(
    constant: float, seed: int
) -> None:
    log = random_one_place(n=200, seed=seed)
    before = rips(log, ANY)
    after = rips(replace(log, rewards=log.rewards + constant), ANY)
    assert after.value == pytest.approx(before.value + constant, abs=1e-9)
    assert after.standard_error == pytest.approx(before.standard_error, rel=1e-6)
    assert log.rewards.min() <= before.value <= log.rewards.max()


def test_lists_that_are_copies_of_one_another_add_nothing() -> None:
    log = random_one_place(n=300)
    copies = LoggedLists(
        *(np.repeat(x, 3, axis=0) for x in (log.rewards, log.propensities, log.target)),
        units=np.repeat(log.units, 3),  # type: ignore[misc]
    )
    single, copied = rips(log), rips(copies)
    assert copied.value == pytest.approx(single.value, rel=1e-12)
    assert copied.standard_error == pytest.approx(single.standard_error, rel=1e-12)
    assert copied.effective_sample_size == pytest.approx(single.effective_sample_size)


def test_the_logging_policy_evaluated_is_the_mean_reward() -> None:
    log = random_one_place()
    made = rips(replace(log, target=log.propensities))
    assert made.value == pytest.approx(log.rewards.mean(), rel=1e-12)
    assert made.effective_sample_size == pytest.approx(len(log.rewards))
    assert made.lost_mass == made.clipped_share == 0


@pytest.mark.parametrize("estimator", [rips, item_position])
def test_a_list_filled_up_with_nothing_counts_as_the_shorter_list(
    estimator: Callable[[LoggedLists], PolicyValue],
) -> None:
    _, log = list_log(UNIFORM, TARGET, additive, 2)
    ones = np.ones((len(log.units), 1))
    filled = LoggedLists(
        np.hstack([log.rewards, 0 * ones]),
        np.hstack([log.propensities, ones]),
        np.hstack([log.target, ones]),
        log.units,
    )
    assert estimator(filled).value == pytest.approx(estimator(log).value, rel=1e-12)


# Clipping.


def test_clipped_rips_stays_within_its_bound() -> None:
    _, log = list_log(UNIFORM, TARGET, cascade, PLACES)
    made = rips(log, Requirements(clip=2))
    assert made.lost_mass > 0
    assert abs(made.value - list_value(TARGET, cascade, PLACES)) <= made.bias_bound


@pytest.mark.parametrize("clip", [2.0, 4.0])
def test_clipping_is_no_further_off_than_it_says(clip: float) -> None:
    """In a log in proportion all that is wrong with the value is the bias of clipping."""
    log = action_log(ONE_LOGGED, ONE_TARGET, ONE_REWARDS)
    weights = log.target / log.propensities
    made = rips(log, Requirements(clip=clip))
    assert made.lost_mass == pytest.approx(np.maximum(weights - clip, 0).mean(), rel=1e-9)
    assert abs(made.value - ONE_TRUTH) <= made.bias_bound + 1e-12
    assert made.clipped_share == pytest.approx((weights > clip).mean())
    assert made.largest_weight == weights.max()


# What is refused.


def test_refusals_say_what_is_missing() -> None:
    items, log = list_log(UNIFORM, TARGET, additive, PLACES)
    with pytest.raises(TooFewEffectiveSamples):
        rips(log, Requirements(min_effective_sample_size=10_000))
    # The logging policy never put item 3 in the first place: only the mean weight can tell.
    seen = items[:, 0] != 3
    left = LoggedLists(
        log.rewards[seen],
        np.where([True, False, False], 1 / 3, log.propensities[seen]),
        given_above(np.array([1.0, 1, 1, 6]), items[seen]),
        log.units[seen],
    )
    with pytest.raises(MissingSupport, match="mean"):
        rips(left)
