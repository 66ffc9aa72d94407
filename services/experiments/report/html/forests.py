"""The page's forests: a row for each effect, all of them drawn on one axis."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from services.experiments.report.findings import GoalReport, GuardrailReport, Report
from services.experiments.report.html import plots
from services.experiments.report.html.answer import Tone, treatments
from services.experiments.report.html.scale import Scale
from services.experiments.report.rows import EffectRow, effect_row, effects_of
from services.experiments.report.wording import (
    allowed,
    interval_text,
    is_known,
    or_unknown,
    p_value,
    percent,
    signed,
)
from services.experiments.statistics.arms import Effect
from services.experiments.statistics.effects import Interval

FARTHEST_HARM = 20.0  # times what is allowed: more is beyond the axis, or it hides the others
WHOLE_LINE = Interval(-math.inf, math.inf)
BADGES: dict[str, tuple[str, Tone]] = {
    "better": ("✓", "good"),
    "worse": ("✗", "bad"),
    "no difference that matters": ("≈", "even"),
    "undecided": ("…", "open"),
    "holds": ("✓", "good"),
    "breached": ("✗", "bad"),
    "a is better": ("✓", "good"),
    "b is better": ("✓", "good"),
}


@dataclass(frozen=True)
class Badge:
    word: str
    sign: str
    tone: Tone


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a forest: who, two values, the change, what is drawn of it, the verdict."""

    name: str
    note: str
    said: EffectRow
    mark: plots.Mark
    p: str = ""
    badge: Badge | None = None
    minor: bool = False  # stands below the row that it belongs to


@dataclass(frozen=True)
class Forest:
    rows: Sequence[Row]
    label: Callable[[float], str]  # of a tick
    sides: Sequence[str]  # what lies to the left and to the right of 0

    @cached_property
    def scale(self) -> Scale:
        return plots.scale_of([row.mark for row in self.rows])

    @property
    def cut(self) -> bool:
        """Whether an interval goes on beyond the axis."""
        return any(
            not self.scale.holds(float(end))
            for row in self.rows
            if row.mark.known
            for interval in (row.mark.sequence, row.mark.fixed)
            if interval
            for end in (interval.low, interval.high)
        )


def goals(report: Report, role: str) -> Forest | None:
    """Of the metrics of a role; None without any."""
    found = [goal for goal in report.goals if goal.role == role]
    many = role == "secondary" and len(treatments(report)) > 1
    rows = []
    for goal in found:
        badge = badge_of(goal.verdict)
        (_, judged), *others = effects_of(goal)
        note = _joined(
            f"arm {goal.arm}" if many else "",
            f"{goal.metric.better} is better",
            f"with CUPED, correlation {goal.covariate_correlation:.2f}" if goal.cuped else "",
        )
        name = goal.arm if role == "primary" else goal.metric.name
        p = or_unknown(goal.adjusted_p, p_value)
        rows.append(_effect_row(goal, judged, name, note, p=p, badge=badge))
        for name, effect in others:
            of = f"{effect.units:,} of {goal.all_units.units:,} units"
            note = of if effect.units < goal.all_units.units else ""
            rows.append(_effect_row(goal, effect, name, note, minor=True))
    return Forest(rows, percent, _sides(found)) if rows else None


def guardrails(report: Report) -> Forest | None:
    """Harms as multiples of what is allowed, so that metrics of any unit share one limit."""
    many = len(treatments(report)) > 1
    rows = [_guardrail_row(guardrail, many) for guardrail in report.guardrails]
    return Forest(rows, _multiple, ("safer", "more harm")) if rows else None


def segments(report: Report) -> Forest | None:
    """Of the primary metric in the declared segments."""
    primary = {goal.arm: goal for goal in report.goals if goal.role == "primary"}
    many = len(treatments(report)) > 1
    rows = []
    for found in report.segments:
        if goal := primary.get(found.arm):
            note = _joined(f"arm {found.arm}" if many else "", f"{found.effect.units:,} units")
            p = or_unknown(found.adjusted_p, p_value)
            rows.append(_effect_row(goal, found.effect, found.segment, note, p=p))
    return Forest(rows, percent, _sides(list(primary.values()))) if rows else None


def badge_of(verdict: str) -> Badge:
    sign, tone = BADGES[verdict]
    return Badge(verdict, sign, tone)


def typeset(text: str) -> str:
    """Minus signs for hyphens before digits, and no line break before a percent sign."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "\N{MINUS SIGN}", text).replace(" %", "\u00a0%")


def duration(seconds: float) -> str:
    """A time span in its largest unit that gives a short number."""
    for length, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            number = f"{seconds / length:.3g}"
            return f"{number} {unit}{'' if number == '1' else 's'}"
    return f"{seconds:g} seconds"


def _effect_row(
    goal: GoalReport,
    effect: Effect,
    name: str,
    note: str,
    *,
    p: str = "",
    badge: Badge | None = None,
    minor: bool = False,
) -> Row:
    """The lift of an effect; where control is too close to 0 for one, only its numbers."""
    said = effect_row(goal.metric, effect)
    has_lift = math.isfinite(effect.lift)
    return Row(
        name=name,
        note=note,
        said=said,
        mark=plots.Mark(
            said=typeset(f"{name}: change {said.change}, always valid {said.sequence}"),
            point=effect.lift,
            sequence=effect.sequence_lift if has_lift else WHOLE_LINE,
            fixed=effect.fixed_lift if has_lift else WHOLE_LINE,
            tone=badge.tone if badge else "even",
            band=goal.minimal_effect,
        ),
        p=p,
        badge=badge,
        minor=minor,
    )


def _guardrail_row(g: GuardrailReport, many: bool) -> Row:
    show = signed if g.absolute else percent
    said = replace(
        effect_row(g.metric, g.judged),
        change=show(g.harm) if math.isfinite(g.harm) else "?",
        sequence=interval_text(g.harm_sequence, show),
    )
    badge = badge_of(g.safety)
    unit = g.allowed_harm or 1.0
    fixed = g.judged.fixed if g.absolute else g.judged.fixed_lift
    if g.metric.better == "higher":
        fixed = Interval(-fixed.high, -fixed.low)
    note = _joined(
        f"arm {g.arm}" if many else "",
        f"harm up to {allowed(g)} is allowed",
        f"within {duration(g.observe_s)}" if g.observe_s else "",
        "with CUPED" if g.cuped else "",
    )
    return Row(
        name=g.metric.name,
        note=note,
        said=said,
        mark=plots.Mark(
            said=typeset(
                f"{g.metric.name}: harm {said.change}, always valid {said.sequence}, allowed "
                f"{allowed(g)}"
            ),
            point=g.harm / unit if g.harm < FARTHEST_HARM * unit else math.inf,
            sequence=_divided(g.harm_sequence, unit),
            fixed=_divided(fixed, unit) if is_known(fixed) else None,
            tone=badge.tone,
            limit=g.allowed_harm / unit,
        ),
        badge=badge,
    )


def _sides(goals: Sequence[GoalReport]) -> tuple[str, str]:
    better = {goal.metric.better for goal in goals}
    if len(better) != 1:
        return "", ""
    return ("worse", "better") if better == {"higher"} else ("better", "worse")


def _divided(interval: Interval, unit: float) -> Interval:
    return Interval(float(interval.low) / unit, float(interval.high) / unit)


def _multiple(value: float) -> str:
    return f"{value:g}\N{MULTIPLICATION SIGN}"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
