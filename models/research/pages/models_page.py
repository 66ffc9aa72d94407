"""Result files as `docs/models.md`: one table and one plot per table name, and the model cards.

Everything shown comes from the files that benchmarks saved (`models/training/results.py`); the text
around it explains how to read a table. Differences are paired over the test units, and over the
seeds where both sides have several. Rows that were not measured alike are not put in one table.
Of a result's `settings` the tables use

    deterministic   True: no seed changes the model
    digests         by part of the data, what the figures depend on; or data: {"digest": ...}
    validation      by metric, the value on the validation cases, which BEST_COUNTING is chosen by
    budget          share of the training budget
    drop_from       the table of the same models on unshifted cases
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.data.errors import DataError
from models.training.bootstrap import (
    Interval,
    mean_interval,
    paired_interval,
    two_sample_interval,
)
from models.training.results import ModelResult, load_all, slug

BEST_COUNTING = "best counting baseline"  # a reference: of the table's rows, by validation
TRIED = re.compile(r"\b(\d+) settings tried")
SHOWN_METRICS = 6  # columns of the table; all metrics follow below it
LOWER_IS_BETTER = ("log_loss", "ece", "epoch_s")
NEUTRAL = ("gini", "coverage", "interest_cosine", "diversity")  # described, not judged
# Okabe-Ito: told apart with any colour vision, and by shape.
MODEL_COLOUR, BASELINE_COLOUR, LINE_COLOUR = "#0072B2", "#D55E00", "#555555"


@dataclass(frozen=True)
class Difference:
    """The gain of a model over its reference: positive is better, whatever the metric."""

    reference: str
    interval: Interval
    seeds_won: int
    seeds: int  # seeds compared one by one; 0: none can be
    seedless: bool = False  # no seed changes either side

    @property
    def seeds_text(self) -> str:
        """On how many seeds it holds."""
        if self.seedless:
            return ""
        if not self.seeds:
            return "no seed in common"
        return f"{self.seeds_won}/{self.seeds} seeds" if self.seeds > 1 else "1 seed"


@dataclass(frozen=True)
class Row:
    """One model of a table, ready to be shown."""

    result: ModelResult
    interval: Interval | None  # of the primary metric over the units (and seeds, if several)
    # By metric, the primary first: a gain over every reference; only metrics with unit values.
    differences: Mapping[str, tuple[Difference, ...]]

    @property
    def gains(self) -> tuple[Difference, ...]:
        """The gains in the table's primary metric, one for each reference."""
        return next(iter(self.differences.values()), ())

    @property
    def difference(self) -> Difference | None:
        """The gain over the first reference, which the plot shows."""
        return self.gains[0] if self.gains else None


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


def deterministic(result: ModelResult) -> bool:
    """Whether no seed changes the model: said by the benchmark, not guessed from one seed."""
    return bool(result.settings.get("deterministic"))


def result_tables(
    results: Sequence[ModelResult], references: Mapping[str, str] | None = None
) -> list[ResultTable]:
    """The results by table name, each with its intervals.

    A model's differences are to the models that its result names (BEST_COUNTING: to the counting
    baseline with the best validation), else to `references[table]`, else to the best model of the
    table. A model that a result names but that is not there yet gives no difference; DataError if
    `references` names none or if the rows of a table were not measured alike.
    """
    names = list(dict.fromkeys(r.table for r in results))
    for table in references or {}:
        if table not in names:
            raise DataError(f"no results of table {table!r}: there are {', '.join(names)}")
    return [
        _result_table(name, [r for r in results if r.table == name], (references or {}).get(name))
        for name in names
    ]


def check_alike(results: Sequence[ModelResult]) -> None:
    """DataError, with the two rows and the difference, unless all can stand in one table."""
    first: dict[str, tuple[str, str]] = {}
    for result in results:
        for what, value in _conditions(result).items():
            model, expected = first.setdefault(what, (result.model, value))
            if value != expected:
                raise DataError(
                    f"table {result.table!r}: its rows differ in {what}: {model!r} has "
                    f"{expected}, {result.model!r} has {value}: run the outdated one again"
                )


