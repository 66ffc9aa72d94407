"""Slate estimators: exact where their assumption holds, and only there."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from services.experiments.lists.exploration import EpsilonGreedy, PlackettLuce, rank_logits
from services.experiments.what_if.off_policy.errors import (
    InvalidLog,
    MissingSupport,
    TooFewEffectiveSamples,
)
from services.experiments.what_if.off_policy.logs import LoggedSlates, Requirements
from services.experiments.what_if.off_policy.slates import (
    SlateMoments,
    item_position,
    pseudo_inverse,
    rips,
    slate_ips,
    slate_robust,
    slate_snips,
)
from tests.unit.experiments.what_if.off_policy.populations import (
    given_above,
    slate_log,
    slate_value,
)

PLACES, ITEMS = 3, 4
UNIFORM = np.ones(ITEMS)
TARGET = np.array([4.0, 2.0, 1.0, 0.5])
ATTRACTION = np.array([0.1, 0.5, 0.3, 0.9])
EXAMINATION = np.array([1.0, 0.6, 0.3])


def additive(slate: tuple[int, ...]) -> list[float]:
    """Position-based model: what the pseudo-inverse assumes."""
    return [float(EXAMINATION[k] * ATTRACTION[item]) for k, item in enumerate(slate)]


def cascade(slate: tuple[int, ...]) -> list[float]:
    """The user goes on only if nothing above attracted: what RIPS assumes."""
    still = np.cumprod([1.0, *(1 - ATTRACTION[list(slate)])])[:-1]
    return [float(s * ATTRACTION[item]) for s, item in zip(still, slate, strict=True)]


def looks_down(slate: tuple[int, ...]) -> list[float]:
    """The first place earns by the last item: neither assumption holds."""
    return [float(ATTRACTION[slate[0]] * ATTRACTION[slate[-1]]), 0.0, 0.0]


def all_lists() -> np.ndarray:
    return np.array(list(permutations(range(ITEMS), PLACES)))


def moments(weights: np.ndarray) -> SlateMoments:
    slates = all_lists()
    return SlateMoments.of_lists(slates, given_above(weights, slates).prod(axis=1), ITEMS)


def marginals(weights: np.ndarray) -> np.ndarray:
    """float64[PLACES, ITEMS] of drawing in proportion to weights, summed over all lists."""
    slates = all_lists()
    result = np.zeros((PLACES, ITEMS))
    for slate, probability in zip(slates, given_above(weights, slates).prod(axis=1), strict=True):
        result[np.arange(PLACES), slate] += probability
    return result


def by_pseudo_inverse(log: LoggedSlates) -> float:
    weights = moments(UNIFORM).weights(log.slates, marginals(TARGET))
    return pseudo_inverse(log, weights).value


@pytest.mark.parametrize("reward", [additive, cascade, looks_down])
def test_weights_of_whole_lists_assume_nothing(reward) -> None:  # type: ignore[no-untyped-def]
    log = slate_log(UNIFORM, TARGET, reward, PLACES)
    truth = slate_value(TARGET, reward, PLACES)
    assert slate_ips(log).value == pytest.approx(truth, rel=1e-10)
    assert slate_snips(log).value == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("normalised", [True, False])
def test_rips_is_exact_iff_no_place_looks_down(normalised: bool) -> None:
    for reward in (additive, cascade):
        log = slate_log(UNIFORM, TARGET, reward, PLACES)
        truth = slate_value(TARGET, reward, PLACES)
        assert rips(log, normalised=normalised).value == pytest.approx(truth, rel=1e-10)
    log = slate_log(UNIFORM, TARGET, looks_down, PLACES)
    truth = slate_value(TARGET, looks_down, PLACES)
    assert abs(rips(log, normalised=normalised).value / truth - 1) > 0.05


def test_the_pseudo_inverse_is_exact_iff_the_reward_is_a_sum_over_places() -> None:
    log = slate_log(UNIFORM, TARGET, additive, PLACES)
    assert by_pseudo_inverse(log) == pytest.approx(slate_value(TARGET, additive, PLACES), rel=1e-9)
    log = slate_log(UNIFORM, TARGET, looks_down, PLACES)
    truth = slate_value(TARGET, looks_down, PLACES)
    assert abs(by_pseudo_inverse(log) / truth - 1) > 0.01


def test_fewer_factors_leave_more_effective_samples() -> None:
    log = slate_log(UNIFORM, TARGET, additive, PLACES)
    weights = moments(UNIFORM).weights(log.slates, marginals(TARGET))
    whole = slate_ips(log)
    assert whole.effective_sample_size < pseudo_inverse(log, weights).effective_sample_size
    assert rips(log).standard_error < slate_snips(log).standard_error


def test_pseudo_inverse_weights_match_the_target_on_every_sum_over_places() -> None:
    """Law: E_logging[w f] = E_target[f] for every f that is a sum of (place, item) terms."""
    logging = np.array([3.0, 1.0, 2.0, 1.0])
    slates = all_lists()
    probabilities = given_above(logging, slates).prod(axis=1)
    weights = moments(logging).weights(slates, marginals(TARGET))
    for place, item in product(range(PLACES), range(ITEMS)):
        f = slates[:, place] == item
        assert probabilities @ (weights * f) == pytest.approx(marginals(TARGET)[place, item])
    assert probabilities @ weights == pytest.approx(1)


def test_independent_places_have_the_closed_form() -> None:
    """Places drawn independently: w = 1 - k + sum of target / logging marginals."""
    by_place = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    target = np.array([[0.1, 0.1, 0.8], [0.6, 0.3, 0.1]])
    slates = np.array(list(product(range(3), repeat=2)))
    probabilities = by_place[0, slates[:, 0]] * by_place[1, slates[:, 1]]
    weights = SlateMoments.of_lists(slates, probabilities, 3).weights(slates, target)
    ratios = target / by_place
    expected = 1 - 2 + ratios[0, slates[:, 0]] + ratios[1, slates[:, 1]]
    np.testing.assert_allclose(weights, expected, rtol=1e-9)


def test_targets_of_their_own_give_each_list_its_own_weight() -> None:
    slates = all_lists()
    one, two = marginals(TARGET), marginals(TARGET[::-1])
    inverse = moments(UNIFORM)
    rows = np.arange(len(slates)) % 2
    mixed = inverse.weights(slates, np.stack([one, two])[rows])
    expected = np.where(rows == 0, inverse.weights(slates, one), inverse.weights(slates, two))
    np.testing.assert_allclose(mixed, expected, rtol=1e-9, atol=1e-12)


def test_moments_of_a_sample_approach_those_of_all_lists() -> None:
    policy, logits = PlackettLuce(1, ITEMS), rank_logits(ITEMS)
    slates = all_lists()
    exact = SlateMoments.of_lists(slates, policy.propensities(slates, logits).prod(axis=1), ITEMS)
    generator = np.random.default_rng(0)
    drawn = np.array([policy.draw(logits, PLACES, generator).positions for _ in range(4_000)])
    sampled = SlateMoments.of_lists(drawn, np.full(4_000, 1 / 4_000), ITEMS)
    assert np.abs(sampled.matrix - exact.matrix).max() < 4 * 0.5 / np.sqrt(4_000)


def test_moments_hold_the_marginals_of_the_policy() -> None:
    for policy in (PlackettLuce(0.7, ITEMS), EpsilonGreedy(0.4, ITEMS)):
        slates = all_lists()
        probabilities = policy.propensities(slates, rank_logits(ITEMS)).prod(axis=1)
        exact = SlateMoments.of_lists(slates, probabilities, ITEMS)
        expected = policy.place_marginals(rank_logits(ITEMS), PLACES)
        np.testing.assert_allclose(np.diag(exact.matrix), expected.reshape(-1), atol=1e-12)


def test_rips_by_a_plain_loop() -> None:
    generator = np.random.default_rng(5)
    n = 500
    slates = np.array([generator.permutation(ITEMS)[:PLACES] for _ in range(n)])
    log = LoggedSlates(
        slates,
        generator.random((n, PLACES)),
        given_above(UNIFORM, slates),
        given_above(TARGET, slates),
    )
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
    generator = np.random.default_rng(6)
    n = 300
    slates = np.array([generator.permutation(ITEMS)[:PLACES] for _ in range(n)])
    log = LoggedSlates(
        slates,
        generator.random((n, PLACES)),
        given_above(UNIFORM, slates),
        given_above(TARGET, slates),
    )
    keep = ~np.eye(n, dtype=bool)
    parts = [
        rips(
            LoggedSlates(log.slates[k], log.rewards[k], log.propensities[k], log.target[k]),
            Requirements(min_effective_sample_size=0),
        ).value
        for k in keep
    ]
    jackknife = np.sqrt((n - 1) / n * ((parts - np.mean(parts)) ** 2).sum())
    made = rips(log, Requirements(min_effective_sample_size=0))
    assert made.standard_error == pytest.approx(jackknife, rel=0.02)


def at_their_places(weights: np.ndarray, slates: np.ndarray) -> np.ndarray:
    return marginals(weights)[np.arange(PLACES), slates]


def by_item_position(log: LoggedSlates, normalised: bool = True) -> float:
    of, to = (at_their_places(w, log.slates) for w in (UNIFORM, TARGET))
    return item_position(log, of, to, normalised=normalised).value


@pytest.mark.parametrize("normalised", [True, False])
def test_item_position_is_exact_iff_a_place_earns_by_its_item_alone(normalised: bool) -> None:
    log = slate_log(UNIFORM, TARGET, additive, PLACES)
    truth = slate_value(TARGET, additive, PLACES)
    assert by_item_position(log, normalised) == pytest.approx(truth, rel=1e-10)
    for reward in (cascade, looks_down):
        log = slate_log(UNIFORM, TARGET, reward, PLACES)
        truth = slate_value(TARGET, reward, PLACES)
        assert abs(by_item_position(log, normalised) / truth - 1) > 0.005


def test_item_position_has_more_effective_samples_than_estimators_that_multiply() -> None:
    log = slate_log(UNIFORM, TARGET, additive, PLACES)
    weights = moments(UNIFORM).weights(log.slates, marginals(TARGET))
    of, to = (at_their_places(w, log.slates) for w in (UNIFORM, TARGET))
    mine = item_position(log, of, to)
    assert mine.effective_sample_size > rips(log).effective_sample_size
    assert mine.standard_error < slate_snips(log).standard_error
    # It knows what each place earned, which the pseudo-inverse does not.
    assert mine.standard_error < pseudo_inverse(log, weights).standard_error


def test_item_position_refuses_marginals_of_another_policy() -> None:
    log = slate_log(UNIFORM, TARGET, additive, PLACES)
    nothing = np.zeros(log.slates.shape)
    with pytest.raises(InvalidLog, match="the policy that drew the lists"):
        item_position(log, nothing, nothing)
    with pytest.raises(InvalidLog, match="too small"):
        item_position(log, np.full(log.slates.shape, 0.1), np.full(log.slates.shape, 0.25))


@pytest.mark.parametrize("seed", range(3))
def test_doubly_robust_lists_are_exact_whatever_the_model(seed: int) -> None:
    model = np.random.default_rng(seed).normal(size=(PLACES, ITEMS))
    for reward in (additive, cascade):
        log = slate_log(UNIFORM, TARGET, reward, PLACES)
        predictions = model[np.arange(PLACES), log.slates]
        expected = np.broadcast_to((model * marginals(TARGET)).sum(axis=1), log.slates.shape)
        truth = slate_value(TARGET, reward, PLACES)
        assert slate_robust(log, predictions, expected).value == pytest.approx(truth, rel=1e-9)


def test_a_good_model_takes_the_variance_away_and_none_is_rips() -> None:
    log = slate_log(UNIFORM, TARGET, additive, PLACES)
    model = EXAMINATION[:, None] * ATTRACTION
    predictions = model[np.arange(PLACES), log.slates]
    expected = np.broadcast_to((model * marginals(TARGET)).sum(axis=1), log.slates.shape)
    assert slate_robust(log, predictions, expected).standard_error < 1e-9
    nothing = np.zeros(log.slates.shape)
    made = slate_robust(log, nothing, nothing)
    assert made.value == pytest.approx(rips(log, normalised=False).value)
    assert made.standard_error == pytest.approx(rips(log, normalised=False).standard_error)


def test_doubly_robust_lists_by_a_plain_loop() -> None:
    generator = np.random.default_rng(7)
    n = 400
    slates = np.array([generator.permutation(ITEMS)[:PLACES] for _ in range(n)])
    log = LoggedSlates(
        slates,
        generator.random((n, PLACES)),
        given_above(UNIFORM, slates),
        given_above(TARGET, slates),
    )
    predictions, expected = generator.random((2, n, PLACES))
    value = 0.0
    for i in range(n):
        w = 1.0
        for k in range(PLACES):
            w *= log.target[i, k] / log.propensities[i, k]
            value += expected[i, k] + w * (log.rewards[i, k] - predictions[i, k])
    assert slate_robust(log, predictions, expected).value == pytest.approx(value / n, rel=1e-12)


def test_one_place_makes_all_estimators_those_of_actions() -> None:
    log = slate_log(np.array([2.0, 1.0, 1.0]), np.array([1.0, 3.0, 1.0]), additive, 1, rows=400)
    single = np.array([2.0, 1.0, 1.0]) / 4
    exact = SlateMoments.of_lists(np.arange(3)[:, None], single, 3)
    weights = exact.weights(log.slates, np.array([[0.2, 0.6, 0.2]]))
    np.testing.assert_allclose(weights, (log.target / log.propensities)[:, 0], rtol=1e-9)
    assert rips(log).value == pytest.approx(slate_snips(log).value, rel=1e-12)
    assert rips(log, normalised=False).value == pytest.approx(slate_ips(log).value, rel=1e-12)


def test_a_list_filled_up_with_nothing_counts_as_the_shorter_list() -> None:
    log = slate_log(UNIFORM, TARGET, additive, 2)
    n = len(log.slates)
    ones, none = np.ones((n, 1)), np.zeros((n, 1))
    filled = LoggedSlates(
        np.hstack([log.slates, np.full((n, 1), -1)]),
        np.hstack([log.rewards, none]),
        np.hstack([log.propensities, ones]),
        np.hstack([log.target, ones]),
    )
    for estimator in (slate_ips, slate_snips, rips):
        assert estimator(filled).value == pytest.approx(estimator(log).value, rel=1e-12)


def test_clipped_rips_stays_within_its_bound() -> None:
    log = slate_log(UNIFORM, TARGET, cascade, PLACES)
    truth = slate_value(TARGET, cascade, PLACES)
    for normalised in (True, False):
        made = rips(log, Requirements(clip=2), normalised)
        assert made.lost_mass > 0
        assert abs(made.value - truth) <= made.bias_bound


def test_refusals_say_what_is_missing() -> None:
    log = slate_log(UNIFORM, TARGET, additive, PLACES)
    with pytest.raises(TooFewEffectiveSamples):
        slate_ips(log, Requirements(min_effective_sample_size=10_000))
    # The logging policy never put item 3 in the first place.
    slates = all_lists()
    slates = slates[slates[:, 0] != 3]
    partial = SlateMoments.of_lists(slates, np.full(len(slates), 1 / len(slates)), ITEMS)
    with pytest.raises(MissingSupport, match="item 3 at place 1"):
        partial.weights(slates, marginals(TARGET))
    # A target that never opens with item 3 either is a mixture of what was logged.
    allowed = marginals(np.ones(ITEMS))
    within = np.zeros((PLACES, ITEMS))
    for slate in slates:
        within[np.arange(PLACES), slate] += 1 / len(slates)
    np.testing.assert_allclose(partial.weights(slates, within), 1, atol=1e-9)
    assert allowed[0, 3] == pytest.approx(0.25)
    # The same for products of propensities: only the mean weight can tell.
    never = log.slates[:, 0] == 3
    seen = LoggedSlates(
        log.slates[~never],
        log.rewards[~never],
        np.where([True, False, False], 1 / 3, log.propensities[~never]),
        log.target[~never],
    )
    with pytest.raises(MissingSupport, match="mean"):
        rips(replace(seen, target=given_above(np.array([1.0, 1, 1, 6]), seen.slates)))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: LoggedSlates(*[np.zeros(3, dtype=int)] * 4), "places"),
        (lambda: LoggedSlates(np.zeros((2, 2), dtype=int), *[np.ones((2, 2))] * 3), "twice"),
        (lambda: SlateMoments.of_lists(np.array([[0, 1]]), np.array([0.5]), 2), "all lists"),
        (lambda: SlateMoments.of_lists(np.array([[0, 2]]), np.array([1.0]), 2), "Number them"),
    ],
)
def test_lists_that_cannot_be_are_refused(wrong, sentence: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidLog, match=sentence):
        wrong()
