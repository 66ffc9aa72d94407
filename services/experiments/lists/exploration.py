"""Exploration of a ranked list: randomised places, and how probable each of them was.

The rerank stage hands over its ranking; what comes back is the list to show, as positions in that
ranking, and the propensity of every place. Off-policy evaluation divides by these, so they are
exact: nothing here estimates what it drew from.

Which propensity a decision record holds: the probability of the item at its place GIVEN the items
above it. Their product is the propensity of the whole list; their running products are the weights
of estimators that look at a prefix (RIPS, `off_policy.estimators`); one pass computes them. The
marginal probability of an item at a place costs far more and says less: products of marginals are
not the probability of a list, because no item is shown twice. Where an estimator needs marginals
(item-position) it computes them afterwards with `place_marginals`, from the policy's parameters.
A record keeps float32: 20 places lose about one part in a million. Multiply in float64.

Both policies see the ranking only through positions, Plackett-Luce also through logits. With
`rank_logits` the probabilities of positions are the same in every request, whatever the scores,
and then so are the marginals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from services.experiments.declare.parameters import (
    EPSILON,
    NO_EXPLORATION,
    PLACKETT_LUCE,
    Parameters,
)

NODES_PER_E_FOLD = 8  # of the quadrature below
LARGEST_LOG = 700  # exp of it is a float64
MAX_QUADRATURE_CELLS = 1 << 22  # 32 MiB of float64 at once


class ExplorationError(ValueError):
    """Exploration was asked for something that has no meaning; the message says what to give."""


@dataclass(frozen=True, slots=True, eq=False)
class ExploredList:
    """A list to show: positions in the ranking, int64[count], and propensities, float64[count]:
    of each position at its place given those above it."""

    positions: np.ndarray
    propensities: np.ndarray


def rank_logits(length: int) -> np.ndarray:
    """float64[length] logits that depend on the rank only: the weight of rank r is 1 / r.

    At temperature T the weight is r ** (-1 / T). To be used where scores have no common scale, or
    no longer decide the order (after diversification).
    """
    return -np.log(np.arange(1, length + 1))


@dataclass(frozen=True, slots=True)
class EpsilonGreedy:
    """Each place: with probability `epsilon` a uniform draw from those of the top `depth` that are
    not shown yet (which may be the best of them), else the best that is not shown yet.

    Places after the `depth`-th hold the rest of the ranking in order, with propensity 1.
    """

    epsilon: float
    depth: int

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise ExplorationError(f"epsilon is {self.epsilon}. Give it a probability.")
        _check_depth(self.depth)

    def draw(self, logits: np.ndarray, count: int, generator: np.random.Generator) -> ExploredList:
        """A list of `count` (or all) from a ranking, best first; of `logits` only the length
        counts. One uniform number per place is drawn, whatever happens at it."""
        length = len(logits)
        count, depth = min(count, length), min(self.depth, length)
        places = min(count, depth)
        propensities = np.ones(count)
        uniform = self.epsilon / np.arange(depth, depth - places, -1)
        propensities[:places] = uniform + (1 - self.epsilon)
        draws = generator.random(count)[:places]
        if not (draws < self.epsilon).any():
            return ExploredList(np.arange(count), propensities)
        left = list(range(depth))
        positions = list(range(count))
        for place, u in enumerate(draws.tolist()):
            at = 0
            if u < self.epsilon:
                # Given u < epsilon, u / epsilon is uniform again.
                at = min(int(u / self.epsilon * len(left)), len(left) - 1)
            if at:
                propensities[place] = uniform[place]
            positions[place] = left.pop(at)
        return ExploredList(np.array(positions), propensities)

    def propensities(self, positions: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """float64[..., k]: of given lists, positions int64[..., k] without repeats; zero where the
        policy would not show that. Of `logits` [..., n] only the length counts."""
        positions, logits = _checked(positions, logits)
        places = np.arange(positions.shape[-1])
        above = np.tril(np.ones((len(places), len(places)), dtype=bool), -1)
        smaller = positions[..., None, :] < positions[..., :, None]
        is_best = (smaller & above).sum(axis=-1) == positions  # all better ones are above it
        left = min(self.depth, logits.shape[-1]) - places
        explored = (positions < self.depth) / np.maximum(left, 1)
        mixed = self.epsilon * explored + (1 - self.epsilon) * is_best
        return np.asarray(np.where(left > 0, mixed, is_best), dtype=float)

    def place_marginals(self, logits: np.ndarray, count: int) -> np.ndarray:
        """float64[count, n]: probability of each position at each place, whatever is above it.

        Exact, in O(count * depth**2): while position p is not shown, all that matters to it is how
        many better positions are, and that number is a Markov chain.
        """
        length = len(logits)
        count, depth = min(count, length), min(self.depth, length)
        marginals = np.eye(count, length)
        p = np.arange(depth)[:, None]
        shown = np.arange(depth + 1)[None, :]  # better positions that are shown
        waiting = np.zeros((depth, depth + 1))  # P(p not shown yet, so many better ones shown)
        waiting[:, 0] = 1
        for place in range(min(count, depth)):
            explored = self.epsilon / (depth - place)
            here = explored + (1 - self.epsilon) * (shown == p)
            better = explored * np.maximum(p - shown, 0) + (1 - self.epsilon) * (shown < p)
            worse = explored * np.maximum(depth - place - 1 - (p - shown), 0)
            marginals[place, :depth] = (waiting * here).sum(axis=1)
            moved = waiting * better
            waiting = waiting * worse
            waiting[:, 1:] += moved[:, :-1]
        return marginals


@dataclass(frozen=True, slots=True)
class PlackettLuce:
    """Places are drawn one after another, each from those of the top `depth` that are not shown
    yet, with probability proportional to exp(logit / temperature).

    Drawn at once: sorting by logit / temperature plus Gumbel noise gives this distribution (Yellott
    1977; Kool et al. 1903.06059). Temperature 0 is the ranking itself. With logits = log(value) and
    temperature 1 an item is drawn in proportion to its value. Places after the `depth`-th hold the
    rest of the ranking in order, with propensity 1.
    """

    temperature: float
    depth: int

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ExplorationError(f"temperature is {self.temperature}. Give it 0 or more.")
        _check_depth(self.depth)

    def draw(self, logits: np.ndarray, count: int, generator: np.random.Generator) -> ExploredList:
        """A list of `count` (or all) from a ranking, best first, with finite logits [n]."""
        length = len(logits)
        count = min(count, length)
        positions = np.arange(count)
        propensities = np.ones(count)
        if self.temperature == 0 or count == 0:
            return ExploredList(positions, propensities)
        scaled = self._scaled(logits)
        noise = np.log(generator.standard_exponential(len(scaled)))  # minus a Gumbel variable
        order = (noise - scaled).argsort()
        drawn = scaled[order]
        # log of the mass that is not shown yet, summed from the last: never a small difference.
        left = np.logaddexp.accumulate(drawn[::-1])[::-1]
        places = min(count, len(scaled))
        positions[:places] = order[:places]
        propensities[:places] = np.exp(drawn[:places] - left[:places])
        return ExploredList(positions, propensities)

    def propensities(self, positions: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """float64[..., k]: of given lists, positions int64[..., k] without repeats; zero where the
        policy would not show that. `logits` [..., n], best first; leading axes broadcast."""
        positions, logits = _checked(positions, logits)
        shape = np.broadcast_shapes(positions.shape[:-1], logits.shape[:-1])
        positions = np.broadcast_to(positions, (*shape, positions.shape[-1]))
        in_order = positions == np.arange(positions.shape[-1])
        if self.temperature == 0:
            return np.logical_and.accumulate(in_order, axis=-1).astype(float)
        scaled = self._scaled(logits)
        depth = scaled.shape[-1]
        scaled = np.broadcast_to(scaled, (*shape, depth))
        in_pool = positions < depth
        shown = np.where(in_pool, positions, 0)
        own = np.where(in_pool, np.take_along_axis(scaled, shown, axis=-1), -np.inf)
        never = scaled.copy()
        for place in range(positions.shape[-1]):
            at = shown[..., place : place + 1]
            gone = np.where(
                in_pool[..., place : place + 1], -np.inf, np.take_along_axis(never, at, axis=-1)
            )
            np.put_along_axis(never, at, gone, axis=-1)
        left = np.logaddexp.reduce(never, axis=-1)
        result = np.empty(positions.shape)
        for place in reversed(range(positions.shape[-1])):
            left = np.logaddexp(left, own[..., place])
            with np.errstate(invalid="ignore"):  # -inf - -inf: the pool is used up
                result[..., place] = np.exp(own[..., place] - left)
        return np.where(np.arange(positions.shape[-1]) < depth, result, in_order)

    def place_marginals(self, logits: np.ndarray, count: int) -> np.ndarray:
        """float64[count, n]: probability of each position at each place, whatever is above it.

        Let item i arrive at a time that is exponential with rate w_i = exp(logit / temperature):
        the order of arrival is Plackett-Luce, so item i is k-th with probability

            integral of w_i exp(-w_i t) P(k - 1 of the others arrived by t) dt

        where the others have arrived or not independently of one another. The trapezoidal rule in
        log t converges geometrically (the integrand is analytic and vanishes at both ends): the
        error is below 1e-12, checked in the tests against sums over all lists. O(depth**2 * count)
        per node and some 400 nodes: 0.03 s for depth 50 and 10 places, 1 s for 200 and 20.
        Raises ExplorationError for a temperature so small that float64 cannot hold the rates.
        """
        length = len(logits)
        count = min(count, length)
        marginals = np.eye(count, length)
        if self.temperature == 0 or count == 0:
            return marginals
        scaled = self._scaled(logits)
        marginals[: len(scaled), : len(scaled)] = _arrival_marginals(
            scaled - scaled.max(), min(count, len(scaled))
        )
        return marginals

    def _scaled(self, logits: np.ndarray) -> np.ndarray:
        scaled = np.asarray(logits, dtype=float)[..., : self.depth] / self.temperature
        if not np.isfinite(scaled).all():
            raise ExplorationError(
                "A logit (divided by the temperature) is not a finite number. Bound values away "
                "from 0 before taking their logarithm, and do not use tiny temperatures: 0 is the "
                "ranking itself."
            )
        return scaled


Exploration = EpsilonGreedy | PlackettLuce


@lru_cache(64)
def policy(parameters: Parameters) -> Exploration:
    """The exploration that these parameters ask for; not for those that ask for none."""
    strength, depth = parameters.exploration_strength, parameters.rerank_exploration_depth
    if parameters.rerank_exploration == EPSILON:
        return EpsilonGreedy(strength, depth)
    assert parameters.rerank_exploration == PLACKETT_LUCE
    return PlackettLuce(strength, depth)


def depth_of(parameters: Parameters, count: int) -> int:
    """How long a ranking is needed to show `count`."""
    if parameters.rerank_exploration == NO_EXPLORATION:
        return count
    return max(count, parameters.rerank_exploration_depth)


def _check_depth(depth: int) -> None:
    if depth < 1:
        raise ExplorationError(f"depth is {depth}. Explore at least the first position.")


def _checked(positions: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As arrays; lists that could not have been shown are refused."""
    positions, logits = np.asarray(positions), np.asarray(logits, dtype=float)
    if positions.size and not (positions.min() >= 0 and positions.max() < logits.shape[-1]):
        raise ExplorationError(
            f"Positions run from {positions.min()} to {positions.max()} in a ranking of "
            f"{logits.shape[-1]}. Give positions in the policy's own ranking."
        )
    ordered = np.sort(positions, axis=-1)
    if (ordered[..., 1:] == ordered[..., :-1]).any():
        raise ExplorationError("A list shows a position twice. Give lists without repeats.")
    return positions, logits


