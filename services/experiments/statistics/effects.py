"""The effect of a treatment against control, and its interval at a horizon fixed in advance.

Such an interval may be looked at once, at the end that was planned: looked at after every batch it
errs four or five times as often as it says. What may be watched is in `sequential`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from services.experiments.statistics.estimates import Estimate, Real

PLAUSIBLE_MINIMAL_EFFECTS = 10


@dataclass(frozen=True, slots=True)
class Interval:
    low: Real
    high: Real


def difference(treatment: Estimate, control: Estimate) -> Estimate:
    """Treatment minus control, over the units of both, with Welch's degrees of freedom."""
    return contrast(treatment, control, 1.0)


def contrast(treatment: Estimate, control: Estimate, factor: float) -> Estimate:
    """Treatment minus `factor` times control.

    Whether it is above 0 says whether treatment is more than `factor` times control, without a
    division: control may be 0.
    """
    of_control = factor**2 * np.asarray(control.variance)
    shared = (1 - factor) ** 2 * np.asarray(control.common)
    return Estimate(
        (np.asarray(treatment.value) - factor * np.asarray(control.value))[()],
        (treatment.variance + of_control + shared)[()],
        treatment.n + control.n,
        _welch(treatment.variance, treatment.dof, of_control, control.dof),
    )


def relative(treatment: Estimate, control: Estimate) -> Estimate:
    """The lift (treatment - control) / control by the delta method:

    var = var_t / c² + t² var_c / c⁴ (Deng, Knoblich, Lu 2018, arXiv 1803.06336, section 3)
          + lift² common / c².

    The expansion needs a control that is well away from zero. Within four standard errors of zero
    there is no lift to speak of: NaN with infinite variance. A negative control flips the sign of
    the difference; read the lift as a factor then.
    """
    c = np.asarray(control.value, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        usable = np.abs(c) > 4 * np.sqrt(control.variance)
        from_treatment = np.where(usable, treatment.variance / c**2, np.inf)
        from_control = np.where(usable, treatment.value**2 * control.variance / c**4, np.inf)
        lift = np.where(usable, treatment.value / c - 1, np.nan)
        shared = np.where(usable, lift**2 * control.common / c**2, np.inf)
    return Estimate(
        lift[()],
        (from_treatment + from_control + shared)[()],
        treatment.n + control.n,
        _welch(from_treatment, treatment.dof, from_control, control.dof),
    )


def _welch(variance_a: Real, dof_a: Real, variance_b: Real, dof_b: Real) -> Real:
    """Welch-Satterthwaite's degrees of freedom of a sum of two variances; 0 if either has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        dof = (np.asarray(variance_a) + variance_b) ** 2 / (
            np.asarray(variance_a) ** 2 / dof_a + np.asarray(variance_b) ** 2 / dof_b
        )
    usable = (np.minimum(dof_a, dof_b) > 0) & np.isfinite(dof)
    return np.where(usable, dof, 0.0)[()]


def interval(estimate: Estimate, alpha: float = 0.05) -> Interval:
    """Student's interval of 1 - alpha; the whole line where the error is not known."""
    dof = np.where(estimate.known, estimate.dof, 1.0)
    return around(estimate, special.stdtrit(dof, 1 - alpha / 2))


def z_score(estimate: Estimate, null: float = 0.0) -> Real:
    """(value - null) / standard error; 0 where nothing is known."""
    deviation = np.where(estimate.known, np.asarray(estimate.value) - null, 0.0)
    return (deviation / np.sqrt(np.where(estimate.known, estimate.variance, 1.0)))[()]


def around(estimate: Estimate, standard_errors: Real) -> Interval:
    """value ± standard_errors · se; the whole line where either is not known or not finite."""
    known = estimate.known & np.isfinite(standard_errors)
    value = np.where(known, estimate.value, 0.0)
    se = np.sqrt(np.where(known, estimate.variance, 1.0))
    radius = np.where(known, standard_errors, np.inf) * se
    return Interval((value - radius)[()], (value + radius)[()])


def is_implausible(lift: Interval, minimal_effect: float) -> bool:
    """Twyman's law: a figure that looks interesting is usually wrong. Search for the bug first.

    True when the data rule out every plausible lift: the end of the lift's interval nearest to zero
    is beyond ten declared minimal effects. The rule reads the interval, not the estimate, so that a
    wide one early on raises no alarm.
    """
    plausible = PLAUSIBLE_MINIMAL_EFFECTS * abs(minimal_effect)
    return bool(lift.low > plausible or lift.high < -plausible)
