"""Intervals and p-values that hold at every look: what guardrails, ramps and reports act upon.

THE FORM. The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas
(arXiv 2103.06476, Theorem 2.2: Robbins' Gaussian mixture over a Brownian motion). For the mean of
n independent contributions with sample standard deviation s, simultaneously for all n,

    mean ± s · sqrt( 2 (n rho² + 1) / (n² rho²) · log( sqrt(n rho² + 1) / alpha ) ).

An `Estimate` carries variance = s²/n, so the radius is `critical_z(n)` standard errors with

    critical_z(n) = sqrt( 2 (n rho² + 1) / (n rho²) · log( sqrt(n rho² + 1) / alpha ) ).

WHY IT HOLDS FOR TWO ARMS OF ANY SIZE. Let a unit fall into treatment with probability π whatever it
is and does. The difference of the arms' means is, up to a remainder of order log log n / n, the
mean over all n = n_t + n_c units of

    treated / π · (Y - μ_t)  -  untreated / (1 - π) · (Y - μ_c)     (plus the true effect):

one sequence of independent, identically distributed contributions, the influence function of the
difference of means (the paper's section 3 uses it with covariates, too). Its variance is
sigma_t²/π + sigma_c²/(1-π), and n times Welch's variance s_t²/n_t + s_c²/n_c estimates exactly
that, since n_t/n -> π. So the sequence takes Welch's variance and the units of both arms together,
and neither π nor equal sizes enter. The same holds for all that is linear to first order: ratios,
lifts, CUPED, quantiles.

SMALL ARMS. A metric that is skewed (rare conversions, revenue) has a sample mean and a sample
variance that are low together until the rare units arrive, and in an arm of a tenth of the traffic
that makes false alarms (7-11 % instead of 5 % in load_tests/experiments/bench_experiments.py). So
give the sequence `difference(*stabilised(t, c))` or `relative(*stabilised(t, c))`: no arm's unit
variance counts as lower than that of all units together, the difference between the arms included.
That never makes an interval narrower, and under "no effect" it costs nothing in the limit.

ARMS THAT DO NOT VARY. Where every unit of an arm fails and none of the other, no unit varies within
its arm, and yet nothing could be plainer. Under "no effect" both arms' units are of one kind, and
these do vary: hence the difference in the variance. z is then at most the root of n, and n units
that all differ are evidence of about n / 2 in logarithms. Where both arms are alike and do not vary
either (nothing ever fails), `estimates.cautious` says how much may be hidden.

WHAT IS NOT GUARANTEED. (1) It is asymptotic: nothing is said below `MIN_DOF` degrees of freedom,
which also means some hundred units in the smaller arm. (2) Units count when their outcome is final
(their attribution window is over), in the order in which that happens; a mean over units that are
still collecting events is no sum of independent contributions. (3) π must not change: where a ramp
changes the split between arms, compare within its steps (`strata`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from services.experiments.statistics.effects import Interval, around, z_score
from services.experiments.statistics.estimates import Estimate, Real

MIN_DOF = 100


def rho_for(units: float, alpha: float = 0.05) -> float:
    """The rho for which the sequence is narrowest when both arms together have `units`.

    x = units · rho² minimises (x + 1)/x · (log(x + 1) + 2 log(1/alpha)), so x + 1 = -W₋₁(-alpha²/e)
    (arXiv 2103.06476, appendix on rho). There critical_z is sqrt(x + 1): 3.04 for alpha = 0.05.
    At a tenth of the planned units the sequence is 26 % wider than one tuned to those, at ten times
    the units 7 %.
    """
    return math.sqrt((-float(special.lambertw(-(alpha**2) / math.e, -1).real) - 1) / units)


def stabilised(treatment: Estimate, control: Estimate) -> tuple[Estimate, Estimate]:
    """Both arms with a unit's variance of at least that of the units of both together (see above).

    An arm where nothing ever converted has no variance of its own; with this one it is found out.
    """
    # Of an arm without units the variance is infinite, and infinite times nothing is not known.
    with np.errstate(invalid="ignore"):
        t, c = treatment.variance * treatment.n, control.variance * control.n
        within = treatment.dof * t + control.dof * c
        n = np.asarray(treatment.n) + control.n
        apart = np.asarray(treatment.value) - control.value
        between = np.asarray(treatment.n) * control.n / np.maximum(n, 1.0) * apart**2
        pooled = (within + between) / np.maximum(np.asarray(treatment.dof) + control.dof + 1, 1.0)
    return (
        replace(treatment, variance=np.fmax(t, pooled) / treatment.n),
        replace(control, variance=np.fmax(c, pooled) / control.n),
    )


def critical_z(n: Real, rho: float, alpha: float = 0.05) -> Real:
    """Standard errors from the estimate to the end of the sequence at n units; infinite at 0."""
    x = np.asarray(n, dtype=np.float64) * rho**2
    with np.errstate(divide="ignore"):
        return np.sqrt((1 + 1 / x) * (np.log1p(x) - 2 * math.log(alpha)))[()]


def confidence_sequence(estimate: Estimate, rho: float, alpha: float = 0.05) -> Interval:
    """The interval at each look: all of them hold the true value with probability 1 - alpha."""
    return around(estimate, np.where(_enough(estimate), critical_z(estimate.n, rho, alpha), np.inf))


def log_e_value(estimate: Estimate, rho: float, null: float = 0.0) -> Real:
    """Log of the evidence against "the true value is `null`" at each look; 0 when too little data.

    With z = (value - null)/se and x = n rho²: e = exp(z² x / (2 (x + 1))) / sqrt(x + 1). Under the
    null the chance that it ever reaches 1/alpha is at most alpha; it does so just when
    `confidence_sequence` excludes `null`.
    """
    x = np.asarray(estimate.n) * rho**2
    z = np.asarray(z_score(estimate, null))
    log_e = z * z * x / (2 * (x + 1)) - np.log1p(x) / 2
    return np.where(_enough(estimate), log_e, 0.0)[()]


def log_e_value_above(estimate: Estimate, rho: float) -> Real:
    """Log of the evidence against "the true value is at most 0" at each look.

    For guardrails, where one direction is harm (`harm.excess`). The mixture is over positive drifts
    only (half a Gaussian), which multiplies the two-sided e-value by 2 Φ(z sqrt(x / (x + 1))).
    """
    x = np.asarray(estimate.n) * rho**2
    half = math.log(2) + special.log_ndtr(np.asarray(z_score(estimate)) * np.sqrt(x / (x + 1)))
    log_e = np.asarray(log_e_value(estimate, rho)) + half
    return np.where(_enough(estimate), log_e, 0.0)[()]


def always_valid_p(log_e: Real) -> NDArray[np.float64]:
    """p-value at each look from log e-values whose last axis is time: min(1, 1 / highest so far).

    It never rises, and under the null the chance that it ever reaches alpha is at most alpha. A
    process that sees one look at a time keeps the smallest p-value so far.
    """
    highest = np.maximum.accumulate(np.atleast_1d(np.asarray(log_e, dtype=np.float64)), axis=-1)
    return np.exp(-np.maximum(highest, 0.0))


def _enough(estimate: Estimate) -> NDArray[np.bool_]:
    return np.asarray(estimate.known & (np.asarray(estimate.dof) >= MIN_DOF))
