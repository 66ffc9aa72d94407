"""Trains and measures the ranking models on real and simulated tables, and saves what they reach.

    python -m models.research.bench_ranking --data-dir DATA [TABLE ...]

DATA holds the owner's files in `ml-1m/`; the simulator needs none. Every model of a table, baseline
or not, gets embeddings of the same width and the same search
(`models/research/ranking_settings.py`): as many trials, once each with another seed on the rows
that are trained on; the best on the validation part is trained anew for every seed, and the test
part is scored once per seed. What was tried lies beside the results, in `<table>/search/`.

A result is run again only when something that it depends on differs: data, search, settings with
their defaults, seeds. So the command may be interrupted and repeated, and commands with different
tables or models may run at once. Latencies are measured at the end, all models of a table in turn.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from models.data import simulator
from models.data.readers import movielens_1m
from models.data.tables import SPLITS, FieldTable
from models.figures import console, machine_line
from models.files import replace_whole
from models.layers.embedding_tables import EmbeddingOptions
from models.research.ranking_settings import AXES, STRENGTHS, Values, axes_of, departures, trials_of
from models.research.ranking_tables import BENCHMARKS, ONE_HOT, ORACLE, Benchmark, Entry
from models.training.loop import LoopConfig
from models.training.prepared.tables import (
    RankerSpec,
    TableTensors,
    build,
    digest,
    evaluate,
    evaluation_of,
    mean_auc,
    one_hot_scores,
    train,
    without_unseen,
)
from models.training.results import Figures, ModelResult, by_seed, flops_per_row, latencies_ms, slug

RESULTS = Path("run/bench/models")
SEEDS = 3
SEARCH_SEED = 0
LATENCY_ROWS = 256
USERS, IMPRESSIONS = 2000, 100_000  # of the simulator
HISTORY = 20  # newest items of each history
EPOCHS, BATCH_SIZE = 8, 512

LINEAR_RATE = 5.0  # times the learning rate: one layer of weights that start near zero
NO_DROPOUT = {"logistic_regression", "fm"}

# Numbers per embedding, the same for every model of a table; the linear term has one per task.
WIDTH = 16
EMBEDDINGS: dict[str, dict[str, int]] = {
    "logistic_regression": {},
    "mlcc": {"channels": 4, "channel_width": WIDTH // 4},
}
LATENCY_CALLS = 50


def spec_of(entry: Entry, values: Values, epochs: int, batch_size: int) -> RankerSpec:
    """The training of an entry with the values of one of its model's trials."""
    trial = dict(zip(axes_of(entry.model), values, strict=True))
    rate, l2, dropout, std = (trial.pop(name) for name in AXES)
    settings = EMBEDDINGS.get(entry.model, {"width": WIDTH}) | trial | entry.settings
    if entry.model not in NO_DROPOUT:
        settings.setdefault("dropout", dropout)
    if entry.model == "logistic_regression":
        rate *= LINEAR_RATE
    loop = LoopConfig(epochs, batch_size, rate, patience=1)
    return RankerSpec(entry.model, settings, EmbeddingOptions(init_std=std), l2, loop)


@dataclass(frozen=True)
class Data:
    """A table as tensors, with the scores of its oracle where there is one."""

    tensors: TableTensors
    oracle: np.ndarray | None  # float[N, T], of all rows
    note: str
    identity: dict[str, Any]  # what tells it from the same data read otherwise
    digests: dict[str, str]  # of each part


def load(name: str, data_dir: Path | None, train_rows: int) -> Data:
    """The data set `name` with the newest `train_rows` (0: all) of its training part."""
    probabilities = None
    if name == "simulator":
        simulated = simulator.table(simulator.build_world(), IMPRESSIONS, USERS)
        table, probabilities = simulated.table, simulated.probabilities
    else:
        if data_dir is None:
            raise typer.BadParameter(f"{name} is read from files: name their folder: --data-dir")
        table = movielens_1m.read(data_dir / name, "time")
    return prepare(table, probabilities, train_rows, HISTORY)


