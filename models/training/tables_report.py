"""Result files as `docs/models.md`: one table and one plot per table name, and the model cards.

Everything shown comes from the files that benchmarks saved (`models/training/results.py`); the text
around it explains how to read a table. Differences are paired over the test users.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.data.errors import DataError
from models.training.bootstrap import Interval, mean_interval, paired_interval
from models.training.results import ModelResult, load_all, slug

SHOWN_METRICS = 6  # columns of the table; all metrics follow below it
LOWER_IS_BETTER = ("log_loss", "ece", "drop")
NEUTRAL = ("gini", "coverage", "interest_cosine", "diversity")  # described, not judged
# Okabe-Ito: told apart with any colour vision, and by shape.
MODEL_COLOUR, BASELINE_COLOUR, LINE_COLOUR = "#0072B2", "#D55E00", "#555555"


@dataclass(frozen=True)
class Difference:
    """The gain of a model over its reference: positive is better, whatever the metric."""

    reference: str
    interval: Interval
    seeds_won: int
    seeds: int  # seeds that both have; 0 when they cannot be compared one by one


@dataclass(frozen=True)
class Row:
    """One model of a table, ready to be shown."""

    result: ModelResult
    interval: Interval | None  # of the primary metric over the users, mean over seeds
    differences: Mapping[
        str, Difference
    ]  # by metric: the first SHOWN_METRICS that have user values

    @property
    def difference(self) -> Difference | None:
        """The gain in the table's primary metric, which is the first one."""
        return next(iter(self.differences.values()), None)


@dataclass(frozen=True)
class ResultTable:
    """The models of one table name, best first by the primary metric."""

    name: str
    primary: str
    metrics: tuple[str, ...]  # all that any model has, primary first
    rows: tuple[Row, ...]


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value is a better one."""
    return any(part in metric for part in LOWER_IS_BETTER)


def result_tables(
    results: Sequence[ModelResult], references: Mapping[str, str] | None = None
) -> list[ResultTable]:
    """The results by table name, each with its intervals.

    A model's difference is to the model that its result names, else to `references[table]`, else to
    the best model of the table. A model that a result names but that is not there yet gives no
    difference; DataError if `references` names none or if the two were measured on other users.
    """
    names = list(dict.fromkeys(r.table for r in results))
    for table in references or {}:
        if table not in names:
            raise DataError(f"no results of table {table!r}: there are {', '.join(names)}")
    return [
        _result_table(name, [r for r in results if r.table == name], (references or {}).get(name))
        for name in names
    ]


def _result_table(name: str, results: list[ModelResult], reference: str | None) -> ResultTable:
    primaries = [r.primary_metric for r in results]
    primary = max(dict.fromkeys(primaries), key=primaries.count)
    sign = -1.0 if lower_is_better(primary) else 1.0
    measured = [r for r in results if primary in r.metrics]
    ordered = sorted(measured, key=lambda r: -sign * r.mean(primary))
    ordered += [r for r in results if primary not in r.metrics]
    by_name = {r.model: r for r in results}
    if reference is not None and reference not in by_name:
        raise DataError(
            f"table {name!r} has no model {reference!r} to compare with: there are "
            f"{', '.join(by_name)}"
        )
    metrics = dict.fromkeys([primary, *(m for r in results for m in r.metrics)])
    rows = []
    for result in ordered:
        to = result.reference or reference or ordered[0].model
        rows.append(
            Row(
                result,
                mean_interval(np.stack(result.per_unit[primary]))
                if primary in result.per_unit
                else None,
                _differences(result, by_name.get(to), list(metrics)[:SHOWN_METRICS]),
            )
        )
    return ResultTable(name, primary, tuple(metrics), tuple(rows))


def _differences(
    result: ModelResult, reference: ModelResult | None, metrics: Sequence[str]
) -> dict[str, Difference]:
    """Gains by metric, where both sides have user values; empty without one in the first metric."""
    if reference is None or difference(result, reference, metrics[0]) is None:
        return {}
    found = {m: difference(result, reference, m) for m in metrics}
    return {m: d for m, d in found.items() if d is not None}


def difference(result: ModelResult, reference: ModelResult, metric: str) -> Difference | None:
    """Paired gain over the reference; None for itself or where a side has no per-user values."""
    if result.model == reference.model or not (
        metric in result.per_unit and metric in reference.per_unit
    ):
        return None
    sides = [np.stack(r.per_unit[metric]).astype(np.float64) for r in (result, reference)]
    if sides[0].shape[1] != sides[1].shape[1]:
        raise DataError(
            f"table {result.table!r}: {result.model!r} was measured on {sides[0].shape[1]} units, "
            f"its reference {reference.model!r} on {sides[1].shape[1]}: run both again"
        )
    sign = -1.0 if lower_is_better(metric) else 1.0
    interval = paired_interval(sign * sides[0], sign * sides[1])
    own = dict(zip(result.seeds, result.metrics[metric], strict=True))
    if len(reference.seeds) == 1:  # a baseline that no seed changes
        other = dict.fromkeys(own, reference.metrics[metric][0])
    else:
        other = dict(zip(reference.seeds, reference.metrics[metric], strict=True))
    common = [s for s in own if s in other]
    won = sum(sign * (own[s] - other[s]) > 0 for s in common)
    return Difference(reference.model, interval, won, len(common))


# Markdown


def render(
    folder: Path,
    docs: Path,
    cards: Path,
    command: str,
    references: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write docs/models.md, its plots and the model cards; returns the paths written."""
    from models.training.cards import card_files, card_name, write_cards

    results = load_all(folder)
    tables = result_tables(results, references)
    plots = docs / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    written = []
    for table in tables:
        path = plots / f"{slug(table.name)}.svg"
        plot(table, path)
        written.append(path)
    source = f"{len(results)} result files in `{folder}`"
    links = {
        name: _relative(cards / file, docs) for name, file in sorted(card_files(results).items())
    }
    text = [
        "# The models, measured",
        "",
        f"Generated from {source} by `{command}`. Do not edit: run the command again.",
        "",
        READING,
        "",
        "Model cards: " + ", ".join(f"[{name}]({path})" for name, path in links.items()) + ".",
    ]
    for table in tables:
        linked = {r.result.model: links[card_name(r.result)] for r in table.rows}
        text += ["", *table_section(table, linked)]
    page = docs / "models.md"
    page.write_text("\n".join(text) + "\n")
    return [page, *written, *write_cards(cards, tables, source, command)]


