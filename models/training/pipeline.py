"""Train, measure, publish: everything between an event table and two served artifacts."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from models import artifact
from models.data import events
from models.data.events import Dataset
from models.training import ranking, replay, retrieval
from models.training.evaluation import retrieval_cases
from models.training.loop import LoopConfig
from models.training.metrics import Estimate
from models.training.replay import Examples


@dataclass(frozen=True)
class TrainReport:
    """What was measured on the test period, and what was published; empty for parts not trained."""

    recall_at_50: dict[str, Estimate]  # by model: ssl_two_tower, popularity, markov
    auc: dict[str, dict[str, float]]  # by model and task: masknet, logistic_regression
    versions: dict[str, str]  # artifact version by name
    outside_catalogue: float  # share of test events whose item was first rated after the split
    seconds: float


def train_all(
    artifacts_dir: Path,
    console: Console | None = None,
    *,
    dataset: Dataset | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    parts: tuple[str, ...] = ("retrieval", "ranking"),
    retrieval_loop: LoopConfig = retrieval.LOOP,
    ranking_loop: LoopConfig = ranking.LOOP,
) -> TrainReport:
    """Train, measure and publish the parts; `console` shows progress and the result.

    The bundled MovieLens data unless `dataset` is given. Sets torch's thread count for the process:
    one by default, because two threads that wait for each other on busy cores took several times as
    long per step as one (measured).
    """
    started = time.perf_counter()
    torch.set_num_threads(threads)
    dataset = dataset or events.load()
    examples = replay.replay(dataset, seed=seed)
    recall: dict[str, Estimate] = {}
    auc: dict[str, dict[str, float]] = {}
    versions: dict[str, str] = {}
    if "retrieval" in parts:
        versions["ssl_two_tower"] = _retrieval(
            artifacts_dir, dataset, examples, replace(retrieval_loop, seed=seed), device, console,
            recall,
        )  # fmt: skip
    if "ranking" in parts:
        versions["masknet"] = _ranking(
            artifacts_dir, dataset, examples, replace(ranking_loop, seed=seed), device, console, auc
        )
    test = examples.time_ms >= dataset.train_until_ms
    report = TrainReport(
        recall,
        auc,
        versions,
        float((examples.item[test] == 0).mean()),
        time.perf_counter() - started,
    )
    if console is not None:
        show(report, console)
    return report


def _retrieval(
    artifacts_dir: Path,
    dataset: Dataset,
    examples: Examples,
    loop: LoopConfig,
    device: str,
    console: Console | None,
    recall: dict[str, Estimate],
) -> str:
    model, fitted = retrieval.train(dataset, examples, loop, device=device, console=console)
    cases = retrieval_cases(examples, dataset.train_until_ms)
    recall["ssl_two_tower"] = retrieval.model_recall(model, cases)
    recall |= retrieval.baseline_recall(dataset, examples, cases, dataset.train_until_ms)
    return artifact.publish(
        artifacts_dir,
        model.source,
        tensors=model.state_dict(),
        config={
            "model": model.source,
            "parameters": model.config(),
            "tag_vocabulary": dataset.tag_vocabulary,
        },
        items=dataset.items,
        metrics={
            "recall_at_50": {k: vars(v) for k, v in recall.items()},
            "validation": fitted.validation,
            "epochs": fitted.best_epoch,
        },
        data_window=data_window(dataset),
        arrays={"item_vectors": model.item_vectors().cpu().numpy()},
    )


def _ranking(
    artifacts_dir: Path,
    dataset: Dataset,
    examples: Examples,
    loop: LoopConfig,
    device: str,
    console: Console | None,
    auc: dict[str, dict[str, float]],
) -> str:
    model, fitted = ranking.train(dataset, examples, loop, device=device, console=console)
    test = np.flatnonzero(examples.time_ms >= dataset.train_until_ms)
    auc["masknet"] = ranking.model_auc(model, examples, test)
    auc["logistic_regression"] = ranking.regression_auc(dataset, examples, test)
    return artifact.publish(
        artifacts_dir,
        "masknet",
        tensors=model.state_dict(),
        config={"model": "masknet", "parameters": model.config()},
        items=dataset.items,
        metrics={
            "auc": auc,
            "click_negatives": "sampled",
            "validation": fitted.validation,
            "epochs": fitted.best_epoch,
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
    show_quality(report.recall_at_50, report.auc, console)
    console.print(
        f"{report.outside_catalogue:.0%} of the test events are of items first rated after the "
        f"split, which no model can retrieve. Took {report.seconds:.0f} s."
    )
    for name, version in report.versions.items():
        console.print(f"published {name} {version}")


def show_quality(
    recall_at_50: dict[str, Estimate], auc: dict[str, dict[str, float]], console: Console
) -> None:
    """Print what was measured on the test period; either part may be empty."""
    if recall_at_50:
        users = next(iter(recall_at_50.values())).users
        table = Table("retrieval", "recall@50", title=f"test period, {users} users (± one s.e.)")
        for name, estimate in recall_at_50.items():
            table.add_row(name, str(estimate))
        console.print(table)
    if auc:
        table = Table("ranking", "click AUC *", "like AUC", title="test period")
        for name, tasks in auc.items():
            table.add_row(name, f"{tasks['click']:.4f}", f"{tasks['like']:.4f}")
        console.print(table)
        console.print(
            "* rated items against sampled negatives: MovieLens logs no unclicked impression.",
            style="dim",
        )
