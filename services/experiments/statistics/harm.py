"""Harm beyond what is allowed: what a guardrail tests, at every look.

A guardrail allows treatment to be worse than control by `allowed`, in the metric's own unit or as a
share of control's value. The share is tested without a division: "treatment is more than (1 + m)
times control" is "treatment - (1 + m) control is above 0", and control may be 0 then, as the errors
of a good service are. Both forms are means of independent contributions, so the sequence and the
evidence of `sequential` hold for them.

Give the estimates that sequences take (`estimates.cautious`, `sequential.stabilised`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from services.experiments.statistics.effects import Interval, contrast
from services.experiments.statistics.estimates import Estimate
from services.experiments.statistics.sequential import confidence_sequence, critical_z

# Units of both arms that the sequences of guardrails are tuned to, whatever is planned for the
# goals: harm is to be found early. At 20 times as many they are 10 % wider than others.
PLANNED_UNITS = 2_000


@dataclass(frozen=True, slots=True)
class Allowed:
    """By how much treatment may be worse."""

    harm: float
    absolute: bool  # in the metric's own unit, else as a share of control's value
    lower_is_better: bool

    @property
    def sign(self) -> float:
        """Of harm."""
        return 1.0 if self.lower_is_better else -1.0

    @property
    def factor(self) -> float:
        """What control is multiplied with in the contrast."""
        return 1.0 if self.absolute else 1 + self.sign * self.harm


def excess(treatment: Estimate, control: Estimate, allowed: Allowed) -> Estimate:
    """Harm beyond the margin in the metric's own unit: above 0 is a breach, below 0 it holds."""
    found = contrast(treatment, control, allowed.factor)
    margin = allowed.harm if allowed.absolute else 0.0
    return replace(found, value=(allowed.sign * np.asarray(found.value) - margin)[()])


def harm_sequence(
    treatment: Estimate, control: Estimate, allowed: Allowed, rho: float, alpha: float = 0.05
) -> Interval:
    """The harm at every look, in the unit of `allowed`, of scalars.

    As a share of control it is Fieller's interval: all shares whose contrast the sequence does not
    tell from 0. If control may be 0, it has no upper end; if treatment may be, too, it is the whole
    line.
    """
    beyond = confidence_sequence(excess(treatment, control, allowed), rho, alpha)
    if allowed.absolute:
        return Interval(float(beyond.low) + allowed.harm, float(beyond.high) + allowed.harm)
    if not math.isfinite(float(beyond.low)):
        return Interval(-math.inf, math.inf)
    ratio = _fieller(treatment, control, float(critical_z(treatment.n + control.n, rho, alpha)))
    low, high = float(ratio.low) - 1, float(ratio.high) - 1
    return Interval(low, high) if allowed.lower_is_better else Interval(-high, -low)


def _fieller(treatment: Estimate, control: Estimate, z: float) -> Interval:
    """The ratios r >= 0 with |t - r c| <= z standard errors, of values that are not negative."""
    t, c, common = float(treatment.value), float(control.value), float(control.common)
    a = c * c - z * z * (float(control.variance) + common)
    b = t * c - z * z * common
    if a > 0:
        root = math.sqrt(max(b * b - a * (t * t - z * z * (treatment.variance + common)), 0.0))
        return Interval((b - root) / a, (b + root) / a)
    at_zero = t * t - z * z * float(treatment.variance + common)  # above 0: r = 0 is excluded
    if at_zero <= 0 or t <= 0 or (root_of := b * b - a * at_zero) < 0:
        return Interval(-math.inf, math.inf)
    # a r² - 2 b r + at_zero falls from above 0 to below it at the positive root, for good.
    return Interval(at_zero / (b + math.sqrt(root_of)), math.inf)