def prepare(
    table: FieldTable, probabilities: np.ndarray | None, train_rows: int, history: int
) -> Data:
    """The newest `train_rows` (0: all) of the training part; ids outside them become unknown."""
    rows = table.rows("train")
    newest = rows[np.argsort(table.time_ms[rows], kind="stable")][-train_rows:]
    keep = np.sort(np.concatenate([newest, table.rows("valid"), table.rows("test")]))
    table = without_unseen(table.take(keep), history)
    note = f"the newest {len(newest):,} of {len(rows):,} training rows, {history} history items"
    identity = {"training_rows": len(newest), "history": history, "digest": digest(table)}
    known = None if probabilities is None else probabilities[keep]
    digests = {split: digest(table.subset(split)) for split in SPLITS}
    return Data(TableTensors(table), known, note, identity, digests)


def plain(document: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(document))


Trial = Callable[[Values], tuple[float, float]]  # values -> validation AUC and seconds


def searched(
    path: Path, entry: Entry, axes: Sequence[str], asked: dict[str, Any],
    candidates: Sequence[Values], trial: Trial,
) -> Values:  # fmt: skip
    """The values with the best validation: as an earlier search at `path` found, or a new one.

    An earlier one is taken if it was `asked` the same.
    """
    found = json.loads(path.read_text()) if path.is_file() else {}
    if found.get("asked") == plain(asked):
        return tuple(found["chosen"])
    tried = [(values, *trial(values)) for values in candidates]
    tried.sort(key=lambda each: -each[1])
    document = {
        "model": entry.label,
        "axes": list(axes),
        "chosen": tried[0][0],
        "tried": [
            {"values": values, "validation_auc": validation, "seconds": seconds}
            for values, validation, seconds in tried
        ],
        "asked": asked,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, json.dumps(document, indent=1) + "\n", durable=False)
    return tried[0][0]


def chosen(
    data: Data, entry: Entry, path: Path, trials: int, epochs: int, batch_size: int
) -> Values:
    """The best trial's values for an entry, of the same settings, defaults included, and data."""
    candidates = trials_of(entry.model, trials)
    specs = {values: spec_of(entry, values, epochs, batch_size) for values in candidates}

    def trial(values: Values) -> tuple[float, float]:
        spec = specs[values]
        _, report = train(data.tensors, spec, SEARCH_SEED)
        validation = max(report.validation)
        console.print(
            f"  {spec.model} {dict(spec.settings)} lr {spec.loop.learning_rate:g} l2 {spec.l2:g} "
            f"init {spec.options.init_std:g}: validation {validation:.5f} in "
            f"{report.seconds:.0f} s ({report.best_epoch} epochs)"
        )
        return validation, report.seconds

    documents = [spec.document() for spec in specs.values()]
    asked = {"data": data.identity, "seed": SEARCH_SEED, "specs": documents}
    return searched(path, entry, axes_of(entry.model), asked, candidates, trial)


def chosen_strength(data: Data, entry: Entry, path: Path, trials: int) -> float:
    """As `chosen`, of the one-hot regression and its STRENGTHS."""
    rows, table = data.tensors.rows("valid"), data.tensors.table

    def trial(values: Values) -> tuple[float, float]:
        started = time.perf_counter()
        scores = one_hot_scores(table, rows, values[0])
        validation = mean_auc(table.labels[rows], table.known[rows], scores)
        return validation, time.perf_counter() - started

    asked = {"data": data.identity, "strengths": STRENGTHS[:trials]}
    candidates = [(strength,) for strength in STRENGTHS[:trials]]
    return float(searched(path, entry, ("strength",), asked, candidates, trial)[0])


@dataclass(frozen=True)
class Row:
    """A row of a table to be measured: `settings` holds all that its result depends on."""

    table: str
    benchmark: Benchmark
    entry: Entry
    settings: dict[str, Any]
    trials: int

    def saved(self, folder: Path, seeds: Sequence[int]) -> ModelResult | None:
        """The result in `folder` if it was measured so; another one is none."""
        path = folder / slug(self.table) / f"{slug(self.entry.label)}.json"
        if not path.is_file():
            return None
        found = ModelResult.load(path)
        same = found.settings == plain(self.settings) and found.seeds == tuple(seeds)
        return found if same else None

    def result(
        self, data: Data, seeds: Sequence[int], found: Sequence[Figures],
        seconds: Sequence[float], notes: str = "", **costs: Any,
    ) -> ModelResult:  # fmt: skip
        """The evaluations of the seeds as a result, without a latency."""
        none: dict[str, Any] = {"parameters": 0, "dense_parameters": 0, "flops_per_row": None}
        return ModelResult(
            table=self.table,
            data=self.benchmark.data,
            protocol=f"{self.benchmark.protocol}; {data.note}; {self.trials} settings tried per "
            f"model on validation; embeddings of {WIDTH} numbers unless a name says otherwise",
            model=self.entry.label,
            settings=self.settings,
            seeds=tuple(seeds),
            **by_seed(found),
            latency_ms=None,
            train_seconds=tuple(seconds),
            machine=machine_line(),
            command=_command(sys.orig_argv),
            notes=notes,
            family=self.entry.family,
            references=self.benchmark.references_of(self.entry),
            **none | costs,
        )


