"""Trains any model on data that `tandem data prepare` made: measured and saved, not served.

A ranking model learns from a data set's table, a retrieval model from its sequences; the simulator
generates either. The best weights by validation are measured once on the test part, beside
baselines with their default settings: popularity, Markov, ItemKNN and EASE for retrieval, one-hot
logistic regression for ranking. What is saved:

    OUT/weights.safetensors, config.json    the model: `load` builds it again
    OUT/items.npy                           retrieval: the id of item row r at place r - 1
    OUT/results/TABLE/MODEL.json, .npz      what was measured (`models/training/results.py`)

The folder appears complete or not at all. Services cannot load it: its features are the data
set's, not those of the serving schema (`models/schema.py`).

Settings are "key=value"; "world.KEY=VALUE" is a knob of the simulator (`with_world`).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from models import registry
from models.data import simulator
from models.data.datasets import DATA_SETS, load_sequences
from models.data.errors import DataError
from models.data.sequences import Sequences, Split, last_fifth, leave_one_out, user_split
from models.data.tables import MANIFEST, SPLITS, FieldTable, file_checksum
from models.layers.embedding_tables import (
    Bag,
    CategoricalField,
    EmbeddingOptions,
    FeatureSchema,
    History,
)
from models.ranking.table_model import TableRanker
from models.ranking.table_networks import NETWORKS
from models.training import bootstrap, distributed, sequence_evaluation, sequences, tables
from models.training.loop import LoopConfig, LoopReport
from models.training.pipeline import Means
from models.training.results import ModelResult, flops_per_row, parameter_counts
from models.training.sequence_evaluation import Scorer
from models.training.sequences import SequenceTraining
from models.training.tables import RankerSpec, TableTensors

PREPARED = Path("run/data")
TRAINED = Path("run/trained")
FORMAT = 1
WEIGHTS, CONFIG, ITEMS, RESULTS = "weights.safetensors", "config.json", "items.npy", "results"
PROTOCOLS: Mapping[str, Callable[[Sequences], Split]] = {
    "user-split": user_split,
    "leave-one-out": leave_one_out,
    "last-fifth": last_fifth,
}
WORLD = "world."  # before the keys of the simulator's knobs
SHOWN = ("recall@50", "ndcg@10")
ONE_HOT = "one-hot LR"
ONE_HOT_ROWS = 2_000_000  # of the training part that the baseline is fitted on
BLOCKS = 1000  # of test rows, which the interval draws where rows have no users
EASE_ITEMS = 15_000  # largest catalogue that EASE is fitted on: 2 GB, a minute on one core
ROWS = 64  # that floating-point operations are counted on


# Finding and reading


class SequencesSize(TypedDict, total=False):
    """How many users of the simulator consume how much: `simulator.sequences`."""

    train_users: int
    valid_users: int
    test_users: int
    mean_length: int


class TableSize(TypedDict, total=False):
    """How much of the simulator's users is logged: `simulator.table`."""

    impressions: int
    users: int
    history: int
    days: int


@dataclass(frozen=True)
class Source:
    """A prepared data set, or (without a folder) the simulator with its knobs."""

    name: str
    folder: Path | None
    world: simulator.WorldConfig = field(default_factory=simulator.WorldConfig)
    size: Mapping[str, int] = field(default_factory=dict)  # of SequencesSize or TableSize

    def part(self, part: str) -> Path:
        """Folder of "table" or "sequences"; DataError where the data set has none."""
        assert self.folder is not None
        found = self.folder / part
        if not found.is_dir():
            other = "sequences" if part == "table" else "table"
            raise DataError(f"{self.folder}: {_WRONG_KIND[part].format(other)}")
        return found

    def identity(self, part: str) -> dict[str, Any]:
        """What a checkpoint of a training on it must agree with."""
        if self.folder is None:
            size = {"size": dict(self.size)} if self.size else {}
            return {"name": self.name, "world": asdict(self.world), **size}
        path = self.part(part) / (MANIFEST if part == "table" else "sequences.npz")
        if not path.is_file():
            raise DataError(f"{path}: is not there: run `tandem data prepare`")
        return {"name": self.name, "xxh3_128": file_checksum(path)}

    def generate(self, part: str) -> Any:
        """The simulator's table or sequences; SettingError where its knobs admit none."""
        make = simulator.table if part == "table" else simulator.sequences
        for key, value in self.size.items():
            if value < 1:
                raise registry.SettingError(f"setting {WORLD}{key} must be at least 1, is {value}")
        world = registry.checked(simulator.build_world, {"config": self.world})
        return registry.checked(make, {"world": world, **self.size})