def _conditions(result: ModelResult) -> dict[str, str]:
    """What must be the same for all rows of a table that have it."""
    sizes = sorted({len(units) for each in result.per_unit.values() for units in each})
    found = {
        "data": repr(result.data),
        "protocol": repr(TRIED.sub("settings tried", result.protocol)),
        "unit": repr(result.unit),
    }
    if sizes:
        found["number of units"] = f"{sizes[0]} units"
    if "budget" in result.settings:
        found["budget"] = str(result.settings["budget"])
    # A row for which nothing is tuned, such as an oracle's, stands beside any search budget.
    if (tried := TRIED.search(result.protocol)) is not None and int(tried[1]):
        found["settings tried"] = tried[1]
    digests = result.settings.get("digests")
    if digests is None:
        data = result.settings.get("data")
        digests = {"data": data["digest"]} if isinstance(data, dict) and "digest" in data else {}
    found["the parts of the data that have a digest"] = ", ".join(sorted(digests)) or "none"
    for part, value in digests.items():
        found[f"the digest of {part}"] = str(value)
    return found


def _result_table(name: str, results: list[ModelResult], reference: str | None) -> ResultTable:
    check_alike(results)
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
        named = result.references or (reference or ordered[0].model,)
        rows.append(
            Row(
                result,
                _own_interval(result, primary),
                _differences(
                    result, _found(named, by_name, primary), list(metrics)[:SHOWN_METRICS]
                ),
            )
        )
    return ResultTable(name, primary, tuple(metrics), tuple(rows))


def _own_interval(result: ModelResult, metric: str) -> Interval | None:
    if metric not in result.per_unit:
        return None
    values = np.stack(result.per_unit[metric])
    return mean_interval(values, seeds=len(values) > 1 and not deterministic(result))


def _found(
    named: Sequence[str], by_name: Mapping[str, ModelResult], metric: str
) -> list[ModelResult]:
    """The results of the names that are there, each once."""
    best = best_counting(list(by_name.values()), metric)
    names = [best.model if n == BEST_COUNTING and best is not None else n for n in named]
    return [by_name[n] for n in dict.fromkeys(names) if n in by_name]


def best_counting(results: Sequence[ModelResult], metric: str) -> ModelResult | None:
    """The counting baseline with the best validation value of `metric`, None if none has one."""
    sign = -1.0 if lower_is_better(metric) else 1.0
    valued = [
        (sign * r.settings["validation"][metric], r)
        for r in results
        if deterministic(r) and metric in r.settings.get("validation", {})
    ]
    return max(valued, key=lambda each: each[0])[1] if valued else None


def _differences(
    result: ModelResult, references: Sequence[ModelResult], metrics: Sequence[str]
) -> dict[str, tuple[Difference, ...]]:
    """Gains by metric, where both sides have unit values; empty without one in the first metric."""
    found = {}
    for metric in metrics:
        gains = [difference(result, reference, metric) for reference in references]
        found[metric] = tuple(gain for gain in gains if gain is not None)
    return {m: gains for m, gains in found.items() if gains} if found[metrics[0]] else {}


def difference(result: ModelResult, reference: ModelResult, metric: str) -> Difference | None:
    """Paired gain over the reference; None for itself or where a side has no per-unit values."""
    sides = (result, reference)
    if result.model == reference.model or not all(metric in r.per_unit for r in sides):
        return None
    check_alike(sides)
    sign = -1.0 if lower_is_better(metric) else 1.0
    common = common_seeds(sides)
    own, other = (sign * _of_seeds(r, metric, common) for r in sides)
    won = sum(sign * (_at(result, metric, s) - _at(reference, metric, s)) > 0 for s in common)
    return Difference(
        reference.model,
        paired_interval(own, other, seeds=len(common) > 1),
        int(won),
        len(common),
        all(map(deterministic, sides)),
    )


def common_seeds(results: Sequence[ModelResult]) -> list[int]:
    """The seeds that every result has; one that no seed changes has them all."""
    drawn = [r for r in results if not deterministic(r)] or list(results[:1])
    return [s for s in drawn[0].seeds if all(s in r.seeds for r in drawn)]


