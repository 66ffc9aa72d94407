"""Train, measure, publish: everything between an event table and the served artifacts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from models import artifact, registry
from models.data.events import Dataset
from models.training import distributed, ranking, replay, retrieval
from models.training.checkpoint import CheckpointFolder
from models.training.loop import LoopConfig, LoopReport
from models.training.metrics import Estimate
from models.training.phases import build
from models.training.replay import Examples

LEAST_STEPS = 200  # of a training whose loop was not set


@dataclass(frozen=True)
class TrainReport:
    """What was measured on the test period, and what was published; empty for parts not trained."""

    recall_at_50: dict[str, Estimate]  # by model and baseline
    quality: dict[str, dict[str, float]]  # by model and measure, "click auc"
    versions: dict[str, str]  # artifact version by name
    outside_catalogue: float  # share of test events whose item was first met after the split
    seconds: float


@dataclass(frozen=True)
class Means:
    """What the trainings of one call share."""

    device: str = "cpu"
    threads: int = 1
    workers: int = 1
    checkpoint: CheckpointFolder | None = None
    console: Console | None = None


def train_all(
    artifacts_dir: Path,
    console: Console | None = None,
    *,
    dataset: Dataset,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    parts: tuple[str, ...] = ("retrieval", "ranking"),
    retrieval_loop: LoopConfig | None = None,
    ranking_loop: LoopConfig | None = None,
    retrieval_models: tuple[str, ...] = ("ssl_two_tower",),
    ranking_models: tuple[str, ...] = ("masknet",),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    baselines: Sequence[str] = ("popularity", "markov"),
    workers: int = 1,
    checkpoint: CheckpointFolder | None = None,
) -> TrainReport:
    """Train, measure and publish the models of the parts; `console` shows progress and result.

    The data are replayed once for all models. A loop
    replaces the models' own, which have more epochs where examples are few; `settings` are config
    values by model. Each model is published under its name. Sets torch's thread count for the
    process: one by default, because two threads that wait for each other on busy cores took several
    times as long per step as one (measured).
    """
    started = time.perf_counter()
    torch.set_num_threads(threads)
    means = Means(device, threads, workers, checkpoint, console)
    given = settings or {}
    if workers > 1 and "retrieval" in parts and "desmil_r" in retrieval_models:
        raise registry.SettingError(
            "desmil_r weighs the examples of a batch against each other and counts them: it is "
            "trained by one worker"
        )
    names = [
        *(retrieval_models if "retrieval" in parts else ()),
        *(ranking_models if "ranking" in parts else ()),
    ]
    configs = {
        name: _module(name).model_config(dataset.schema, dataset.items, name, **given.get(name, {}))
        for name in names
    }
    if checkpoint is not None:
        checkpoint.claim(names)
    examples = replay.replay(dataset, seed=seed)
    if "ranking" in parts:
        ranking.check_labels(dataset, examples)
    past = examples.time_ms < dataset.valid_from_ms
    before, chosen = int(past.sum()), int((past & examples.chosen).sum())
    recall: dict[str, Estimate] = {}
    quality: dict[str, dict[str, float]] = {}
    versions: dict[str, str] = {}
    if "retrieval" in parts:
        cases = retrieval.cases_of(dataset, examples, "test")
        compared = retrieval.baseline_recall(
            dataset, examples, cases, dataset.train_until_ms, baselines
        )
        for name in retrieval_models:
            loop = retrieval_loop or long_enough(retrieval.loop_of(name), chosen)
            loop = replace(loop, seed=seed)
            model, fitted = _train(name, configs[name], dataset, examples, loop, means)
            recall[name] = retrieval.model_recall(model, cases)
            measured = {k: vars(v) for k, v in {name: recall[name], **compared}.items()}
            figures: dict[str, Any] = {"recall_at_50": measured}
            versions[name] = _publish(artifacts_dir, name, model, dataset, figures, fitted)
        recall |= compared
    if "ranking" in parts:
        test = np.flatnonzero(examples.time_ms >= dataset.train_until_ms)
        negatives = "sampled" if examples.slate.shape[1] > 1 else "logged"
        plain = "logistic_regression"
        if plain in ranking_models:  # the torch model of that name
            plain = "one_hot_regression"
        regression = {plain: ranking.regression_auc(dataset, examples, test)}
        for name in ranking_models:
            loop = ranking_loop or long_enough(ranking.loop_of(name), before)
            loop = replace(loop, seed=seed)
            model, fitted = _train(name, configs[name], dataset, examples, loop, means)
            quality[name] = ranking.task_quality(model, examples, test)
            figures = {"quality": {name: quality[name], **regression}, "negatives": negatives}
            versions[name] = _publish(artifacts_dir, name, model, dataset, figures, fitted)
        quality |= regression
    tested = examples.time_ms >= dataset.train_until_ms
    report = TrainReport(
        recall,
        quality,
        versions,
        float((examples.item[tested] == 0).mean()),
        time.perf_counter() - started,
    )
    if console is not None:
        show(report, console)
    return report


def long_enough(loop: LoopConfig, examples: int) -> LoopConfig:
    """The loop for so many examples: of few of them as many more epochs, with as much more
    patience, as make LEAST_STEPS."""
    steps = math.ceil(examples / loop.batch_size) * loop.epochs
    times = math.ceil(LEAST_STEPS / max(steps, 1))
    return replace(loop, epochs=loop.epochs * times, patience=loop.patience * times)


def _module(name: str) -> Any:
    """The module that trains a model: `retrieval` or `ranking`, which look alike."""
    return retrieval if registry.kind_of(name).part == "retrieval" else ranking


def _train(
    name: str, config: Any, dataset: Dataset, examples: Examples, loop: LoopConfig, means: Means
) -> tuple[Any, LoopReport]:
    """The trained model on the device of `means` and its report, by one process or by workers."""
    module = _module(name)
    arguments = {
        "dataset": dataset,
        "examples": examples,
        "loop": loop,
        "model": config,
        "name": name,
        "checkpoint": means.checkpoint,
    }
    if means.workers == 1:
        model, report = module.train(**arguments, device=means.device, console=means.console)
    else:
        if means.console is not None:
            means.console.print(f"{name}: training in {means.workers} workers of Ray Train")
            if getattr(config.settings, "loss", "") == "in_batch":
                means.console.print(
                    "  in-batch negatives come from each worker's share of a batch: the loss is "
                    "not that of one worker",
                    style="dim",
                )
        weights, fields = distributed.run(
            module.train_in_worker, arguments, means.workers,
            means.device.startswith("cuda"), means.threads,
        )  # fmt: skip
        model = build(name, config, loop.seed, means.device)
        model.load_state_dict(weights)
        report = LoopReport.from_json(fields)
    model.load_items(dataset.items)
    model.eval()
    if means.console is not None:
        means.console.print(
            f"{name}: {report.steps} steps, {report.examples_per_s:,.0f} examples/s, best round "
            f"{report.best_epoch} of {len(report.validation)}",
            highlight=False,
        )
    return model, report


def _publish(
    artifacts_dir: Path,
    name: str,
    model: Any,
    dataset: Dataset,
    metrics: Mapping[str, Any],
    fitted: LoopReport,
) -> str:
    return artifact.publish(
        artifacts_dir,
        name,
        tensors=model.state_dict(),
        config={"model": name, "parameters": model.config()},
        reads=model.reads,
        declaration=dataset.schema.declaration,
        items=dataset.items,
        metrics={
            **metrics,
            "validation": fitted.validation,
            "losses": fitted.losses,
            "epochs": fitted.best_epoch,
            "steps": fitted.best_step,
        },
        data_window=data_window(dataset),
    )


def data_window(dataset: Dataset) -> dict[str, Any]:
    """Which events a model has seen: [from_ms, until_ms)."""
    return {
        "dataset": dataset.name,
        "from_ms": int(dataset.events["event_time_ms"][0]),
        "valid_from_ms": dataset.valid_from_ms,
        "until_ms": dataset.train_until_ms,
        "events": len(dataset.train),
    }


def show(report: TrainReport, console: Console) -> None:
    """Print the report as tables."""
    show_quality(report.recall_at_50, report.quality, console)
    console.print(
        f"{report.outside_catalogue:.0%} of the test events are of items first met after the "
        f"split, which no model can retrieve. Took {report.seconds:.0f} s."
    )
    for name, version in report.versions.items():
        console.print(f"published {name} {version}")


def show_quality(
    recall_at_50: dict[str, Estimate], quality: dict[str, dict[str, float]], console: Console
) -> None:
    """Print what was measured on the test period; either part may be empty."""
    if recall_at_50:
        users = next(iter(recall_at_50.values())).users
        table = Table("retrieval", "recall@50", title=f"test period, {users} users (± one s.e.)")
        for name, estimate in recall_at_50.items():
            table.add_row(name, str(estimate))
        console.print(table)
    if quality:
        measures = dict.fromkeys(measure for found in quality.values() for measure in found)
        table = Table("ranking", *measures, title="test period")
        for name, found in quality.items():
            table.add_row(name, *(f"{found[m]:.4f}" if m in found else "" for m in measures))
        console.print(table)
        console.print(
            "Where no impression without a choice is logged, what was chosen stands against"
            " sampled negatives.",
            style="dim",
        )