READING = """\
How to read the tables. A metric is the mean over the seeds ± their standard deviation (no ± for
models that no seed changes); the best value of a column is bold. The gain is in the metric named in
the column's head, positive when the model is better than its reference, with a 95 % percentile
interval of a bootstrap paired over the test users (mean over seeds of each user's values), and on
how many seeds the model was ahead. An interval that holds 0 is no difference that these data can
show. Parameters are trainable ones, the second figure without embedding tables; FLOPs count two per
multiply-add of matrix products. HCN-R and DESMIL-R are reconstructions from the papers' abstracts:
no published HCN or DESMIL number is reproduced here. All figures are offline ones, of logged or
simulated data."""


def table_section(table: ResultTable, links: Mapping[str, str] | None = None) -> list[str]:
    """The Markdown lines of one table: facts, table, plot, all metrics."""
    first = table.rows[0].result
    units = max((len(u[0]) for r in table.rows for u in r.result.per_unit.values()), default=0)
    shown = table.metrics[:SHOWN_METRICS]
    lines = [
        f"## {table.name}",
        "",
        f"Data: {first.data}. Protocol: {first.protocol}."
        + (f" {units:,} {first.unit}s." if units else ""),
        "",
        *metric_table(table, shown, links, costs=True),
        "",
        f"![{table.primary} of each model with 95 % intervals](plots/{slug(table.name)}.svg)",
    ]
    if len(table.metrics) > len(shown):
        rest = (table.primary, *table.metrics[SHOWN_METRICS:])
        lines += ["", "<details><summary>all other metrics</summary>", ""]
        lines += [*metric_table(table, rest, links, costs=False), "", "</details>"]
    if any(len(r.differences) > 1 for r in table.rows):
        lines += ["", "<details><summary>gains in the other metrics</summary>", ""]
        lines += [*gain_table(table), "", "</details>"]
    notes = dict.fromkeys(r.result.notes for r in table.rows if r.result.notes)
    for note in notes:
        who = [r.result.model for r in table.rows if r.result.notes == note]
        named = "all models" if len(who) == len(table.rows) else ", ".join(who)
        lines += ["", f"Note on {named}: {note}."]
    return lines


def metric_table(
    table: ResultTable,
    metrics: Sequence[str],
    links: Mapping[str, str] | None = None,
    costs: bool = True,
) -> list[str]:
    """A Markdown table: one row per model, the metrics, and with `costs` the gain and the costs."""
    references = {r.difference.reference for r in table.rows if r.difference}
    one = len(references) == 1
    gain = f"gain in {table.primary}" + (f" over {next(iter(references))}" if one else "")
    heads = ["model", *metrics]
    if costs:
        heads += [gain, "parameters (dense)", "FLOPs/row", "latency ms", "train s", "seeds"]
    lines = [_markdown_row(heads), _markdown_row(["---"] + ["---:"] * (len(heads) - 1))]
    best = {m: _best(table, m) for m in metrics}
    for row in table.rows:
        r = row.result
        name = _escape(r.model)
        cells = [f"[{name}]({links[r.model]})" if links else name]
        for m in metrics:
            cell = spread(r.metrics.get(m))
            judged = not any(part in m for part in NEUTRAL)
            top = judged and len(table.rows) > 1 and m in r.metrics and r.mean(m) == best[m]
            cells.append(f"**{cell}**" if top else cell)
        if costs:
            cells += [
                gain_text(row.difference, named=not one),
                f"{r.parameters:,} ({r.dense_parameters:,})" if r.parameters else "-",
                quantity(r.flops_per_row),
                quantity(r.latency_ms),
                quantity(float(np.mean(r.train_seconds)) if r.train_seconds else None),
                str(len(r.seeds)),
            ]
        lines.append(_markdown_row(cells))
    return lines


