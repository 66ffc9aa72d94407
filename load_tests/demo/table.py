"""The demo's live table, its plain lines for a log, and its summary. Pure rendering of a View."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from load_tests.demo.checks import Check, different_models
from load_tests.demo.metrics import Histogram
from load_tests.demo.visitors import Tally
from load_tests.demo.wilson import wilson_interval
from models.data.worlds.films.schema import FILMS
from services.experiments.act.snapshot import Fresh
from services.experiments.declare.config import INTERLEAVED
from services.experiments.declare.served import ArmModels
from services.experiments.measure.results import ArmCounts

# What each stage does, for who sees the names for the first time.
STAGES = {
    "assign": "experiments, parameters in force",
    "hydrate": "user features and history",
    "retrieve": "200 candidates",
    "filter": "seen and blocked items out",
    "rank": f"probabilities of {' and '.join(task.name for task in FILMS.tasks)}",
    "rerank": "value model, diversity",
    "respond": "the answer",
}
SEEN = next(event.name for event in FILMS.events if event.impression)
CHOICE = next(event.name for event in FILMS.events if event.history)  # the first of them
ROOMY = 30  # lines of a terminal from which the parts are set apart


@dataclass
class View:
    """Everything the table shows, as of now. Histograms are in seconds, since the traffic began."""

    tally: Tally
    visitors: int  # to come altogether
    models: Sequence[ArmModels] = ()  # of every arm
    seconds: float = 0.0
    per_second: float = 0.0
    stages: dict[str, Histogram | None] = field(default_factory=dict)
    applied: float = 0.0
    updater_lag_events: float = 0.0
    worker_lag_events: float = 0.0
    feedback_delay: Histogram | None = None  # from an event's own time to the feature store
    restarts: int = 0
    experiments: dict[str, Fresh] = field(default_factory=dict)  # what the worker last measured


def table(view: View, height: int = ROOMY) -> RenderableType:
    """The whole picture, for a terminal of 80 columns and 24 lines or more."""
    roomy = height >= ROOMY
    parts = [
        _progress(view), _requests(view), _stages(view), _arms(view), _feedback(view, roomy)
    ]  # fmt: skip
    if roomy:
        parts = [part for p in parts for part in (p, Text())][:-1]
    return Panel(Group(*parts), title="Tandem", title_align="left", padding=(0, 1))


def line(view: View) -> str:
    """One plain line for a log."""
    p50, p99 = _percentiles(view.tally)
    return (
        f"{view.seconds:4.0f} s  {view.tally.visits:,}/{view.visitors:,} visits"
        f"  {view.per_second:.0f} requests/s  p50 {p50} p99 {p99}"
        f"  {view.tally.degraded} degraded  {view.tally.failed} failed"
        f"  {view.applied:,.0f}/{view.tally.events:,} events applied"
        f"  delay p50 {milliseconds(view.feedback_delay, 0.5)}"
    )


def summary(results: Sequence[Check]) -> Table:
    """The checks with their marks."""
    shown = Table(
        title="Checks", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    shown.add_column("", no_wrap=True)
    shown.add_column("", no_wrap=True)
    shown.add_column("", ratio=1)
    for check in results:
        mark = {True: "[green]✓[/]", False: "[bold red]✗[/]", None: "[yellow]•[/]"}[check.holds]
        shown.add_row(mark, check.name, f"[dim]{check.figures}[/]")
    shown.show_header = False
    return shown


def _progress(view: View) -> RenderableType:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_row(
        f"{view.tally.visits:,} of {view.visitors:,} visits",
        ProgressBar(total=max(view.visitors, 1), completed=view.tally.visits),
    )
    return grid


def _requests(view: View) -> RenderableType:
    tally = view.tally
    grid = Table.grid(padding=(0, 3))
    style = "" if not tally.failed else "bold red"
    grid.add_row(
        f"[bold]{view.per_second:.0f}[/] requests/s",
        f"{tally.answers['OK']:,} answered",
        f"[{style}]{tally.failed} failed[/]" if style else "0 failed",
        f"{tally.degraded} degraded ({tally.degraded / max(tally.requests, 1):.1%})",
    )
    rows: list[RenderableType] = [grid]
    if tally.degradations:
        kinds = ", ".join(f"{kind.lower()} {n}" for kind, n in tally.degradations.most_common())
        rows.append(Text(f"degradations: {kinds}", style="yellow"))
    if view.restarts:
        rows.append(Text(f"processes started again: {view.restarts}", style="yellow"))
    return Group(*rows)


def _stages(view: View) -> Table:
    shown = _section("time per stage")
    shown.add_column("p50", justify="right", no_wrap=True, min_width=8)
    shown.add_column("p99", justify="right", no_wrap=True, min_width=8)
    shown.add_column("", ratio=1, no_wrap=True, style="dim")
    for stage, meaning in STAGES.items():
        histogram = view.stages.get(stage)
        shown.add_row(stage, milliseconds(histogram, 0.5), milliseconds(histogram, 0.99), meaning)
    shown.add_row("[bold]whole call[/]", *_percentiles(view.tally), "as the client sees it")
    return shown


def _arms(view: View) -> RenderableType:
    parts: list[RenderableType] = []
    names = [name for name, found in view.experiments.items() if found.standing.measured.arms]
    # The one whose arms have models of their own first, and whole; the others in a line.
    names.sort(key=lambda name: not differing(view.models, name))
    for experiment in names[:1]:
        arms = view.experiments[experiment].standing.measured.arms
        units = sum(counts.units for counts in arms.values())
        shown = Table(box=None, pad_edge=False, expand=True, header_style="cyan")
        shown.add_column("arm", no_wrap=True)
        events = [event.name for event in FILMS.events]
        for name in ("visitors", "share", *events, f"{CHOICE} rate, 95 %"):
            shown.add_column(name, justify="right", no_wrap=True)
        for arm, counts in arms.items():
            shown.add_row(
                arm,
                f"{counts.units:,}",
                f"{counts.units / max(units, 1):.1%}",
                *(f"{counts.events.get(event, 0):,}" for event in events),
                interval_of(counts),
            )
        title = Text(f"experiment {experiment}", style="bold cyan")
        if different := differing(view.models, experiment):
            title.append(f": {different}", style="not bold")
        title.append(_changed(view, experiment), style="not bold yellow")
        parts += [title, shown]
    parts += [_in_a_line(view, name) for name in names[1:]]
    if not parts:
        return Text("no exposures yet", style="dim")
    # 116 users stand behind the visitors, and a visitor's views hang together.
    return Group(*parts, Text("intervals as if every view were independent: too narrow", "dim"))


def _in_a_line(view: View, experiment: str) -> Text:
    arms = view.experiments[experiment].standing.measured.arms
    text = Text(experiment, style="bold cyan", no_wrap=True, overflow="ellipsis")
    text.append(_changed(view, experiment), style="not bold yellow")
    if (both := arms.get(INTERLEAVED)) is not None:
        chosen = both.events.get(CHOICE, 0)
        said = f": both in one list, {both.units:,} visitors, {CHOICE} {chosen:,}"
    else:
        said = ": " + ", ".join(
            f"{arm} {counts.units:,} {rate(counts)}" for arm, counts in arms.items()
        )
    text.append(said, style="not bold default")
    return text


def _changed(view: View, experiment: str) -> str:
    """What the worker has done to an experiment; empty if nothing."""
    found = view.experiments.get(experiment)
    if found is None:
        return ""
    seen, changes = found.standing, []
    if seen.ramp:
        changes.append(f"ramp {seen.ramp.steps[seen.ramp.step]:g} %")
    if seen.state.stopped:
        changes.append(f"stopped: {', '.join(sorted(seen.state.stopped))}")
    return f" ({'; '.join(changes)})" if changes else ""


def rate(counts: ArmCounts) -> str:
    """Choices per seen item in percent; "-" while there are none."""
    seen = counts.events.get(SEEN, 0)
    return f"{counts.events.get(CHOICE, 0) / seen:.1%}" if seen else "-"


def differing(models: Sequence[ArmModels], experiment: str) -> str:
    """The models in which the experiment's arms differ, by arm; empty if in none."""
    arms = [arm for arm in models if arm.experiment == experiment]
    return ", ".join(
        f"{arm.arm} {' and '.join(names)}" for arm in arms if (names := different_models(arm, arms))
    )


