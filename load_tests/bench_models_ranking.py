"""Trains and measures the ranking models on real and simulated tables, and saves what they reach.

    python -m load_tests.bench_models_ranking --data-dir DATA [TABLE ...]

DATA holds the owner's files in `ml-1m/`; the simulator needs none. Every model of a table, baseline
or not, gets the same search: the same list of learning rates, embedding L2, dropout and spread of
embeddings, tried once each with another seed on a part of the training rows; the best on the
validation part is trained anew for every seed, and the test part is scored once per seed. What was
tried lies beside the results in `search/`. What is saved is not run again: the command may be
interrupted and repeated, and commands with different tables or models may run at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from models.training.results import ModelResult
    from models.training.tables import Evaluation, RankerSpec, TableTensors

RESULTS = Path("run/bench/models")
SEEDS = 3
SEARCH_SEED = 0
LATENCY_ROWS = 256

# What the search tries, in this order, the first `--trials` of it for every model: learning rate,
# L2 of embeddings, dropout, standard deviation of embeddings at the start.
AXES = ("learning_rate", "l2", "dropout", "init_std")
SETTINGS = (
    (2e-3, 1e-3, 0.0, 0.05),
    (1e-3, 1e-4, 0.2, 0.15),
    (4e-3, 1e-3, 0.2, 0.01),
    (1e-3, 1e-3, 0.2, 0.05),
    (2e-3, 1e-4, 0.0, 0.15),
    (4e-3, 1e-4, 0.2, 0.05),
    (5e-4, 1e-5, 0.2, 0.05),
    (1e-3, 1e-5, 0.0, 0.01),
)
LINEAR_RATE = 5.0  # times the learning rate: one layer of weights that start near zero
NO_DROPOUT = {"logistic_regression", "fm"}


@dataclass(frozen=True)
class Entry:
    """One row of a table of results; entries of the same `searched` share one search."""

    label: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    searched: str = ""  # label of the entry whose search is used; empty: its own
    family: str = ""


OURS = (
    Entry("MaskNet", "masknet"),
    Entry("MC-MLCC", "mlcc"),
    Entry("INFNet", "infnet"),
)
BASELINES = (
    Entry("LR", "logistic_regression"),
    Entry("FM", "fm"),
    Entry("DNN", "dnn"),
    Entry("DeepFM", "deepfm"),
    Entry("DCN-V2", "dcn_v2"),
    Entry("DIN", "din"),
    Entry("MMoE", "mmoe"),
)


def _variants(family: str, model: str, **variants: dict[str, Any]) -> tuple[Entry, ...]:
    return tuple(
        Entry(f"{family} {name.replace('_', ' ')}", model, settings, family, family)
        for name, settings in variants.items()
    )


ABLATIONS = (
    *_variants(
        "MaskNet", "masknet",
        full={}, without_mask={"masked": False},
        without_LN={"emb_norm": False, "hidden_norm": False}, serial={"variant": "serial"},
    ),
    *_variants(
        "MC-MLCC", "mlcc",
        **{f"S={s}": {"channels": s} for s in (1, 2, 3, 4)},
        **{"S=1_E=64": {"channels": 1, "channel_width": 64},
           "S=4_E=4": {"channels": 4, "channel_width": 4}},
    ),
    *_variants(
        "INFNet", "infnet",
        full={}, without_task_tokens={"task_tokens": False}, without_PGU={"gated": False},
        without_cross_attention={"attention": "mean"}, literal={"residual": False},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """Models compared with each other on one split of one data set."""

    data: str
    protocol: str
    entries: tuple[Entry, ...]
    reference: str  # label that the others are compared with; empty: the first of a family
    searched_in: str = ""  # table whose searches are used; empty: its own


BENCHMARKS = {
    "ml-1m-time-split": Benchmark(
        "ml-1m",
        "rating >= 3 (click) and, where known, >= 4 (like); split by time 72/8/20",
        (*BASELINES, *OURS),
        "DCN-V2",
    ),
    "simulator-ranking": Benchmark(
        "simulator",
        "impressions with click, like, long view; split by time 72/8/20",
        (*BASELINES, *OURS),
        "DCN-V2",
    ),
    "simulator-ablations": Benchmark(
        "simulator",
        "as simulator-ranking, the settings found there for the full model",
        ABLATIONS,
        "",
        "simulator-ranking",
    ),
}
USERS = 2000  # of the simulator


def spec_of(entry: Entry, values: Sequence[float], epochs: int, batch_size: int) -> RankerSpec:
    """The training of an entry with one of SETTINGS."""
    from models.layers.embedding_tables import EmbeddingOptions
    from models.training.loop import LoopConfig
    from models.training.tables import RankerSpec

    rate, l2, dropout, std = values
    settings = dict(entry.settings)
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


def load(name: str, data_dir: Path | None, train_rows: int, history: int, impressions: int) -> Data:
    """The data set `name` with the newest `train_rows` (0: all) of its training part."""
    import numpy as np

    from models.data import movielens_1m, simulator
    from models.training.tables import TableTensors

    oracle = None
    if name == "simulator":
        simulated = simulator.table(simulator.build_world(), impressions, USERS)
        table, oracle = simulated.table, simulated.probabilities
    else:
        if data_dir is None:
            raise typer.BadParameter(f"{name} is read from files: name their folder: --data-dir")
        table = movielens_1m.read(data_dir / name, "time")
    rows = table.rows("train")
    newest = rows[np.argsort(table.time_ms[rows], kind="stable")][-train_rows:]
    note = f"the newest {len(newest):,} of {len(rows):,} training rows, {history} history items"
    keep = np.sort(np.concatenate([newest, table.rows("valid"), table.rows("test")]))
    tensors = TableTensors(table.take(keep), history=history)
    return Data(tensors, None if oracle is None else oracle[keep], note)


def chosen(
    data: Data, entry: Entry, path: Path, trials: int, epochs: int, batch_size: int, share: float
) -> tuple[float, ...]:
    """The best of SETTINGS for an entry: as an earlier search at `path` found, or a new one."""
    from load_tests.report import console
    from models.training.tables import search

    budget = {
        "settings_tried": trials,
        "epochs": epochs,
        "batch_size": batch_size,
        "training_rows": f"the newest {share:g} of {data.note}",
    }
    if path.is_file():
        found = json.loads(path.read_text())
        if found.get("budget") == budget:
            return tuple(found["chosen"])
    combinations = SETTINGS[:trials]
    specs = [spec_of(entry, values, epochs, batch_size) for values in combinations]
    part = _share(data, share)
    results = search(part, specs, SEARCH_SEED, console)
    places = {id(spec): values for spec, values in zip(specs, combinations, strict=True)}
    best = places[id(results[0].spec)]
    document = {
        "model": entry.label,
        "budget": budget,
        "axes": list(AXES),
        "chosen": best,
        "tried": [
            {"values": places[id(r.spec)], "validation_auc": r.validation, "seconds": r.seconds}
            for r in results
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    scratch.replace(path)
    return best


def _share(data: Data, share: float) -> TableTensors:
    """The newest `share` of the training part and the whole validation part."""
    import numpy as np

    from models.training.tables import TableTensors

    table = data.tensors.table
    rows = table.rows("train")
    newest = rows[np.argsort(table.time_ms[rows], kind="stable")][-max(1, int(share * len(rows))) :]
    keep = np.sort(np.concatenate([newest, table.rows("valid")]))
    return TableTensors(table.take(keep), history=data.tensors.history)


def measure(
    data: Data, table: str, benchmark: Benchmark, entry: Entry, spec: RankerSpec,
    seeds: Sequence[int], trials: int,
) -> ModelResult:  # fmt: skip
    """Train and test once per seed."""
    import numpy as np

    from models.training.results import ModelResult, flops_per_row, latency_ms
    from models.training.tables import evaluate, train

    found: list[Evaluation] = []
    seconds = []
    for seed in seeds:
        trained = train(data.tensors, spec, seed)
        found.append(evaluate(trained.model, data.tensors))
        seconds.append(trained.report.seconds)
    model = trained.model
    batch = data.tensors.batch(np.arange(LATENCY_ROWS))
    return ModelResult(
        table,
        benchmark.data,
        f"{benchmark.protocol}; {data.note}; {trials} settings tried per model on validation",
        entry.label,
        spec.document(),
        tuple(seeds),
        {name: tuple(e.metrics[name] for e in found) for name in found[0].metrics},
        {name: [e.per_user[name] for e in found] for name in found[0].per_user},
        model.num_parameters(),
        model.num_dense_parameters(),
        flops_per_row(model, batch, rows=LATENCY_ROWS),
        latency_ms(lambda: model.score(batch)),
        tuple(seconds),
        _machine(),
        " ".join(sys.orig_argv),
        f"latency of {LATENCY_ROWS} rows on one thread",
        entry.family,
        benchmark.reference or next(e.label for e in benchmark.entries if e.family == entry.family),
    )


def oracle(data: Data, table: str, benchmark: Benchmark) -> ModelResult:
    """What the true probabilities reach: no model can do better but by chance."""
    from models.training.results import ModelResult
    from models.training.tables import evaluation_of

    assert data.oracle is not None
    rows = data.tensors.rows("test")
    found = evaluation_of(data.tensors.table, rows, data.oracle[rows])
    return ModelResult(
        table, benchmark.data, benchmark.protocol, "Oracle", {}, (0,),
        {name: (value,) for name, value in found.metrics.items()},
        {name: [values] for name, values in found.per_user.items()},
        0, 0, None, None, (0.0,), _machine(), " ".join(sys.orig_argv),
        "the probabilities that the labels were drawn with", reference=benchmark.reference,
    )  # fmt: skip


def _machine() -> str:
    from load_tests.report import machine

    facts = machine()
    return f"{facts['cpu']}, {facts['cores']} cores, load {facts['load_average'][0]}"


def main(
    tables: Annotated[list[str] | None, typer.Argument(help=", ".join(BENCHMARKS))] = None,
    data_dir: Annotated[Path | None, typer.Option(help="folder of the data sets' folders")] = None,
    models: Annotated[str, typer.Option(help="labels, comma separated; all by default")] = "",
    seeds: Annotated[int, typer.Option(help="trainings per model")] = SEEDS,
    trials: Annotated[int, typer.Option(help="settings tried per model, the same for all")] = 6,
    search_share: Annotated[float, typer.Option(help="of the training rows, in the search")] = 0.5,
    train_rows: Annotated[int, typer.Option(help="newest training rows, 0: all")] = 0,
    history: Annotated[int, typer.Option(help="newest items of each history")] = 20,
    impressions: Annotated[int, typer.Option(help="of the simulator")] = 100_000,
    epochs: int = 8,
    batch_size: int = 512,
    output: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
    threads: int = 1,
) -> None:
    import torch

    from load_tests.report import console
    from models.training.results import slug

    torch.set_num_threads(threads)
    wanted = [w.strip() for w in models.split(",") if w.strip()]
    loaded: dict[str, Data] = {}
    for name in tables or BENCHMARKS:
        if name not in BENCHMARKS:
            raise typer.BadParameter(f"no table {name!r}: choose of {', '.join(BENCHMARKS)}")
        benchmark = BENCHMARKS[name]
        entries = [e for e in benchmark.entries if not wanted or e.label in wanted]
        if benchmark.data not in loaded:
            loaded[benchmark.data] = load(
                benchmark.data, data_dir, train_rows, history, impressions
            )
        data = loaded[benchmark.data]
        if data.oracle is not None and benchmark.reference and not wanted:
            oracle(data, name, benchmark).save(output)
        for entry in entries:
            if (output / slug(name) / f"{slug(entry.label)}.json").is_file():
                console.print(f"{name}: {entry.label} is there")
                continue
            origin = next((e for e in (*OURS, *BASELINES) if e.label == entry.searched), entry)
            place = output.parent / "search" / slug(benchmark.searched_in or name)
            best = chosen(
                data, origin, place / f"{slug(origin.label)}.json",
                trials, epochs, batch_size, search_share,
            )  # fmt: skip
            spec = spec_of(entry, best, epochs, batch_size)
            result = measure(data, name, benchmark, entry, spec, range(1, seeds + 1), trials)
            result.save(output)
            figures = ", ".join(
                f"{metric} {sum(v) / len(v):.4f} ({min(v):.4f} to {max(v):.4f})"
                for metric, v in result.metrics.items()
                if metric.endswith((" auc", " gauc"))
            )
            console.print(f"{name}: {entry.label}: {figures}; {sum(result.train_seconds):.0f} s")


if __name__ == "__main__":
    typer.run(main)
