"""How a report's numbers are written for people, in the terminal and in HTML alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from services.experiments.declare.metrics import Metric, adds_values
from services.experiments.report.findings import GuardrailReport
from services.experiments.statistics.effects import Interval


def metric_value(metric: Metric, value: float, unit: bool = True) -> str:
    """An arm's value of a metric; shares as percent, times in ms, and what came with events in its
    `unit` unless that is left out."""
    if math.isnan(value):
        return "?"
    if metric.of == "latency":
        return f"{value:.3g} ms"
    if is_share(metric):
        return f"{100 * value:.3g} %"
    return f"{value:.4g} {unit_of(metric) if unit else ''}".rstrip()


def unit_of(metric: Metric) -> str:
    """What a metric of values is in; empty of others, of shares, and of values per values."""
    if metric.amount is None or metric.kind == "binary" or adds_values(metric.per_source):
        return ""
    return metric.amount.unit


def is_share(metric: Metric) -> bool:
    """Whether a metric's value lies between 0 and 1 by its nature, to be read as percent."""
    if metric.kind == "binary":
        return True
    failures = metric.of in ("degraded", "error") and metric.per == "request"
    of_seen = 0 < metric.per_source == metric.events.impression
    return failures or (of_seen and metric.amount is None)


def settings(parameters: Mapping[str, str]) -> str:
    """What an arm changes."""
    said = ", ".join(f"{name} = {value}" for name, value in parameters.items())
    return said or "production defaults"


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def or_unknown(number: float, show: Callable[[float], str]) -> str:
    """A number that may not be known."""
    return "?" if math.isnan(number) else show(number)


def allowed(guardrail: GuardrailReport) -> str:
    """The harm that a guardrail allows."""
    harm = guardrail.allowed_harm
    return f"{harm:g}" if guardrail.absolute else f"{100 * harm:g} %"


def p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def instant(ms: float) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def percent(share: float) -> str:
    """A change as signed percent."""
    return f"{100 * share:+.3g} %" if abs(share) < 10 else f"{100 * share:+,.0f} %"


def signed(number: float) -> str:
    return f"{number:+.3g}"


def between(interval: Interval, relative: bool) -> str:
    """An interval of changes in words, one end of which is known."""
    show = percent if relative else signed
    low, high = float(interval.low), float(interval.high)
    if math.isinf(high):
        return f"at least {show(low)}"
    return f"at most {show(high)}" if math.isinf(low) else f"between {show(low)} and {show(high)}"


def interval_text(interval: Interval, show: Callable[[float], str]) -> str:
    """An interval in a table."""
    low, high = float(interval.low), float(interval.high)
    if math.isinf(low) and math.isinf(high):
        return "not known yet"
    if math.isinf(high):
        return f"{show(low)} or more"
    return f"{show(high)} or less" if math.isinf(low) else f"{show(low)} to {show(high)}"


def is_known(interval: Interval) -> bool:
    """Whether it is not the whole line."""
    return math.isfinite(float(interval.low)) and math.isfinite(float(interval.high))