_WRONG_KIND = {
    "table": "holds {} only, and a ranking model learns from a table: train a retrieval model",
    "sequences": "holds a {} only, and a retrieval model learns from sequences: train a ranking "
    "model",
}


def find(data: str, part: str, prepared: Path = PREPARED) -> Source | None:
    """The prepared data set that `data` names or whose folder it is, for models of `part`.

    None: nothing of the kind, for the serving path to read. DataError: a known data set that is not
    prepared, or of the wrong kind.
    """
    folder = Path(data)
    if _is_prepared(folder):
        return Source(folder.resolve().name, folder)
    if folder.name in ("table", "sequences") and _is_prepared(folder.parent):
        raise DataError(f"--data {data}: is a part of a prepared data set: pass {folder.parent}")
    if data not in DATA_SETS:
        return None
    known = DATA_SETS[data]
    if known.kind == "generated":
        return Source(data, None)
    if (known.table if part == "ranking" else known.sequences) is None:
        wrong = ("table", "sequences") if part == "ranking" else ("sequences", "table")
        raise DataError(f"--data {data}: {_WRONG_KIND[wrong[0]].format(wrong[1])}")
    if _is_prepared(prepared / data):
        return Source(data, prepared / data)
    source = "" if known.bundled else " --source FOLDER"
    raise DataError(
        f"--data {data}: is not in {prepared / data}: run `tandem data prepare {data}{source}`"
    )


def with_world(source: Source, part: str, pairs: Sequence[str]) -> tuple[Source, list[str]]:
    """The simulator as the texts "world.KEY=VALUE" of `pairs` set it, and the other pairs.

    Keys are those of `simulator.WorldConfig` and the sizes of what models of `part` learn from.
    SettingError for an unknown key and where the data are no simulated ones.
    """
    own = [pair.removeprefix(WORLD) for pair in pairs if pair.startswith(WORLD)]
    if own and source.folder is not None:
        raise registry.SettingError(
            f"setting {WORLD}{own[0]}: belongs to --data simulator: leave it out"
        )
    sizes = TableSize if part == "ranking" else SequencesSize
    world, size = registry.settings(own, (simulator.WorldConfig, sizes), fixed=())
    knobs = replace(source, world=simulator.WorldConfig(**world), size=size)
    return knobs, [pair for pair in pairs if not pair.startswith(WORLD)]


def _is_prepared(folder: Path) -> bool:
    return (folder / "table").is_dir() or (folder / "sequences").is_dir()


def read_table(source: Source) -> FieldTable:
    """The table; DataError unless every part of every task has both classes."""
    if source.folder is None:
        table = source.generate("table").table
    else:
        table = FieldTable.load(source.part("table")).check()
    for task, name in enumerate(table.tasks):
        for split in SPLITS:
            rows = table.rows(split)
            labels = table.labels[rows[table.known[rows, task]], task]
            if len(np.unique(labels)) < 2:
                raise DataError(
                    f"table {table.name}: task {name}: the {split} part has known rows of one class"
                    " only: use more rows or another split"
                )
    return table


def read_split(source: Source, protocol: str) -> Split:
    """The sequences, split; DataError unless every part has something to train on or to ask.

    The simulator's "user-split" has test users of the training users' interests; other protocols
    take all its users, those of shifted interests included.
    """
    if protocol not in PROTOCOLS:
        raise registry.SettingError(f"--protocol {protocol}: is not one of {', '.join(PROTOCOLS)}")
    if source.folder is None:
        simulated = source.generate("sequences")
        own = protocol == "user-split"
        split = simulated.split("iid") if own else PROTOCOLS[protocol](simulated.sequences)
    else:
        split = PROTOCOLS[protocol](load_sequences(source.part("sequences")))
    for name, count in (
        ("training", len(split.train_events())), ("validation", len(split.valid)),
        ("test", len(split.test)),
    ):  # fmt: skip
        if not count:
            raise DataError(
                f"{source.name}: the {name} part of protocol {protocol} is empty: use more users "
                "or another protocol"
            )
    return split


