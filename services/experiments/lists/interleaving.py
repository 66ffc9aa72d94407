"""Interleaving: one list from two rankings, and which of the two its clicks speak for.

Every user sees both rankers at once, so that the comparison is within a request: differences
between users, which an A/B test must average out, cancel. What it measures is a preference between
rankings, not the effect on a metric.

A request gives a preference in [-1, 1]: 1 for B, -1 for A. A user's value is the mean over its
requests; users are independent, requests of one user are not, so every interval is over users. The
preference of equal rankers is 0 on average. All draws come from the caller's generator.

| method        | list                                   | credit of a click                       |
|---------------|----------------------------------------|-----------------------------------------|
| team draft    | in turns, a coin per round             | the ranker that contributed the item    |
| balanced      | in turns, one coin per list            | the ranker that ranks it higher         |
| probabilistic | a coin per place, then a draw by rank  | divided by who probably contributed it  |

Balanced interleaving is biased for some pairs of rankings even if clicks are random (Radlinski et
al. 2008), and probabilistic interleaving shows lists that neither ranker would: team
draft is the default.

An interleaved list is not a draw from one policy with known propensities: leave such requests out
of off-policy evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

A, B = 0, 1
NO_RANK = 1 << 30
SOFTMAX_POWER = 3.0  # of Hofmann et al.: the weight of rank r is r ** -3


class InterleavingError(ValueError):
    """Something that cannot be interleaved or credited; the message says what to give."""


@dataclass(frozen=True, slots=True, eq=False)
class Interleaved:
    """One list from two rankings.

    items: int64[k], as given. teams: int8[k], A or B: the ranker that contributed the item.
    b_probabilities: float64[k] or None: the probability that it was B, given the list
    (probabilistic interleaving only).
    """

    items: np.ndarray
    teams: np.ndarray
    b_probabilities: np.ndarray | None = None


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


def balanced(
    a: Sequence[int] | np.ndarray,
    b: Sequence[int] | np.ndarray,
    count: int,
    generator: np.random.Generator,
) -> Interleaved:
    """Balanced interleaving (Joachims 2002; Radlinski et al. 2008, algorithm 1).

    One coin decides who leads; then the ranking that has been read less far is read on, and what it
    holds is shown unless it is shown already. Every prefix of the list is the union of prefixes of
    the rankings that differ by at most one. See `team_draft` for the arguments.
    """
    rankings = (_ranking("a", a), _ranking("b", b))
    leader = B if generator.random() < 0.5 else A
    read = [0, 0]
    items: list[int] = []
    teams: list[int] = []
    shown: set[int] = set()
    while len(items) < count:
        team = leader if read[leader] <= read[1 - leader] else 1 - leader
        if read[team] >= len(rankings[team]):
            team = 1 - team
            if read[team] >= len(rankings[team]):
                break
        item = rankings[team][read[team]]
        read[team] += 1
        if item not in shown:
            shown.add(item)
            items.append(item)
            teams.append(team)
    return Interleaved(np.array(items, dtype=np.int64), np.array(teams, dtype=np.int8))


def probabilistic(
    a: Sequence[int] | np.ndarray,
    b: Sequence[int] | np.ndarray,
    count: int,
    generator: np.random.Generator,
    power: float = SOFTMAX_POWER,
) -> Interleaved:
    """Probabilistic interleaving (Hofmann, Whiteson and de Rijke 2011, algorithm 1).

    At every place a coin picks a ranker, which draws one of its items that are not shown yet with
    probability proportional to rank ** -power (rank from 1, in its whole ranking). Given the list,
    the rankers of the places are independent: B with probability p_B / (p_A + p_B) of the item
    drawn. A ranker whose items are all shown is no longer picked. See `team_draft`.
    """
    rankings = (_ranking("a", a), _ranking("b", b))
    # An item arrives after an exponential time with its weight as rate: arrivals are in the order
    # of such draws, and stay so among those that the other ranker has left.
    orders = []
    for ranking in rankings:
        arrivals = generator.standard_exponential(len(ranking)) * _ranks(ranking) ** power
        orders.append([ranking[i] for i in arrivals.argsort().tolist()])
    count = max(0, count)
    coins = (generator.random(count) < 0.5).tolist()
    next_ranks = [0, 0]
    items: list[int] = []
    teams: list[int] = []
    shown: set[int] = set()
    for coin in coins:
        team = B if coin else A
        item = _next_item(orders[team], next_ranks, team, shown)
        if item is None:
            team = 1 - team
            item = _next_item(orders[team], next_ranks, team, shown)
            if item is None:
                break
        shown.add(item)
        items.append(item)
        teams.append(team)
    a_draws, b_draws = (_draw_probabilities(r, items, power) for r in rankings)
    return Interleaved(
        np.array(items, dtype=np.int64),
        np.array(teams, dtype=np.int8),
        b_draws / (a_draws + b_draws),
    )


def team_preference(teams: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """Preferences in {-1, 0, 1}, float64[...]: the ranker whose items got more clicks.

    teams: int8[..., k] of A or B (any other number: nobody's place, for lists that are shorter);
    clicks: [..., k], true or a count per place.
    """
    clicks = np.asarray(clicks, dtype=float)
    return np.sign(((teams == B) * clicks).sum(axis=-1) - ((teams == A) * clicks).sum(axis=-1))


def probabilistic_preference(b_probabilities: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """Preferences in [-1, 1], float64[...]: expected share of the clicks that are B's, minus A's.

    The rankers of the clicked places are marginalised over (Hofmann et al. 2011),
    which removes the noise of the coins. b_probabilities, clicks: float64[..., k]; no click: 0.
    """
    clicks = np.asarray(clicks, dtype=float)
    total = clicks.sum(axis=-1)
    difference = ((2 * np.asarray(b_probabilities) - 1) * clicks).sum(axis=-1)
    return np.asarray(difference / np.maximum(total, 1))


def balanced_preference(a_ranks: np.ndarray, b_ranks: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """Preferences in {-1, 0, 1}, float64[...], of balanced lists (Joachims 2002).

    Let k be the better of the two ranks of the lowest clicked item: both rankings must have been
    read about that far. Preferred is the ranker that has more clicked items among its best k.
    a_ranks, b_ranks: int64[..., k] of the shown items in either ranking, see `ranks_in`; clicks:
    [..., k], true or a count per place.
    """
    clicked = np.asarray(clicks) > 0
    places = clicked.shape[-1]
    lowest = places - 1 - clicked[..., ::-1].argmax(axis=-1)[..., None]
    depth = np.minimum(
        np.take_along_axis(a_ranks, lowest, axis=-1), np.take_along_axis(b_ranks, lowest, axis=-1)
    )
    by_a, by_b = ((clicked & (ranks <= depth)).sum(axis=-1) for ranks in (a_ranks, b_ranks))
    return np.sign(by_b - by_a).astype(float)


def ranks_in(ranking: Sequence[int] | np.ndarray, items: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64[k]: the ranks of items in a ranking, from 1; NO_RANK where it does not hold them."""
    ranks = {item: rank for rank, item in enumerate(_ranking("given", ranking), 1)}
    return np.array([ranks.get(int(item), NO_RANK) for item in items], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Preference:
    """The mean preference over users: above 0, B is better. low, high: a normal interval at a
    fixed horizon, not for peeking: a confidence sequence takes the values of `per_unit`."""

    value: float
    standard_error: float
    low: float
    high: float
    confidence: float
    units: int


def per_unit(units: np.ndarray, preferences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distinct units [u], float64[u] their mean preference) of requests [n].

    A unit counts once however often it asks: heavy users do not decide alone.
    """
    if len(units) != len(preferences):
        raise InterleavingError(
            f"{len(units)} units for {len(preferences)} preferences. Give one unit per request."
        )
    distinct, numbers = np.unique(units, return_inverse=True)
    sums = np.bincount(numbers, weights=preferences, minlength=len(distinct))
    return distinct, sums / np.bincount(numbers, minlength=len(distinct))


def preference(values: np.ndarray, confidence: float = 0.95) -> Preference:
    """The estimate from one value per unit, float64[u]; at least two units."""
    if len(values) < 2:
        raise InterleavingError(f"{len(values)} units have no spread. Give at least two.")
    if not 0 < confidence < 1:
        raise InterleavingError(f"confidence is {confidence}. Give a number between 0 and 1.")
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return Preference(mean, error, mean - z * error, mean + z * error, confidence, len(values))


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


def _ranks(ranking: list[int]) -> np.ndarray:
    return np.arange(1.0, len(ranking) + 1)


def _draw_probabilities(ranking: list[int], items: list[int], power: float) -> np.ndarray:
    """float64[k]: probability that a ranker draws each item given those above it; 0 where the item
    is not in its ranking."""
    weights = dict(zip(ranking, (_ranks(ranking) ** -power).tolist(), strict=True))
    drawn = np.array([weights.pop(item, 0.0) for item in items])
    # Summed backwards: a difference of sums would lose the small ones.
    left = drawn[::-1].cumsum()[::-1] + sum(weights.values())
    return np.divide(drawn, left, out=np.zeros(len(drawn)), where=drawn > 0)
