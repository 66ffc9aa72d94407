"""Exploration: the propensities are those of the draws, and add up to one over all lists."""

from fractions import Fraction
from itertools import permutations
from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from services.experiments.lists.exploration import (
    EpsilonGreedy,
    Exploration,
    ExplorationError,
    PlackettLuce,
    rank_logits,
)


def all_lists(length: int, count: int) -> np.ndarray:
    return np.array(list(permutations(range(length), count)))


def by_the_rule(policy: Exploration, logits: list[float], positions: tuple[int, ...]) -> Fraction:
    """Probability of a list, place by place as the policies are defined, in exact arithmetic."""
    probability = Fraction(1)
    left = list(range(len(logits)))
    for position in positions:
        pool = [p for p in left if p < policy.depth]
        if not pool:
            here = Fraction(position == min(left))
        elif isinstance(policy, EpsilonGreedy):
            epsilon = Fraction(policy.epsilon)
            here = (1 - epsilon) * (position == min(left)) + epsilon * (position in pool) / len(
                pool
            )
        elif policy.temperature == 0:
            here = Fraction(position == min(left))
        else:
            weights = {p: Fraction(exp(logits[p] / policy.temperature)) for p in pool}
            here = weights.get(position, Fraction(0)) / sum(weights.values())
        probability *= here
        left.remove(position)
    return probability


policies = st.one_of(
    st.builds(EpsilonGreedy, st.floats(0, 1), st.integers(1, 6)),
    st.builds(PlackettLuce, st.just(0.0) | st.floats(0.05, 3), st.integers(1, 6)),
)
rankings = st.lists(st.floats(-4, 4), min_size=1, max_size=5).map(lambda x: sorted(x, reverse=True))


@given(policies, rankings, st.integers(1, 5))
@settings(max_examples=60)
def test_list_propensities_follow_the_rule_and_add_up_to_one(
    policy: Exploration, logits: list[float], count: int
) -> None:
    lists = all_lists(len(logits), min(count, len(logits)))
    propensities = policy.propensities(lists, np.array(logits)).prod(axis=1)
    expected = [float(by_the_rule(policy, logits, tuple(row))) for row in lists.tolist()]
    np.testing.assert_allclose(propensities, expected, rtol=1e-10, atol=1e-15)
    assert propensities.sum() == pytest.approx(1, abs=1e-12)


@given(policies, rankings, st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_draw_says_the_propensities_of_what_it_drew(
    policy: Exploration, logits: list[float], count: int, seed: int
) -> None:
    drawn = policy.draw(np.array(logits), count, np.random.default_rng(seed))
    count = min(count, len(logits))
    assert len(drawn.positions) == len(set(drawn.positions.tolist())) == count
    np.testing.assert_allclose(
        drawn.propensities, policy.propensities(drawn.positions, np.array(logits)), rtol=1e-10
    )
    again = policy.draw(np.array(logits), count, np.random.default_rng(seed))
    np.testing.assert_array_equal(drawn.positions, again.positions)


@pytest.mark.parametrize(
    "policy",
    [EpsilonGreedy(0.4, 3), EpsilonGreedy(1, 4), PlackettLuce(0.8, 3), PlackettLuce(2, 4)],
)
def test_lists_are_drawn_as_often_as_their_propensities_say(policy: Exploration) -> None:
    logits = np.array([1.0, 0.7, -0.2, -0.9])
    lists = all_lists(4, 3)
    expected = policy.propensities(lists, logits).prod(axis=1)
    numbers = {tuple(row): i for i, row in enumerate(lists.tolist())}
    generator = np.random.default_rng(7)
    counts = np.zeros(len(lists))
    for _ in range(8_000):
        counts[numbers[tuple(policy.draw(logits, 3, generator).positions.tolist())]] += 1
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], expected[possible] * counts.sum()).pvalue > 0.01


@given(policies, rankings, st.integers(1, 5))
@settings(max_examples=60)
def test_place_marginals_are_sums_over_all_lists(
    policy: Exploration, logits: list[float], count: int
) -> None:
    lists = all_lists(len(logits), min(count, len(logits)))
    propensities = policy.propensities(lists, np.array(logits)).prod(axis=1)
    expected = np.zeros((lists.shape[1], len(logits)))
    for place in range(lists.shape[1]):
        np.add.at(expected[place], lists[:, place], propensities)
    marginals = policy.place_marginals(np.array(logits), count)
    np.testing.assert_allclose(marginals, expected, atol=1e-12)