# Settings


@dataclass(frozen=True)
class TableSettings:
    """Settings that belong neither to a model nor to the loop."""

    l2: float = 0.0  # weight of half the sum of squares of the embeddings in the loss
    history_items: int | None = None  # the newest of each history; none: all

    def __post_init__(self) -> None:
        if self.l2 < 0:
            raise ValueError(f"l2 must not be negative, is {self.l2}")
        if self.history_items is not None and self.history_items < 1:
            raise ValueError(f"history_items must be at least 1, is {self.history_items}")


def ranker_spec(name: str, pairs: Sequence[str]) -> tuple[RankerSpec, int | None]:
    """The training of ranking model `name` with "key=value" settings, and history_items."""
    kind = registry.kind_of(name, "ranking")
    network = name if name in NETWORKS else "mlcc"  # mc_mlcc is mlcc with several channels
    own, options, rest, loop = registry.settings(
        pairs, (NETWORKS[network][0], EmbeddingOptions, TableSettings, LoopConfig), ("seed",)
    )
    settings = registry.checked(TableSettings, rest)
    spec = RankerSpec(
        network,
        {**kind.settings, **own},
        registry.checked(EmbeddingOptions, options),
        settings.l2,
        registry.checked(LoopConfig, {**vars(RankerSpec("").loop), **loop}),
    )
    return spec, settings.history_items


def sequence_settings(
    name: str, protocol: str, pairs: Sequence[str], seed: int
) -> tuple[dict[str, Any], SequenceTraining]:
    """The model's settings and the training of retrieval model `name`; pairs are "key=value"."""
    kind = registry.kind_of(name, "retrieval")
    own, given = registry.settings(
        pairs, (kind.config, SequenceTraining), (*registry.OF_DATA, "seed")
    )
    base = training_of(name, protocol)
    return own, registry.checked(SequenceTraining, {**base, **given, "seed": seed})


def training_of(name: str, protocol: str) -> dict[str, Any]:
    """How a model is trained unless told otherwise.

    Protocol A ("user-split") draws users, so that activity does not weigh. The others train on the
    very users that they test: every moment counts, and SASRec learns from all of a user at once.
    """
    if protocol == "user-split":
        return {}
    if name == "sasrec":
        return {"sampling": "sequences", "random_windows": True, "valid_metric": "ndcg@10"}
    return {"sampling": "events", "min_history": 1, "batch_size": 256, "valid_metric": "ndcg@10"}


# Training


def train_ranking(
    source: Source, name: str, pairs: Sequence[str], seed: int, out: Path | None, means: Means
) -> list[ModelResult]:
    """Train, measure, show and save a ranking model; the results of it and of the baseline."""
    spec, history = ranker_spec(name, pairs)
    out = _vacant(out or TRAINED / source.name / f"{name}-{seed}")
    torch.set_num_threads(means.threads)
    table = read_table(source)
    model = registry.checked(
        tables.build, {"schema": tables.schema_of(table), "spec": spec, "seed": seed}
    )
    checkpoint = None
    if means.checkpoint is not None:
        means.checkpoint.claim([name])
        checkpoint = means.checkpoint.phase(
            name, "table", {**model.config(), "history": history, "data": source.identity("table")}
        )
    data = TableTensors(table, means.device, history)
    if means.workers == 1:
        found = tables.train(data, spec, seed, means.console, checkpoint=checkpoint)
        model, report = found.model, found.report
    else:
        _say(means.console, f"{name}: training in {means.workers} workers of Ray Train")
        weights, fields = distributed.run(
            tables.train_in_worker,
            {"table": table, "history": history, "spec": spec, "seed": seed,
             "checkpoint": checkpoint},
            means.workers, means.device.startswith("cuda"), means.threads,
        )  # fmt: skip
        report = LoopReport.from_json(fields)
        model = model.to(means.device)
        model.load_state_dict(weights)
        model.eval()
    rows = data.rows("test")
    measured = with_units(table)
    batch = data.batch(rows[:ROWS])
    blocks = measured is not table
    common: dict[str, Any] = {
        "table": f"{source.name}-ranking",
        "data": source.name,
        "protocol": "the table's own parts; best validation, test once",
        "unit": "block of test rows" if blocks else "test user",
        "reference": ONE_HOT,
    }
    own = ModelResult(
        model=name,
        settings=spec.document() | {"history_items": history},
        seeds=(seed,),
        **figures_of(
            tables.evaluation_of(measured, rows, tables.predict(model, data, rows)), blocks
        ),
        parameters=model.num_parameters(),
        dense_parameters=model.num_dense_parameters(),
        flops_per_row=flops_per_row(model, batch, rows=len(batch.categorical)),
        latency_ms=None,
        train_seconds=(report.seconds,),
        machine=_machine(means),
        command=_command(),
        notes=_rounds(report),
        **common,
    )
    _say(means.console, _speed(name, report))
    _say(means.console, f"{ONE_HOT}: fitting on {', '.join(f.name for f in table.fields)}")
    started = time.perf_counter()
    scores, note = one_hot(table, rows)
    seconds = time.perf_counter() - started
    weights_count = sum(f.vocabulary - 1 for f in table.fields)
    plain = replace(
        own,
        model=ONE_HOT,
        settings={"strength": 1.0, "fields": [f.name for f in table.fields]},
        **figures_of(tables.evaluation_of(measured, rows, scores), blocks),
        parameters=(weights_count + 1) * len(table.tasks),
        dense_parameters=len(table.tasks),
        flops_per_row=None,
        train_seconds=(seconds,),
        notes=note,
    )
    config = {
        "model": name,
        "part": "ranking",
        "ranker": model.config(),
        "schema": asdict(data.schema),
        "standardisation": {"mean": data.mean.tolist(), "scale": data.scale.tolist()},
        "history_items": history,
        **_origin(source, "table", seed, report),
    }
    results = [own, plain]
    if means.console is not None:
        show_ranking(results, table.tasks, means.console)
    _save(out, model, config, results)
    _say_where(out, source, means.console)
    return results


