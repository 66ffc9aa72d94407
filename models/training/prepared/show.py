"""What a training on prepared data prints: its figures beside those of the baselines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from models.training import bootstrap
from models.training.loop import LoopReport
from models.training.results import ModelResult

SHOWN = ("recall@50", "ndcg@10")


def show_ranking(results: Sequence[ModelResult], tasks: Sequence[str], console: Console) -> None:
    """A row per task and model, and by how much the first model differs from the second."""
    first, second = results
    title = f"{first.data}: test part (95 % interval over {first.unit}s)"
    table = Table("task", "model", "AUC", "gAUC", "log loss", title=title)
    for task in tasks:
        for result in results:
            figures = [result.metrics.get(f"{task} {m}") for m in ("gauc", "log_loss")]
            table.add_row(
                task, result.model, _interval(result, f"{task} auc"),
                *("-" if value is None else f"{value[0]:.4f}" for value in figures),
            )  # fmt: skip
    console.print(table)
    for task in tasks:
        say(console, _difference(first, second, f"{task} auc"))


def show_retrieval(results: Sequence[ModelResult], console: Console) -> None:
    """A row per model, and by how much the first differs from the better of the others."""
    first, *others = results
    title = f"{first.data}, {first.protocol}: test part (95 % interval over {first.unit}s)"
    table = Table("model", *SHOWN, title=title)
    for result in results:
        table.add_row(result.model, *(_interval(result, m) for m in SHOWN))
    console.print(table)
    for metric in SHOWN:
        best = max(others, key=lambda r: r.metrics[metric][0])
        say(console, _difference(first, best, metric))


def _interval(result: ModelResult, metric: str) -> str:
    return str(bootstrap.mean_interval(result.per_unit[metric][0]))


def _difference(first: ModelResult, second: ModelResult, metric: str) -> str:
    found = bootstrap.paired_interval(first.per_unit[metric], second.per_unit[metric])
    verdict = "" if found.excludes_zero else ": not told apart"
    return (
        f"{metric}: {first.model} - {second.model} = {found.mean:+.4f} "
        f"[{found.low:+.4f}, {found.high:+.4f}]{verdict}"
    )


def say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def rounds(report: LoopReport) -> str:
    return f"best round {report.best_epoch} of {len(report.validation)}, step {report.best_step}"


def speed(name: str, report: LoopReport) -> str:
    return (
        f"{name}: {report.steps} steps, {report.examples_per_s:,.0f} examples/s, "
        f"{rounds(report)}, validation {max(report.validation):.4f}"
    )
