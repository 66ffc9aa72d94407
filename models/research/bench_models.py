"""The tables of the models anew: every model and baseline trained and measured.

`make bench-models ARGS="--data-dir DATA"`. DATA holds `amazon-beauty/` and `ml-1m/` (`tandem data
list` says where they come from); without it only the simulator's tables are made. Two processes
work at once, one thread each; what is itself a timing runs alone, after them. The two runs share no
folder:

    small (default)  one seed, part of the training steps, made for a night's check. It starts with
                     an empty run/bench-small, so that every figure is measured by this run.
    --full           every seed and step, hours. It keeps and completes run/bench/models: what is
                     saved with the same settings, data and training is not run again. --again
                     measures all anew.

Either writes docs/ (the page of tables, its plots, the targets) and cards/ into its folder.
`docs/models.md` of the repository is `tandem evaluate --results run/bench/models --tables-only
--docs docs` after a full run, `docs/model_targets.md` the targets of that run.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from models.figures import console, print_machine
from models.research.ranking_tables import BENCHMARKS
from models.research.retrieval_tables import TABLES

SMALL, FULL = Path("run/bench-small"), Path("run/bench")
RESULTS = "models"  # folder of the results in either
LONG = ("ml-1m-leave-one-out", "beauty-next-item")  # tables that are about half of the work
ALONE = ("ssl-epoch",)  # tables that are timings
POLL_S = 0.2


def is_simulated(table: str) -> bool:
    """Whether a table needs no data folder."""
    return table.startswith("simulator") or (table in TABLES and TABLES[table].data == "simulator")


def lanes(data_dir: Path | None, full: bool) -> list[list[list[str]]]:
    """The arguments of python, one command after the other, of the processes that work at once."""
    results = str((FULL if full else SMALL) / RESULTS)
    data = [] if data_dir is None else ["--data-dir", str(data_dir)]
    retrieval = ["-m", "models.research.bench_retrieval", *data, "--results", results]
    ranking = ["-m", "models.research.bench_ranking", *data, "--output", results]
    if not full:
        retrieval += ["--seeds", "1", "--budget", "0.5"]
        ranking += ["--seeds", "1", "--trials", "2", "--train-rows", "60000"]

    def of(command: list[str], tables: Iterable[str]) -> list[str]:
        return command + [t for t in tables if data_dir is not None or is_simulated(t)]

    others = [table for table in TABLES if table not in (*LONG, *ALONE)]
    found = [[of(retrieval, LONG)], [of(ranking, BENCHMARKS), of(retrieval, others)]]
    return [[c for c in lane if any(t in c for t in (*TABLES, *BENCHMARKS))] for lane in found]


def alone(full: bool) -> list[str]:
    """The arguments of python for what is timed on an otherwise idle machine."""
    results = str((FULL if full else SMALL) / RESULTS)
    command = ["-m", "models.research.bench_retrieval", "--results", results]
    return [*command, "--threads", "2", *ALONE]


def run(lanes: list[list[list[str]]]) -> None:
    """Run the lanes at once, the commands of each in turn; the first failure ends them all."""
    waiting = [list(lane) for lane in lanes]
    at: dict[int, subprocess.Popen[bytes]] = {}
    try:
        while any(waiting) or at:
            for number, lane in enumerate(waiting):
                process = at.get(number)
                if process is not None and process.poll() is None:
                    continue
                if process is not None and at.pop(number).returncode:
                    raise typer.Exit(1)
                if lane:
                    at[number] = subprocess.Popen([sys.executable, *lane.pop(0)])
            time.sleep(POLL_S)
    finally:
        for process in at.values():
            process.terminate()
            process.wait()


def main(
    data_dir: Annotated[
        Path | None, typer.Option(help="folder of the data sets' folders", exists=True)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="all seeds and steps: hours")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="with --full: delete what is saved first")
    ] = False,
) -> None:
    print_machine()
    started = time.perf_counter()
    home = FULL if full else SMALL
    results = home / RESULTS
    if again or not full:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(results)
    run(lanes(data_dir, full))
    run([[alone(full)]])
    pages = ["--results", str(results), "--docs", str(home / "docs")]
    cards = ["--cards", str(home / "cards")]
    subprocess.run([sys.executable, "-m", "services.cli", "evaluate", *cards, *pages], check=True)
    # The target of an hour is for all tables of the small run.
    minutes = (time.perf_counter() - started) / 60
    spent = [] if full or data_dir is None else ["--minutes", f"{minutes:.2f}"]
    targets = [sys.executable, "-m", "models.research.targets.page", *pages, *spent]
    subprocess.run(targets, check=True)
    console.print(f"took {(time.perf_counter() - started) / 60:.0f} min")


if __name__ == "__main__":
    typer.run(main)