def _command(words: Sequence[str]) -> str:
    """The command as anybody could give it: no path of this machine."""
    shown = ["python", *words[1:]]
    for option, name in (("--data-dir", "DATA"), ("--output", "RESULTS")):
        shown = [name if before == option else word
                 for before, word in zip(["", *shown], shown, strict=False)]  # fmt: skip
    return " ".join(shown)


def measure(data: Data, row: Row, spec: RankerSpec, seeds: Sequence[int]) -> ModelResult:
    """Train and test once per seed."""
    found, seconds = [], []
    for seed in seeds:
        model, report = train(data.tensors, spec, seed)
        found.append(evaluate(model, data.tensors))
        seconds.append(report.seconds)
    batch = data.tensors.batch(np.arange(LATENCY_ROWS))
    return row.result(
        data, seeds, found, seconds,
        parameters=model.num_parameters(),
        dense_parameters=model.num_dense_parameters(),
        flops_per_row=flops_per_row(model, batch, rows=LATENCY_ROWS),
    )  # fmt: skip


def measure_one_hot(data: Data, row: Row, strength: float) -> ModelResult:
    """The convex regression: it has one solution, hence one seed."""
    started = time.perf_counter()
    table, rows = data.tensors.table, data.tensors.rows("test")
    found = evaluation_of(table, rows, one_hot_scores(table, rows, strength))
    columns, tasks = sum(f.vocabulary - 1 for f in table.fields), len(table.tasks)
    return row.result(
        data, (0,), [found], (time.perf_counter() - started,),
        "one-hot categorical fields alone: neither bags, numbers nor histories",
        parameters=(columns + 1) * tasks, dense_parameters=tasks,
    )  # fmt: skip


def oracle(data: Data, table: str, benchmark: Benchmark, trials: int) -> ModelResult:
    """What the true probabilities reach: no model can do better but by chance."""
    assert data.oracle is not None
    rows = data.tensors.rows("test")
    found = evaluation_of(data.tensors.table, rows, data.oracle[rows])
    row = Row(table, benchmark, Entry(ORACLE, ""), _basis(data) | {"deterministic": True}, trials)
    notes = "the probabilities that the labels were drawn with"
    return row.result(data, (0,), [found], (0.0,), notes)


def _basis(data: Data) -> dict[str, Any]:
    """The data in a result's settings; tables are refused whose rows differ in `digests`."""
    return {"data": data.identity, "digests": data.digests}


def note_on(entry: Entry, spec: RankerSpec) -> str:
    """What a reader of an entry's row must know of its settings."""
    differs = departures(entry.model, spec.document()["settings"], entry.settings)
    own = [name for name in axes_of(entry.model) if name in entry.settings]
    fixed = [f"{name} {entry.settings[name]} whatever the search chose" for name in own]
    return "; ".join(part for part in (differs, *fixed) if part)


def with_latencies(
    data: Data, results: Sequence[tuple[ModelResult, RankerSpec, str]]
) -> list[ModelResult]:
    """The results with the time that each model needs for LATENCY_ROWS rows, measured in turn.

    Weights do not matter for it: models are built anew. Each comes with a note on its row.
    """
    batch = data.tensors.batch(np.arange(min(LATENCY_ROWS, len(data.tensors.table))))
    calls = {}
    for result, spec, _ in results:
        model = build(data.tensors.schema, spec, SEARCH_SEED).eval()
        calls[result.model] = partial(model.score, batch)
    found = latencies_ms(calls, LATENCY_CALLS)
    measured = (
        f"latency of {len(batch.rows.ids)} rows, the median of {LATENCY_CALLS} calls in turn "
        f"with {len(calls) - 1} other models"
    )
    return [
        replace(r, latency_ms=found[r.model], notes="; ".join(n for n in (note, measured) if n))
        for r, _, note in results
    ]


