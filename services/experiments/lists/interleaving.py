"""Interleaving: one list from two rankings, and which of the two its clicks speak for.

Every user sees both rankers at once, so that the comparison is within a request: differences
between users, which an A/B test must average out, cancel. What it measures is a preference between
rankings, not the effect on a metric.

A request gives a preference: 1 for B, -1 for A, 0 for neither. A user's value is the mean over its
requests; users are independent, requests of one user are not, so every interval is over users. The
preference of equal rankers is 0 on average, and so is that of any two under random clicks. All
draws come from the caller's generator.

An interleaved list is not a draw from one policy with known propensities: leave such requests out
of off-policy evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

A, B = 0, 1


class InterleavingError(ValueError):
    """A ranking that cannot be interleaved; the message says what to give."""


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
    not shown yet. a, b: items, best first, none twice; they need not hold the same items. When one
    ranking is used up the other contributes the rest. At most `count` items.
    """
    rankings = (_ranking("a", a), _ranking("b", b))
    count = max(0, count)
    coins = generator.random(count) < 0.5  # at most one round per item
    next_ranks = [0, 0]
    items: list[int] = []
    teams: list[int] = []
    shown: set[int] = set()
    sizes = [0, 0]
    rounds = 0
    team = A
    while len(items) < count:
        if sizes[A] == sizes[B]:
            team = B if coins[rounds] else A
            rounds += 1
        else:
            team = A if sizes[A] < sizes[B] else B
        item = _next_item(rankings[team], next_ranks, team, shown)
        if item is None:
            team = 1 - team
            item = _next_item(rankings[team], next_ranks, team, shown)
            if item is None:
                break
        sizes[team] += 1
        shown.add(item)
        items.append(item)
        teams.append(team)
    return Interleaved(np.array(items, dtype=np.int64), np.array(teams, dtype=np.int8))


def team_preference(lists: np.ndarray, teams: np.ndarray, count: int) -> np.ndarray:
    """Preferences in {-1, 0, 1}, float64[count]: the ranker whose items got more clicks.

    lists, teams: int[m] of every click: the number of its list, below `count`, and whose item it
    was. A list without a click prefers neither.
    """
    return np.sign(np.bincount(lists, np.where(teams == B, 1.0, -1.0), count))


def per_unit(units: np.ndarray, preferences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distinct units [u], float64[u] their mean preference) of requests [n].

    A unit counts once however often it asks: heavy users do not decide alone.
    """
    distinct, numbers = np.unique(units, return_inverse=True)
    sums = np.bincount(numbers, weights=preferences, minlength=len(distinct))
    return distinct, sums / np.bincount(numbers, minlength=len(distinct))


def _ranking(name: str, items: Sequence[int] | np.ndarray) -> list[int]:
    ranking = np.asarray(items, dtype=np.int64).tolist()
    if len(set(ranking)) < len(ranking):
        raise InterleavingError(f"Ranking {name} holds an item twice. Give each item once.")
    return ranking


def _next_item(ranking: list[int], next_ranks: list[int], team: int, shown: set[int]) -> int | None:
    """The best item of the team's ranking that is not shown; None when it is used up."""
    rank = next_ranks[team]
    while rank < len(ranking) and ranking[rank] in shown:
        rank += 1
    next_ranks[team] = rank
    return ranking[rank] if rank < len(ranking) else None
