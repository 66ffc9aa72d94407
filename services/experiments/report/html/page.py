"""An experiment's report as one HTML page that needs nothing else.

No network, no script, no font of its own: styles and plots are in the page, which is fit to be
sent, printed and kept. It follows the reader's dark or light preference and any width from a
phone's on. Names come from files and may hold anything: the template and all SVG escape them.

Equal reports give equal bytes. The page judges nothing itself; what it says of verdicts is what
`report` decided.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from services.experiments.declare.metrics import Metric
from services.experiments.report.findings import GoalReport, GuardrailReport, Report
from services.experiments.report.html import plots
from services.experiments.report.html.answer import Tone, answer, stopped_arms, treatments
from services.experiments.report.html.scale import Scale
from services.experiments.report.sentences import fixed_note
from services.experiments.report.wording import (
    instant,
    interval_text,
    is_known,
    metric_value,
    p_value,
    percent,
    settings,
    share,
    signed,
)
from services.experiments.statistics.arms import Effect
from services.experiments.statistics.effects import Interval
from services.experiments.statistics.harm import PLANNED_UNITS

FARTHEST_HARM = 20.0  # times what is allowed: more is beyond the axis, or it hides the others
NORMAL_95 = 1.96  # half a 95 % interval in standard errors: error bars of single days
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
CHANGES = {
    "ARM_STOPPED": "stopped",
    "ARM_RESUMED": "resumed",
    "RAMP_ADVANCED": "ramp advanced",
    "CONFIRMED": "state confirmed",
}


@dataclass(frozen=True)
class Badge:
    word: str
    sign: str
    tone: Tone


@dataclass(frozen=True)
class Row:
    """A line of a forest: who, two values, the change, its plot, the verdict."""

    name: str
    note: str
    control: str
    value: str
    change: str
    interval: str
    plot: Markup
    p: str = ""
    badge: Badge | None = None
    minor: bool = False  # stands below the row that it belongs to


@dataclass(frozen=True)
class Forest:
    rows: tuple[Row, ...]
    axis: Markup
    band: bool  # whether a band of changes that do not matter is drawn
    limit: bool  # whether a limit of allowed harm is drawn
    cut: bool  # whether an interval goes on beyond the axis
    has_p: bool
    has_verdict: bool


def page(report: Report) -> str:
    """The whole page."""
    return _template().render(
        report=report,
        answer=answer(report),
        style=Markup(_file("page.css")),  # ours, not a name: nothing to escape
        arms=_arms(report),
        primary=_goals(report, "primary"),
        primary_metric=next((g.metric for g in report.goals if g.role == "primary"), None),
        fixed_note=fixed_note(report),
        guardrail_units=PLANNED_UNITS,
        secondary=_goals(report, "secondary"),
        guardrails=_guardrails(report),
        preference=_preference(report),
        segments=_segments(report),
        days=_days(report),
        stopped=stopped_arms(report),
        changes=[
            (instant(c.at_ms), CHANGES.get(c.kind, c.kind.replace("_", " ").lower()), c)
            for c in sorted(report.changes, key=lambda c: c.at_ms)
        ],
        exposed=sum(arm.exposed for arm in report.arms),
        final=sum(arm.final for arm in report.arms),
        cut=sum(arm.cut for arm in report.arms),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("services.experiments.report", "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "typeset": typeset, "instant": instant, "p": _p, "duration": duration, "pct": _share_text,
    }  # fmt: skip
    return environment.get_template("page.html.j2")


def _file(name: str) -> str:
    return files("services.experiments.report").joinpath("html", name).read_text("utf-8")


def typeset(text: str) -> str:
    """Minus signs for hyphens before digits, and no line break before a percent sign."""
    return re.sub(r"(?<![\w.-])-(?=\d)", plots.MINUS, text).replace(" %", "\u00a0%")


def duration(seconds: float) -> str:
    """A time span in its largest unit that gives a short number."""
    for length, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            number = f"{seconds / length:.3g}"
            return f"{number} {unit}{'' if number == '1' else 's'}"
    return f"{seconds:g} seconds"


def _p(p: float) -> str:
    return "?" if math.isnan(p) else p_value(p)


def _share_text(value: float) -> str:
    return f"{100 * value:.1f} %"


# Forests.


def _goals(report: Report, role: str) -> Forest | None:
    goals = [g for g in report.goals if g.role == role]
    if not goals:
        return None
    parts: list[tuple[plots.Mark, Callable[[Markup], Row]]] = []
    for goal in goals:
        many = role == "secondary" and len(treatments(report)) > 1
        name = goal.arm if role == "primary" else goal.metric.name
        note = f"arm {goal.arm}" if many else ""
        direction = f"{goal.metric.better} is better"
        badge = _badge(goal.verdict)
        by_past = f"with CUPED, correlation {goal.covariate_correlation:.2f}" if goal.cuped else ""
        parts.append(
            _effect_row(
                goal.metric,
                goal.judged,
                name,
                _joined(note, direction, by_past),
                badge.tone,
                goal.minimal_effect,
                _p(goal.adjusted_p),
                badge,
            )
        )
        parts += _minor_rows(goal)
    better = {g.metric.better for g in goals}
    sides = ("", "")
    if len(better) == 1:
        sides = ("worse", "better") if better == {"higher"} else ("better", "worse")
    return _forest(parts, percent, sides)


def _minor_rows(goal: GoalReport) -> list[tuple[plots.Mark, Callable[[Markup], Row]]]:
    """What no verdict rests on, below the row that it belongs to."""
    rows = []
    if goal.cuped is not None:
        rows.append(
            _effect_row(
                goal.metric,
                goal.all_units,
                "without CUPED",
                "",
                "even",
                goal.minimal_effect,
                minor=True,
            )
        )
    if goal.undegraded.units < goal.all_units.units:
        note = f"{goal.undegraded.units:,} of {goal.all_units.units:,} units"
        rows.append(
            _effect_row(
                goal.metric, goal.undegraded, "served undegraded", note, "even",
                goal.minimal_effect, minor=True,
            )
        )  # fmt: skip
    return rows


def _effect_row(
    metric: Metric,
    effect: Effect,
    name: str,
    note: str,
    tone: Tone,
    band: float,
    p: str = "",
    badge: Badge | None = None,
    minor: bool = False,
) -> tuple[plots.Mark, Callable[[Markup], Row]]:
    """The lift of an effect; where control is too close to 0 for one, only its numbers."""
    if math.isfinite(effect.lift):
        change, interval = percent(effect.lift), interval_text(effect.sequence_lift, percent)
        sequence, fixed = effect.sequence_lift, effect.fixed_lift
    else:
        change = "?" if math.isnan(effect.effect) else signed(effect.effect)
        interval = interval_text(effect.sequence, signed)
        sequence = fixed = Interval(-math.inf, math.inf)
    mark = plots.Mark(
        typeset(f"{name}: change {change}, always valid {interval}"),
        effect.lift, sequence, fixed, tone, band,
    )  # fmt: skip

    def row(plot: Markup) -> Row:
        return Row(
            name,
            note,
            metric_value(metric, effect.control_value),
            metric_value(metric, effect.value),
            change,
            interval,
            plot,
            p,
            badge,
            minor,
        )

    return mark, row


def _guardrails(report: Report) -> Forest | None:
    """Harms as multiples of what is allowed, so that metrics of any unit share one limit."""
    if not report.guardrails:
        return None
    many = len(treatments(report)) > 1
    parts = [_guardrail_row(g, many) for g in report.guardrails]
    return _forest(parts, _multiple, ("safer", "more harm"))


def _guardrail_row(g: GuardrailReport, many: bool) -> tuple[plots.Mark, Callable[[Markup], Row]]:
    show = signed if g.absolute else percent
    allowed = f"{g.allowed_harm:g}" if g.absolute else f"{100 * g.allowed_harm:g} %"
    note = _joined(
        f"arm {g.arm}" if many else "",
        f"harm up to {allowed} is allowed",
        f"within {duration(g.observe_s)}" if g.observe_s else "",
        "with CUPED" if g.cuped else "",
    )
    effect = g.judged
    interval = interval_text(g.harm_sequence, show)
    harm = show(g.harm) if math.isfinite(g.harm) else "?"
    badge = _badge(g.safety)
    unit = g.allowed_harm or 1.0
    fixed = effect.fixed if g.absolute else effect.fixed_lift
    if g.metric.better == "higher":
        fixed = Interval(-fixed.high, -fixed.low)
    mark = plots.Mark(
        typeset(f"{g.metric.name}: harm {harm}, always valid {interval}, allowed {allowed}"),
        g.harm / unit if g.harm < FARTHEST_HARM * unit else math.inf,
        _divided(g.harm_sequence, unit),
        _divided(fixed, unit) if is_known(fixed) else None,
        badge.tone,
        limit=g.allowed_harm / unit,
    )  # fmt: skip

    def row(plot: Markup) -> Row:
        return Row(
            g.metric.name,
            note,
            metric_value(g.metric, effect.control_value),
            metric_value(g.metric, effect.value),
            harm,
            interval,
            plot,
            badge=badge,
        )

    return mark, row


def _segments(report: Report) -> Forest | None:
    goals = {g.arm: g for g in report.goals if g.role == "primary"}
    parts = []
    many = len(treatments(report)) > 1
    for found in report.segments:
        if (goal := goals.get(found.arm)) is None:
            continue
        note = _joined(f"arm {found.arm}" if many else "", f"{found.effect.units:,} units")
        parts.append(
            _effect_row(
                goal.metric,
                found.effect,
                found.segment,
                note,
                "even",
                goal.minimal_effect,
                _p(found.adjusted_p),
            )
        )
    if not parts:
        return None
    better = next(iter(goals.values())).metric.better
    return _forest(parts, percent, ("worse", "better")[:: 1 if better == "higher" else -1])


def _forest(
    parts: Sequence[tuple[plots.Mark, Callable[[Markup], Row]]],
    label: Callable[[float], str],
    sides: Sequence[str],
) -> Forest:
    marks = [mark for mark, _ in parts]
    scale = plots.scale_of(marks)
    rows = tuple(row(plots.forest_row(mark, scale)) for mark, row in parts)
    labels = [typeset(label(tick)) if tick else "0" for tick in scale.ticks()]
    return Forest(
        rows,
        plots.axis(scale, labels, *sides),
        any(mark.band for mark in marks),
        any(math.isfinite(mark.limit) for mark in marks),
        any(_goes_on(mark, scale) for mark in marks),
        any(row.p for row in rows),
        any(row.badge for row in rows),
    )


def _goes_on(mark: plots.Mark, scale: Scale) -> bool:
    intervals = [mark.sequence] + ([mark.fixed] if mark.fixed else [])
    return mark.known and not all(
        scale.holds(float(end)) for i in intervals for end in (i.low, i.high)
    )


# The other parts.


def _arms(report: Report) -> list[dict[str, Any]]:
    """Each arm's units along the way, and its share beside the one that the weights want."""
    ratio = report.sample_ratio
    wanted = dict(zip(ratio.arms, ratio.expected, strict=True)) if ratio else {}
    seen = dict(zip(ratio.arms, ratio.observed, strict=True)) if ratio else {}
    total = sum(seen.values())
    stopped = stopped_arms(report)
    found = []
    for number, arm in enumerate(report.arms):
        own = seen.get(arm.arm, 0) / total if total else 0.0
        bar = Markup("")
        if arm.arm in wanted and total:
            said = f"{_share_text(own)} of the units; the weights want {wanted[arm.arm]:.1%}"
            bar = plots.shares(own, wanted[arm.arm], typeset(said))
        found.append(
            {
                "key": plots.arm_key(number),
                "name": arm.arm,
                "settings": "" if report.preference else settings(arm.parameters),
                "control": arm.arm == report.control,
                "stopped": arm.arm in stopped,
                "weight": f"{arm.weight:g} %",
                "traffic": f"{arm.traffic:g} %",
                "exposed": f"{arm.exposed:,}",
                "share": _share_text(own) if total and arm.arm in wanted else "-",
                "wanted": _share_text(wanted[arm.arm]) if arm.arm in wanted else "-",
                "bar": bar,
                "final": f"{arm.final:,}",
                "served": share(arm.served, arm.final),
                "cut": f"{arm.cut:,}",
                "joined": share(arm.joined, arm.final),
                "undegraded": share(arm.undegraded, arm.final),
            }
        )
    return found


