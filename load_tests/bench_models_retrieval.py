"""Trains and measures the retrieval models and saves what the tables are made of.

    python -m load_tests.bench_models_retrieval --data-dir DATA [TABLE ...]

DATA holds the owners' files: `amazon-beauty/` (Beauty.txt, Beauty_item2attributes.json) and
`ml-1m/` (ml-1m_sasrec.txt or ml-1m.txt), gzipped or not; the simulator's tables need none. Every
run of one model with one seed is saved as soon as it ends (`models.training.results`), and what is
saved is not run again: the command may be interrupted and repeated, and two commands may run
different tables at once. The best step is chosen on validation cases; the test cases are looked at
once per run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from load_tests.report import machine
from load_tests.retrieval_tables import COUNTING, TABLES, Recipe, Table

if TYPE_CHECKING:
    import numpy as np

    from models.data.sequences import Split
    from models.training.results import ModelResult

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
    again: Annotated[bool, typer.Option(help="Run also what is saved already.")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.", min=1)] = 1,
) -> None:
    """Train and measure; prints a line for each run."""
    import torch

    from models.data.errors import DataError

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
            run_table(name, data_dir, results, model, seeds, budget, again)
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
    again: bool = False,
) -> None:
    """Run what is missing of one table, the first seed of every row before the second of any."""
    table = TABLES[name]
    data: Any = None
    for turn in range(seeds):
        for recipe in table.recipes:
            if (only and recipe.model not in only) or turn >= len(recipe.seeds):
                continue
            run = Run(name, table, recipe, recipe.seeds[turn], budget, results)
            if again or not run.saved():
                data = data or load(table, data_dir)
                run.execute(data)


def load(table: Table, data_dir: Path) -> Any:
    """What the table's kind trains on: a Split, both splits of a shift, sequences, or nothing."""
    from models.data import amazon_beauty, movielens_1m_sequences, simulator
    from models.data.sequences import last_fifth, leave_one_out, user_split

    if table.kind == "shift":
        # A harder shift than the default world's, in which even EASE hardly loses. Chosen by EASE's
        # loss between the two test sets; no other model was looked at for it.
        world = simulator.build_world(
            simulator.WorldConfig(clusters=12, items_per_cluster=40, rho=20.0)
        )
        shifted = simulator.sequences(world, 2_000, 500, 2_000, mean_length=8)
        return shifted.split("iid"), shifted.split("ood")
    if table.kind == "epoch-time":
        return gowalla_sized()
    readers = {"amazon-beauty": amazon_beauty.read, "ml-1m": movielens_1m_sequences.read}
    sequences = readers[table.data](data_dir / table.data)
    if table.kind == "pairs":
        return sequences
    splits: dict[str, Callable[..., Split]] = {
        "user-split": user_split,
        "leave-one-out": leave_one_out,
        "last-fifth": last_fifth,
    }
    return splits[table.protocol](sequences)


def gowalla_sized() -> Split:
    """40,000 items and about a million training events from the simulator."""
    from models.data import simulator

    world = simulator.build_world(simulator.WorldConfig(clusters=200, items_per_cluster=200))
    return simulator.sequences(world, 32_000, 500, 500, 32).split("iid")


@dataclass(frozen=True)
class Outcome:
    """What one run has measured; `suffix` says which of a run's tables it belongs to."""

    metrics: Mapping[str, float]
    per_unit: Mapping[str, np.ndarray]
    seconds: float
    note: str = ""
    suffix: str = ""
    lists: np.ndarray | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)  # parameters, FLOPs, latency