def one_hot(table: FieldTable, rows: np.ndarray) -> tuple[np.ndarray, str]:
    """Probabilities float64[n, T] of one-hot logistic regression for test rows, and a note."""
    note = "one regression per task on all categorical fields"
    fitted = table.rows("train")
    if len(fitted) > ONE_HOT_ROWS:
        chosen = np.random.default_rng(0).choice(fitted, ONE_HOT_ROWS, replace=False)
        keep = np.sort(np.concatenate([chosen, rows]))
        table, rows = table.take(keep), np.searchsorted(keep, rows)
        note += f", {ONE_HOT_ROWS:,} random rows of {len(fitted):,}"
    names = [f.name for f in table.fields]
    return tables.one_hot_scores(table, names, rows, solver="newton-cg", tolerance=1e-5), note


def with_units(table: FieldTable) -> FieldTable:
    """The table; without users, blocks of rows in their place, for the interval to draw."""
    if len(np.unique(table.user[table.rows("test")])) > 1:
        return table
    return replace(table, user=(np.arange(len(table)) % BLOCKS).astype(np.int32))


def figures_of(found: tables.Evaluation, blocks: bool) -> dict[str, Any]:
    """What a result takes: metrics that are defined; AUC within users only where there are any."""
    names = [
        name
        for name, value in found.metrics.items()
        if np.isfinite(value) and not (blocks and name.endswith(("gauc", "uauc")))
    ]
    return {
        "metrics": {name: (found.metrics[name],) for name in names},
        "per_unit": {name: [found.per_user[name]] for name in names if name in found.per_user},
    }


