"""A report's rows in words, which the terminal and the page only lay out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.experiments.declare.metrics import Metric
from services.experiments.report.findings import GoalReport, Report
from services.experiments.report.wording import (
    interval_text,
    metric_value,
    or_unknown,
    percent,
    settings,
    share,
    signed,
)
from services.experiments.statistics.arms import Effect


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """An arm's units along the way."""

    name: str
    weight: str
    traffic: str
    exposed: str
    final: str
    cut: str
    served: str
    joined: str
    undegraded: str
    settings: str  # what it changes; empty where the preference says that


def arm_rows(report: Report) -> list[ArmRow]:
    """In the order of the report."""
    return [
        ArmRow(
            name=arm.arm,
            weight=f"{arm.weight:g} %",
            traffic=f"{arm.traffic:g} %",
            exposed=f"{arm.exposed:,}",
            final=f"{arm.final:,}",
            cut=f"{arm.cut:,}",
            served=share(arm.served, arm.final),
            joined=share(arm.joined, arm.final),
            undegraded=share(arm.undegraded, arm.final),
            settings="" if report.preference else settings(arm.parameters),
        )
        for arm in report.arms
    ]


def effects_of(goal: GoalReport) -> list[tuple[str, Effect]]:
    """What is shown of a goal, with names: first what the verdict rests on, without a name."""
    found = [("", goal.judged)]
    if goal.cuped:
        found.append(("without CUPED", goal.all_units))
    if goal.undegraded.units < goal.all_units.units:
        found.append(("served undegraded", goal.undegraded))
    return found


@dataclass(frozen=True, kw_only=True)
class EffectRow:
    """Both values, the change and its intervals: relative, where control allows it."""

    control: str
    value: str
    change: str
    sequence: str
    fixed: str


def effect_row(
    metric: Metric, effect: Effect, absolute: bool = False, unit: bool = True
) -> EffectRow:
    """`absolute`: never relative; `unit`: with that of values."""
    relative = math.isfinite(effect.lift) and not absolute
    show = percent if relative else signed
    return EffectRow(
        control=metric_value(metric, effect.control_value, unit),
        value=metric_value(metric, effect.value, unit),
        change=or_unknown(effect.lift if relative else effect.effect, show),
        sequence=interval_text(effect.sequence_lift if relative else effect.sequence, show),
        fixed=interval_text(effect.fixed_lift if relative else effect.fixed, show),
    )