def _of_seeds(result: ModelResult, metric: str, seeds: Sequence[int]) -> np.ndarray:
    """float64[S, U]: unit values of those seeds, in their order; of all seeds if none is given."""
    values = np.stack(result.per_unit[metric]).astype(np.float64)
    if deterministic(result):
        return np.repeat(values[:1], max(len(seeds), 1), axis=0)
    return values[[result.seeds.index(s) for s in seeds]] if seeds else values


def _at(result: ModelResult, metric: str, seed: int) -> float:
    values = result.metrics[metric]
    return values[0] if deterministic(result) else values[result.seeds.index(seed)]


# Drops between two test sets


@dataclass(frozen=True)
class Drop:
    """How much of a metric a model loses from one test set to another with other users."""

    model: str
    interval: Interval
    seeds: int
    smaller: tuple[Difference, ...]  # by how much less than each reference; positive is better


def drops(unlike: ResultTable, like: ResultTable) -> list[Drop]:
    """Of every model of both tables, in the primary metric of `unlike`, the smallest first.

    Users are drawn independently on the two sides and alike for both models of a comparison.
    """
    metric = unlike.primary
    likes = {r.result.model: r.result for r in like.rows if metric in r.result.per_unit}
    unlikes = {r.result.model: r.result for r in unlike.rows if metric in r.result.per_unit}
    both = [name for name in unlikes if name in likes]
    found = []
    for name in both:
        seeds = common_seeds([likes[name], unlikes[name]])
        named = _found(unlikes[name].references, unlikes, metric)
        others = [r.model for r in named if r.model in both and r.model != name]
        interval = _drop([likes[name]], [unlikes[name]], metric, seeds)
        if interval is None:
            continue
        smaller = []
        for other in others:
            four = [likes[other], likes[name], unlikes[other], unlikes[name]]
            common = common_seeds(four)
            gain = _drop(four[:2], four[2:], metric, common)
            if gain is None:
                continue
            won = sum(
                _at(four[0], metric, s) - _at(four[2], metric, s)
                > _at(four[1], metric, s) - _at(four[3], metric, s)
                for s in common
            )
            seedless = all(map(deterministic, four))
            smaller.append(Difference(other, gain, int(won), len(common), seedless))
        found.append(Drop(name, interval, len(seeds), tuple(smaller)))
    return sorted(found, key=lambda drop: drop.interval.mean)


def _drop(
    like: Sequence[ModelResult], unlike: Sequence[ModelResult], metric: str, seeds: Sequence[int]
) -> Interval | None:
    """Of one model, or of the first minus that of the second; None without a common seed."""
    if not seeds:
        return None
    sides = []
    for side in (like, unlike):
        values = [_of_seeds(r, metric, seeds) for r in side]
        sides.append(values[0] if len(values) == 1 else values[0] - values[1])
    return two_sample_interval(sides[0], sides[1], seeds=len(seeds) > 1)


def drop_section(unlike: ResultTable, like: ResultTable) -> list[str]:
    """The Markdown lines on the drop from `like` to `unlike`."""
    lines = [
        "",
        f"Drop in {unlike.primary} from {like.name} to {unlike.name}, with 95 % intervals: users "
        "of the two test sets are drawn independently, seeds where there are several.",
        "",
        _markdown_row(["model", "drop", "smaller than its references' by", "seeds"]),
        _markdown_row(["---"] + ["---:"] * 3),
    ]
    alone = {r.result.model for r in unlike.rows if deterministic(r.result)}
    for drop in drops(unlike, like):
        gains = "<br>".join(gain_text(g, named=True) for g in drop.smaller) or "-"
        seeds = "none" if drop.model in alone else str(drop.seeds)
        lines.append(_markdown_row([_escape(drop.model), str(drop.interval), gains, seeds]))
    return lines


# Markdown


