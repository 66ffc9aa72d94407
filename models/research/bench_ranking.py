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
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.research.ranking_settings import AXES, STRENGTHS, Values, axes_of, departures, trials_of

if TYPE_CHECKING:
    import numpy as np

    from models.data.tables import FieldTable
    from models.training.results import ModelResult
    from models.training.tables import Evaluation, RankerSpec, TableTensors

RESULTS = Path("run/bench/models")
SEEDS = 3
SEARCH_SEED = 0
LATENCY_ROWS = 256

LINEAR_RATE = 5.0  # times the learning rate: one layer of weights that start near zero
NO_DROPOUT = {"logistic_regression", "fm"}

# Numbers per embedding, the same for every model of a table; the linear term has one per task.
WIDTH = 16
EMBEDDINGS: dict[str, dict[str, int]] = {
    "logistic_regression": {},
    "mlcc": {"channels": 4, "channel_width": WIDTH // 4},
}
ONE_HOT = "scikit-learn"  # in place of a network's name
ORACLE = "Oracle"
LATENCY_CALLS = 50


@dataclass(frozen=True)
class Entry:
    """One row of a table of results; entries of the same `searched` share one search."""

    label: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    searched: str = ""  # label of the entry whose search is used; empty: its own
    family: str = ""
    against: str = ""  # label that an entry of a family is compared with; empty: the family's first


BASELINES = (
    Entry("LR", "logistic_regression"),
    Entry("LR (scikit-learn)", ONE_HOT),
    Entry("FM", "fm"),
    Entry("DeepFM", "deepfm"),
    Entry("DCN-V2", "dcn_v2"),
    Entry("MMoE", "mmoe"),
    Entry("DNN", "dnn"),
    Entry("DIN", "din"),
)
OURS = (
    Entry("MaskNet", "masknet"),
    Entry("MC-MLCC", "mlcc"),
    Entry("INFNet", "infnet"),
)
REFERENCES = ("DeepFM", "DCN-V2", "LR", "MMoE")  # what our models are compared with


Switches = dict[str, dict[str, Any]]


def _variants(
    family: str,
    model: str,
    variants: Switches,
    base: dict[str, Any] | None = None,
    against: str = "",
) -> tuple[Entry, ...]:
    """Entries of a family by the end of their labels; `base` are settings of them all."""
    return tuple(
        Entry(f"{family} {name}", model, {**(base or {}), **settings}, family, family, against)
        for name, settings in variants.items()
    )


# The paper's MaskNet has both layer norms, whatever the search has chosen for the embeddings.
_NORMED = {"emb_norm": "field"}
_MASKNET_LESS: Switches = {
    "without mask": {"masked": False},
    "without LN": {"emb_norm": "off", "hidden_norm": False},
    "without FFN": {"feed_forward": False},
}
ABLATIONS = (
    *_variants(
        "MaskNet", "masknet",
        {"full": {}, **_MASKNET_LESS, "without embedding LN": {"emb_norm": "off"},
         "serial": {"variant": "serial"}},
        _NORMED,
    ),
    *_variants(
        "MaskNet", "masknet", {f"serial {name}": less for name, less in _MASKNET_LESS.items()},
        _NORMED | {"variant": "serial"}, "MaskNet serial",
    ),
    *_variants(
        "MC-MLCC", "mlcc",
        {**{f"S={s}": {"channels": s, "channel_width": 16} for s in (1, 2, 3, 4)},
         "S=1 E=64": {"channels": 1, "channel_width": 64},
         "S=4 E=4": {"channels": 4, "channel_width": 4}},
    ),
    *_variants(
        "INFNet", "infnet",
        {"full": {}, "without task tokens": {"task_tokens": False},
         "without PGU": {"gated": False}, "without cross attention": {"attention": "mean"},
         "literal": {"residual": False}, "with field vectors": {"field_tokens": "embedding"}},
    ),
)  # fmt: skip

# Section 4.9 gives these for the serial form too; here only the form that the tables show.
MASKNET_SIZES = _variants(
    "MaskNet",
    "masknet",
    {
        "full": {},
        **{f"r={r}": {"reduction": float(r)} for r in (2, 3, 4, 5)},
        **{f"blocks={n}": {"blocks": n} for n in (1, 5, 7, 9)},
        **{f"k={k}": {"width": k} for k in (10, 20, 30, 50, 80)},
    },
    _NORMED,
)


@dataclass(frozen=True)
class Benchmark:
    """Models compared with each other on one split of one data set."""

    data: str
    protocol: str
    entries: tuple[Entry, ...]
    searched_in: str = ""  # table whose searches are used; empty: its own
    several_seeds: bool = False  # of no use with one

    def references(self, entry: Entry) -> tuple[str, ...]:
        """Labels that an entry is compared with: of a family, its first."""
        if entry.against:
            return (entry.against,)
        if entry.family:
            return (next(e.label for e in self.entries if e.family == entry.family),)
        return tuple(r for r in (REFERENCES if entry in OURS else ("DCN-V2",)) if r != entry.label)


BENCHMARKS = {
    "ml-1m-time-split": Benchmark(
        "ml-1m",
        "rating >= 3 (click) and, where known, >= 4 (like); split by time 72/8/20",
        (*BASELINES, *OURS),
    ),
    "simulator-ranking": Benchmark(
        "simulator",
        "impressions with click, like, long view; split by time 72/8/20",
        (*BASELINES, *OURS),
    ),
    "simulator-ablations": Benchmark(
        "simulator",
        "as simulator-ranking, the settings found there for the full model",
        ABLATIONS,
        "simulator-ranking",
    ),
    # The paper's differences here are of the size of .0005: one seed says nothing about them, so
    # the small run of `make bench-models`, which has one, is spared their minutes.
    "simulator-masknet-sizes": Benchmark(
        "simulator",
        "as simulator-ranking, the settings found there; one size of the full MaskNet changed, "
        "which has r=1, 3 blocks and k=16 numbers per embedding",
        MASKNET_SIZES,
        "simulator-ranking",
        several_seeds=True,
    ),
}
USERS = 2000  # of the simulator


def spec_of(entry: Entry, values: Values, epochs: int, batch_size: int) -> RankerSpec:
    """The training of an entry with the values of one of its model's trials."""
    from models.layers.embedding_tables import EmbeddingOptions
    from models.training.loop import LoopConfig
    from models.training.tables import RankerSpec

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


def load(name: str, data_dir: Path | None, train_rows: int, history: int, impressions: int) -> Data:
    """The data set `name` with the newest `train_rows` (0: all) of its training part."""
    from models.data import simulator
    from models.data.readers import movielens_1m

    probabilities = None
    if name == "simulator":
        simulated = simulator.table(simulator.build_world(), impressions, USERS)
        table, probabilities = simulated.table, simulated.probabilities
    else:
        if data_dir is None:
            raise typer.BadParameter(f"{name} is read from files: name their folder: --data-dir")
        table = movielens_1m.read(data_dir / name, "time")
    return prepare(table, probabilities, train_rows, history)


def prepare(
    table: FieldTable, probabilities: np.ndarray | None, train_rows: int, history: int
) -> Data:
    """The newest `train_rows` (0: all) of the training part; ids outside them become unknown."""
    import numpy as np

    from models.data.tables import SPLITS
    from models.training.tables import TableTensors, digest, without_unseen

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


def chosen(
    data: Data, entry: Entry, path: Path, trials: int, epochs: int, batch_size: int
) -> Values:
    """The best trial's values for an entry: as an earlier search at `path` found, or a new one.

    An earlier one is taken if it tried the same settings, defaults included, on the same data.
    """
    from models.research.figures import console
    from models.training.tables import search

    combinations = trials_of(entry.model, trials)
    specs = [spec_of(entry, values, epochs, batch_size) for values in combinations]
    asked = {"data": data.identity, "seed": SEARCH_SEED, "specs": [s.document() for s in specs]}
    if (best := _searched(path, asked)) is not None:
        return best
    results = search(data.tensors, specs, SEARCH_SEED, console)
    places = {id(spec): values for spec, values in zip(specs, combinations, strict=True)}
    tried = [(places[id(r.spec)], r.validation, r.seconds) for r in results]
    _keep_search(path, entry, axes_of(entry.model), asked, tried)
    return tried[0][0]


def chosen_strength(data: Data, entry: Entry, path: Path, trials: int) -> float:
    """As `chosen`, of the one-hot regression and its STRENGTHS."""
    from models.training.tables import mean_auc

    asked = {"data": data.identity, "strengths": STRENGTHS[:trials]}
    if (best := _searched(path, asked)) is not None:
        return best[0]
    rows, table = data.tensors.rows("valid"), data.tensors.table
    tried = []
    for strength in STRENGTHS[:trials]:
        started = time.perf_counter()
        scores = _one_hot(data, rows, strength)
        validation = mean_auc(table.labels[rows], table.known[rows], scores)
        tried.append(((strength,), validation, time.perf_counter() - started))
    tried.sort(key=lambda each: -each[1])
    _keep_search(path, entry, ("strength",), asked, tried)
    return tried[0][0][0]


def _one_hot(data: Data, rows: np.ndarray, strength: float) -> np.ndarray:
    from models.training.tables import one_hot_scores

    table = data.tensors.table
    names = [f.name for f in table.fields]
    return one_hot_scores(table, names, rows, strength, "newton-cg", 1e-5)


def _searched(path: Path, asked: dict[str, Any]) -> Values | None:
    """What the search at `path` chose, if it was asked the same."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    return tuple(found["chosen"]) if found.get("asked") == plain(asked) else None


def _keep_search(
    path: Path, entry: Entry, axes: Sequence[str], asked: dict[str, Any],
    tried: Sequence[tuple[Values, float, float]],
) -> None:  # fmt: skip
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
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    scratch.replace(path)


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
        from models.training.results import ModelResult, slug

        path = folder / slug(self.table) / f"{slug(self.entry.label)}.json"
        if not path.is_file():
            return None
        found = ModelResult.load(path)
        same = found.settings == plain(self.settings) and found.seeds == tuple(seeds)
        return found if same else None

    def result(
        self, data: Data, seeds: Sequence[int], found: Sequence[Evaluation],
        seconds: Sequence[float], parameters: tuple[int, int], flops: float | None = None,
        notes: str = "",
    ) -> ModelResult:  # fmt: skip
        """The evaluations of the seeds as a result, without a latency."""
        from models.training.results import ModelResult

        return ModelResult(
            self.table,
            self.benchmark.data,
            f"{self.benchmark.protocol}; {data.note}; {self.trials} settings tried per model on "
            f"validation; embeddings of {WIDTH} numbers unless a name says otherwise",
            self.entry.label,
            self.settings,
            tuple(seeds),
            {name: tuple(e.metrics[name] for e in found) for name in found[0].metrics},
            {name: [e.per_user[name] for e in found] for name in found[0].per_user},
            *parameters,
            flops,
            None,
            tuple(seconds),
            _machine(),
            _command(sys.orig_argv),
            notes,
            self.entry.family,
            references=self.benchmark.references(self.entry),
        )


def measure(data: Data, row: Row, spec: RankerSpec, seeds: Sequence[int]) -> ModelResult:
    """Train and test once per seed."""
    import numpy as np

    from models.training.results import flops_per_row
    from models.training.tables import evaluate, train

    found: list[Evaluation] = []
    seconds = []
    for seed in seeds:
        trained = train(data.tensors, spec, seed)
        found.append(evaluate(trained.model, data.tensors))
        seconds.append(trained.report.seconds)
    model = trained.model
    flops = flops_per_row(model, data.tensors.batch(np.arange(LATENCY_ROWS)), rows=LATENCY_ROWS)
    parameters = (model.num_parameters(), model.num_dense_parameters())
    return row.result(data, seeds, found, seconds, parameters, flops)


def measure_one_hot(data: Data, row: Row, strength: float) -> ModelResult:
    """The convex regression: it has one solution, hence one seed."""
    from models.training.tables import evaluation_of

    started = time.perf_counter()
    table, rows = data.tensors.table, data.tensors.rows("test")
    scores = _one_hot(data, rows, strength)
    columns = sum(f.vocabulary - 1 for f in table.fields)
    size, tasks = (columns + 1) * len(table.tasks), len(table.tasks)
    notes = "one-hot categorical fields alone: neither bags, numbers nor histories"
    found = evaluation_of(table, rows, scores)
    seconds = time.perf_counter() - started
    return row.result(data, (0,), [found], (seconds,), (size, tasks), None, notes)


def oracle(data: Data, table: str, benchmark: Benchmark, trials: int) -> ModelResult:
    """What the true probabilities reach: no model can do better but by chance."""
    from models.training.tables import evaluation_of

    assert data.oracle is not None
    rows = data.tensors.rows("test")
    found = evaluation_of(data.tensors.table, rows, data.oracle[rows])
    row = Row(table, benchmark, Entry(ORACLE, ""), _basis(data) | {"deterministic": True}, trials)
    notes = "the probabilities that the labels were drawn with"
    return row.result(data, (0,), [found], (0.0,), (0, 0), None, notes)


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
    import numpy as np

    from models.training.results import latencies_ms
    from models.training.tables import build

    batch = data.tensors.batch(np.arange(min(LATENCY_ROWS, len(data.tensors.table))))
    calls = {}
    for result, spec, _ in results:
        model = build(data.tensors.schema, spec, SEARCH_SEED).eval()
        calls[result.model] = lambda model=model: model.score(batch)
    found = latencies_ms(calls, LATENCY_CALLS)
    measured = (
        f"latency of {len(batch.categorical)} rows, the median of {LATENCY_CALLS} calls in turn "
        f"with {len(calls) - 1} other models"
    )
    return [
        replace(r, latency_ms=found[r.model], notes="; ".join(n for n in (note, measured) if n))
        for r, _, note in results
    ]


def _command(words: Sequence[str]) -> str:
    """The command as anybody could give it: no path of this machine."""
    shown = ["python", *words[1:]]
    for option, name in (("--data-dir", "DATA"), ("--output", "RESULTS")):
        shown = [name if before == option else word
                 for before, word in zip(["", *shown], shown, strict=False)]  # fmt: skip
    return " ".join(shown)


def _machine() -> str:
    from models.research.figures import machine

    facts = machine()
    return f"{facts['cpu']}, {facts['cores']} cores, load {facts['load_average'][0]}"


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
        from models.research.figures import console

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
        from models.training.results import slug

        origin = next((e for e in (*OURS, *BASELINES) if e.label == entry.searched), entry)
        place = self.output / slug(benchmark.searched_in or name) / "search"
        path = place / f"{slug(origin.label)}.json"
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
    history: Annotated[int, typer.Option(help="newest items of each history", min=1)] = 20,
    impressions: Annotated[int, typer.Option(help="of the simulator")] = 100_000,
    epochs: int = 8,
    batch_size: int = 512,
    output: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
    threads: int = 1,
) -> None:
    import torch

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
    torch.set_num_threads(threads)
    plan = Plan(output, range(1, seeds + 1), trials, epochs, batch_size)
    loaded: dict[str, Data] = {}
    for name in names:
        source = BENCHMARKS[name].data
        if source not in loaded:
            loaded[source] = load(source, data_dir, train_rows, history, impressions)
        plan.run(loaded[source], name, wanted)


if __name__ == "__main__":
    typer.run(main)