def gain_table(table: ResultTable) -> list[str]:
    """A Markdown table of the gains with intervals: one row per model, one column per metric."""
    metrics = [m for m in table.metrics[1:] if any(m in r.differences for r in table.rows)]
    lines = [_markdown_row(["model", *metrics])]
    lines.append(_markdown_row(["---"] + ["---:"] * len(metrics)))
    for row in table.rows:
        gains = [gain_text(row.differences.get(m), named=False) for m in metrics]
        name = _escape(row.result.model)
        if row.difference is not None:
            name += f" over {_escape(row.difference.reference)}"
        lines.append(_markdown_row([name, *gains]))
    return lines


def metric_cells(results: Sequence[ModelResult]) -> dict[str, list[str]]:
    """By metric, one cell per result: the mean with its interval over users where there is one."""
    cells: dict[str, list[str]] = {}
    for metric in dict.fromkeys(m for r in results for m in r.metrics):
        cells[metric] = [
            str(mean_interval(np.stack(r.per_unit[metric])))
            if metric in r.per_unit
            else spread(r.metrics.get(metric))
            for r in results
        ]
    return cells


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
    if gain.seeds > 1:
        text += f", {gain.seeds_won}/{gain.seeds} seeds"
    return f"{text} (over {_escape(gain.reference)})" if named else text


def quantity(value: float | None) -> str:
    """A cost with three significant digits and k, M or G."""
    if value is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if value >= size:
            scale = 1e3 if unit == "k" else size
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _best(table: ResultTable, metric: str) -> float:
    means = [r.result.mean(metric) for r in table.rows if metric in r.result.metrics]
    return min(means) if lower_is_better(metric) else max(means)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _relative(path: Path, start: Path) -> str:
    """`path` as a link from a file in `start`."""
    return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()


# Plot


def plot(table: ResultTable, path: Path) -> None:
    """Dot plot: the primary metric with intervals over users, and the gain over the reference.

    The same results give the same file, byte for byte.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from models.training.cards import is_own_model

    rows = [r for r in table.rows if table.primary in r.result.metrics]
    names = [r.result.model for r in rows]
    with mpl.rc_context({"svg.hashsalt": "tandem", "font.size": 9, "svg.fonttype": "path"}):
        layout = ConstrainedLayoutEngine(wspace=0.06)  # tick labels of two axes must not meet
        figure = Figure(figsize=(9, 1.3 + 0.3 * len(rows)), layout=layout)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
        for at, row in enumerate(rows):
            own = is_own_model(row.result)
            colour = MODEL_COLOUR if own else BASELINE_COLOUR
            marker = "o" if own else "s"
            values = row.result.metrics[table.primary]
            if row.interval is not None:
                left.plot([row.interval.low, row.interval.high], [at, at], color=colour, lw=1.5)
            if len(values) > 1:
                left.plot(values, [at] * len(values), "|", color=colour, ms=9, mew=1)
            left.plot(np.mean(values), at, marker, color=colour, ms=6)
            if row.difference is not None:
                gain = row.difference.interval
                right.plot([gain.low, gain.high], [at, at], color=colour, lw=1.5)
                right.plot(gain.mean, at, marker, color=colour, ms=6)
        left.set_yticks(range(len(rows)), names)
        left.set_ylim(len(rows) - 0.5, -0.5)
        direction = " (lower is better)" if lower_is_better(table.primary) else ""
        left.set_xlabel(f"{table.primary}{direction}")
        right.axvline(0, color=LINE_COLOUR, lw=1, ls="--")
        references = {r.difference.reference for r in rows if r.difference}
        over = next(iter(references)) if len(references) == 1 else "its reference"
        right.set_xlabel(f"gain over {over}")
        for axis in (left, right):
            axis.grid(axis="x", color="#DDDDDD", lw=0.6)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(axis="y", length=0)
            axis.locator_params(axis="x", nbins=5)
        left.plot([], [], "o", color=MODEL_COLOUR, label="Tandem's models and their variants")
        left.plot([], [], "s", color=BASELINE_COLOUR, label="baseline")
        left.plot([], [], "|", color=LINE_COLOUR, ms=9, label="one seed")
        figure.suptitle(f"{table.name}: mean and 95 % interval over users", x=0.01, ha="left")
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False
        )
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)
