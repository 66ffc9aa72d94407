"""`tandem train`: train the models from a terminal. Mounted by `services/cli.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Train models and publish them as artifacts.")

BUNDLED = "ml-latest-small"
Data = Annotated[str, typer.Option(help="Data set: ml-latest-small or a MovieLens folder.")]
Artifacts = Annotated[Path, typer.Option(help="Folder that models are published to.")]
Seed = Annotated[int, typer.Option(help="Same seed, same machine, same CPU weights.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(help="CPU threads of torch.", min=1)]
ARTIFACTS = Path("run/artifacts")


@app.command()
def retrieval(
    data: Data = BUNDLED,
    artifacts: Artifacts = ARTIFACTS,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
) -> None:
    """Train the SSL two-tower model; prints recall@50 beside popularity and Markov."""
    _train(("retrieval",), data, artifacts, seed, device, threads)


@app.command()
def ranking(
    data: Data = BUNDLED,
    artifacts: Artifacts = ARTIFACTS,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
) -> None:
    """Train MaskNet; prints AUC beside logistic regression."""
    _train(("ranking",), data, artifacts, seed, device, threads)


@app.command(name="all")
def everything(
    data: Data = BUNDLED,
    artifacts: Artifacts = ARTIFACTS,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
) -> None:
    """Train both models."""
    _train(("retrieval", "ranking"), data, artifacts, seed, device, threads)


def _train(
    parts: tuple[str, ...], data: str, artifacts: Path, seed: int, device: str, threads: int
) -> None:
    # Imported here: torch takes seconds, which `tandem --help` need not spend.
    from models.artifact import ArtifactError
    from models.data import events
    from models.data.errors import DataError
    from models.training.pipeline import train_all

    console = Console()
    try:
        dataset = events.load() if data == BUNDLED else events.load(Path(data))
        train_all(
            artifacts, console, dataset=dataset, seed=seed, device=device, threads=threads,
            parts=parts,
        )  # fmt: skip
    except (DataError, ArtifactError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
