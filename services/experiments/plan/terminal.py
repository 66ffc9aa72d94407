"""A forecast as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from services.common.terminal import plain
from services.experiments.declare.metrics import Metric
from services.experiments.plan.planning import HORIZONS_DAYS, Forecast, MetricForecast, Sample
from services.experiments.report.wording import metric_value

LEGEND = (
    'Units are of all arms together. "Once" is a test that is looked at a single time, at a sample '
    'size fixed before the start. "Any time" is the always-valid interval, which decides: it may '
    "be looked at daily, and an effect of this size is found with the power above by then, on "
    'average earlier ("about"). Where the past of units is known, the report judges with CUPED. A '
    "guardrail's units show that it holds when nothing is harmed."
)


def show(forecast: Forecast, metrics: Mapping[str, Metric], console: Console) -> None:
    """Print the forecast; `metrics` by their names."""
    console.print(f"[bold]Plan of {plain(forecast.experiment)}[/]", highlight=False)
    head = f"Power {100 * forecast.power:g} %, by {forecast.unit}. {_arrivals(forecast)}"
    console.print(head.rstrip(), highlight=False, markup=False)
    console.print(_needs(forecast, metrics))
    if forecast.traffics:
        console.print(_days(forecast))
        console.print(_detectable(forecast))
    for note in forecast.notes:
        console.print(f"  ! {plain(note)}", highlight=False)
    console.print(f"\n{LEGEND}", style="dim", highlight=False)


def _arrivals(forecast: Forecast) -> str:
    if not forecast.traffics:
        return ""
    days = forecast.traffics[-1].per_day
    if len(days) == 1:
        return f"{days[0]:,.0f} new {forecast.unit}s enter a day at the last traffic."
    return (
        f"At the last traffic {days[0]:,.0f} {forecast.unit}s enter on the first day and "
        f"{days[-1]:,.0f} a day in the end."
    )


def _needs(forecast: Forecast, metrics: Mapping[str, Metric]) -> Table:
    columns = "now", "to find", "once", "any time", "about", "with CUPED"
    table = _table("Units needed", columns)
    for m in forecast.metrics:
        cuped = m.sequential_cuped
        table.add_row(
            _name(m, forecast),
            metric_value(metrics[m.metric], m.mean),
            _effect(m, m.relative if math.isfinite(m.relative) else m.effect),
            f"{m.fixed.units:,}",
            f"{m.sequential.units:,}",
            f"{m.expected_units:,}",
            f"{cuped.units:,}" if cuped else "-",
        )
    return table


def _days(forecast: Forecast) -> Table:
    """Days of the always-valid interval by traffic."""
    table = _table("Days to run (any time)", [traffic.name for traffic in forecast.traffics])
    places = range(len(forecast.traffics))
    for m in forecast.metrics:
        table.add_row(_name(m, forecast), *(_day(m.sequential, i) for i in places))
        if m.sequential_cuped:
            cells = (_day(m.sequential_cuped, i) for i in places)
            table.add_row("  with CUPED", *cells, style="dim")
    return table


def _detectable(forecast: Forecast) -> Table:
    title = f"Smallest effect found (any time, under {forecast.traffics[-1].name})"
    table = _table(title, [f"in {days} days" for days in HORIZONS_DAYS])
    for m in forecast.metrics:
        table.add_row(_name(m, forecast), *(_effect(m, effect) for effect in m.detectable))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("metric", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _name(m: MetricForecast, forecast: Forecast) -> str:
    """With its arm where there are several treatments."""
    arm = f", {m.arm}" if len({other.arm for other in forecast.metrics}) > 1 else ""
    return plain(f"{m.metric} ({m.role}{arm})")


def _effect(m: MetricForecast, effect: float) -> str:
    if math.isnan(effect):
        return "?"
    if math.isinf(effect):
        return "-"
    return f"{100 * effect:.3g} %" if math.isfinite(m.relative) else f"{effect:.3g}"


def _day(sample: Sample, traffic: int) -> str:
    days = sample.days[traffic]
    if math.isinf(days):
        return "never"
    return f"{days:.1f}" if days < 10 else f"{days:,.0f}"