def _preference(report: Report) -> dict[str, Any] | None:
    p = report.preference
    if p is None:
        return None
    badge = _badge(p.verdict)
    winner = {"a is better": p.arm_a, "b is better": p.arm_b}.get(p.verdict)
    word = f"{winner} is preferred" if winner else "undecided"
    interval = interval_text(p.sequence, signed)
    said = f"Preference {signed(p.value)}, always valid {interval}, on a scale from -1 to 1"
    return {
        "badge": Badge(word, badge.sign, badge.tone),
        "value": "?" if math.isnan(p.value) else signed(p.value),
        "interval": interval,
        "plot": plots.preference(p.value, p.sequence, p.fixed, badge.tone, typeset(said)),
    }


def _days(report: Report) -> list[dict[str, Any]]:
    """A small plot per metric of its values by day of first exposure."""
    numbers = {arm.arm: number for number, arm in enumerate(report.arms)}
    labels = sorted({d.day for d in report.days})
    place = {day: i for i, day in enumerate(labels)}
    metrics = {g.metric.name: g.metric for g in report.goals}
    metrics |= {g.metric.name: g.metric for g in report.guardrails}
    found = []
    for name, metric in metrics.items():
        series = []
        for arm, number in numbers.items():
            points = tuple(
                (place[d.day], d.value, NORMAL_95 * d.standard_error)
                for d in report.days
                if d.metric == name and d.arm == arm and math.isfinite(d.value)
            )
            if points:
                series.append(plots.Series(arm, number, points))
        if not series:
            continue
        scale = plots.day_scale(series)
        said = f"{name} by day of first exposure, {labels[0]} to {labels[-1]}: " + "; ".join(
            f"{s.arm} from {metric_value(metric, s.points[0][1])} "
            f"to {metric_value(metric, s.points[-1][1])}"
            for s in series
        )
        found.append(
            {
                "metric": metric,
                "plot": plots.days(
                    typeset(said),
                    [day[5:] for day in labels],
                    series,
                    [metric_value(metric, tick) for tick in plots.day_ticks(scale)],
                    scale,
                ),
                "legend": [(plots.arm_key(s.number), s.arm) for s in series],
            }
        )
    return found


def _badge(verdict: str) -> Badge:
    sign, tone = BADGES[verdict]
    return Badge(verdict, sign, tone)


def _divided(interval: Interval, unit: float) -> Interval:
    return Interval(float(interval.low) / unit, float(interval.high) / unit)


def _multiple(value: float) -> str:
    return f"{value:g}\N{MULTIPLICATION SIGN}"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