@pytest.mark.parametrize("policy", [EpsilonGreedy(0.2, 40), PlackettLuce(0.5, 40)])
def test_marginals_of_a_long_ranking_are_doubly_stochastic(policy: Exploration) -> None:
    marginals = policy.place_marginals(rank_logits(40), 40)
    np.testing.assert_allclose(marginals.sum(axis=0), 1, atol=1e-10)
    np.testing.assert_allclose(marginals.sum(axis=1), 1, atol=1e-10)
    # The first place of Plackett-Luce is a softmax, that of epsilon-greedy is its definition.
    first = (
        np.arange(1, 41.0) ** -2 / (np.arange(1, 41.0) ** -2).sum()
        if isinstance(policy, PlackettLuce)
        else 0.2 / 40 + 0.8 * np.eye(40)[0]
    )
    np.testing.assert_allclose(marginals[0], first, atol=1e-12)


@pytest.mark.parametrize("policy", [EpsilonGreedy(0, 50), PlackettLuce(0, 50)])
def test_without_exploration_the_ranking_is_shown_with_certainty(policy: Exploration) -> None:
    drawn = policy.draw(rank_logits(60), 20, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn.positions, np.arange(20))
    np.testing.assert_array_equal(drawn.propensities, np.ones(20))
    np.testing.assert_array_equal(policy.place_marginals(rank_logits(60), 20), np.eye(20, 60))


def test_a_falling_temperature_approaches_the_ranking() -> None:
    ranking = np.arange(4)
    logits = np.array([2.0, 1.0, 0.5, -1.0])
    propensities = [
        PlackettLuce(t, 4).propensities(ranking, logits).prod() for t in (2, 1, 0.5, 0.1, 0.01)
    ]
    assert propensities == sorted(propensities)
    assert propensities[-1] == pytest.approx(1, abs=1e-12)


def test_propensities_survive_weights_of_very_different_size() -> None:
    logits = [0.0, -200.0, -400.0, -401.0]
    policy = PlackettLuce(1, 4)
    shown = np.array([0, 1, 3, 2])
    propensities = policy.propensities(shown, np.array(logits))
    np.testing.assert_allclose(propensities, [1, 1, 1 / (1 + np.e), 1], rtol=1e-12)


def test_rows_of_a_batch_are_independent() -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(50, 7))
    lists = generator.permuted(np.tile(np.arange(7), (50, 1)), axis=1)[:, :4]
    for policy in (PlackettLuce(0.7, 5), EpsilonGreedy(0.3, 5)):
        batch = policy.propensities(lists, logits)
        single = [policy.propensities(lists[i], logits[i]) for i in range(50)]
        np.testing.assert_allclose(batch, single, rtol=1e-12)


def test_float32_propensities_keep_the_list_to_one_part_in_a_million() -> None:
    drawn = PlackettLuce(1, 200).draw(rank_logits(200), 20, np.random.default_rng(1))
    recorded = drawn.propensities.astype("<f4").astype(float)
    assert recorded.prod() == pytest.approx(drawn.propensities.prod(), rel=2e-6)


@given(st.floats(1e-300, 0.02), st.integers(1, 60), st.integers(1, 12))
@settings(max_examples=60)
def test_marginals_of_a_tiny_temperature_are_right_or_refused(
    temperature: float, length: int, count: int
) -> None:
    try:
        marginals = PlackettLuce(temperature, 50).place_marginals(rank_logits(length), count)
    except ExplorationError:
        return
    assert np.abs(marginals.sum(axis=1) - 1).max() < 1e-9
    assert (marginals.sum(axis=0) < 1 + 1e-9).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: EpsilonGreedy(1.5, 3),
        lambda: EpsilonGreedy(float("nan"), 3),
        lambda: EpsilonGreedy(0.5, 0),
        lambda: PlackettLuce(-1, 3),
        lambda: PlackettLuce(float("inf"), 3),
        lambda: PlackettLuce(1, 3).draw(np.array([0, -np.inf]), 1, np.random.default_rng(0)),
        lambda: PlackettLuce(1, 3).propensities(np.array([0, 0]), np.zeros(3)),
        lambda: EpsilonGreedy(0.1, 3).propensities(np.array([3]), np.zeros(3)),
        lambda: EpsilonGreedy(0.1, 3).propensities(np.array([-1]), np.zeros(3)),
    ],
)
def test_what_has_no_meaning_is_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ExplorationError):
        wrong()
