"""IPS, SNIPS and DR: right on average, with the standard errors of independent formulas."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from services.experiments.what_if.off_policy.actions import (
    cross_fit,
    doubly_robust,
    folds_of,
    ips,
    snips,
)
from services.experiments.what_if.off_policy.errors import InvalidLog
from services.experiments.what_if.off_policy.logs import LoggedActions, Requirements
from tests.unit.experiments.what_if.off_policy.populations import action_log, contexts_of

LOGGING = np.array([[0.5, 0.25, 0.25], [0.1, 0.3, 0.6]])
TARGET = np.array([[0.2, 0.2, 0.6], [0.5, 0.5, 0.0]])
REWARDS = np.array([[1.0, 3.0, 0.5], [2.0, 0.0, 4.0]])
TRUTH = float((TARGET * REWARDS).sum() / 2)
ANY = Requirements(min_effective_sample_size=0)


def random_log(n: int = 400, seed: int = 0) -> LoggedActions:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(4, 3.0))
    target = generator.dirichlet(np.full(4, 3.0))
    actions = generator.choice(4, size=n, p=probabilities)
    rewards = generator.normal(actions, 1.0)
    return LoggedActions(actions, rewards, probabilities[actions], target[actions])


def test_ips_gives_the_true_value_of_a_log_in_proportion() -> None:
    estimate = ips(action_log(LOGGING, TARGET, REWARDS))
    assert estimate.value == pytest.approx(TRUTH, rel=1e-12)


def test_snips_gives_the_true_value_of_a_log_in_proportion() -> None:
    estimate = snips(action_log(LOGGING, TARGET, REWARDS))
    assert estimate.value == pytest.approx(TRUTH, rel=1e-12)


@pytest.mark.parametrize("wrong_by", [0.0, 2.0])
def test_dr_gives_the_true_value_whatever_the_model(wrong_by: float) -> None:
    log, contexts = action_log(LOGGING, TARGET, REWARDS), contexts_of(LOGGING)
    model = REWARDS + wrong_by * np.array([[1, -1, 2], [0, 3, 1]])
    estimate = doubly_robust(log, model[contexts], TARGET[contexts])
    assert estimate.value == pytest.approx(TRUTH, rel=1e-12)


def test_dr_with_wrong_propensities_is_saved_by_a_right_model() -> None:
    """The other half of the name. The wrong propensities still have weights of mean one."""
    logging = np.array([[0.5, 0.25, 0.25]])
    target = np.array([[0.25, 0.5, 0.25]])
    log = action_log(logging, target, REWARDS[:1])
    believed = np.array([0.4, 0.4, 0.2])
    mean = float((target[0] * logging[0] / believed).sum())
    wrong = replace(log, propensities=believed[log.actions] * mean)
    truth = float(target[0] @ REWARDS[0])
    predictions = np.tile(REWARDS[0], (len(log.rewards), 1))
    estimate = doubly_robust(wrong, predictions, target[0])
    assert estimate.value == pytest.approx(truth, rel=1e-12)
    assert abs(ips(wrong).value - truth) > 0.05


def test_a_better_model_narrows_the_interval_of_dr() -> None:
    log, contexts = action_log(LOGGING, TARGET, REWARDS), contexts_of(LOGGING)
    widths = [
        doubly_robust(log, share * REWARDS[contexts], TARGET[contexts]).standard_error
        for share in (0.0, 0.5, 1.0)
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(ips(log).standard_error, rel=1e-12)


def test_estimates_equal_a_plain_loop() -> None:
    log = random_log()
    n = len(log.rewards)
    predictions = np.random.default_rng(1).normal(size=(n, 4))
    target = np.zeros(4)
    target[log.actions] = log.target
    sum_wr = sum_w = sum_dr = 0.0
    for i in range(n):
        w = log.target[i] / log.propensities[i]
        sum_w += w
        sum_wr += w * log.rewards[i]
        expected = sum(target[a] * predictions[i, a] for a in range(4))
        sum_dr += expected + w * (log.rewards[i] - predictions[i, log.actions[i]])
    assert ips(log).value == pytest.approx(sum_wr / n, rel=1e-12)
    assert snips(log).value == pytest.approx(sum_wr / sum_w, rel=1e-12)
    assert doubly_robust(log, predictions, target).value == pytest.approx(sum_dr / n, rel=1e-12)


def test_standard_errors_are_those_of_a_mean_and_of_a_ratio() -> None:
    log = random_log()
    n = len(log.rewards)
    w = log.target / log.propensities
    x, y = w * log.rewards, w
    assert ips(log).standard_error == pytest.approx(x.std(ddof=1) / np.sqrt(n), rel=1e-12)
    covariance = np.cov(x, y)
    ratio = x.mean() / y.mean()
    variance = (
        covariance[0, 0] - 2 * ratio * covariance[0, 1] + ratio**2 * covariance[1, 1]
    ) / y.mean() ** 2
    assert snips(log).standard_error == pytest.approx(np.sqrt(variance / n), rel=1e-9)


def test_the_interval_is_normal() -> None:
    log = random_log()
    for confidence in (0.95, 0.8):
        made = ips(log, Requirements(confidence=confidence))
        np.testing.assert_allclose(
            [made.low, made.high],
            norm.interval(confidence, made.value, made.standard_error),
            rtol=1e-12,
        )


@given(st.floats(-50, 50), st.integers(0, 50))
@settings(max_examples=30)
def test_snips_moves_with_a_constant_in_all_rewards_and_stays_in_their_range(
    constant: float, seed: int
) -> None:
    log = random_log(n=200, seed=seed)
    before = snips(log, ANY)
    after = snips(replace(log, rewards=log.rewards + constant), ANY)
    assert after.value == pytest.approx(before.value + constant, abs=1e-9)
    assert after.standard_error == pytest.approx(before.standard_error, rel=1e-6)
    assert log.rewards.min() <= before.value <= log.rewards.max()


def test_decisions_that_are_copies_of_one_another_add_nothing() -> None:
    log = random_log(n=300)
    units = np.arange(300)
    copies = LoggedActions(
        *(np.repeat(x, 3) for x in (log.actions, log.rewards, log.propensities, log.target)),
        units=np.repeat(units, 3),
    )
    for estimator in (ips, snips):
        single, copied = estimator(log), estimator(copies)
        assert copied.value == pytest.approx(single.value, rel=1e-12)
        assert copied.standard_error == pytest.approx(single.standard_error, rel=1e-12)
        assert copied.effective_sample_size == pytest.approx(single.effective_sample_size)


def test_the_logging_policy_evaluated_is_the_mean_reward() -> None:
    log = random_log()
    same = replace(log, target=log.propensities)
    for estimator in (ips, snips):
        made = estimator(same)
        assert made.value == pytest.approx(log.rewards.mean(), rel=1e-12)
        assert made.effective_sample_size == pytest.approx(len(log.rewards))
        assert made.lost_mass == made.clipped_share == 0


@pytest.mark.parametrize("clip", [2.0, 4.0])
def test_clipping_undervalues_by_no_more_than_it_says(clip: float) -> None:
    """In a log in proportion all that is wrong with the value is the bias of clipping."""
    log = action_log(LOGGING, TARGET, REWARDS)
    weights = log.target / log.propensities
    made = ips(log, Requirements(clip=clip))
    assert made.value < TRUTH
    assert TRUTH - made.value == pytest.approx(
        (np.maximum(weights - clip, 0) * log.rewards).mean(), rel=1e-9
    )
    assert made.lost_mass == pytest.approx(np.maximum(weights - clip, 0).mean(), rel=1e-9)
    assert TRUTH - made.value <= made.bias_bound + 1e-12
    assert abs(snips(log, Requirements(clip=clip)).value - TRUTH) <= (
        snips(log, Requirements(clip=clip)).bias_bound + 1e-12
    )
    assert made.clipped_share == pytest.approx((weights > clip).mean())
    assert made.largest_weight == weights.max()


def test_no_unit_is_in_two_folds_and_folds_are_of_equal_size() -> None:
    units = np.random.default_rng(0).integers(0, 50, size=1_000)
    folds = folds_of(units, 7, np.random.default_rng(1))
    by_unit = {u: set(folds[units == u].tolist()) for u in np.unique(units).tolist()}
    assert all(len(f) == 1 for f in by_unit.values())
    sizes = np.bincount([f.pop() for f in by_unit.values()])
    assert len(sizes) == 7
    assert sizes.max() - sizes.min() <= 1


def test_a_model_never_predicts_what_it_was_fitted_on() -> None:
    folds = folds_of(np.arange(97), 5, np.random.default_rng(0))
    predictions = cross_fit(
        folds,
        fit=lambda rows: set(rows.tolist()),
        predict=lambda seen, rows: np.array([[row in seen, len(seen)] for row in rows.tolist()]),
    )
    assert predictions.shape == (97, 2)
    assert not predictions[:, 0].any()
    np.testing.assert_array_equal(predictions[:, 1], [97 - (folds == f).sum() for f in folds])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"propensities": np.zeros(400)}, "had a probability above 0"),
        ({"propensities": np.full(400, 1.2)}, "at most 1"),
        ({"target": np.full(400, -0.1)}, "Give probabilities"),
        ({"rewards": np.full(400, np.nan)}, "not finite"),
        ({"target": np.zeros(399)}, "shape"),
        ({"actions": np.zeros(400)}, "whole numbers"),
        ({"units": np.zeros(3, dtype=int)}, "units"),
    ],
)
def test_a_log_that_cannot_be_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(InvalidLog, match=sentence):
        replace(random_log(), **change)


def test_an_empty_log_is_refused() -> None:
    none = np.zeros(0)
    with pytest.raises(InvalidLog, match="empty"):
        LoggedActions(none.astype(int), none, none, none)


def test_dr_refuses_another_policy_than_the_log_was_made_for() -> None:
    log = random_log()
    target = np.zeros(4)
    target[log.actions] = log.target
    predictions = np.zeros((400, 4))
    with pytest.raises(InvalidLog, match="one policy"):
        doubly_robust(log, predictions, target[::-1])
    with pytest.raises(InvalidLog, match="columns"):
        doubly_robust(log, predictions[:, :2], target[:2])
    with pytest.raises(InvalidLog, match="add up"):
        doubly_robust(log, np.zeros((400, 5)), np.append(target, 0.5))


@pytest.mark.parametrize("folds", [1, 401])
def test_a_number_of_folds_that_cannot_be_is_refused(folds: int) -> None:
    with pytest.raises(InvalidLog, match="folds"):
        folds_of(np.arange(400), folds, np.random.default_rng(0))
    with pytest.raises(InvalidLog, match="fold"):
        cross_fit(np.zeros(4, dtype=int), lambda rows: None, lambda model, rows: rows)
