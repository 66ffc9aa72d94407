"""How many units enter an experiment on which day, under its file's traffic and along its ramp.

Pure. Days begin with the experiment. New units a day are given for some days, and the last day's
number goes on.

RAMPS. With U(t) the units that come within t days, those that a ramp has let in are the sum over
its steps, begun at t_k with d_k more traffic, of d_k U(t - t_k): a unit that a step lets in counts
from its next request on, and what comes after t_k is taken to look like what came at first. A step
lasts until its hold is over and `min_units` that entered in it have a final outcome, if the gates
hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.experiments.declare.config import BUCKETS, Arm, Experiment, Ramp

DAY_S = 86_400.0
LONGEST_DAYS = 3650  # what takes longer takes forever


@dataclass(frozen=True)
class Traffic:
    """Units that enter the experiment on each day; the last number goes on."""

    name: str
    per_day: tuple[float, ...]


def weight(arm: Arm) -> float:
    """Its part of the experiment's units; a stopped arm has none."""
    return 0.0 if arm.stopped else (arm.end - arm.first) / BUCKETS


def entering(experiment: Experiment) -> dict[str, float]:
    """Each arm's part of the units that come, at the ramp's last step if there is one."""
    ramp = experiment.ramp
    return {
        arm.name: weight(arm) * (ramp.steps[-1] if ramp else arm.enrolled) / BUCKETS
        for arm in experiment.arms
    }


def traffics(
    experiment: Experiment, arriving: Sequence[float], final_days: float
) -> tuple[Traffic, ...]:
    """What enters under the file's traffic; with a ramp at each of its steps, and along it.

    `arriving`: new units a day in the experiment's buckets; without any nothing is known.
    `final_days`: from a unit's first exposure to its final outcome.
    """
    if not arriving:
        return ()
    if experiment.ramp is None:
        part = sum(entering(experiment).values())
        percents = sorted({arm.traffic for arm in experiment.arms if weight(arm)})
        name = " and ".join(f"{percent:g} %" for percent in percents)
        return (Traffic(name, tuple(new * part for new in arriving)),)
    whole = sum(weight(arm) for arm in experiment.arms)
    own = [new * whole for new in arriving]
    steps = [
        Traffic(f"{100 * step / BUCKETS:g} %", tuple(new * step / BUCKETS for new in own))
        for step in experiment.ramp.steps
    ]
    return (*steps, Traffic("the ramp", along(experiment.ramp, own, final_days)))


def along(ramp: Ramp, arriving: Sequence[float], final_days: float) -> tuple[float, ...]:
    """Units that a ramp lets in on each day if it advances as soon as it may.

    They are so many more on the days after a step because units come back; once all of them have
    entered, new ones are those of `arriving`.
    """
    begun: list[tuple[float, float]] = []  # (day, traffic that it adds)

    def let_in(day: float) -> float:
        return sum(more * come_by(arriving, day - start) for start, more in begun)

    at, before = 0.0, 0
    for step in ramp.steps:
        begun.append((at, (step - before) / BUCKETS))
        wanted, low, high = let_in(at) + ramp.min_units, at, at + LONGEST_DAYS
        if let_in(high) < wanted:
            break  # it stays at this step
        while high - low > 1 / 1440:  # to a minute
            middle = (low + high) / 2
            low, high = (low, middle) if let_in(middle) >= wanted else (middle, high)
        enough = high + final_days if ramp.min_units else at
        at, before = max(at + ramp.hold_s / DAY_S, enough), step
    days = math.ceil(begun[-1][0]) + len(arriving) + 1
    return tuple(let_in(day + 1) - let_in(day) for day in range(days))


def come_by(per_day: Sequence[float], days: float) -> float:
    """Units that have come after so many days."""
    if days <= 0:
        return 0.0
    whole = int(days)
    come = sum(per_day[:whole]) + max(0, whole - len(per_day)) * per_day[-1]
    return come + (days - whole) * per_day[min(whole, len(per_day) - 1)]


def days_until(units: float, per_day: Sequence[float]) -> float:
    """Days until so many units have come, the part of the last day included; infinite where that
    takes years."""
    left = units
    for day, new in enumerate(per_day):
        if new >= left:
            return day + left / new if new > 0 else float(day)
        left -= new
    days = len(per_day) + left / per_day[-1] if per_day[-1] > 0 else math.inf
    return days if days <= LONGEST_DAYS else math.inf