def labels_of(tables: Sequence[str]) -> set[str]:
    """Labels of the rows of these tables."""
    found = {e.label for name in tables for e in BENCHMARKS[name].entries}
    return found | {ORACLE}


@dataclass(frozen=True)
class Plan:
    """How the rows of a table are searched, trained and saved."""

    output: Path
    seeds: Sequence[int]
    trials: int
    epochs: int
    batch_size: int

    def run(self, data: Data, name: str, wanted: Sequence[str]) -> None:
        """The rows of a table with these labels (all if none), then the latencies of them."""
        benchmark = BENCHMARKS[name]
        if benchmark.several_seeds and len(self.seeds) == 1 and not wanted:
            console.print(f"{name}: left out, its differences need more than one seed")
            return
        if data.oracle is not None and (ORACLE in wanted or not (wanted or benchmark.searched_in)):
            oracle(data, name, benchmark, self.trials).save(self.output)
        measured = []
        for entry in benchmark.entries:
            if wanted and entry.label not in wanted:
                continue
            result, spec = self._row(data, name, benchmark, entry)
            if spec is not None:
                measured.append((result, spec, note_on(entry, spec)))
            figures = ", ".join(
                f"{metric} {sum(v) / len(v):.4f} ({min(v):.4f} to {max(v):.4f})"
                for metric, v in result.metrics.items()
                if metric.endswith((" auc", " gauc"))
            )
            console.print(f"{name}: {entry.label}: {figures}; {sum(result.train_seconds):.0f} s")
        for result in with_latencies(data, measured) if measured else ():
            result.save(self.output)

    def _row(
        self, data: Data, name: str, benchmark: Benchmark, entry: Entry
    ) -> tuple[ModelResult, RankerSpec | None]:
        """A result as saved earlier or measured now; the spec of those with a network."""
        home = benchmark.searched_in or name
        origin = next((e for e in BENCHMARKS[home].entries if e.label == entry.searched), entry)
        path = self.output / slug(home) / "search" / f"{slug(origin.label)}.json"
        if entry.model == ONE_HOT:
            strength = chosen_strength(data, entry, path, self.trials)
            settings = {"C": strength, "searched": STRENGTHS[: self.trials], "deterministic": True}
            settings |= _basis(data)
            row = Row(name, benchmark, entry, settings, self.trials)
            found = row.saved(self.output, (0,)) or measure_one_hot(data, row, strength)
            found.save(self.output)
            return found, None
        best = chosen(data, origin, path, self.trials, self.epochs, self.batch_size)
        spec = spec_of(entry, best, self.epochs, self.batch_size)
        searched = trials_of(entry.model, self.trials)
        settings = spec.document() | {"searched": searched} | _basis(data)
        row = Row(name, benchmark, entry, settings, self.trials)
        result = row.saved(self.output, self.seeds)
        if result is None:
            result = measure(data, row, spec, self.seeds)
            result.save(self.output)
        return result, spec


def main(
    tables: Annotated[list[str] | None, typer.Argument(help=", ".join(BENCHMARKS))] = None,
    data_dir: Annotated[Path | None, typer.Option(help="folder of the data sets' folders")] = None,
    models: Annotated[str, typer.Option(help="labels, comma separated; all by default")] = "",
    seeds: Annotated[int, typer.Option(help="trainings per model", min=1)] = SEEDS,
    trials: Annotated[
        int, typer.Option(help="settings tried per model, the same for all", min=1, max=8)
    ] = 6,
    train_rows: Annotated[int, typer.Option(help="newest training rows, 0: all", min=0)] = 0,
    output: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    names = tables or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            raise typer.BadParameter(f"no table {name!r}: choose of {', '.join(BENCHMARKS)}")
    wanted = [w.strip() for w in models.split(",") if w.strip()]
    if unknown := sorted(set(wanted) - labels_of(names)):
        raise typer.BadParameter(
            f"no model {', '.join(map(repr, unknown))} in {', '.join(names)}: "
            f"choose of {', '.join(sorted(labels_of(names)))}"
        )
    torch.set_num_threads(1)
    plan = Plan(output, range(1, seeds + 1), trials, EPOCHS, BATCH_SIZE)
    loaded: dict[str, Data] = {}
    for name in names:
        source = BENCHMARKS[name].data
        if source not in loaded:
            loaded[source] = load(source, data_dir, train_rows)
        plan.run(loaded[source], name, wanted)


if __name__ == "__main__":
    typer.run(main)
