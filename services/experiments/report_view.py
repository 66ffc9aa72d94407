"""A report as tables and sentences for a terminal."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.experiments.analysis.effects import Interval
from services.experiments.metrics import Metric
from services.experiments.report import (
    Effect,
    Report,
    percent,
    signed,
)
from services.experiments.wording import instant, metric_value, p_value, share

_VERDICT_STYLE = {"better": "green", "worse": "red", "breached": "red", "holds": "green"}

LEGEND = """\
Every unit counts once, when its outcome is final. "Any time" is an always-valid 95 % interval: you
may look as often as you like and stop when you please. "At the end" is the usual 95 % interval,
which is right only if you look once, at a sample size that was fixed before the start."""


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print(f"[bold]{escape(report.experiment)}[/] ({report.state})", highlight=False)
    console.print(_headline(report), highlight=False, markup=False)
    console.print(_arms(report))
    if report.goals:
        console.print(_goals(report))
    if report.guardrails:
        console.print(_guardrails(report))
    found = [(g.verdict, g.sentence) for g in report.goals]
    checked = [(g.safety, g.sentence) for g in report.guardrails]
    for title, sentences in (("Verdicts", found), ("Guardrails", checked)):
        if sentences:
            console.print(f"[bold]{title}[/]")
        for verdict, sentence in sentences:
            style = _VERDICT_STYLE.get(verdict, "")
            console.print(f"  • {escape(sentence)}", style=style, highlight=False)
    if report.warnings:
        console.print("[bold yellow]Warnings[/]")
        for warning in report.warnings:
            console.print(f"  ! {escape(warning)}", highlight=False)
    console.print(f"\n{LEGEND}", style="dim", highlight=False)
    console.print(_footnote(report), style="dim", highlight=False)


def _headline(report: Report) -> str:
    if not report.decisions:
        return f"No decision of {report.coverage.source} carries this experiment."
    final = sum(arm.final for arm in report.arms)
    exposed = sum(arm.exposed for arm in report.arms)
    waiting = "" if final == exposed else f"; {exposed - final:,} are still being observed"
    return (
        f"{exposed:,} {report.unit}s were exposed by {report.decisions:,} decisions from "
        f"{instant(report.first_ms)} to {instant(report.last_ms)}. The outcome of {final:,} is "
        f"final{waiting}."
    )


def _arms(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"Arms, by {report.unit}s", title_justify="left")
    table.add_column("arm", no_wrap=True)
    columns = "weight", "exposed", "final", "with feedback", "never degraded"
    for column in columns:
        table.add_column(column, justify="right")
    for arm in report.arms:
        name = f"{arm.arm} (compared to)" if arm.arm == report.control else arm.arm
        table.add_row(
            name,
            f"{arm.weight:g} %",
            f"{arm.exposed:,}",
            f"{arm.final:,}",
            share(arm.joined, arm.final),
            share(arm.undegraded, arm.final),
        )
    if report.sample_ratio:
        ratio = report.sample_ratio
        said = "the weights do not explain these sizes" if ratio.broken else "as the weights say"
        table.caption = f"Sample ratio: {said} (always-valid p = {p_value(ratio.p)})."
        table.caption_justify = "left"
    return table


def _goals(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Metrics", title_justify="left")
    _columns(table, report, "p")
    for goal in report.goals:
        name = f"{goal.metric.name} ({goal.role})"
        table.add_row(
            name, *_cells(goal.metric, goal.arm, goal.all_units), p_value(goal.adjusted_p)
        )
        if goal.undegraded.units < goal.all_units.units:
            cells = _cells(goal.metric, goal.arm, goal.undegraded)
            table.add_row("  served undegraded", *cells, "", style="dim")
    return table


def _guardrails(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Guardrails", title_justify="left")
    _columns(table, report, "may worsen by")
    for guardrail in report.guardrails:
        table.add_row(
            guardrail.metric.name,
            *_cells(guardrail.metric, guardrail.arm, guardrail.effect, guardrail.absolute),
            f"{guardrail.allowed_harm:g}"
            if guardrail.absolute
            else f"{100 * guardrail.allowed_harm:g} %",
        )
    return table


def _columns(table: Table, report: Report, last: str) -> None:
    table.add_column("metric", no_wrap=True)
    table.add_column("arm", no_wrap=True)
    for column in (report.control, "arm's", "change", "any time", "at the end", last):
        table.add_column(column, justify="right", no_wrap=True)


def _cells(metric: Metric, arm: str, effect: Effect, absolute: bool = False) -> tuple[str, ...]:
    """Arm, both values, the change and its intervals: relative, where control allows it."""
    relative = math.isfinite(effect.lift) and not absolute
    return (
        arm,
        metric_value(metric, effect.control_value),
        metric_value(metric, effect.value),
        "?" if math.isnan(effect.effect)
        else percent(effect.lift) if relative
        else signed(effect.effect),
        _interval(effect.sequence_lift if relative else effect.sequence, relative),
        _interval(effect.fixed_lift if relative else effect.fixed, relative),
    )  # fmt: skip


def _interval(interval: Interval, relative: bool) -> str:
    low, high = float(interval.low), float(interval.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        return "not known yet"
    if relative:
        return f"{percent(low)} to {percent(high)}"
    return f"{signed(low)} to {signed(high)}"


def _footnote(report: Report) -> str:
    by = "as declared" if report.planned_by == "planned_units" else "by default; see planned_units"
    return (
        f"p is always valid and adjusted for all metrics of the role (Holm). Intervals are tuned "
        f"to {report.planned_units:,} units ({by}). Requests count for {report.observe_s:g} s from "
        f"a unit's first exposure on, feedback up to {report.window_s:g} s after its request. What "
        "was assigned but lost before the log cannot be known here."
    )
