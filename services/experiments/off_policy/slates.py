"""Estimators for lists: IPS and SNIPS of whole lists, RIPS, pseudo-inverse.

| estimator      | assumes of a place's reward                | weight                           |
|----------------|--------------------------------------------|----------------------------------|
| slate_ips      | nothing                                    | product over the list            |
| slate_snips    | nothing                                    | the same, self-normalised        |
| rips           | it does not depend on the places below     | product down to the place        |
| pseudo_inverse | the list's is a sum of (place, item) terms | from marginals: no product       |

The fewer places a weight multiplies, the larger the effective sample size; the price is the
assumption.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from services.experiments.off_policy.actions import DEFAULT, ips, snips
from services.experiments.off_policy.errors import InvalidLog, MissingSupport
from services.experiments.off_policy.estimate import Estimate, estimate
from services.experiments.off_policy.logs import (
    TOLERANCE,
    LoggedSlates,
    Requirements,
    floats,
    integers,
)
from services.experiments.off_policy.weights import healthy

RANGE_TOLERANCE = 1e-6  # of the target's marginals outside what logging spans
SINGULAR_BELOW = 1e-10  # eigenvalues, relative to the largest: the exact ones are 0


def slate_ips(log: LoggedSlates, requirements: Requirements = DEFAULT) -> Estimate:
    """IPS with each list as one action. Raises OffPolicyRefused."""
    return replace(ips(log.whole(), requirements), estimator="slate IPS")


def slate_snips(log: LoggedSlates, requirements: Requirements = DEFAULT) -> Estimate:
    """SNIPS with each list as one action. Raises OffPolicyRefused."""
    return replace(snips(log.whole(), requirements), estimator="slate SNIPS")


def rips(
    log: LoggedSlates, requirements: Requirements = DEFAULT, normalised: bool = True
) -> Estimate:
    """Reward interaction inverse propensity scoring (McInerney et al. 2007.12986, equations
    3 and 4).

    A place's reward may depend on everything above it but on nothing below it, so its weight is
    the product of target / propensity down to the place: w_k. Value: the sum over places of
    sum_n w_k r_k / sum_n w_k (asymptotically unbiased), or with normalised=False of mean(w_k r_k)
    (unbiased). Clipping cuts each w_k. The effective sample size is that of the worst place.
    Raises OffPolicyRefused.
    """
    by_place = np.cumprod(log.target / log.propensities, axis=1)
    parts, influence, largest = [], np.zeros(len(by_place)), 0.0
    health = []
    for raw, rewards in zip(by_place.T, log.rewards.T, strict=True):
        weights = healthy(raw, log.units, requirements)
        mean = float(weights.values.mean()) if normalised else 1.0
        part = float((weights.values * rewards).mean()) / mean
        if normalised:
            influence += weights.values * (rewards - part) / mean
        else:
            influence += weights.values * rewards - part
        largest += float(np.abs(rewards - part if normalised else rewards).max())
        parts.append(part)
        health.append(weights)
    worst = replace(
        min(health, key=lambda w: w.effective_sample_size),
        lost_mass=max(w.lost_mass for w in health),
    )
    return estimate("RIPS", sum(parts), influence, largest, worst, log.units, requirements)


@dataclass(frozen=True, eq=False)
class SlateMoments:
    """Second moments of the logging policy: P(item a at place j and item b at place k).

    matrix: float64[places * items, places * items], symmetric; its row place * items + item.
    """

    matrix: np.ndarray
    places: int
    items: int

    @classmethod
    def of_lists(cls, slates: np.ndarray, probabilities: np.ndarray, items: int) -> SlateMoments:
        """From lists int64[s, k] of items below `items` and their probabilities float64[s].

        All lists with their exact probabilities give the exact moments. Where there are too many,
        a sample from the logging policy (each with the probability 1 / s) gives moments with an
        error of about 1 / sqrt(s) of each: rare pairs need many draws, and the pseudo-inverse is
        then biased. Raises InvalidLog.
        """
        slates = integers("slates", slates, np.shape(slates))
        count, places = slates.shape
        probabilities = floats("probabilities", probabilities, (count,))
        if abs(probabilities.sum() - 1) > TOLERANCE:
            raise InvalidLog(
                f"The lists' probabilities add up to {probabilities.sum()}. Give all lists."
            )
        if slates.size and not 0 <= slates.min() <= slates.max() < items:
            raise InvalidLog(f"Lists hold items up to {slates.max()}. Number them below {items}.")
        cells = np.arange(places) * items + slates
        matrix = np.zeros((places * items, places * items))
        for a in range(places):
            for b in range(places):
                np.add.at(matrix, (cells[:, a], cells[:, b]), probabilities)
        return cls(matrix, places, items)

    @cached_property
    def _inverse(self) -> np.ndarray:
        return np.linalg.pinv(self.matrix, rcond=SINGULAR_BELOW, hermitian=True)

    def weights(self, slates: np.ndarray, target: np.ndarray) -> np.ndarray:
        """float64[n]: the pseudo-inverse weights of lists int64[n, k].

        target: the target policy's marginals P(item at place), float64[k, items] or [n, k, items].
        They are 1 on average, and may be negative. Raises MissingSupport if the target leaves what
        the logging policy spans (the paper's absolute continuity).
        """
        size = self.places * self.items
        slates = integers("slates", slates, (len(slates), self.places))
        marginals = np.asarray(target, dtype=float).reshape(-1, size)
        solved = marginals @ self._inverse
        outside = np.abs(marginals - solved @ self.matrix)
        if outside.max() > RANGE_TOLERANCE:
            place, item = divmod(int(outside.max(axis=0).argmax()), self.items)
            raise MissingSupport(
                f"The target policy's lists are no mixture of what was logged: item {item} at "
                f"place {place + 1} is the worst. Log with exploration that shows it there, or "
                "evaluate a target that does not."
            )
        cells = np.arange(self.places) * self.items + slates
        if len(marginals) == 1:
            return np.asarray(solved[0][cells].sum(axis=1))
        return np.asarray(np.take_along_axis(solved, cells, axis=1).sum(axis=1))


def pseudo_inverse(
    log: LoggedSlates, weights: np.ndarray, requirements: Requirements = DEFAULT
) -> Estimate:
    """Pseudo-inverse estimator: mean of the list's reward times  1_slate' M^+ q.

    Swaminathan et al. (1605.04812): M are the logging policy's second moments in the
    request's context, q the target's marginals. Unbiased if the list's expected reward is a sum of
    terms of one (place, item) each: no item's reward depends on the others. The log's
    `propensities` and `target` are not used.

    weights: float64[n] from `SlateMoments.weights`; contexts whose logging policies differ have
    moments of their own, and with logits that depend on the rank only (`exploration.rank_logits`)
    all requests share them when slates are positions. Raises OffPolicyRefused.
    """
    used = healthy(floats("weights", weights, (len(log.slates),)), log.units, requirements)
    rewards = log.rewards.sum(axis=1)
    earned = used.values * rewards
    value = float(earned.mean())
    return estimate(
        "pseudo-inverse",
        value,
        earned - value,
        float(np.abs(rewards).max()),
        used,
        log.units,
        requirements,
    )
