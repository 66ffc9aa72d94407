"""`tandem evaluate`: measure a published model, or render result files.

Mounted by `services/cli.py`.

tandem evaluate ssl_two_tower                  metrics of the current version, beside baselines
tandem evaluate --results FOLDER               docs/models.md, its plots and the model cards
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from models.data.events import Dataset
    from models.training.results import ModelResult

ARTIFACTS = Path("run/artifacts")
BUNDLED = "ml-latest-small"
DOCS, CARDS = Path("docs"), Path("models/cards")


def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="Published name, or folder of one version.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="Data set: ml-latest-small or a MovieLens folder.")
    ] = BUNDLED,
    artifacts: Annotated[Path, typer.Option(help="Folder that models are published to.")] = (
        ARTIFACTS
    ),
    out: Annotated[
        Path | None, typer.Option(help="Also save the figures as result files in this folder.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Render the result files of this folder instead.")
    ] = None,
    docs: Annotated[Path, typer.Option(help="Where models.md and plots/ are written.")] = DOCS,
    cards: Annotated[Path, typer.Option(help="Where the model cards are written.")] = CARDS,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="TABLE=MODEL: what the models of a table are compared with."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads of torch.", min=1)] = 1,
) -> None:
    """Measure a published model with intervals beside its baselines, or render saved results."""
    from models.artifact import ArtifactError
    from models.data.errors import DataError

    console = Console()
    if (model is None) == (results is None):
        console.print("name a published model, or give --results FOLDER", style="red")
        raise typer.Exit(2)
    try:
        if results is not None:
            _render(results, docs, cards, reference or [], console)
        else:
            assert model is not None
            _measure(model, data, artifacts, out, device, threads, console)
    except (DataError, ArtifactError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error


def _render(
    results: Path, docs: Path, cards: Path, references: list[str], console: Console
) -> None:
    from models.data.errors import DataError
    from models.training.tables_report import render

    named = {}
    for each in references:
        table, equals, model = each.partition("=")
        if not equals or not table or not model:
            raise DataError(f"--reference {each!r}: write it as TABLE=MODEL")
        named[table] = model
    for path in render(results, docs, cards, _command(), named):
        console.print(str(path), markup=False)


def _command() -> str:
    """What was typed, with the program's name instead of its path."""
    return shlex.join(["tandem", *sys.argv[1:]])


def _measure(
    name: str,
    data: str,
    artifacts: Path,
    out: Path | None,
    device: str,
    threads: int,
    console: Console,
) -> None:
    import torch

    from models import artifact
    from models.data import events
    from models.training.artifact_evaluation import measure

    torch.set_num_threads(threads)
    folder = Path(name) if Path(name).is_dir() else artifact.current(artifacts, name)
    dataset: Dataset = events.load() if data == BUNDLED else events.load(Path(data))
    with console.status("replaying the events, scoring the test period"):
        found = measure(folder, dataset, device, _command())
    show(found, console)
    for result in found if out is not None else []:
        assert out is not None
        console.print(str(result.save(out)), markup=False)


def show(results: list[ModelResult], console: Console) -> None:
    """Print all metrics, the models side by side, with 95 % intervals over the test users."""
    from rich.table import Table

    from models.training.tables_report import metric_cells

    first, cells = results[0], metric_cells(results)
    table = Table(title=f"{first.data}, {first.protocol}")
    table.add_column("metric", min_width=max(map(len, cells)))
    for result in results:
        table.add_column(result.model)
    for metric, values in cells.items():
        table.add_row(metric, *values)
    console.print(table)
    console.print("95 % intervals: bootstrap over the test cases.", style="dim")


if __name__ == "__main__":
    typer.run(evaluate)
