"""A report as tables and sentences for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from services.common.terminal import plain
from services.experiments.declare.metrics import Metric
from services.experiments.report.findings import Preference, Report
from services.experiments.report.rows import arm_rows, effect_row, effects_of
from services.experiments.report.sentences import fixed_note, notes_on_metrics
from services.experiments.report.wording import (
    allowed,
    instant,
    interval_text,
    or_unknown,
    p_value,
    settings,
    signed,
    unit_of,
)
from services.experiments.statistics.arms import Effect
from services.experiments.statistics.harm import PLANNED_UNITS as GUARDRAIL_UNITS

_VERDICT_STYLE = {"better": "green", "worse": "red", "breached": "red", "holds": "green"}

LEGEND = """\
Every unit counts once, when its outcome is final. "Any time" is an always-valid 95 % interval: you
may look as often as you like and stop when you please. "At the end" is the usual 95 % interval,
which is right only if you look once, at a sample size that was fixed before the start."""


def show(report: Report, console: Console) -> None:
    """Print the report."""
    console.print(f"[bold]{plain(report.experiment)}[/] ({report.state})", highlight=False)
    console.print(_headline(report), highlight=False, markup=False)
    console.print(_arms(report))
    if report.goals:
        console.print(_goals(report))
    if report.segments:
        console.print(_segments(report))
    if report.guardrails:
        console.print(_guardrails(report))
    found = [(g.verdict, g.sentence) for g in report.goals]
    preferred = []
    if report.preference:
        console.print(_preference(report.preference))
        preferred = [(report.preference.verdict, report.preference.sentence)]
    checked = [(g.safety, g.sentence) for g in report.guardrails]
    acting = [("", line) for line in _acting(report)]
    sections = ("Verdicts", [*preferred, *found]), ("Guardrails", checked), ("Acting", acting)
    for title, sentences in sections:
        if sentences:
            console.print(f"[bold]{title}[/]")
        for verdict, sentence in sentences:
            style = _VERDICT_STYLE.get(verdict, "")
            console.print(f"  • {plain(sentence)}", style=style, highlight=False)
    if report.warnings:
        console.print("[bold yellow]Warnings[/]")
        for warning in report.warnings:
            console.print(f"  ! {plain(warning)}", highlight=False)
    console.print(f"\n{LEGEND}", style="dim", highlight=False)
    if note := fixed_note(report):
        console.print(note, style="dim", highlight=False, markup=False)
    console.print(plain(_footnote(report)), style="dim", highlight=False)


def _headline(report: Report) -> str:
    if not report.decisions:
        return f"No decision of {report.coverage.source} carries this experiment."
    final = sum(arm.final for arm in report.arms)
    exposed = sum(arm.exposed for arm in report.arms)
    waits = exposed - final - sum(arm.cut for arm in report.arms)
    waiting = f"; {waits:,} are still being observed" if waits else ""
    return (
        f"{exposed:,} {report.unit}s were exposed by {report.decisions:,} decisions from "
        f"{instant(report.first_ms)} to {instant(report.last_ms)}. The outcome of {final:,} is "
        f"final{waiting}."
    )


def _arms(report: Report) -> Table:
    table = _table(f"Arms, by {report.unit}s")
    table.add_column("arm", no_wrap=True)
    columns = "weight", "exposed", "final", "served", "with feedback", "never degraded"
    for column in columns:
        table.add_column(column, justify="right")
    if not report.preference:  # which says what both arms change
        table.add_column("parameters", overflow="fold", min_width=20)
    for arm in arm_rows(report):
        table.add_row(
            f"{arm.name} (compared to)" if arm.name == report.control else arm.name,
            arm.weight,
            arm.exposed,
            arm.final,
            arm.served,
            arm.joined,
            arm.undegraded,
            *([plain(arm.settings)] if arm.settings else []),
        )
    if report.sample_ratio:
        ratio = report.sample_ratio
        said = "the weights do not explain these sizes" if ratio.broken else "as the weights say"
        table.caption = f"Sample ratio: {said} (always-valid p = {p_value(ratio.p)})."
    return table


def _goals(report: Report) -> Table:
    table = _effects_table("Metrics", report, last="p")
    for goal in report.goals:
        for name, effect in effects_of(goal):
            table.add_row(
                f"  {name}" if name else f"{goal.metric.name} ({goal.role})",
                *_cells(goal.metric, goal.arm, effect),
                "" if name else p_value(goal.adjusted_p),
                style="dim" if name else "",
            )
    return table


def _guardrails(report: Report) -> Table:
    table = _effects_table("Guardrails, and by how much they may get worse", report, last="allowed")
    for guardrail in report.guardrails:
        table.add_row(
            guardrail.metric.name,
            *_cells(guardrail.metric, guardrail.arm, guardrail.judged, guardrail.absolute),
            allowed(guardrail),
        )
    return table


def _segments(report: Report) -> Table:
    metric = next(goal for goal in report.goals if goal.role == "primary").metric
    title = f"{metric.name} by segment (exploratory)"
    table = _effects_table(title, report, last="p", first="segment")
    for segment in report.segments:
        cells = _cells(metric, segment.arm, segment.effect)
        table.add_row(segment.segment, *cells, p_value(segment.adjusted_p))
    table.caption = "p is adjusted for the number of segments; test again what you find here."
    return table


def _preference(found: Preference) -> Table:
    table = _table(f"Preference ({found.method}), from -1 ({found.arm_a}) to +1 ({found.arm_b})")
    for column in ("units", "lists", "preference", "any time", "at the end", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row(
        f"{found.units:,}",
        f"{found.requests:,}",
        or_unknown(found.value, signed),
        interval_text(found.sequence, signed),
        interval_text(found.fixed, signed),
        p_value(found.p),
    )
    table.caption = plain(
        f"{found.arm_a}: {settings(found.parameters_a)}. {found.arm_b}: "
        f"{settings(found.parameters_b)}."
    )
    return table


def _acting(report: Report) -> list[str]:
    """Where the ramp stands, and what was changed while the experiment ran."""
    said = []
    if report.ramp:
        ramp = report.ramp
        steps = " → ".join(
            f"[{step:g} %]" if i == ramp.step else f"{step:g} %"
            for i, step in enumerate(ramp.steps)
        )
        waits = f" {ramp.waits_for}" if ramp.waits_for else ""
        said.append(f"Ramp: {steps}.{waits}")
    for change in report.changes:
        what = change.kind.replace("_", " ").lower()
        arm = f" ({change.arm})" if change.arm else ""
        said.append(f"{instant(change.at_ms)}, {change.actor}: {what}{arm}. {change.reason}")
    return said


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", caption_justify="left")


def _effects_table(title: str, report: Report, *, last: str, first: str = "metric") -> Table:
    table = _table(title)
    table.add_column(first, no_wrap=True)
    table.add_column("arm", no_wrap=True)
    for column in (report.control, "arm's", "change", "any time", "at the end", last):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cells(metric: Metric, arm: str, effect: Effect, absolute: bool = False) -> tuple[str, ...]:
    row = effect_row(metric, effect, absolute, unit=False)  # of which many columns have no room
    return arm, row.control, row.value, row.change, row.sequence, row.fixed


def _footnote(report: Report) -> str:
    by = "as declared" if report.planned_by == "planned_units" else "by default; see planned_units"
    judged = [*(goal.metric for goal in report.goals), *(g.metric for g in report.guardrails)]
    units = dict.fromkeys(f"{m.name} in {unit_of(m)}" for m in judged if unit_of(m))
    notes = [f"Values: {', '.join(units)}."] if units else []
    metrics = "".join(f" {note}" for note in (*notes, *notes_on_metrics(report)))
    times = sorted({g.observe_s for g in report.guardrails} - {report.observe_s})
    guardrails = (
        f" (for guardrails with a time of their own: {', '.join(f'{t:g} s' for t in times)})"
        if times
        else ""
    )
    return (
        f"p is always valid and adjusted for all metrics of the role (Holm). Intervals are tuned "
        f"to {report.planned_units:,} units ({by}), those of guardrails to "
        f"{GUARDRAIL_UNITS:,}.{metrics} Requests count for "
        f"{report.observe_s:g} s from a unit's first exposure on{guardrails}, feedback up to "
        f"{report.window_s:g} s after its request. A unit all of whose records were lost cannot be "
        "known here."
    )