def _arrival_marginals(log_rates: np.ndarray, count: int) -> np.ndarray:
    """float64[count, m]: P(item arrives as the k-th) for exponential arrivals; the largest of
    `log_rates` [m] is 0."""
    m = len(log_rates)
    total = math.log(np.exp(log_rates).sum())
    # Before `first` nothing has arrived; after `last` more than `count` items have.
    first = -total - 42
    last = math.log(45) - np.sort(log_rates)[::-1][min(count, m - 1)]
    if last > LARGEST_LOG:  # by then the first has arrived more than float64 can say
        raise ExplorationError(
            f"A logit (divided by the temperature) is {last:.3g} below the first: the marginals "
            "are beyond float64. Take a higher temperature, or 0, which is the ranking itself."
        )
    nodes = math.ceil((last - first) * NODES_PER_E_FOLD) + 1
    log_times, step = np.linspace(first, last, nodes, retstep=True)
    marginals = np.zeros((count, m))
    size = max(1, MAX_QUADRATURE_CELLS // (m * count))
    for start in range(0, nodes, size):
        hazards = np.exp(log_rates + log_times[start : start + size, None])  # w t
        waiting = np.exp(-hazards)
        arrived = -np.expm1(-hazards)
        # P(c of the items other than i have arrived), item by item: a Poisson-binomial recursion.
        others = np.zeros((len(hazards), m, count))
        others[:, :, 0] = 1
        for j in range(m):
            kept = others[:, j].copy()
            late = others[:, :, :-1] * arrived[:, j, None, None]
            others *= waiting[:, j, None, None]
            others[:, :, 1:] += late
            others[:, j] = kept
        marginals += np.einsum("tm,tmc->cm", hazards * waiting, others) * step
    return marginals