@dataclass(frozen=True)
class Run:
    """One model with one seed: from the recipe to the saved result."""

    name: str
    table: Table
    recipe: Recipe
    seed: int
    budget: float
    results: Path

    def execute(self, data: Any) -> None:
        """Train, measure, save, print a line per table filled."""
        measure: dict[str, Callable[[Run, Any], list[Outcome]]]
        measure = {"pairs": of_pairs, "shift": of_shift, "epoch-time": of_epoch}
        for outcome in measure.get(self.table.kind, of_sequences)(self, data):
            self.merged(outcome).save(self.results)
            if outcome.lists is not None and self.seed == self.recipe.seeds[0]:
                self.save_lists(outcome.lists)
            figures = [f"{m} {outcome.metrics[m]:.4f}" for m in SHOWN if m in outcome.metrics]
            print(
                f"{self.name + outcome.suffix}  {self.recipe.model}  seed {self.seed}  "
                f"{'  '.join(figures)}  {outcome.note}  {outcome.seconds:.0f} s",
                flush=True,
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What is saved beside the figures; a result with other settings is replaced."""
        recipe = self.recipe
        return {**recipe.settings, "training": dict(recipe.training), "budget": self.budget}

    def saved(self) -> bool:
        """Whether this seed's figures are there, in every table that the run fills."""
        suffixes = ("-iid", "-ood") if self.table.kind == "shift" else ("",)
        found = [self.stored(suffix) for suffix in suffixes]
        return all(result is not None and self.seed in result.seeds for result in found)

    def stored(self, suffix: str) -> ModelResult | None:
        """The saved result of the same settings, if any."""
        from models.training.results import ModelResult, slug

        path = self.results / slug(self.name + suffix) / f"{slug(self.recipe.model)}.json"
        if not path.is_file():
            return None
        found = ModelResult.load(path)
        return found if found.settings == json.loads(json.dumps(self.settings)) else None

    def merged(self, outcome: Outcome) -> ModelResult:
        """The saved result with this seed's figures added or replaced."""
        from models.training.results import ModelResult

        facts = machine()
        recipe = self.recipe
        cost = {"parameters": 0, "dense_parameters": 0, "flops_per_row": None, "latency_ms": None}
        new = ModelResult(
            table=self.name + outcome.suffix,
            data=self.table.data,
            protocol=self.table.protocol,
            model=recipe.model,
            settings=self.settings,
            seeds=(self.seed,),
            metrics={k: (v,) for k, v in outcome.metrics.items()},
            per_unit={k: [v] for k, v in outcome.per_unit.items() if k in outcome.metrics},
            train_seconds=(outcome.seconds,),
            machine=f"{facts['cpu']}, {facts['cores']} cores",
            command=f"python -m load_tests.bench_models_retrieval {self.name}",
            notes="; ".join(part for part in (recipe.notes, outcome.note) if part),
            family=recipe.family,
            reference=self.table.reference,
            primary=self.table.primary if self.table.primary in outcome.metrics else "",
            unit=self.table.unit,
            **(cost | dict(outcome.cost)),
        )
        old = self.stored(outcome.suffix)
        if old is None:
            return new
        keep = [i for i, seed in enumerate(old.seeds) if seed != self.seed]

        def kept(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[i] for i in keep)

        return replace(
            new,
            seeds=kept(old.seeds) + new.seeds,
            metrics={k: kept(old.metrics[k]) + v for k, v in new.metrics.items()},
            per_unit={k: [*kept(old.per_unit[k]), *v] for k, v in new.per_unit.items()},
            train_seconds=kept(old.train_seconds) + new.train_seconds,
        )

    def lists_path(self, model: str) -> Path:
        from models.training.results import slug

        return self.results / slug(self.name) / "lists" / f"{slug(model)}.npy"

    def save_lists(self, lists: np.ndarray) -> None:
        """Keep the first seed's lists, for the union of sources."""
        import numpy as np

        path = self.lists_path(self.recipe.model)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, lists.astype(np.int32))

    def load_lists(self, model: str) -> np.ndarray:
        """The lists of another row of the table."""
        import numpy as np

        from models.data.errors import DataError

        path = self.lists_path(model)
        if not path.is_file():
            raise DataError(f"{path}: {self.recipe.model!r} needs the lists of {model!r}: run it")
        return np.load(path, allow_pickle=False)


def of_sequences(run: Run, split: Split) -> list[Outcome]:
    """Any row of a table of user cases."""
    from models.training import sequence_evaluation as ev

    recipe = run.recipe
    if recipe.source not in COUNTING | {"union"}:
        return of_model(run, {"": split})
    started = time.perf_counter()
    if recipe.source == "union":
        parts = [run.load_lists(name) for name in recipe.settings["of"]]
        found = ev.evaluate_lists(
            split, split.test, ev.union_of_lists(parts, max(ev.CUTOFFS)), ev.CUTOFFS
        )
        seconds = time.perf_counter() - started
    else:
        scorer = getattr(ev, f"{recipe.source}_scorer")(split, **recipe.settings)
        seconds = time.perf_counter() - started
        found = ev.evaluate(split, split.test, scorer)
    return [Outcome(found.means(), found.per_case, seconds, lists=found.lists)]


