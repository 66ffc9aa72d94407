"""The tables of docs/models.md anew: every model and baseline trained and measured.

`make bench-models ARGS="--data-dir DATA"`. DATA holds `amazon-beauty/` and `ml-1m/` (`tandem data
list` says where they come from); without it only the simulator's tables are made. Two processes
work at once, one thread each: retrieval and ranking. By default a small version (one seed, part of
the training steps, its own folder of results), made for a night's check; `--full` uses every seed
and step and rewrites docs/models.md, its plots and the model cards.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from load_tests.report import console, print_machine

SMALL, FULL = Path("run/bench/models-small"), Path("run/bench/models")
RETRIEVAL_DATA = ("beauty-user-split", "ml-1m-leave-one-out", "beauty-next-item")
RANKING_DATA = ("ml-1m-time-split",)


def commands(data_dir: Path | None, full: bool) -> list[list[str]]:
    """The two processes' arguments of python."""
    results = str(FULL if full else SMALL)
    data = [] if data_dir is None else ["--data-dir", str(data_dir)]
    retrieval = ["-m", "load_tests.bench_models_retrieval", *data, "--results", results]
    ranking = ["-m", "load_tests.bench_models_ranking", *data, "--output", results]
    if not full:
        retrieval += ["--seeds", "1", "--budget", "0.5"]
        ranking += ["--seeds", "1", "--trials", "2", "--train-rows", "100000"]
    with_data = data_dir is not None
    retrieval += [*(RETRIEVAL_DATA if with_data else ()), "simulator", "ssl-epoch"]
    ranking += ["simulator-ranking", "simulator-ablations", *(RANKING_DATA if with_data else ())]
    return [retrieval, ranking]


def main(
    data_dir: Annotated[
        Path | None, typer.Option(help="folder of the data sets' folders", exists=True)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="all seeds and steps: hours")] = False,
) -> None:
    print_machine()
    started = time.perf_counter()
    running = [subprocess.Popen([sys.executable, *c]) for c in commands(data_dir, full)]
    try:
        codes = [process.wait() for process in running]
    finally:
        for process in running:
            process.terminate()
            process.wait()
    if any(codes):
        raise typer.Exit(1)
    results = FULL if full else SMALL
    pages = [] if full else ["--docs", str(results / "docs"), "--cards", str(results / "cards")]
    render = ["-m", "services.cli", "evaluate", "--results", str(results), *pages]
    subprocess.run([sys.executable, *render], check=True)
    console.print(f"took {(time.perf_counter() - started) / 60:.0f} min")


if __name__ == "__main__":
    typer.run(main)
