"""Estimators of what another policy would have earned on logged lists: RIPS and item-position.

| estimator     | assumes of a place's reward               | weight                          |
|---------------|-------------------------------------------|---------------------------------|
| rips          | it does not depend on the places below    | product down to the place       |
| item_position | it depends on the place and its item only | ratio of marginals at the place |

The fewer places a weight multiplies, the larger the effective sample size; the price is the
assumption. Of lists of one place both are self-normalised inverse propensity scoring (SNIPS).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.experiments.what_if.off_policy.policy_value import PolicyValue, interval
from services.experiments.what_if.off_policy.weights import (
    DEFAULT,
    Requirements,
    healthy,
)


@dataclass(frozen=True, slots=True, eq=False)
class LoggedLists:
    """n lists of k places.

    rewards: float64[n, k], what each place earned. propensities, target: float64[n, k], the logging
    and the target policy's probability of the item at its place: of RIPS given the items above it,
    of item-position whatever they are (marginals). units: int64[n], who was asked: lists of one
    unit are not independent, and the standard errors allow for that. A shorter list is filled up
    with places of propensity and target 1 and reward 0.
    """

    rewards: np.ndarray
    propensities: np.ndarray
    target: np.ndarray
    units: np.ndarray


def rips(log: LoggedLists, requirements: Requirements = DEFAULT) -> PolicyValue:
    """Reward interaction inverse propensity scoring (McInerney et al. 2007.12986, equation 4).

    A place's reward may depend on everything above it but on nothing below it, so its weight is
    the product of target / propensity down to the place: w_k. Value: the sum over places of
    sum_n w_k r_k / sum_n w_k, which is asymptotically unbiased. Clipping cuts each w_k. The
    effective sample size is that of the worst place. Raises OffPolicyRefused.
    """
    return _by_place(np.cumprod(log.target / log.propensities, axis=1), log, requirements)


def item_position(log: LoggedLists, requirements: Requirements = DEFAULT) -> PolicyValue:
    """Item-position estimator (Li et al., KDD 2018, 1804.10488), self-normalised.

    A place's reward may depend on the place and on the item at it, not on the other items, so its
    weight is the ratio of both policies' marginal probabilities of that, which `propensities` and
    `target` are here (`exploration.place_marginals`). Otherwise as `rips`.
    """
    return _by_place(log.target / log.propensities, log, requirements)


def _by_place(by_place: np.ndarray, log: LoggedLists, requirements: Requirements) -> PolicyValue:
    """The sum over places of the weighted mean reward, weights float64[n, k] of the place."""
    value, influence, largest_residual = 0.0, np.zeros(len(by_place)), 0.0
    health = []
    for raw, rewards in zip(by_place.T, log.rewards.T, strict=True):
        weights = healthy(raw, log.units, requirements)
        mean = float(weights.values.mean())
        part = float((weights.values * rewards).mean()) / mean
        # The error of a ratio of means, by the delta method.
        influence += weights.values * (rewards - part) / mean
        largest_residual += float(np.abs(rewards - part).max())
        value += part
        health.append(weights)
    error, low, high = interval(value, influence, log.units)
    lost_mass = max(w.lost_mass for w in health)
    return PolicyValue(
        value=value,
        standard_error=error,
        low=low,
        high=high,
        n=len(influence),
        effective_sample_size=min(w.effective_sample_size for w in health),
        largest_weight=max(w.largest for w in health),
        clipped_share=max(w.clipped_share for w in health),
        lost_mass=lost_mass,
        bias_bound=lost_mass * largest_residual,
        influence=influence,
    )
