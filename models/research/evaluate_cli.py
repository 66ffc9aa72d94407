"""`tandem evaluate`: measure a published model or trained runs, or render result files.

Mounted by `services/cli.py`.

tandem evaluate ssl_two_tower                  metrics of the current version, beside baselines
tandem evaluate run/trained/ml-1m/sasrec-*     runs side by side: figures, a page with a plot
tandem evaluate --results FOLDER               a page of tables and plots, and the model cards
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from models.cli import BUNDLED, check_device

if TYPE_CHECKING:
    from models.data.events import Dataset
    from models.training.results import ModelResult

ARTIFACTS = Path("run/artifacts")
DOCS, CARDS = Path("run/pages"), Path("run/pages/cards")


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="A published name or the folder of one version; or folders of trained runs "
            "(run/trained/DATA/MODEL-SEED)."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Of a published model: ml-latest-small (default) or a MovieLens folder. Of runs: "
            "the folder of their data set (default run/data/DATA)."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Retrieval runs: user-split, leave-one-out or last-fifth. Always the one that the "
            "run was trained with (default): its split decided what the model has seen."
        ),
    ] = None,
    artifacts: Annotated[Path, typer.Option(help="Folder that models are published to.")] = (
        ARTIFACTS
    ),
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also save the figures as result files in this folder. Of runs: the folder of the "
            "page, its plots, cards and result files (default run/evaluated)."
        ),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Render the result files of this folder instead.")
    ] = None,
    docs: Annotated[Path, typer.Option(help="Where models.md and plots/ are written.")] = DOCS,
    cards: Annotated[Path, typer.Option(help="Where the model cards are written.")] = CARDS,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="The page without plots, cards and links to them.")
    ] = False,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="TABLE=MODEL: what the models of a table are compared with."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads of torch.", min=1)] = 1,
) -> None:
    """Measure a published model or trained runs beside baselines, or render saved results."""
    from models.artifact import ArtifactError
    from models.data.errors import DataError
    from models.registry import SettingError

    console = Console()
    if bool(models) == (results is not None):
        console.print("name a published model or runs, or give --results FOLDER", style="red")
        raise typer.Exit(2)
    try:
        if results is not None:
            folder = None if tables_only else cards
            _render(results, docs, folder, reference or [], console)
            return
        _prepare_torch(device, threads)
        first, *others = models or []
        if others or _is_run(first):
            _measure_runs([first, *others], data, protocol, out, device, console)
        elif protocol is not None:
            raise DataError(
                f"--protocol: belongs to runs of `tandem train --data DATASET`; {first} is a "
                "published model, measured on the test period: leave it out"
            )
        else:
            _measure(first, data or BUNDLED, artifacts, out, device, console)
    except (DataError, ArtifactError, SettingError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error


def _render(
    results: Path, docs: Path, cards: Path | None, references: list[str], console: Console
) -> None:
    from models.data.errors import DataError
    from models.research.pages.models_page import render

    named = {}
    for each in references:
        table, equals, model = each.partition("=")
        if not equals or not table or not model:
            raise DataError(f"--reference {each!r}: write it as TABLE=MODEL")
        named[table] = model
    for path in render(results, docs, cards, _command(), named):
        console.print(str(path), markup=False)


def _prepare_torch(device: str, threads: int) -> None:
    import torch

    check_device(torch, device)
    torch.set_num_threads(threads)


def _command() -> str:
    """What was typed, with the program's name instead of its path."""
    return shlex.join(["tandem", *sys.argv[1:]])


def _measure(
    name: str, data: str, artifacts: Path, out: Path | None, device: str, console: Console
) -> None:
    from models import artifact
    from models.data.worlds.films import dataset as films
    from models.training.artifact_evaluation import measure

    folder = Path(name) if Path(name).is_dir() else artifact.current(artifacts, name)
    dataset: Dataset = films.load() if data == BUNDLED else films.load(Path(data))
    with console.status("replaying the events, scoring the test period"):
        found = measure(folder, dataset, device, _command())
    show(found, console)
    if out is not None:
        for result in found:
            console.print(str(result.save(out)), markup=False)


def _is_run(name: str) -> bool:
    """Whether `name` is a path, and not that of a published version."""
    from models.artifact import READY, SCHEMA

    folder = Path(name)
    published = any((folder / file).exists() for file in (READY, SCHEMA))
    return not published and (folder.is_dir() or os.sep in name)


def _measure_runs(
    names: list[str], data: str | None, protocol: str | None, out: Path | None, device: str,
    console: Console,
) -> None:  # fmt: skip
    from models.research import run_evaluation

    out = out or run_evaluation.EVALUATED
    run_evaluation.check_vacant(out)
    folders = [Path(name) for name in names]
    with console.status("scoring the test parts, all items"):
        found = run_evaluation.measure(folders, data, protocol, device, _command(), console)
    show_gains(found, console)
    for path in run_evaluation.write(found, out, _command()):
        console.print(str(path), markup=False)


def show(results: list[ModelResult], console: Console) -> None:
    """Print all metrics, the models side by side, with 95 % intervals over the test users."""
    from rich.table import Table

    from models.research.pages.text import interval_text

    table = Table(title=f"{results[0].data}, {results[0].protocol}")
    table.add_column("metric", no_wrap=True)
    for result in results:
        table.add_column(result.model)
    for metric in dict.fromkeys(m for r in results for m in r.metrics):
        table.add_row(metric, *(interval_text(result, metric) for result in results))
    console.print(table)
    console.print("95 % intervals: bootstrap over the test cases.", style="dim")


def show_gains(results: list[ModelResult], console: Console) -> None:
    """Print each table's main metric and gain, the best model first; the page has the others."""
    from rich.table import Table

    from models.research.comparison import result_tables
    from models.research.pages.text import gain_text

    for found in result_tables(results):
        first = found.rows[0].result
        table = Table(title=f"{first.data}, {first.protocol}")
        for column in ("model", found.primary, "gain in it"):
            table.add_column(column, overflow="fold")
        for row in found.rows:
            table.add_row(
                row.result.model, str(row.interval or "-"), gain_text(row.difference, named=True)
            )
        console.print(table)
    console.print("95 % intervals: bootstrap over the test cases.", style="dim")


if __name__ == "__main__":
    typer.run(evaluate)
