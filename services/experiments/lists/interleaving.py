"""Interleaving: one list from two rankings, and which of the two users' choices speak for.

Every user sees both rankers at once, so that the comparison is within a request: differences
between users, which an A/B test must average out, cancel. What it measures is a preference between
rankings, not the effect on a metric.

A request gives a preference: 1 for B, -1 for A, 0 for neither. A user's value is the mean over its
requests; users are independent, requests of one user are not, so every interval is over users. The
preference of equal rankers is 0 on average, and so is that of any two under random choices. All
draws come from the caller's generator.

An interleaved list is not a draw from one policy with known propensities: leave such requests out
of off-policy evaluation.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

A, B = 0, 1


@dataclass(frozen=True, slots=True, eq=False)
class Interleaved:
    """One list from two rankings.

    items: int64[k], as given. teams: int8[k], A or B: the ranker that contributed the item.
    """

    items: np.ndarray
    teams: np.ndarray


def team_draft(
    a: Sequence[int] | np.ndarray,
    b: Sequence[int] | np.ndarray,
    count: int,
    generator: np.random.Generator,
) -> Interleaved:
    """Team-draft interleaving (Radlinski, Kurup and Joachims 2008, algorithm 2).

    In every round a coin decides who goes first; each ranker then contributes its best item that is
    not shown yet. a, b: items, best first; they need not hold the same items. When one ranking is
    used up the other contributes the rest. At most `count` items.
    """
    left = [iter(np.asarray(ranking, np.int64).tolist()) for ranking in (a, b)]
    count = max(0, count)
    coins = generator.random(count) < 0.5  # at most one round per item
    teams: dict[int, int] = {}  # by item, in the order of the list
    sizes = [0, 0]
    rounds = 0
    team = A
    while len(teams) < count:
        if sizes[A] == sizes[B]:
            team = B if coins[rounds] else A
            rounds += 1
        else:
            team = A if sizes[A] < sizes[B] else B
        item = _best(left[team], teams)
        if item is None:
            team = 1 - team
            item = _best(left[team], teams)
            if item is None:
                break
        sizes[team] += 1
        teams[item] = team
    return Interleaved(np.array(list(teams), np.int64), np.array(list(teams.values()), np.int8))


def team_preference(lists: np.ndarray, teams: np.ndarray, count: int) -> np.ndarray:
    """Preferences in {-1, 0, 1}, float64[count]: the ranker more of whose items were chosen.

    lists, teams: int[m] of every choice: the number of its list, below `count`, and whose item it
    was. A list without a choice prefers neither.
    """
    return np.sign(np.bincount(lists, np.where(teams == B, 1.0, -1.0), count))


def per_unit(units: np.ndarray, preferences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distinct units [u], float64[u] their mean preference) of requests [n].

    A unit counts once however often it asks: heavy users do not decide alone.
    """
    distinct, numbers = np.unique(units, return_inverse=True)
    sums = np.bincount(numbers, weights=preferences, minlength=len(distinct))
    return distinct, sums / np.bincount(numbers, minlength=len(distinct))


def _best(left: Iterator[int], shown: Container[int]) -> int | None:
    """The best item left of a ranking that is not shown; None when it is used up."""
    for item in left:
        if item not in shown:
            return item
    return None
