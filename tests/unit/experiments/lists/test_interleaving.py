"""Interleaving: each item once, credited to the ranker it is from, and fair to both rankers."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, norm

from services.experiments.lists.interleaving import (
    A,
    B,
    per_unit,
    team_draft,
    team_preference,
)

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


def credited(teams: Sequence[Sequence[int]], clicks: Sequence[Sequence[float]]) -> np.ndarray:
    """Preference of each list, by whose its items are and how often each was clicked."""
    each = [
        (number, team)
        for number, places in enumerate(zip(teams, clicks, strict=True))
        for team, count in zip(*places, strict=True)
        for _ in range(int(count))
    ]
    lists, whose = np.array(each, np.int64).reshape(-1, 2).T
    return team_preference(lists, whose, len(teams))


def drawn(a: list[int], b: list[int], count: int, n: int, seed: int) -> Counter[List]:
    generator = np.random.default_rng(seed)
    lists = (team_draft(a, b, count, generator) for _ in range(n))
    return Counter((tuple(x.items.tolist()), tuple(x.teams.tolist())) for x in lists)


@given(a=rankings, b=rankings, count=st.integers(0, 12), seed=st.integers(0, 2**32))
@settings(max_examples=80)
def test_a_list_is_full_without_repeats_and_credited_to_who_has_the_item(
    a: list[int], b: list[int], count: int, seed: int
) -> None:
    made = team_draft(a, b, count, np.random.default_rng(seed))
    items, teams = made.items.tolist(), made.teams.tolist()
    assert len(items) == len(teams) == len(set(items)) == min(count, len({*a, *b}))
    assert all(item in (a, b)[team] for item, team in zip(items, teams, strict=True))
    again = team_draft(a, b, count, np.random.default_rng(seed))
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


@pytest.mark.parametrize(
    ("a", "b", "count"),
    [([1, 2, 3, 4], [3, 1, 5, 2], 4), ([1, 2], [2, 3, 4, 5], 5), ([1, 2, 3], [1, 2, 3], 3)],
)
def test_team_draft_lists_come_as_often_as_the_definition_says(
    a: list[int], b: list[int], count: int
) -> None:
    expected = team_draft_lists(a, b, count)
    n = 3_000
    counts = drawn(a, b, count, n, seed=1)
    assert set(counts) <= set(expected)
    lists = list(expected)
    assert chisquare(
        [counts[x] for x in lists], [float(expected[x]) * n for x in lists]
    ).pvalue > 0.01  # fmt: skip


def test_exchanging_the_rankers_exchanges_the_teams_and_nothing_else() -> None:
    a, b, n = [1, 2, 3, 4], [4, 2, 1, 5], 4_000
    straight = drawn(a, b, 3, n, seed=3)
    swapped = drawn(b, a, 3, n, seed=4)
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
    values = credited([t for _, t in lists], [clicks] * len(lists))
    assert sum(float(p) * v for p, v in zip(lists.values(), values, strict=True)) == 0


def test_random_clicks_prefer_nobody_in_team_draft_however_the_rankings_differ() -> None:
    """Each place is clicked alone: over all lists both teams hold it equally often."""
    lists = team_draft_lists([1, 2, 3, 4], [2, 3, 4, 1], 4)
    for place in range(4):
        values = credited([t for _, t in lists], [np.eye(4)[place]] * len(lists))
        assert sum(float(p) * v for p, v in zip(lists.values(), values, strict=True)) == 0


def test_preferences_of_a_batch_by_hand() -> None:
    teams = [[A, B, B, A], [B, A, A, B], [A, A], [B, A]]
    clicks = [[0, 1, 1, 1], [1, 1, 0, 0], [1, 0], [0, 0]]
    np.testing.assert_array_equal(credited(teams, clicks), [1, 0, -1, 0])
    assert len(credited([], [])) == 0


def test_a_unit_counts_once_however_often_it_asks() -> None:
    units, values = per_unit(np.array([7, 3, 7, 7, 9]), np.array([1.0, -1.0, 0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(units, [3, 7, 9])
    np.testing.assert_allclose(values, [-1, 1 / 3, 1])


def test_an_item_that_a_ranking_holds_twice_is_shown_once() -> None:
    made = team_draft([1, 1], [2], 3, np.random.default_rng(0))
    assert sorted(made.items) == [1, 2]
