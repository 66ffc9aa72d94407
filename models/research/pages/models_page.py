"""Result files as a page: one table and one plot per table name, and the model cards.

Everything shown comes from the files that benchmarks saved (`models/training/results.py`); the text
around it explains how to read a table. Of a result's `settings` it uses, beside what comparisons
use (`models/research/comparison.py`),

    drop_from       the table of the same models on unshifted cases
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from models.research.comparison import (
    SHOWN_METRICS,
    ResultTable,
    deterministic,
    drops,
    lower_is_better,
    result_tables,
)
from models.research.pages.cards import card_files, card_name, write_cards
from models.research.pages.plot import plot
from models.research.pages.text import (
    TEMPLATES,
    escape,
    gain_text,
    markdown_table,
    metric_text,
    quantity,
)
from models.training.results import load_all, slug

NEUTRAL = ("gini", "coverage", "interest_cosine", "diversity")  # described, not judged


def render(
    folder: Path,
    docs: Path,
    cards: Path | None,
    command: str,
    references: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write docs/models.md, its plots and the model cards; returns the paths written.

    Without a folder of `cards` it is the page of tables alone, without plots and links.
    """
    results = load_all(folder)
    tables = result_tables(results, references)
    by_name = {table.name: table for table in tables}
    source = f"{len(results)} result files in `{folder}`"
    links: dict[str, str] = {}
    written = []
    docs.mkdir(parents=True, exist_ok=True)
    if cards is not None:
        (docs / "plots").mkdir(exist_ok=True)
        for table in tables:
            written.append(docs / f"plots/{slug(table.name)}.svg")
            plot(table, written[-1])
        written += write_cards(cards, tables, source, command)
        files = sorted(card_files(results).items())
        links = {name: _relative(cards / file, docs) for name, file in files}
    sections = []
    for table in tables:
        sections.append(table_section(table, links))
        named = dict.fromkeys(r.result.settings.get("drop_from") for r in table.rows)
        sections += [
            "\n".join(drop_section(table, by_name[other])) for other in named if other in by_name
        ]
    text = TEMPLATES.get_template("models.md.j2").render(
        source=source, command=command, links=links, sections=sections
    )
    page = docs / "models.md"
    page.write_text(text)
    return [page, *written]


def table_section(table: ResultTable, links: Mapping[str, str] | None = None) -> str:
    """The Markdown of one table: facts, table, plot, all metrics; `links` are the cards'."""
    rows = [row.result for row in table.rows]
    cards = {r.model: links[card_name(r)] for r in rows} if links else {}
    rest = (table.primary, *table.metrics[SHOWN_METRICS:])
    notes = {
        note: [r.model for r in rows if r.notes == note]
        for note in dict.fromkeys(r.notes for r in rows if r.notes)
    }
    return TEMPLATES.get_template("table.md.j2").render(
        table=table,
        first=rows[0],
        units=max((len(u[0]) for r in rows for u in r.per_unit.values()), default=0),
        shown=metric_table(table, table.metrics[:SHOWN_METRICS], cards),
        plot=f"plots/{slug(table.name)}.svg" if links else "",
        rest=metric_table(table, rest, cards, costs=False) if len(rest) > 1 else [],
        gains=gain_table(table) if any(len(r.differences) > 1 for r in table.rows) else [],
        machines=dict.fromkeys(r.machine.split(", load ")[0] for r in rows),
        notes=notes,
    )


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
    best = {m: _best(table, m) for m in metrics}
    rows = []
    for row in table.rows:
        r = row.result
        name = escape(r.model)
        cells = [f"[{name}]({links[r.model]})" if links else name]
        for m in metrics:
            judged = len(table.rows) > 1 and not any(part in m for part in NEUTRAL)
            top = judged and m in r.metrics and r.mean(m) == best[m]
            cells.append(f"**{metric_text(r, m)}**" if top else metric_text(r, m))
        if costs:
            cells += [
                "<br>".join(gain_text(g, named=not one) for g in row.gains) or "-",
                f"{r.parameters:,} ({r.dense_parameters:,})" if r.parameters else "-",
                quantity(r.flops_per_row),
                quantity(r.latency_ms),
                quantity(float(np.median(r.train_seconds)) if r.train_seconds else None),
                "none" if deterministic(r) else str(len(r.seeds)),
            ]
        rows.append(cells)
    return markdown_table(heads, rows)


def gain_table(table: ResultTable) -> list[str]:
    """A Markdown table of the gains with intervals: one row per model and reference."""
    metrics = [m for m in table.metrics[1:] if any(m in r.differences for r in table.rows)]
    rows = []
    for row in table.rows:
        name = escape(row.result.model)
        if not row.gains:
            rows.append([name] + ["-"] * len(metrics))
        for over in (g.reference for g in row.gains):
            gains = {
                m: g for m in metrics for g in row.differences.get(m, ()) if g.reference == over
            }
            cells = [gain_text(gains.get(m), named=False) for m in metrics]
            rows.append([f"{name} over {escape(over)}", *cells])
    return markdown_table(["model", *metrics], rows)


def drop_section(unlike: ResultTable, like: ResultTable) -> list[str]:
    """The Markdown lines on the drop from `like` to `unlike`."""
    alone = {r.result.model for r in unlike.rows if deterministic(r.result)}
    rows = [
        [
            escape(drop.model),
            str(drop.interval),
            "<br>".join(gain_text(g, named=True) for g in drop.smaller) or "-",
            "none" if drop.model in alone else str(drop.seeds),
        ]
        for drop in drops(unlike, like)
    ]
    return [
        f"Drop in {unlike.primary} from {like.name} to {unlike.name}, with 95 % intervals: users "
        "of the two test sets are drawn independently, seeds where there are several.",
        "",
        *markdown_table(["model", "drop", "smaller than its references' by", "seeds"], rows),
    ]


def _best(table: ResultTable, metric: str) -> float:
    means = [r.result.mean(metric) for r in table.rows if metric in r.result.metrics]
    return min(means) if lower_is_better(metric) else max(means)


def _relative(path: Path, start: Path) -> str:
    """`path` as a link from a file in `start`."""
    return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()