def render(
    folder: Path,
    docs: Path,
    cards: Path,
    command: str,
    references: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write docs/models.md, its plots and the model cards; returns the paths written."""
    from models.research.pages.cards import card_files, card_name, write_cards

    results = load_all(folder)
    tables = result_tables(results, references)
    by_name = {table.name: table for table in tables}
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
        for source_table in dict.fromkeys(r.result.settings.get("drop_from") for r in table.rows):
            if source_table in by_name:
                text += drop_section(table, by_name[source_table])
    page = docs / "models.md"
    page.write_text("\n".join(text) + "\n")
    return [page, *written, *write_cards(cards, tables, source, command)]


READING = """\
How to read the tables. A metric is the mean over the seeds ± their standard deviation; "1 seed"
stands where that spread is not known, and nothing where no seed changes the model. The best value
of a column is bold. The gain is in the metric named in the column's head, positive when the model
is better, over each of the model's references (its own K=1 control, the plain baseline, the best
counting baseline by validation, where the table has them). Its 95 % percentile interval is a
bootstrap paired over the table's units, which stand in the line above it, and over the seeds where
both sides have several; behind it, on how many seeds the model was ahead. An interval of one seed
is about these trained models, not about the method. An interval that holds 0 is no difference that
these data can show. Parameters are trainable ones, the second figure without embedding tables;
FLOPs count two per multiply-add of matrix products. A latency is the median processor time of one
call on one thread: of one user's list of 200 for retrieval, of 256 rows for ranking. Training
seconds are the wall clock's, the median of the seeds, beside whatever else the machine did. HCN-R
and DESMIL-R are reconstructions from the papers' abstracts: no published HCN or DESMIL number is
reproduced here. All figures are offline ones, of logged or simulated data."""


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
    machines = dict.fromkeys(r.result.machine.split(", load ")[0] for r in table.rows)
    lines += ["", f"Machine: {'; '.join(machines)}."]
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
    references = {g.reference for r in table.rows for g in r.gains}
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
            cell = metric_text(r, m)
            judged = not any(part in m for part in NEUTRAL)
            top = judged and len(table.rows) > 1 and m in r.metrics and r.mean(m) == best[m]
            cells.append(f"**{cell}**" if top else cell)
        if costs:
            cells += [
                "<br>".join(gain_text(g, named=not one) for g in row.gains) or "-",
                f"{r.parameters:,} ({r.dense_parameters:,})" if r.parameters else "-",
                quantity(r.flops_per_row),
                quantity(r.latency_ms),
                quantity(float(np.median(r.train_seconds)) if r.train_seconds else None),
                "none" if deterministic(r) else str(len(r.seeds)),
            ]
        lines.append(_markdown_row(cells))
    return lines


def gain_table(table: ResultTable) -> list[str]:
    """A Markdown table of the gains with intervals: one row per model and reference."""
    metrics = [m for m in table.metrics[1:] if any(m in r.differences for r in table.rows)]
    lines = [_markdown_row(["model", *metrics])]
    lines.append(_markdown_row(["---"] + ["---:"] * len(metrics)))
    for row in table.rows:
        name = _escape(row.result.model)
        if not row.gains:
            lines.append(_markdown_row([name] + ["-"] * len(metrics)))
        for over in (g.reference for g in row.gains):
            gains = [
                next((g for g in row.differences.get(m, ()) if g.reference == over), None)
                for m in metrics
            ]
            cells = [gain_text(gain, named=False) for gain in gains]
            lines.append(_markdown_row([f"{name} over {_escape(over)}", *cells]))
    return lines


def metric_cells(results: Sequence[ModelResult]) -> dict[str, list[str]]:
    """By metric, one cell per result: the mean with its interval over units where there is one."""
    cells: dict[str, list[str]] = {}
    for metric in dict.fromkeys(m for r in results for m in r.metrics):
        cells[metric] = [
            str(mean_interval(np.stack(r.per_unit[metric])))
            if metric in r.per_unit
            else metric_text(r, metric)
            for r in results
        ]
    return cells


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
    """Dot plot: the primary metric with intervals over units, and the gain over a reference.

    Of several references it shows the first.

    The same results give the same file, byte for byte.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from models.research.pages.cards import is_own_model

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
        over = next(iter(references)) if len(references) == 1 else "its first reference"
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
        unit = table.rows[0].result.unit
        figure.suptitle(f"{table.name}: mean and 95 % interval over {unit}s", x=0.01, ha="left")
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False
        )
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)
