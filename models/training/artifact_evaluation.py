"""Measures one published version as the services would run it, beside counting baselines.

The users, histories and counters are those of the serving fold (`models/training/replay.py`); the
test period begins where the version's training data end. Every catalogue item is ranked, items of
the history removed; ranking rows are the test events and their sampled negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.artifact import ArtifactError, load_verified
from models.data.errors import DataError
from models.data.events import Dataset
from models.serving import LoadedRanking, LoadedRetrieval, load_ranking, load_retrieval, part_of
from models.training import metrics as m
from models.training.baselines import scorers as baselines
from models.training.baselines.counting import popularity_scores
from models.training.baselines.scorers import Counted
from models.training.ranking import declared_values, regression_of, rows_of, scored
from models.training.replay import Examples, replay
from models.training.results import (
    Figures,
    ModelResult,
    by_seed,
    latency_ms,
    parameter_counts,
    this_machine,
)
from models.training.retrieval_cases import RetrievalCases, retrieval_cases

CUTOFFS = (10, 50, 200)
BLOCK_USERS = 512
PRIMARY_RETRIEVAL = "recall@50"
LATENCY_CANDIDATES = 200


def measure(
    folder: Path, dataset: Dataset, device: str = "cpu", command: str = ""
) -> list[ModelResult]:
    """Results of the version in `folder` and of the baselines, the version first.

    DataError when the version was trained on another catalogue than the data set's, or has seen
    events of the test period. The baselines learn from the events before the version's `until_ms`,
    as it did: not from what came between that moment and the test period.
    """
    version = load_verified(folder)
    seen_until = version.data_window.get("until_ms")
    if seen_until is None or int(seen_until) > dataset.train_until_ms:
        raise DataError(
            f"{folder}: was trained on events until {seen_until}, the test period of "
            f"{dataset.name} begins at {dataset.train_until_ms}: evaluate on the data it was "
            "trained on"
        )
    load = load_retrieval if part_of(version) == "retrieval" else load_ranking
    loaded = load(folder, device)
    if loaded.items.ids != dataset.items.ids:
        raise DataError(
            f"{folder}: its catalogue of {len(loaded.items)} items is not that of {dataset.name} "
            f"({len(dataset.items)} items): evaluate on the data it was trained on"
        )
    examples = replay(dataset)
    past = examples.time_ms < int(seen_until)
    if isinstance(loaded, LoadedRetrieval):
        return _retrieval(loaded, dataset, examples, past & examples.chosen, command)
    return _ranking(loaded, dataset, examples, past, command)


# Retrieval


def _retrieval(
    loaded: LoadedRetrieval, dataset: Dataset, examples: Examples, past: np.ndarray, command: str
) -> list[ModelResult]:
    cases = retrieval_cases(examples, dataset.train_until_ms)
    events = examples.user[past], examples.item[past], len(dataset.items)

    def scored(block: slice) -> np.ndarray:
        vectors = loaded.model.encode_users(cases.batch.take(block))
        best = torch.einsum("bkd,nd->bkn", vectors, loaded.item_vectors).amax(1)
        return best.cpu().numpy()

    def counted(fit: Callable[..., Counted]) -> Callable[[slice], np.ndarray]:
        score = fit(*events)
        return lambda block: score(cases.last[block], cases.seen[block])

    scorers = {
        loaded.name: scored,
        "popularity": counted(baselines.popularity),
        "markov": counted(baselines.markov),
        "itemknn": counted(baselines.item_knn),
        "ease": counted(partial(baselines.ease, dtype=np.float64)),
    }
    counts = popularity_scores(*events[1:])
    results = []
    values = declared_values(dataset.items, dataset.schema.declaration)
    for name, score in scorers.items():
        per_user, overall = list_figures(_lists(score, cases), cases.targets, counts, values)
        latency = None
        if name == loaded.name:
            vectors = loaded.model.encode_users(cases.batch).cpu().numpy()
            per_user["interest_cosine"] = m.interest_cosine(vectors)
            latency = latency_ms(partial(score, slice(0, 1)))
        results.append(
            _result(
                loaded, dataset, name, Figures.of(per_user, overall), latency, command,
                primary=PRIMARY_RETRIEVAL,
                protocol="test period, all catalogue items ranked, history removed",
            )
        )  # fmt: skip
    return results


def _lists(score: Callable[[slice], np.ndarray], cases: RetrievalCases) -> np.ndarray:
    blocks = [slice(at, at + BLOCK_USERS) for at in range(0, len(cases.targets), BLOCK_USERS)]
    return np.concatenate([m.top_k(score(b), max(CUTOFFS), cases.seen[b]) for b in blocks])


def list_figures(
    lists: np.ndarray, targets: list[np.ndarray], counts: np.ndarray, values: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Per-user metrics of lists int[U, N], and figures of all lists together.

    As `metrics.list_figures`; `values` float[n + 1, V] of every item row.
    """
    per_user, overall = m.list_figures(lists, targets, counts, CUTOFFS)
    at = min(m.SLICED_AT, lists.shape[1])
    if values.shape[1]:
        per_user[f"value_diversity@{at}"] = m.value_diversity(lists[:, :at], values)
    return per_user, overall


