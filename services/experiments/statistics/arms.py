"""Treatment and control put side by side: from what is estimated of each to what may be said.

`Arms.of` takes the estimates of a metric in every split between the arms, `effect_of` makes the
difference, the lift and their intervals of them. Whoever has moments of two arms gets there by

    effect_of(Arms.of([(estimate(treatment), estimate(control))], [(step, step)]), rho)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.experiments.statistics import effects, sequential
from services.experiments.statistics.effects import Interval
from services.experiments.statistics.estimates import Estimate, cautious
from services.experiments.statistics.strata import stratified


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A treatment against control. Intervals that are not known are infinite."""

    value: float
    control_value: float
    units: int  # of both arms
    effect: float  # difference, in the metric's unit
    lift: float  # as a share of control; NaN where control is too close to 0
    fixed: Interval  # of the effect, at a horizon fixed in advance
    fixed_lift: Interval
    sequence: Interval  # of the effect, at every look
    sequence_lift: Interval
    p: float  # always valid


class Arms(NamedTuple):
    """Treatment's and control's estimates."""

    treatment: Estimate
    control: Estimate
    steady: tuple[Estimate, Estimate]  # cautious and stabilised, for sequences
    units: int  # of both

    @staticmethod
    def of(
        pairs: Sequence[tuple[Estimate, Estimate]],
        steps: Sequence[tuple[float, float]],
        share: float = 0.5,
    ) -> Arms:
        """From treatment and control in every split, and what an event adds in each (`step` of
        `estimates.cautious`); `share` as in `stratified`."""
        steady = [
            sequential.stabilised(cautious(t, of_t), cautious(c, of_c))
            for (t, c), (of_t, of_c) in zip(pairs, steps, strict=True)
        ]
        units = sum(int(t.n + c.n) for t, c in pairs)
        if len(pairs) == 1:
            return Arms(*pairs[0], steady[0], units)
        return Arms(*stratified(pairs, share), stratified(steady, share), units)


def effect_of(arms: Arms, rho: float, alpha: float = 0.05) -> Effect:
    """Treatment against control: fixed-horizon intervals of the estimates as they are (of the
    steady ones where these do not vary), sequences of the steady ones."""
    treatment, control, steady, units = arms
    difference, lift = effects.difference(treatment, control), effects.relative(treatment, control)
    watched, watched_lift = effects.difference(*steady), effects.relative(*steady)
    p = sequential.always_valid_p(sequential.log_e_value(watched, rho))
    return Effect(
        value=float(treatment.value),
        control_value=float(control.value),
        units=units,
        effect=float(difference.value),
        lift=float(lift.value),
        fixed=floats(effects.interval(difference if difference.known else watched, alpha)),
        fixed_lift=floats(effects.interval(lift if lift.known else watched_lift, alpha)),
        sequence=floats(sequential.confidence_sequence(watched, rho, alpha)),
        sequence_lift=floats(sequential.confidence_sequence(watched_lift, rho, alpha)),
        p=float(p[-1]),
    )


def floats(interval: Interval) -> Interval:
    """An interval of scalars without numpy's types."""
    return Interval(float(interval.low), float(interval.high))
