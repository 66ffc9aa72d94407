"""Usable requests (`log`) as the arrays that the estimators of lists take.

Lists of different lengths are filled up to the longest with places that earn nothing and are
certain under both policies. What depends on the policies alone is computed once per kind of
request: nearly all requests of a log are of one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from services.experiments.what_if.log import NOWHERE, Policy, Request
from services.experiments.what_if.off_policy.estimators import LoggedLists, item_position, rips
from services.experiments.what_if.off_policy.policy_value import PolicyValue
from services.experiments.what_if.off_policy.weights import Requirements

EstimatorName: TypeAlias = Literal["rips", "item_position"]

Kind = TypeVar("Kind", bound=Hashable)


class Slates:
    """n requests, at least one, with up to k places."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.places = max(len(r.places) for r in requests)
        self.units = np.array([r.user for r in requests], np.int64)
        self._shape = len(requests), self.places

    def estimate(
        self, name: EstimatorName, requirements: Requirements, rewards: np.ndarray
    ) -> PolicyValue:
        """By an estimator, of rewards float64[n, k]. Raises OffPolicyRefused."""
        if name == "rips":
            log = LoggedLists(rewards, self._propensities, self.target, self.units)
            return rips(log, requirements)
        return item_position(LoggedLists(rewards, *self.marginals, self.units), requirements)

    @cached_property
    def _propensities(self) -> np.ndarray:
        made = np.ones(self._shape)
        for row, request in enumerate(self.requests):
            made[row, : len(request.places)] = request.propensities
        return made

    @cached_property
    def target(self) -> np.ndarray:
        """float64[n, k]: the target's probability of each item at its place given those above."""
        made = np.ones(self._shape)
        for (policy, k), rows in self._alike(lambda r: (r.target, len(r.places))):
            positions = np.stack([self.requests[row].target_positions() for row in rows])
            made[rows, :k] = _propensities(policy, positions)
        return made

    @cached_property
    def marginals(self) -> tuple[np.ndarray, np.ndarray]:
        """float64[n, k] of the logging and of the target policy: P(the shown item at its place)
        whatever is above it."""
        logging, target = np.ones(self._shape), np.ones(self._shape)
        for (of, to, k), rows in self._alike(lambda r: (r.logging, r.target, len(r.places))):
            at = np.arange(k)
            places = np.stack([self.requests[row].places for row in rows])
            logging[rows, :k] = of.marginals(k)[at, places]
            positions = np.stack([self.requests[row].target_positions() for row in rows])
            of_target = to.marginals(k)[at, np.maximum(positions, 0)]
            target[rows, :k] = np.where(positions == NOWHERE, 0.0, of_target)
        return logging, target

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