def of_shift(run: Run, splits: tuple[Split, Split]) -> list[Outcome]:
    """Trained once, measured on like and unlike test users; the drop is like minus unlike."""
    like, unlike = of_model(run, {"-iid": splits[0], "-ood": splits[1]})
    drop = {
        f"drop_{m}": like.metrics[m] - unlike.metrics[m] for m in ("recall@50", "hr@50", "ndcg@50")
    }
    return [like, replace(unlike, metrics={**unlike.metrics, **drop})]


def of_model(run: Run, splits: Mapping[str, Split]) -> list[Outcome]:
    """Train on the first split (all have the same training part), measure on every one."""
    from models.training.results import flops_per_row, latency_ms, parameter_counts
    from models.training.sequence_evaluation import (
        case_batch,
        evaluate,
        mean_interest_cosine,
        model_scorer,
        ranked_lists,
    )
    from models.training.sequences import SequenceTraining, build_model, model_history, train

    recipe, split = run.recipe, next(iter(splits.values()))
    model = build_model(recipe.source, split.sequences, run.seed, **recipe.settings)
    training = SequenceTraining(**recipe.training, seed=run.seed)
    steps = max(int(training.steps * run.budget), training.validate_every)
    report = train(model, split, replace(training, steps=steps))
    history = model_history(model)
    scorer = model_scorer(model, split.sequences, history)
    users = case_batch(split.sequences, split.test.take(slice(64)), history)
    one = split.test.take(slice(1))
    parameters, dense = parameter_counts(model)
    cost = {
        "parameters": parameters,
        "dense_parameters": dense,
        "flops_per_row": flops_per_row(model.encode_users, users, rows=len(users)),
        "latency_ms": latency_ms(lambda: ranked_lists(split, one, scorer, 200)),
    }
    note = f"best step {report.best_step} of at most {steps}"
    outcomes = []
    for suffix, part in splits.items():
        found = evaluate(part, part.test, scorer)
        means = found.means()
        if model.num_interests > 1:
            means["interest_cosine"] = mean_interest_cosine(model, part, part.test, history)
        outcomes.append(
            Outcome(means, found.per_case, report.seconds, note, suffix, found.lists, cost)
        )
    return outcomes


def of_pairs(run: Run, sequences: Any) -> list[Outcome]:
    """Item-to-item retrieval."""
    import numpy as np
    import torch

    from models.data.sequences import next_item_pairs
    from models.retrieval.ssl_item_to_item import (
        SSLItemToItem,
        SSLItemToItemConfig,
        attribute_fields,
    )
    from models.training.item_pairs import PairTraining, evaluate, train
    from models.training.results import parameter_counts

    pairs = next_item_pairs(sequences)
    fields = attribute_fields(sequences.num_items, sequences.item_attributes or ())
    torch.manual_seed(run.seed)
    model = SSLItemToItem(SSLItemToItemConfig(**run.recipe.settings), fields)
    training = PairTraining(**run.recipe.training, seed=run.seed)
    epochs = max(round(training.epochs * run.budget), 1)
    report = train(model, pairs, replace(training, epochs=epochs))
    found = evaluate(model, pairs, pairs.test)
    parameters, dense = parameter_counts(model)
    return [
        Outcome(
            {k: float(np.nanmean(v)) for k, v in found.items()},
            found,
            report.seconds,
            f"best epoch {report.best_epoch} of at most {epochs}",
            cost={"parameters": parameters, "dense_parameters": dense},
        )
    ]


def of_epoch(run: Run, split: Split) -> list[Outcome]:
    """Seconds of one epoch: as many examples as there are training events."""
    from models.training.results import parameter_counts
    from models.training.sequences import SequenceTraining, build_model, train

    model = build_model("ssl_two_tower", split.sequences, run.seed, **run.recipe.settings)
    training = SequenceTraining(
        **run.recipe.training, sampling="events", min_history=1, seed=run.seed, valid_cases=100
    )
    events = len(split.train_events())
    steps = max(int(events / training.batch_size * run.budget), 1)
    report = train(model, split, replace(training, steps=steps, validate_every=steps))
    seconds = events / report.examples_per_s
    parameters, dense = parameter_counts(model)
    return [
        Outcome(
            {"epoch_s": seconds, "examples_per_s": report.examples_per_s},
            {},
            report.seconds,
            f"{split.sequences.num_items:,} items, {events:,} events, {steps} steps timed",
            cost={"parameters": parameters, "dense_parameters": dense},
        )
    ]


if __name__ == "__main__":
    typer.run(main)
