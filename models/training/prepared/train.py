"""Trains any model on data that `tandem data prepare` made: measured and saved, not served.

The best weights by validation are measured once on the test part, beside baselines with their
default settings: popularity, Markov, ItemKNN and EASE for retrieval, one-hot logistic regression
for ranking.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from models import registry
from models.training import distributed
from models.training.checkpoint import Checkpointing
from models.training.loop import LoopReport
from models.training.pipeline import Means
from models.training.prepared import sequence_evaluation, sequences, tables
from models.training.prepared.measure import (
    ONE_HOT,
    counting_scorers,
    one_hot,
    ranking_figures,
    timed,
    with_units,
)
from models.training.prepared.saved import TRAINED, save, vacant
from models.training.prepared.settings import ranker_spec, sequence_settings
from models.training.prepared.show import rounds, say, show_ranking, show_retrieval, speed
from models.training.prepared.source import Source, read_split, read_table
from models.training.prepared.tables import TableTensors
from models.training.results import ModelResult, by_seed, flops_per_row, parameter_counts

ROWS = 64  # that floating-point operations are counted on


def train_ranking(
    source: Source, name: str, pairs: Sequence[str], seed: int, out: Path | None, means: Means
) -> list[ModelResult]:
    """Train, measure, show and save a ranking model; the results of it and of the baseline."""
    spec, history = ranker_spec(name, pairs)
    out = vacant(out or TRAINED / source.name / f"{name}-{seed}")
    torch.set_num_threads(means.threads)
    table = read_table(source)
    model = registry.checked(
        tables.build, {"schema": tables.schema_of(table), "spec": spec, "seed": seed}
    )
    checkpoint = _checkpoint(means, name, source, "table", {**spec.document(), "history": history})
    data = TableTensors(table, means.device, history)
    if means.workers == 1:
        model, report = tables.train(data, spec, seed, means.console, checkpoint)
    else:
        say(means.console, f"{name}: training in {means.workers} workers of Ray Train")
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
    batch = data.batch(rows[:ROWS])
    own = ModelResult(
        table=f"{source.name}-ranking",
        data=source.name,
        protocol="the table's own parts; best validation, test once",
        model=name,
        settings=spec.document() | {"history_items": history},
        seeds=(seed,),
        **by_seed([ranking_figures(table, rows, tables.predict(model, data, rows))]),
        parameters=model.num_parameters(),
        dense_parameters=model.num_dense_parameters(),
        flops_per_row=flops_per_row(model, batch, rows=len(rows[:ROWS])),
        latency_ms=None,
        train_seconds=(report.seconds,),
        machine=_machine(means),
        command=_command(),
        notes=rounds(report),
        references=(ONE_HOT,),
        unit="test user" if with_units(table) is table else "block of test rows",
    )
    say(means.console, speed(name, report))
    say(means.console, f"{ONE_HOT}: fitting on {', '.join(f.name for f in table.fields)}")
    (scores, note), seconds = timed(lambda: one_hot(table, rows))
    weights_count = sum(f.vocabulary - 1 for f in table.fields)
    plain = own.beside(
        ONE_HOT,
        ranking_figures(table, rows, scores),
        seconds,
        settings={"strength": 1.0, "fields": [f.name for f in table.fields]},
        parameters=(weights_count + 1) * len(table.tasks),
        dense_parameters=len(table.tasks),
        notes=note,
    )
    config = {
        "model": name,
        "part": "ranking",
        "ranker": spec.document(),
        "schema": asdict(data.schema),
        "standardisation": {"mean": data.mean.tolist(), "scale": data.scale.tolist()},
        "history_items": history,
        **_origin(source, "table", seed, report),
    }
    results = [own, plain]
    if means.console is not None:
        show_ranking(results, table.tasks, means.console)
    save(out, model, config, results)
    _say_where(out, source, means.console)
    return results


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
    out = vacant(out or TRAINED / source.name / f"{name}-{seed}")
    torch.set_num_threads(means.threads)
    split = read_split(source, protocol)
    model = registry.checked(
        sequences.build_model, {"name": name, "sequences": split.sequences, "seed": seed, **own}
    ).to(means.device)
    identity = {
        "parameters": model.config(),
        "reads": model.reads.document(),
        "protocol": protocol,
        "training": asdict(training),
    }
    checkpoint = _checkpoint(means, name, source, "sequences", identity)
    report = sequences.train(model, split, training, means.console, checkpoint)
    say(means.console, speed(name, report))
    history = sequences.model_history(model)
    counting, left_out = counting_scorers(split)
    if left_out:
        say(means.console, left_out)
    users = sequence_evaluation.case_batch(split.sequences, split.test.take(slice(ROWS)), history)
    parameters, dense = parameter_counts(model)
    scorer = sequence_evaluation.model_scorer(model, split.sequences, history)
    results = [
        ModelResult(
            table=f"{source.name}-{protocol}",
            data=source.name,
            protocol=protocol,
            model=name,
            settings=own | {"training": asdict(training)},
            seeds=(seed,),
            **by_seed([sequence_evaluation.evaluate(split, split.test, scorer).figures]),
            parameters=parameters,
            dense_parameters=dense,
            flops_per_row=flops_per_row(model.encode_users, users, rows=len(users)),
            latency_ms=None,
            train_seconds=(report.seconds,),
            machine=_machine(means),
            command=_command(),
            notes="; ".join(filter(None, (rounds(report), left_out))),
            references=("markov",),
            primary="recall@50" if protocol == "user-split" else "ndcg@10",
        )
    ]
    for counted, fit in counting.items():
        scorer, seconds = timed(fit)
        found = sequence_evaluation.evaluate(split, split.test, scorer).figures
        results.append(results[0].beside(counted, found, seconds))
    config = {
        "model": name,
        "part": "retrieval",
        **identity,
        **_origin(source, "sequences", seed, report),
    }
    if means.console is not None:
        show_retrieval(results, means.console)
    save(out, model, config, results, split.sequences.item_ids)
    _say_where(out, source, means.console)
    return results


def _say_where(out: Path, source: Source, console: Console | None) -> None:
    say(console, f"saved {out}")
    say(
        console,
        f"Not servable: its inputs are those of a benchmark on {source.name}; `tandem train` on a"
        " folder with a schema.yaml publishes models to serve (docs/own-data.md).",
    )


def _checkpoint(
    means: Means, name: str, source: Source, part: str, identity: Mapping[str, Any]
) -> Checkpointing | None:
    if means.checkpoint is None:
        return None
    means.checkpoint.claim([name])
    return means.checkpoint.phase(name, part, {**identity, "data": source.identity(part)})


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
