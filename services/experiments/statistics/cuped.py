"""CUPED: less variance by what was known of each unit before its first exposure.

Deng, Xu, Kohavi, Walker 2013 (WSDM). With x a covariate from before the exposure and rho its
correlation with the metric y, y - theta (x - mean x) has the same expected difference between arms,
since arms are random, and at theta = cov(y, x) / var(x) a unit's variance is smaller by the factor
1 - rho². Everything comes from moments whose last column is the covariate.

The covariate must be fixed before the first exposure and be the same number in all arms. A unit
without history gets a fixed value that is decided beforehand (0): that costs reduction, not truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from services.experiments.statistics.estimates import (
    Estimate,
    Kind,
    can_be_estimated,
    estimate,
    linearised,
    mean_estimate,
    unknown,
)
from services.experiments.statistics.moments import Moments


def theta(arms: Sequence[Moments], kind: Kind = "mean") -> float:
    """The slope within arms, pooled: Σ (n - 1) cov(y, x) / Σ (n - 1) var(x) over arms.

    Within arms, so that the effect itself does not pose as correlation. 0 without spread of x.
    """
    spread = _pooled(arms, kind, _covariate_variance)
    common = _pooled(arms, kind, lambda arm: _with_covariate(arm, kind))
    return common / spread if spread > 0 else 0.0


def correlation(arms: Sequence[Moments], kind: Kind = "mean") -> float:
    """Pooled correlation rho of metric and covariate within arms; CUPED saves the share rho²."""
    metric = _pooled(arms, kind, lambda arm: _metric_variance(arm, kind))
    spread = _pooled(arms, kind, _covariate_variance)
    common = _pooled(arms, kind, lambda arm: _with_covariate(arm, kind))
    return common / float(np.sqrt(metric * spread)) if metric * spread > 0 else 0.0


def adjusted_estimates(arms: Sequence[Moments], kind: Kind = "mean") -> list[Estimate]:
    """Each arm's value as it would be with the covariate's mean over all arms.

    value = mean y - theta (mean x - mean x over all arms),
    variance = (var y - 2 theta cov(y, x) + theta² var x) / n.

    The error of the common mean of x is the same in all arms and leaves differences alone; it is
    not in the variance of a single arm's value but its `common`, theta² var(x) / n of all arms.
    """
    slope = theta(arms, kind)
    n = sum(arm.n for arm in arms)
    mean_x = sum(arm.n * arm.mean(-1) for arm in arms if arm.n) / n if n else 0.0
    together = reduce(Moments.__add__, arms)
    common = slope**2 * _covariate_variance(together) / n if n > 1 else 0.0
    adjusted = []
    for arm in arms:
        if not can_be_estimated(arm, kind):
            adjusted.append(unknown(arm.n))
            continue
        variance = (
            _metric_variance(arm, kind)
            - 2 * slope * _with_covariate(arm, kind)
            + slope**2 * _covariate_variance(arm)
        )
        value = float(estimate(arm, kind).value) - slope * (arm.mean(-1) - mean_x)
        found = mean_estimate(float(arm.n), value, max(variance, 0.0))
        adjusted.append(replace(found, common=common))
    return adjusted


def _pooled(arms: Sequence[Moments], kind: Kind, of: Callable[[Moments], float]) -> float:
    return sum((arm.n - 1) * of(arm) for arm in arms if can_be_estimated(arm, kind))


def _metric_variance(arm: Moments, kind: Kind) -> float:
    weights = linearised(arm, kind)
    return sum(
        a * b * arm.covariance(i, j) for i, a in enumerate(weights) for j, b in enumerate(weights)
    )


def _with_covariate(arm: Moments, kind: Kind) -> float:
    weights = linearised(arm, kind)
    return sum(a * arm.covariance(i, arm.columns - 1) for i, a in enumerate(weights))


def _covariate_variance(arm: Moments) -> float:
    return arm.covariance(arm.columns - 1, arm.columns - 1)
