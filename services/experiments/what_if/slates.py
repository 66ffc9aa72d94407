"""Usable requests (`what_if_log`) as the arrays that the estimators of lists take.

Lists of different lengths are filled up to the longest with places that earn nothing and are
certain under both policies (`LoggedSlates`). What depends on the policies alone is computed once
per kind of request: nearly all requests of a log are of one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import permutations
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from services.experiments.what_if.log import NOWHERE, Policy, Request
from services.experiments.what_if.off_policy.actions import cross_fit, folds_of
from services.experiments.what_if.off_policy.errors import NotInLog
from services.experiments.what_if.off_policy.estimate import Estimate
from services.experiments.what_if.off_policy.logs import LoggedSlates, Requirements
from services.experiments.what_if.off_policy.place_model import PlaceModel
from services.experiments.what_if.off_policy.slates import (
    SlateMoments,
    item_position,
    pseudo_inverse,
    rips,
    slate_ips,
    slate_robust,
    slate_snips,
)

EstimatorName: TypeAlias = Literal["rips", "item_position", "pseudo_inverse", "snips", "ips", "dr"]

Kind = TypeVar("Kind", bound=Hashable)

# Lists whose probabilities give the exact moments of the pseudo-inverse.
MOST_LISTS = 20_000
FOLDS = 5
CHUNK = 1_000  # requests whose marginals are held at once


class Slates:
    """n requests, at least one, with up to k places."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.places = max(len(r.places) for r in requests)
        self.units = np.array([r.user for r in requests], np.int64)
        filler = -1 - np.arange(self.places)
        self._shown = np.tile(filler, (len(requests), 1))
        self._propensities = np.ones(self._shown.shape)
        for row, request in enumerate(requests):
            k = len(request.places)
            self._shown[row, :k] = request.places
            self._propensities[row, :k] = request.propensities

    def estimate(
        self, name: EstimatorName, requirements: Requirements, rewards: np.ndarray
    ) -> Estimate:
        """By an estimator, of rewards float64[n, k]. Raises OffPolicyRefused."""
        log = LoggedSlates(self._shown, rewards, self._propensities, self.target, self.units)
        match name:
            case "rips":
                return rips(log, requirements)
            case "item_position":
                return item_position(log, *self.marginals, requirements)
            case "pseudo_inverse":
                return pseudo_inverse(log, self.pseudo_inverse_weights, requirements)
            case "snips":
                return slate_snips(log, requirements)
            case "ips":
                return slate_ips(log, requirements)
            case "dr":
                return slate_robust(log, *self._predictions(rewards), requirements)

    @cached_property
    def target(self) -> np.ndarray:
        """float64[n, k]: the target's probability of each item at its place given those above."""
        made = np.ones(self._shown.shape)
        for (policy, k), rows in self._alike(lambda r: (r.target, len(r.places))):
            positions = np.stack([self.requests[row].target_positions() for row in rows])
            made[rows, :k] = _propensities(policy, positions)
        return made

    @cached_property
    def marginals(self) -> tuple[np.ndarray, np.ndarray]:
        """float64[n, k] of the logging and of the target policy: P(the shown item at its place)
        whatever is above it."""
        logging, target = np.ones(self._shown.shape), np.ones(self._shown.shape)
        for (of, to, k), rows in self._alike(lambda r: (r.logging, r.target, len(r.places))):
            at = np.arange(k)
            logging[rows, :k] = of.marginals(k)[at, self._shown[rows, :k]]
            positions = np.stack([self.requests[row].target_positions() for row in rows])
            of_target = to.marginals(k)[at, np.maximum(positions, 0)]
            target[rows, :k] = np.where(positions == NOWHERE, 0.0, of_target)
        return logging, target

    @cached_property
    def pseudo_inverse_weights(self) -> np.ndarray:
        """float64[n]. Raises NotInLog where too many lists could have been drawn, and
        MissingSupport."""
        weights = np.ones(len(self.requests))
        for (of, to, k), rows in self._alike(lambda r: (r.logging, r.target, len(r.places))):
            moments = exact_moments(of, k)
            by_rank = to.marginals(k)
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                marginals = np.zeros((len(chunk), k, of.length))
                for i, row in enumerate(chunk):
                    marginals[i][:, self.requests[row].order] = by_rank
                weights[chunk] = moments.weights(self._shown[chunk, :k], marginals)
        return weights

    def _predictions(self, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float64[n, k] twice: what a model that has not seen the user expects of the items shown,
        and of those that the target would show."""
        folds = folds_of(self.units, FOLDS, np.random.default_rng(0))
        made = cross_fit(
            folds,
            fit=lambda rows: PlaceModel.fit(self._values[rows], rewards[rows]),
            predict=lambda model, rows: np.stack(
                [model.of_shown(self._values[rows]), self._expected(model, rows)], axis=1
            ),
        )
        return made[:, 0], made[:, 1]

    @cached_property
    def _values(self) -> np.ndarray:
        """float64[n, k]: the target's value of every item shown; NaN where there was none."""
        values = np.full(self._shown.shape, np.nan)
        for row, request in enumerate(self.requests):
            values[row, : len(request.places)] = request.values[request.places]
        return values

    def _expected(self, model: PlaceModel, rows: np.ndarray) -> np.ndarray:
        expected = np.zeros(self._shown.shape)
        mine = np.zeros(len(self.requests), bool)
        mine[rows] = True
        for (to, k), alike in self._alike(lambda r: (r.target, len(r.places))):
            alike = alike[mine[alike]]
            for start in range(0, len(alike), CHUNK):
                chunk = alike[start : start + CHUNK]
                ranked = np.stack(
                    [r.values[r.order] for r in map(self.requests.__getitem__, chunk)]
                )
                expected[chunk, :k] = model.of_policy(ranked, to.marginals(k))
        return expected[rows]

    def _alike(self, kind: Callable[[Request], Kind]) -> Iterator[tuple[Kind, np.ndarray]]:
        """Each kind of request with the rows, int64, of its requests."""
        groups: defaultdict[Kind, list[int]] = defaultdict(list)
        for row, request in enumerate(self.requests):
            groups[kind(request)].append(row)
        for key, rows in groups.items():
            yield key, np.array(rows)


def _propensities(policy: Policy, positions: np.ndarray) -> np.ndarray:
    """float64[n, k] of lists of positions, 0 from the first that is NOWHERE on."""
    made = np.zeros(positions.shape)
    whole = (positions != NOWHERE).all(axis=1)
    if whole.any():
        made[whole] = policy.propensities(positions[whole])
    for row in np.flatnonzero(~whole).tolist():
        until = int((positions[row] == NOWHERE).argmax())
        if until:
            made[row, :until] = policy.propensities(positions[row, :until])
    return made


@lru_cache(64)
def exact_moments(policy: Policy, count: int) -> SlateMoments:
    """The second moments of lists of `count`, from all of them. Raises NotInLog if there are too
    many: moments of a sample would make the pseudo-inverse biased by nobody knows how much."""
    pool = min(policy.exploration.depth, policy.length)
    drawn = min(pool, count)
    if math.perm(pool, drawn) > MOST_LISTS:
        raise NotInLog(
            f"The pseudo-inverse needs the probabilities of all lists, and there are "
            f"{math.perm(pool, drawn):.1e} of {drawn} explored places from {pool} items (at most "
            f"{MOST_LISTS:,}). Use item_position, which assumes nearly the same."
        )
    rest = range(drawn, count)  # below the pool nothing is drawn
    lists = np.array([(*drawn_places, *rest) for drawn_places in permutations(range(pool), drawn)])
    probabilities = policy.propensities(lists).prod(axis=1)
    return SlateMoments.of_lists(lists, probabilities, policy.length)