def interval_of(counts: ArmCounts) -> str:
    """The same rate with its 95 % interval; "-" while there is none."""
    chosen, seen = counts.events.get(CHOICE, 0), counts.events.get(SEEN, 0)
    if not seen or chosen > seen:  # choices can be ahead while events arrive
        return "-"
    low, high = wilson_interval(chosen, seen)
    digits = 1 if chosen >= seen / 10 else 2
    return f"{chosen / seen:.{digits}%} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def _feedback(view: View, roomy: bool) -> Table:
    shown = _section("feedback")
    shown.add_column("", no_wrap=True, justify="right")
    shown.add_column("", ratio=1, no_wrap=True, style="dim")
    delay = f"{milliseconds(view.feedback_delay, 0.5)} / {milliseconds(view.feedback_delay, 0.99)}"
    rows = [
        ("acknowledged", f"{view.tally.events:,}", "events, durable in the log"),
        ("applied", f"{view.applied:,.0f}", f"to features; {view.updater_lag_events:,.0f} waiting"),
        (
            "measured",
            f"all but {view.worker_lag_events:,.0f}",
            "with decisions, into the numbers above",
        ),
        ("delay", delay, "from an event to its feature, p50 / p99"),
    ]
    for name, value, meaning in rows if roomy else rows[1::2]:
        shown.add_row(name, value, meaning)
    return shown


def _section(title: str) -> Table:
    shown = Table(box=None, pad_edge=False, expand=True, header_style="bold cyan")
    shown.add_column(title, no_wrap=True, min_width=14)
    return shown


def _percentiles(tally: Tally) -> tuple[str, str]:
    """p50 and p99 of answered calls, as text."""
    if not tally.latencies_s:
        return "-", "-"
    p50, p99 = np.percentile(tally.latencies_s, (50, 99)) * 1000
    return f"{p50:.1f} ms", f"{p99:.1f} ms"


def milliseconds(histogram: Histogram | None, q: float) -> str:
    """A quantile as text; within the first bucket only its edge is known to be an upper bound."""
    value = math.nan if histogram is None else histogram.quantile(q)
    if histogram is None or math.isnan(value):
        return "-"
    first = histogram.edges[0]
    return f"<{first * 1000:g} ms" if value <= first else f"{value * 1000:.1f} ms"
