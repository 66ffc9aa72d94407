"""Estimators for lists: IPS and SNIPS of whole lists, RIPS, DR, item-position, pseudo-inverse.

| estimator      | assumes of a place's reward                | weight                           |
|----------------|--------------------------------------------|----------------------------------|
| slate_ips      | nothing                                    | product over the list            |
| slate_snips    | nothing                                    | the same, self-normalised        |
| rips           | it does not depend on the places below     | product down to the place        |
| slate_robust   | the same                                   | the same, and a model (DR)       |
| item_position  | it depends on the place and its item only  | ratio of marginals at the place  |
| pseudo_inverse | the list's is a sum of (place, item) terms | from marginals: no product       |

The fewer places a weight multiplies, the larger the effective sample size; the price is the
assumption. The last two assume nearly the same: item_position uses what each place earned and
mostly has the smaller error, the pseudo-inverse needs what the list earned only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from services.experiments.what_if.off_policy.actions import DEFAULT, ips, snips
from services.experiments.what_if.off_policy.errors import InvalidLog, MissingSupport
from services.experiments.what_if.off_policy.estimate import Estimate, estimate
from services.experiments.what_if.off_policy.logs import (
    TOLERANCE,
    LoggedSlates,
    Requirements,
    floats,
    integers,
)
from services.experiments.what_if.off_policy.weights import Weights, healthy

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
    return _place_by_place("RIPS", by_place, log, requirements, normalised)


def item_position(
    log: LoggedSlates,
    logging: np.ndarray,
    target: np.ndarray,
    requirements: Requirements = DEFAULT,
    normalised: bool = True,
) -> Estimate:
    """Item-position estimator (Li et al., KDD 2018, 1804.10488).

    A place's reward may depend on the place and on the item at it, not on the other items, so its
    weight is the ratio of both policies' marginal probabilities of that. Otherwise as `rips`.

    logging, target: float64[n, k], P(the logged item at its place) whatever is above it
    (`exploration.place_marginals`). The log's `propensities` and `target` are not used. Raises
    OffPolicyRefused.
    """
    logging = floats("logging", logging, log.slates.shape)
    target = floats("target", target, log.slates.shape)
    if logging.min() <= 0:
        raise InvalidLog(
            "A logged item has the marginal probability 0 at its place. Take the marginals from "
            "the policy that drew the lists."
        )
    return _place_by_place("item-position", target / logging, log, requirements, normalised)


def slate_robust(
    log: LoggedSlates,
    predictions: np.ndarray,
    expected: np.ndarray,
    requirements: Requirements = DEFAULT,
) -> Estimate:
    """Doubly robust RIPS: mean of  sum_k expected_k + w_k (reward_k - prediction_k).

    Dudik, Langford and Li (1103.4601) with the weights of `rips`, w_k the product down to place k,
    and a model of a place's reward that looks at the place and its item only. Whatever the model,
    E[w_k prediction_k] is what the target expects of it; it takes variance away if it is good.

    predictions: float64[n, k], of the logged items, by a model that has not seen the list
    (`cross_fit`). expected: float64[n, k], the same model's mean over the items that the target
    would put at each place (its marginals). Raises OffPolicyRefused.
    """
    predictions = floats("predictions", predictions, log.slates.shape)
    expected = floats("expected", expected, log.slates.shape)
    residuals = log.rewards - predictions
    by_place = np.cumprod(log.target / log.propensities, axis=1)
    health = [healthy(raw, log.units, requirements) for raw in by_place.T]
    weights = np.stack([w.values for w in health], axis=1)
    earned = (expected + weights * residuals).sum(axis=1)
    value = float(earned.mean())
    largest = float(np.abs(residuals).max(axis=0).sum())
    return estimate("DR", value, earned - value, largest, _worst(health), log.units, requirements)


def _place_by_place(
    name: str,
    by_place: np.ndarray,
    log: LoggedSlates,
    requirements: Requirements,
    normalised: bool,
) -> Estimate:
    """The sum over places of the mean of weight * reward, weights float64[n, k] of the place."""
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
    return estimate(name, sum(parts), influence, largest, _worst(health), log.units, requirements)


def _worst(health: list[Weights]) -> Weights:
    """Of the places' weights those with the fewest effective samples, with the most lost mass."""
    return replace(
        min(health, key=lambda w: w.effective_sample_size),
        largest=max(w.largest for w in health),
        clipped_share=max(w.clipped_share for w in health),
        lost_mass=max(w.lost_mass for w in health),
    )


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
