"""Trains and measures the retrieval models and saves what the tables are made of.

    python -m models.research.bench_retrieval --data-dir DATA [TABLE ...]

DATA holds the owners' files: `amazon-beauty/` (Beauty.txt, Beauty_item2attributes.json) and
`ml-1m/` (ml-1m_sasrec.txt or ml-1m.txt), gzipped or not; the simulator's tables need none. Every
run of one model with one seed is saved as soon as it ends (`models.training.results`), and what is
saved is not run again: the command may be interrupted and repeated, and two commands may run
different tables at once. Saved means: with the same settings down to every default of the model and
of the training, the same world, the same cases (by digest) and, for a union, the same lists; what
differs in any of it is run anew. A metric that the saved seeds of a row do not have is left out of
its later seeds: delete the row's file to get it. The best step, and what a counting baseline tries
(`Recipe.grid`), are chosen on validation cases; the test cases are looked at once per run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from models.data.errors import DataError
from models.research.retrieval_data import load
from models.research.retrieval_measures import (
    of_epoch,
    of_pairs,
    of_sequences,
    pair_cost,
    user_cost,
)
from models.research.retrieval_run import Run
from models.research.retrieval_tables import TABLES
from models.training.results import latencies_ms

RESULTS = Path("run/bench/models")
SHOWN = ("recall@10", "ndcg@10", "recall@50", "tail_recall@50", "recall@200", "epoch_s")


def main(
    tables: Annotated[list[str] | None, typer.Argument(help="Tables; all by default.")] = None,
    data_dir: Annotated[Path, typer.Option(help="Folder of the data sets.")] = Path("data"),
    results: Annotated[Path, typer.Option(help="Folder that results are saved in.")] = RESULTS,
    model: Annotated[
        list[str] | None, typer.Option(help="Only these rows, by their name in the table.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="At most so many seeds of each row.", min=1)] = 5,
    budget: Annotated[float, typer.Option(help="Share of each row's training steps.")] = 1.0,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.", min=1)] = 1,
) -> None:
    """Train and measure; prints a line for each run."""
    torch.set_num_threads(threads)
    chosen = tables or list(TABLES)
    if unknown := [name for name in chosen if name not in TABLES]:
        raise typer.BadParameter(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    rows = {recipe.model for name in chosen for recipe in TABLES[name].recipes}
    if unknown := sorted(set(model or ()) - rows):
        raise typer.BadParameter(f"no row {unknown[0]!r}; there are {', '.join(sorted(rows))}")
    started = time.perf_counter()
    try:
        for name in chosen:
            run_table(name, data_dir, results, model, seeds, budget)
    except DataError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from error
    print(f"took {time.perf_counter() - started:.0f} s")


def run_table(
    name: str,
    data_dir: Path,
    results: Path,
    only: Sequence[str] | None = None,
    seeds: int = 5,
    budget: float = 1.0,
) -> None:
    """Run what is missing of one table, the first seed of every row before the second of any."""
    table = TABLES[name]
    if budget < table.least_budget:
        print(f"{name}: left out of runs with less than {table.least_budget:.0%} of the steps")
        return
    data = load(table, data_dir)
    recipes = [recipe for recipe in table.recipes if not only or recipe.model in only]
    for turn in range(seeds):
        for recipe in recipes:
            if turn >= len(recipe.seeds):
                continue
            run = Run(name, table, recipe, recipe.seeds[turn], budget, results, data)
            if run.saved():
                run.relabel()
            else:
                execute(run)
    first = [Run(name, table, r, r.seeds[0], budget, results, data) for r in recipes]
    save_costs([run for run in first if run.is_learned])


def save_costs(runs: Sequence[Run]) -> None:
    """Measure what the models cost, latencies on one thread and model by model in turn; save it.

    Weights do not matter for it: models are built anew.
    """
    if not runs:
        return
    costs = {
        run.recipe.model: user_cost(run) if run.data.pairs is None else pair_cost(run)
        for run in runs
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        latency = latencies_ms({model: cost.one_list for model, cost in costs.items()})
    finally:
        torch.set_num_threads(threads)
    for run in runs:
        model = run.recipe.model
        found = {k: v for k, v in vars(costs[model]).items() if k != "one_list"}
        for suffix in run.data.suffixes:
            if (result := run.stored(suffix)) is not None:
                replace(result, latency_ms=latency[model], **found).save(run.results)


def execute(run: Run) -> None:
    """Train, measure, save, print a line per table filled."""
    measure = {"pairs": of_pairs, "epoch-time": of_epoch}.get(run.table.kind, of_sequences)
    for outcome in measure(run):
        run.merged(outcome).save(run.results)
        if outcome.lists is not None and run.seed == run.recipe.seeds[0]:
            run.save_lists(outcome.lists)
        figures = [
            f"{m} {outcome.figures.metrics[m]:.4f}" for m in SHOWN if m in outcome.figures.metrics
        ]
        print(
            f"{run.name + outcome.suffix}  {run.recipe.model}  seed {run.seed}  "
            f"{'  '.join(figures)}  {outcome.note}  {outcome.seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