def train_retrieval(
    source: Source,
    name: str,
    pairs: Sequence[str],
    seed: int,
    out: Path | None,
    means: Means,
    protocol: str = "user-split",
) -> list[ModelResult]:
    """Train, measure, show and save a retrieval model; its result and those of the baselines."""
    own, training = sequence_settings(name, protocol, pairs, seed)
    if means.workers > 1:
        raise registry.SettingError(
            "--workers: a training on sequences draws its examples as it goes, by one worker: "
            "leave it out"
        )
    out = _vacant(out or TRAINED / source.name / f"{name}-{seed}")
    torch.set_num_threads(means.threads)
    split = read_split(source, protocol)
    model = registry.checked(
        sequences.build_model, {"name": name, "sequences": split.sequences, "seed": seed, **own}
    ).to(means.device)
    checkpoint = None
    if means.checkpoint is not None:
        means.checkpoint.claim([name])
        identity = {
            "parameters": model.config(),
            "protocol": protocol,
            "training": asdict(training),
        }
        checkpoint = means.checkpoint.phase(
            name, "sequences", {**identity, "data": source.identity("sequences")}
        )
    report = sequences.train(model, split, training, means.console, checkpoint)
    _say(means.console, _speed(name, report))
    history = sequences.model_history(model)
    scorers: dict[str, Callable[[], Scorer]] = {
        name: lambda: sequence_evaluation.model_scorer(model, split.sequences, history)
    }
    counting, left_out = counting_scorers(split)
    scorers |= counting
    if left_out:
        _say(means.console, left_out)
    users = sequence_evaluation.case_batch(split.sequences, split.test.take(slice(ROWS)), history)
    parameters, dense = parameter_counts(model)
    results = []
    for scored, prepare in scorers.items():
        started = time.perf_counter()
        scorer = prepare()
        seconds = time.perf_counter() - started
        found = sequence_evaluation.evaluate(split, split.test, scorer)
        metrics = {k: v for k, v in found.means().items() if np.isfinite(v)}
        learned = scored == name
        results.append(
            ModelResult(
                table=f"{source.name}-{protocol}",
                data=source.name,
                protocol=protocol,
                model=scored,
                settings=own | {"training": asdict(training)} if learned else {},
                seeds=(seed,),
                metrics={k: (v,) for k, v in metrics.items()},
                per_unit={k: [v] for k, v in found.per_case.items() if k in metrics},
                parameters=parameters if learned else 0,
                dense_parameters=dense if learned else 0,
                flops_per_row=flops_per_row(model.encode_users, users, rows=len(users))
                if learned
                else None,
                latency_ms=None,
                train_seconds=(report.seconds if learned else seconds,),
                machine=_machine(means),
                command=_command(),
                notes="; ".join(filter(None, (_rounds(report), left_out))) if learned else "",
                reference="markov",
                primary="recall@50" if protocol == "user-split" else "ndcg@10",
            )
        )
    config = {
        "model": name,
        "part": "retrieval",
        "parameters": model.config(),
        "protocol": protocol,
        "training": asdict(training),
        **_origin(source, "sequences", seed, report),
    }
    if means.console is not None:
        show_retrieval(results, means.console)
    _save(out, model, config, results, split.sequences.item_ids)
    _say_where(out, source, means.console)
    return results


def counting_scorers(split: Split) -> tuple[dict[str, Callable[[], Scorer]], str]:
    """The baselines that count, by name, each fitted when it is called; and why EASE is not among
    them, empty where it is."""
    scorers: dict[str, Callable[[], Scorer]] = {
        "popularity": lambda: sequence_evaluation.popularity_scorer(split),
        "markov": lambda: sequence_evaluation.markov_scorer(split),
        "item_knn": lambda: sequence_evaluation.item_knn_scorer(split),
    }
    num_items = split.sequences.num_items
    if num_items > EASE_ITEMS:
        return scorers, (
            f"ease: left out, it inverts a dense matrix of items x items: {num_items:,} items are "
            f"more than {EASE_ITEMS:,}"
        )
    scorers["ease"] = lambda: sequence_evaluation.ease_scorer(split)
    return scorers, ""


# Showing


def show_ranking(results: Sequence[ModelResult], tasks: Sequence[str], console: Console) -> None:
    """A row per task and model, and by how much the first model differs from the second."""
    first, second = results
    title = f"{first.data}: test part (95 % interval over {first.unit}s)"
    table = Table("task", "model", "AUC", "gAUC", "log loss", title=title)
    for task in tasks:
        for result in results:
            figures = [result.metrics.get(f"{task} {m}") for m in ("gauc", "log_loss")]
            table.add_row(
                task, result.model, _interval(result, f"{task} auc"),
                *("-" if value is None else f"{value[0]:.4f}" for value in figures),
            )  # fmt: skip
    console.print(table)
    for task in tasks:
        _say(console, _difference(first, second, f"{task} auc"))


def show_retrieval(results: Sequence[ModelResult], console: Console) -> None:
    """A row per model, and by how much the first differs from the better of the others."""
    first, *others = results
    title = f"{first.data}, {first.protocol}: test part (95 % interval over {first.unit}s)"
    table = Table("model", *SHOWN, title=title)
    for result in results:
        table.add_row(result.model, *(_interval(result, m) for m in SHOWN))
    console.print(table)
    for metric in SHOWN:
        best = max(others, key=lambda r: r.metrics[metric][0])
        _say(console, _difference(first, best, metric))