# Ranking


def _ranking(
    loaded: LoadedRanking, dataset: Dataset, examples: Examples, past: np.ndarray, command: str
) -> list[ModelResult]:
    for task, of_value in zip(loaded.model.tasks, loaded.model.of_value, strict=True):
        if of_value:
            raise DataError(
                f"{loaded.name}: task {task} predicts a value, which `evaluate` has no measure"
                " of yet: `tandem train` prints its correlation"
            )
    test = np.flatnonzero(examples.time_ms >= dataset.train_until_ms)
    before = np.flatnonzero(past)
    rows, fitted = rows_of(examples, test), rows_of(examples, before)
    user = examples.user[test][rows.row_user.numpy()]
    tasks = loaded.model.tasks
    labels, known = rows.labels.numpy(), rows.known.numpy()

    regression = np.full(labels.shape, np.nan)
    for t in range(len(tasks)):
        fit = regression_of(dataset, examples, before, fitted, t)
        regression[:, t] = fit.predict(user, rows.items.numpy())
    scores = {loaded.name: scored(loaded.model, examples, test), "logistic regression": regression}

    results = []
    for name, probabilities in scores.items():
        found, per_user = m.task_metrics(tasks, labels, known, probabilities, user)
        overall = {k: v for k, v in found.items() if k not in per_user}
        mine = name == loaded.name
        latency = _ranking_latency(loaded, examples, test) if mine else None
        results.append(
            _result(
                loaded, dataset, name, Figures.of(per_user, overall), latency, command,
                protocol="test period, negatives sampled, tasks given another among its rows",
            )
        )  # fmt: skip
    return results


def _ranking_latency(loaded: LoadedRanking, examples: Examples, test: np.ndarray) -> float:
    """Median ms of one user with LATENCY_CANDIDATES candidates."""
    rows = rows_of(examples, test[:LATENCY_CANDIDATES], loaded.model.device, loaded.model.counters)
    batch = examples.user_batch(test[:1])
    items, counters = rows.items[:LATENCY_CANDIDATES], rows.counters[:LATENCY_CANDIDATES]
    nobody = torch.zeros(len(items), dtype=torch.long, device=loaded.model.device)

    def call() -> None:
        loaded.model.score(loaded.model.user_part(batch), nobody, items, counters)

    return latency_ms(call)


# Both


def _result(
    loaded: LoadedRetrieval | LoadedRanking,
    dataset: Dataset,
    name: str,
    found: Figures,
    latency: float | None,
    command: str,
    protocol: str,
    primary: str = "",
) -> ModelResult:
    """Of the version, or of a baseline, which no seed changes."""
    if not found.per_unit:
        raise ArtifactError(f"{loaded.name}: no user of the test period has a value of any metric")
    mine = name == loaded.name
    module: Any = loaded.model
    parameters, dense = parameter_counts(module) if mine else (0, 0)
    kind = "retrieval" if isinstance(loaded, LoadedRetrieval) else "ranking"
    return ModelResult(
        **by_seed([found]),
        table=f"{dataset.name}-serving-{kind}",
        data=dataset.name,
        protocol=protocol,
        model=name,
        settings={"version": loaded.version} if mine else {"deterministic": True},
        seeds=(0,),
        parameters=parameters,
        dense_parameters=dense,
        flops_per_row=None,
        latency_ms=latency,
        train_seconds=(),
        machine=this_machine(),
        command=command,
        primary=primary if primary in found.metrics else "",
    )
