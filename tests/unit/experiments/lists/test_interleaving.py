"""Interleaving: each item once, credited to the ranker it is from, and fair to both rankers."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, norm, sem

from services.experiments.lists.interleaving import (
    A,
    B,
    InterleavingError,
    balanced,
    balanced_preference,
    per_unit,
    preference,
    probabilistic,
    probabilistic_preference,
    ranks_in,
    team_draft,
    team_preference,
)

METHODS = [team_draft, balanced, probabilistic]
List = tuple[tuple[int, ...], tuple[int, ...]]  # items, teams

rankings = st.lists(st.integers(0, 9), unique=True, max_size=8)


def team_draft_lists(a: list[int], b: list[int], count: int) -> dict[List, Fraction]:
    """Every list of team draft and its probability, from the definition."""
    found: Counter[List] = Counter()

    def go(items: tuple[int, ...], teams: tuple[int, ...], probability: Fraction) -> None:
        best = [next((i for i in r if i not in items), None) for r in (a, b)]
        if len(items) == count or best == [None, None]:
            found[items, teams] += probability  # type: ignore[assignment]
            return
        sizes = teams.count(A), teams.count(B)
        turns = [A] if sizes[A] < sizes[B] else [B] if sizes[B] < sizes[A] else [A, B]
        for turn in turns:
            team = turn if best[turn] is not None else 1 - turn
            item = best[team]
            assert item is not None
            go((*items, item), (*teams, team), probability / len(turns))

    go((), (), Fraction(1))
    return dict(found)


def probabilistic_lists(a: list[int], b: list[int], count: int) -> dict[List, float]:
    """Every list of probabilistic interleaving and its probability, from the definition."""
    found: Counter[List] = Counter()
    weights = [{item: (i + 1) ** -3.0 for i, item in enumerate(r)} for r in (a, b)]

    def go(items: tuple[int, ...], teams: tuple[int, ...], probability: float) -> None:
        left = [{i: w for i, w in own.items() if i not in items} for own in weights]
        able = [team for team in (A, B) if left[team]]
        if len(items) == count or not able:
            found[items, teams] += probability  # type: ignore[assignment]
            return
        for team in able:
            mass = sum(left[team].values())
            for item, weight in left[team].items():
                go((*items, item), (*teams, team), probability / len(able) * weight / mass)

    go((), (), 1.0)
    return dict(found)  # type: ignore[return-value]


def drawn(method: Callable, a: list[int], b: list[int], count: int, n: int, seed: int) -> Counter:
    generator = np.random.default_rng(seed)
    lists = (method(a, b, count, generator) for _ in range(n))
    return Counter((tuple(x.items.tolist()), tuple(x.teams.tolist())) for x in lists)


@pytest.mark.parametrize("method", METHODS)
@given(a=rankings, b=rankings, count=st.integers(0, 12), seed=st.integers(0, 2**32))
@settings(max_examples=80)
def test_a_list_is_full_without_repeats_and_credited_to_who_has_the_item(
    method: Callable, a: list[int], b: list[int], count: int, seed: int
) -> None:
    made = method(a, b, count, np.random.default_rng(seed))
    items, teams = made.items.tolist(), made.teams.tolist()
    assert len(items) == len(teams) == len(set(items)) == min(count, len({*a, *b}))
    assert all(item in (a, b)[team] for item, team in zip(items, teams, strict=True))
    again = method(a, b, count, np.random.default_rng(seed))
    assert (again.items.tolist(), again.teams.tolist()) == (items, teams)


@given(a=rankings, b=rankings, seed=st.integers(0, 2**32))
@settings(max_examples=80)
def test_team_draft_gives_each_round_one_place_to_both(
    a: list[int], b: list[int], seed: int
) -> None:
    made = team_draft(a, b, 12, np.random.default_rng(seed))
    shown: list[int] = []
    for item, team in zip(made.items.tolist(), made.teams.tolist(), strict=True):
        best = [next((i for i in r if i not in shown), None) for r in (a, b)]
        assert item == best[team]
        shown.append(item)
        if None not in best:
            teams = made.teams[: len(shown)].tolist()
            assert abs(teams.count(A) - teams.count(B)) <= 1


@given(a=rankings, b=rankings, seed=st.integers(0, 2**32))
@settings(max_examples=80)
def test_every_prefix_of_a_balanced_list_is_a_union_of_prefixes(
    a: list[int], b: list[int], seed: int
) -> None:
    items = balanced(a, b, 12, np.random.default_rng(seed)).items.tolist()
    unions = [
        {*a[:i], *b[:j]}
        for i in range(len(a) + 1)
        for j in range(len(b) + 1)
        if abs(i - j) <= 1 or min(i, j) == min(len(a), len(b))
    ]
    assert all(set(items[:end]) in unions for end in range(len(items) + 1))


@pytest.mark.parametrize(
    ("a", "b", "count"),
    [([1, 2, 3, 4], [3, 1, 5, 2], 4), ([1, 2], [2, 3, 4, 5], 5), ([1, 2, 3], [1, 2, 3], 3)],
)
def test_team_draft_lists_come_as_often_as_the_definition_says(
    a: list[int], b: list[int], count: int
) -> None:
    expected = team_draft_lists(a, b, count)
    n = 3_000
    counts = drawn(team_draft, a, b, count, n, seed=1)
    assert set(counts) <= set(expected)
    lists = list(expected)
    assert chisquare(
        [counts[x] for x in lists], [float(expected[x]) * n for x in lists]
    ).pvalue > 0.01  # fmt: skip


@pytest.mark.parametrize(("a", "b"), [([1, 2, 3], [3, 1, 2]), ([1, 2], [2, 3])])
def test_probabilistic_lists_come_as_often_as_the_definition_says(
    a: list[int], b: list[int]
) -> None:
    expected = probabilistic_lists(a, b, 3)
    n = 6_000
    counts = drawn(probabilistic, a, b, 3, n, seed=2)
    assert set(counts) <= set(expected)
    common = [x for x in expected if expected[x] * n >= 5]
    observed = [counts[x] for x in common]
    probabilities = [expected[x] * n for x in common]
    observed.append(n - sum(observed))
    probabilities.append(n - sum(probabilities))
    assert chisquare(observed, probabilities).pvalue > 0.01


def test_assignment_probabilities_are_those_of_the_teams_given_the_list() -> None:
    a, b = [1, 2, 3, 4], [4, 3, 5]
    lists = probabilistic_lists(a, b, 5)
    checked = 0
    generator = np.random.default_rng(0)
    for _ in range(40):
        made = probabilistic(a, b, 5, generator)
        assert made.b_probabilities is not None
        same = {t: p for (items, t), p in lists.items() if items == tuple(made.items.tolist())}
        for place, probability in enumerate(made.b_probabilities.tolist()):
            by_b = sum(p for teams, p in same.items() if teams[place] == B)
            assert probability == pytest.approx(by_b / sum(same.values()), rel=1e-9)
            checked += 0 < probability < 1
    assert checked > 20


@pytest.mark.parametrize("method", METHODS)
def test_exchanging_the_rankers_exchanges_the_teams_and_nothing_else(method: Callable) -> None:
    a, b, n = [1, 2, 3, 4], [4, 2, 1, 5], 4_000
    straight = drawn(method, a, b, 3, n, seed=3)
    swapped = drawn(method, b, a, 3, n, seed=4)
    swapped = Counter({(i, tuple(1 - t for t in teams)): c for (i, teams), c in swapped.items()})
    lists = [x for x in straight | swapped if straight[x] + swapped[x] >= 20]
    assert lists
    table = np.array([[c[x] for x in lists] for c in (straight, swapped)], dtype=float)
    # Equal probabilities: given their sum, one of the two counts is binomial(sum, 1/2).
    z = (table[0] - table[1]) / np.sqrt(table.sum(axis=0))
    assert np.abs(z).max() < norm.isf(0.005 / len(lists))


@pytest.mark.parametrize(
    "clicks", [c for c in product([0, 1], repeat=4) if any(c)], ids=lambda c: "".join(map(str, c))
)
def test_equal_rankers_are_preferred_equally_whatever_is_clicked(clicks: tuple[int, ...]) -> None:
    ranking = [5, 3, 8, 1]
    lists = team_draft_lists(ranking, ranking, 4)
    assert all(items == tuple(ranking) for items, _ in lists)
    values = team_preference(np.array([t for _, t in lists]), np.array(clicks))
    assert sum(float(p) * v for p, v in zip(lists.values(), values, strict=True)) == 0
    made = probabilistic(ranking, ranking, 4, np.random.default_rng(0))
    assert made.b_probabilities is not None
    assert probabilistic_preference(made.b_probabilities, np.array(clicks)) == pytest.approx(0)
    ranks = ranks_in(ranking, ranking)
    assert balanced_preference(ranks, ranks, np.array(clicks)) == 0


def test_random_clicks_prefer_nobody_in_team_draft_however_the_rankings_differ() -> None:
    """Each place is clicked alone: over all lists both teams hold it equally often."""
    lists = team_draft_lists([1, 2, 3, 4], [2, 3, 4, 1], 4)
    teams = np.array([t for _, t in lists])
    for place in range(4):
        values = team_preference(teams, np.eye(4)[place])
        assert sum(float(p) * v for p, v in zip(lists.values(), values, strict=True)) == 0


def test_balanced_interleaving_prefers_somebody_under_random_clicks() -> None:
    """The known bias (Radlinski et al. 2008): the reason why it is not the default."""
    a, b = [1, 2, 3], [2, 3, 1]
    total = 0.0
    for seed in range(20):  # both leaders
        made = balanced(a, b, 3, np.random.default_rng(seed))
        ranks = ranks_in(a, made.items), ranks_in(b, made.items)
        total += sum(float(balanced_preference(*ranks, click)) for click in np.eye(3))
    assert total > 0


@pytest.mark.parametrize(
    ("items", "clicks", "expected"),
    [
        # Item 3 is at depth 2 of b and 3 of a: top 2 are a {1, 2}, b {2, 3}.
        ([1, 2, 3, 4], [0, 0, 1, 0], 1),
        ([1, 2, 3, 4], [1, 0, 0, 0], -1),
        ([1, 2, 3, 4], [1, 0, 1, 0], 0),
        ([1, 2, 3, 4], [0, 1, 1, 0], 1),
        ([1, 2, 3, 4], [0, 0, 0, 0], 0),
        ([2, 1, 3, 4], [1, 1, 0, 1], 0),
    ],
)
def test_balanced_credit_counts_clicks_above_the_depth_read(
    items: list[int], clicks: list[int], expected: int
) -> None:
    ranks = ranks_in([1, 2, 3, 4], items), ranks_in([2, 3, 4, 1], items)
    assert balanced_preference(*ranks, np.array(clicks)) == expected


def by_joachims(a: list[int], b: list[int], items: list[int], clicks: list[bool]) -> int:
    """Balanced credit as it is told: read both rankings down to the lowest click."""
    clicked = [item for item, click in zip(items, clicks, strict=True) if click]
    if not clicked:
        return 0
    k = min(r.index(clicked[-1]) + 1 for r in (a, b) if clicked[-1] in r)
    in_a, in_b = (len(set(clicked) & set(r[:k])) for r in (a, b))
    return (in_b > in_a) - (in_b < in_a)


@given(a=rankings, b=rankings, seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=80)
def test_balanced_credit_of_any_list_is_the_one_told(
    a: list[int], b: list[int], seed: int, data: st.DataObject
) -> None:
    items = balanced(a, b, 12, np.random.default_rng(seed)).items.tolist()
    if items:
        clicks = data.draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items)))
        ranks = ranks_in(a, items), ranks_in(b, items)
        made = balanced_preference(*ranks, np.array(clicks))
        assert made == by_joachims(a, b, items, clicks)


def test_preferences_of_a_batch_by_hand() -> None:
    teams = np.array([[A, B, B, A], [B, A, A, B], [A, A, -1, -1]], dtype=np.int8)
    clicks = np.array([[0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1]])
    np.testing.assert_array_equal(team_preference(teams, clicks), [1, 0, -1])
    shares = np.array([[0.5, 0.9, 0.1], [0, 1, 1]])
    np.testing.assert_allclose(
        probabilistic_preference(shares, np.array([[1, 1, 0], [0, 0, 0]])), [0.4, 0]
    )


def test_a_unit_counts_once_however_often_it_asks() -> None:
    units, values = per_unit(np.array([7, 3, 7, 7, 9]), np.array([1.0, -1.0, 0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(units, [3, 7, 9])
    np.testing.assert_allclose(values, [-1, 1 / 3, 1])


def test_the_estimate_is_the_mean_with_its_normal_interval() -> None:
    values = np.random.default_rng(0).choice([-1.0, 0, 1], size=200, p=[0.2, 0.5, 0.3])
    made = preference(values, 0.9)
    low, high = norm.interval(0.9, values.mean(), sem(values))
    assert (made.value, made.units) == (values.mean(), 200)
    np.testing.assert_allclose([made.low, made.high], [low, high], rtol=1e-12)
    assert made.standard_error == pytest.approx(sem(values), rel=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: team_draft([1, 1], [2], 2, np.random.default_rng(0)),
        lambda: ranks_in([1, 1], [1]),
        lambda: per_unit(np.array([1]), np.array([1.0, 2.0])),
        lambda: preference(np.array([1.0])),
        lambda: preference(np.zeros(5), 1.0),
    ],
)
def test_what_has_no_meaning_is_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InterleavingError):
        wrong()