def _interval(result: ModelResult, metric: str) -> str:
    return str(bootstrap.mean_interval(result.per_unit[metric][0]))


def _difference(first: ModelResult, second: ModelResult, metric: str) -> str:
    found = bootstrap.paired_interval(first.per_unit[metric], second.per_unit[metric])
    verdict = "" if found.excludes_zero else ": not told apart"
    return (
        f"{metric}: {first.model} - {second.model} = {found.mean:+.4f} "
        f"[{found.low:+.4f}, {found.high:+.4f}]{verdict}"
    )


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _say_where(out: Path, source: Source, console: Console | None) -> None:
    _say(console, f"saved {out}")
    _say(
        console,
        f"Not servable: the features are those of {source.name}, not the serving schema's; "
        "`tandem train` on ml-latest-small or a MovieLens folder publishes a servable model.",
    )


def _rounds(report: LoopReport) -> str:
    return f"best round {report.best_epoch} of {len(report.validation)}, step {report.best_step}"


def _speed(name: str, report: LoopReport) -> str:
    return (
        f"{name}: {report.steps} steps, {report.examples_per_s:,.0f} examples/s, "
        f"{_rounds(report)}, validation {max(report.validation):.4f}"
    )


# Saving


def _vacant(out: Path) -> Path:
    """`out`, unless something else than an earlier training lies there."""
    if out.exists() and not (out / CONFIG).is_file() and any(out.iterdir()):
        raise DataError(f"--out {out}: holds other files: name a new or empty folder")
    return out


def _save(
    out: Path,
    model: nn.Module,
    config: Mapping[str, Any],
    results: Sequence[ModelResult],
    item_ids: Sequence[str] = (),
) -> None:
    """Write everything as one new folder; an earlier training there is replaced."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        save_file(weights, scratch / WEIGHTS)
        document = {"format": FORMAT, **config}
        (scratch / CONFIG).write_text(json.dumps(document, indent=1) + "\n")
        if item_ids:
            np.save(scratch / ITEMS, np.array(item_ids, dtype=str), allow_pickle=False)
        for result in results:
            result.save(scratch / RESULTS)
        if out.exists():
            shutil.rmtree(out)
        scratch.chmod(0o755)  # mkdtemp makes it private
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_config(folder: Path) -> dict[str, Any]:
    """What a training says of the model that it saved; DataError if it cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: is no trained model ({error}): train it anew") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise DataError(f"{folder}: format {found}, expected {FORMAT}: train anew")
    return config


def load(folder: Path) -> Any:
    """The model that a training saved, on the CPU; DataError if it cannot be read.

    A `TableRanker`, or a retrieval model; ssl_two_tower needs `load_items` of its items besides.
    """
    config = load_config(folder)
    try:
        weights = load_file(folder / WEIGHTS)
        if config["part"] == "ranking":
            model = _ranker(config)
        else:
            model = registry.kind_of(config["model"]).build(config["parameters"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{folder}: is no trained model ({error}): train it anew") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(
            f"{folder / WEIGHTS}: is not of the model that {CONFIG} names: train it anew"
        ) from error
    return model.eval()


def _ranker(config: Mapping[str, Any]) -> nn.Module:
    schema, own = config["schema"], config["ranker"]
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in own["settings"].items()}
    return TableRanker(
        FeatureSchema(
            tuple(CategoricalField(**f) for f in schema["categorical"]),
            tuple(schema["tasks"]),
            tuple(schema["dense"]),
            tuple(Bag(**b) for b in schema["bags"]),
            tuple(History(**h) for h in schema["histories"]),
        ),
        own["model"], settings, EmbeddingOptions(**own["options"]), own["l2"],
    )  # fmt: skip


def _origin(source: Source, part: str, seed: int, report: LoopReport) -> dict[str, Any]:
    """Where a model comes from."""
    return {"data": source.identity(part), "seed": seed, "report": asdict(report)}


def _machine(means: Means) -> str:
    if means.device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(means.device))
    return (
        f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores, "
        f"{means.threads} thread(s) each in {means.workers} process(es)"
    )


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
