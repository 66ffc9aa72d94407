"""Figures as the pages show them: means with their spread, gains with their interval, costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from models.research.comparison import Difference, deterministic
from models.training.bootstrap import mean_interval
from models.training.results import ModelResult

TEMPLATES = Environment(
    loader=PackageLoader("models.research.pages", "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def interval_text(result: ModelResult, metric: str) -> str:
    """The mean with its interval over units where there is one, else as `metric_text`."""
    if metric in result.per_unit:
        return str(mean_interval(np.stack(result.per_unit[metric])))
    return metric_text(result, metric)


def metric_text(result: ModelResult, metric: str) -> str:
    """Mean ± standard deviation over seeds, "1 seed" where it is not known, neither without seeds.

    "-" when not measured.
    """
    values = result.metrics.get(metric)
    if not values or deterministic(result):
        return spread(values and values[:1])
    return spread(values) + (" (1 seed)" if len(values) == 1 else "")


def spread(values: Sequence[float] | None) -> str:
    """Mean ± standard deviation over the seeds, "-" when not measured."""
    if not values:
        return "-"
    mean = f"{np.mean(values):.4f}"
    return f"{mean} ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else mean


def gain_text(gain: Difference | None, named: bool) -> str:
    """A difference with its interval and the seeds it holds for."""
    if gain is None:
        return "-"
    i = gain.interval
    text = f"{i.mean:+.4f} [{i.low:+.4f}, {i.high:+.4f}]"
    if gain.seeds_text:
        text += f", {gain.seeds_text}"
    return f"{text} (over {escape(gain.reference)})" if named else text


def quantity(value: float | None) -> str:
    """A cost with three significant digits and k, M or G."""
    if value is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if value >= size:
            scale = 1e3 if unit == "k" else size
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, the columns after the first right-aligned."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def escape(text: str) -> str:
    """`text` as a cell of a table."""
    return text.replace("|", "\\|")


TEMPLATES.globals.update(deterministic=deterministic, gain_text=gain_text, metric_text=metric_text)
TEMPLATES.filters["quantity"] = quantity
