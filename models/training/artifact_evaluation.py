"""Measures one published version as the services would run it, beside counting baselines.

The users, histories and counters are those of the serving fold (`models/training/replay.py`); the
test period begins where the version's training data end. Every catalogue item is ranked, items of
the history removed; ranking rows are the test events and their sampled negatives.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.artifact import ArtifactError, load_verified
from models.data.errors import DataError
from models.data.events import Dataset
from models.inputs import UserBatch
from models.serving import LoadedRanking, LoadedRetrieval, load_ranking, load_retrieval
from models.training import metrics as m
from models.training.baselines.counting import (
    OneHotRegression,
    markov_scores,
    markov_transitions,
    popularity_scores,
)
from models.training.baselines.ease import ease, ease_scores
from models.training.baselines.item_knn import (
    histories,
    interaction_matrix,
    item_knn,
    item_knn_scores,
)
from models.training.evaluation import RetrievalCases, retrieval_cases
from models.training.ranking import Rows, rows_of
from models.training.replay import Examples, replay
from models.training.results import ModelResult, latency_ms, parameter_counts

CUTOFFS = (10, 50, 200)
SLICED_AT = 50  # head and tail recall, coverage, Gini and diversity look at this many places
BLOCK_USERS = 512
BLOCK_EXAMPLES = 2048
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
    window = load_verified(folder).data_window
    seen_until = window.get("until_ms")
    if seen_until is None or int(seen_until) > dataset.train_until_ms:
        raise DataError(
            f"{folder}: was trained on events until {seen_until}, the test period of "
            f"{dataset.name} begins at {dataset.train_until_ms}: evaluate on the data it was "
            "trained on"
        )
    retrieves = (folder / "item_vectors.npy").is_file()
    loaded = load_retrieval(folder, device) if retrieves else load_ranking(folder, device)
    if loaded.items.ids != dataset.items.ids:
        raise DataError(
            f"{folder}: its catalogue of {len(loaded.items)} items is not that of {dataset.name} "
            f"({len(dataset.items)} items): evaluate on the data it was trained on"
        )
    examples = replay(dataset)
    past = examples.time_ms < int(seen_until)
    if isinstance(loaded, LoadedRetrieval):
        return _retrieval(loaded, dataset, examples, past, command)
    return _ranking(loaded, dataset, examples, past, command)


# Retrieval


def _retrieval(
    loaded: LoadedRetrieval, dataset: Dataset, examples: Examples, past: np.ndarray, command: str
) -> list[ModelResult]:
    cases = retrieval_cases(examples, dataset.train_until_ms)
    user, rows, n = examples.user[past], examples.item[past], len(dataset.items)
    known = rows > 0
    counts = popularity_scores(rows, n)
    counts[0] = 0
    transitions = markov_transitions(user, rows, n)
    chosen = interaction_matrix(user[known], rows[known], n)
    similarity, weights = item_knn(chosen), ease(chosen)

    def seen(block: slice) -> Any:
        return histories(cases.seen[block], n)

    def scored(block: slice) -> np.ndarray:
        vectors = loaded.model.encode_users(_users(cases.batch, block))
        best = torch.einsum("bkd,nd->bkn", vectors, loaded.item_vectors).amax(1)
        return best.cpu().numpy()

    scorers: dict[str, Callable[[slice], np.ndarray]] = {
        loaded.name: scored,
        "popularity": lambda block: np.tile(counts, (block.stop - block.start, 1)),
        "markov": lambda block: markov_scores(transitions, counts, cases.last[block]),
        "itemknn": lambda block: item_knn_scores(similarity, seen(block)),
        "ease": lambda block: ease_scores(weights, seen(block)),
    }
    results = []
    for name, score in scorers.items():
        per_user, overall = list_figures(
            _lists(score, cases), cases.targets, counts, dataset.items.features["genres"]
        )
        mine = name == loaded.name
        if mine:
            vectors = loaded.model.encode_users(cases.batch).cpu().numpy()
            per_user["interest_cosine"] = m.interest_cosine(vectors)
        latency = latency_ms(partial(score, slice(0, 1))) if mine else None
        results.append(
            _result(
                loaded, dataset, "retrieval", name, _settings(loaded, mine),
                per_user, overall, latency, command, PRIMARY_RETRIEVAL,
                "test period, all catalogue items ranked, history removed",
            )
        )  # fmt: skip
    return results


def _lists(score: Callable[[slice], np.ndarray], cases: RetrievalCases) -> np.ndarray:
    return np.concatenate(
        [m.top_k(score(block), max(CUTOFFS), cases.seen[block]) for block in _blocks(cases)]
    )


def _blocks(cases: RetrievalCases) -> Iterator[slice]:
    for start in range(0, len(cases.targets), BLOCK_USERS):
        yield slice(start, min(start + BLOCK_USERS, len(cases.targets)))


def _users(batch: UserBatch, block: slice) -> UserBatch:
    return UserBatch(
        batch.history[block], batch.history_liked[block], batch.counts[block],
        batch.genres[block], batch.idle_s[block],
    )  # fmt: skip


def list_figures(
    lists: np.ndarray, targets: list[np.ndarray], counts: np.ndarray, genres: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Per-user metrics of lists int[U, N], and figures of all lists together.

    `counts` [n + 1] are training counts (head and tail), `genres` float[n + 1, G]. Cutoffs beyond
    the catalogue are left out.
    """
    cutoffs = [n for n in CUTOFFS if n <= lists.shape[1]]
    at = min(SLICED_AT, lists.shape[1])
    head = m.head_items(counts)
    per_user = m.list_metrics(lists, targets, cutoffs)
    per_user[f"head_recall@{at}"] = m.slice_recall(lists, targets, head, at)
    per_user[f"tail_recall@{at}"] = m.slice_recall(lists, targets, ~head, at)
    per_user[f"genre_diversity@{at}"] = m.genre_diversity(lists[:, :at], genres)
    exposed = m.exposures(lists[:, :at], len(counts) - 1)
    return per_user, {f"coverage@{at}": m.coverage(exposed), f"gini@{at}": m.gini(exposed)}


# Ranking


def _ranking(
    loaded: LoadedRanking, dataset: Dataset, examples: Examples, past: np.ndarray, command: str
) -> list[ModelResult]:
    test = np.flatnonzero(examples.time_ms >= dataset.train_until_ms)
    before = np.flatnonzero(past)
    rows, fitted = rows_of(examples, test), rows_of(examples, before)
    user = examples.user[test][rows.row_user.numpy()]
    tasks = loaded.model.tasks
    labels, known = rows.labels.numpy(), rows.known.numpy()

    regression = np.full(labels.shape, np.nan)
    users = int(examples.user.max()) + 1
    for t in range(len(tasks)):
        baseline = OneHotRegression(users, dataset.items.features["genres"])
        use = fitted.known[:, t].numpy()
        baseline.fit(
            examples.user[before][fitted.row_user.numpy()][use], fitted.items.numpy()[use],
            fitted.labels[:, t].numpy()[use],
        )  # fmt: skip
        regression[:, t] = baseline.predict(user, rows.items.numpy())
    scores = {loaded.name: _scores(loaded, examples, test), "logistic regression": regression}

    results = []
    for name, probabilities in scores.items():
        mine = name == loaded.name
        per_user: dict[str, np.ndarray] = {}
        overall: dict[str, float] = {}
        for t, task in enumerate(tasks):
            use = known[:, t]
            figures, units = m.ranking_metrics(labels[use, t], probabilities[use, t], user[use])
            members = np.unique(user[use])
            for metric, values in units.items():
                per_user[f"{task} {metric}"] = _spread(values, members, np.unique(user))
            overall |= {f"{task} {k}": v for k, v in figures.items() if k not in units}
        latency = _ranking_latency(loaded, examples, test) if mine else None
        results.append(
            _result(
                loaded, dataset, "ranking", name, _settings(loaded, mine),
                per_user, overall, latency, command, "",
                "test period, click negatives sampled, like among clicked rows",
            )
        )  # fmt: skip
    return results


def _spread(values: np.ndarray, members: np.ndarray, everyone: np.ndarray) -> np.ndarray:
    """Values of some users as an array over everyone, NaN for the others."""
    out = np.full(len(everyone), np.nan)
    out[np.searchsorted(everyone, members)] = values
    return out


def _scores(loaded: LoadedRanking, examples: Examples, index: np.ndarray) -> np.ndarray:
    """float[N, T] probabilities of the examples' rows, as the service scores them."""
    parts = []
    for start in range(0, len(index), BLOCK_EXAMPLES):
        part = index[start : start + BLOCK_EXAMPLES]
        rows: Rows = rows_of(examples, part, loaded.model.device)
        side = loaded.model.user_part(examples.user_batch(part))
        parts.append(loaded.model.score(side, rows.row_user, rows.items, rows.counters).cpu())
    return torch.cat(parts).numpy()


def _ranking_latency(loaded: LoadedRanking, examples: Examples, test: np.ndarray) -> float:
    """Median ms of one user with LATENCY_CANDIDATES candidates."""
    rows = rows_of(examples, test[:LATENCY_CANDIDATES], loaded.model.device)
    batch = examples.user_batch(test[:1])
    items, counters = rows.items[:LATENCY_CANDIDATES], rows.counters[:LATENCY_CANDIDATES]
    nobody = torch.zeros(len(items), dtype=torch.long, device=loaded.model.device)

    def call() -> None:
        loaded.model.score(loaded.model.user_part(batch), nobody, items, counters)

    return latency_ms(call)


# Both


def _settings(loaded: LoadedRetrieval | LoadedRanking, mine: bool) -> dict[str, Any]:
    """Of the version, or of a baseline, which no seed changes."""
    return {"version": loaded.version} if mine else {"deterministic": True}


def _result(
    loaded: LoadedRetrieval | LoadedRanking,
    dataset: Dataset,
    kind: str,
    name: str,
    settings: dict[str, Any],
    per_user: dict[str, np.ndarray],
    overall: dict[str, float],
    latency: float | None,
    command: str,
    primary: str,
    protocol: str,
) -> ModelResult:
    known = {k: v for k, v in per_user.items() if not np.isnan(v).all()}
    figures: dict[str, tuple[float, ...]] = {k: (float(np.nanmean(v)),) for k, v in known.items()}
    figures |= {k: (v,) for k, v in overall.items() if np.isfinite(v)}
    if not known:
        raise ArtifactError(f"{loaded.name}: no user of the test period has a value of any metric")
    module: Any = loaded.model
    parameters, dense = parameter_counts(module) if name == loaded.name else (0, 0)
    return ModelResult(
        table=f"{dataset.name}-serving-{kind}",
        data=dataset.name,
        protocol=protocol,
        model=name,
        settings=settings,
        seeds=(0,),
        metrics=figures,
        per_unit={k: [v] for k, v in known.items()},
        parameters=parameters,
        dense_parameters=dense,
        flops_per_row=None,
        latency_ms=latency,
        train_seconds=(),
        machine=f"{platform.machine()} {platform.system()}, {torch.get_num_threads()} thread(s)",
        command=command,
        notes="",
        primary=primary if primary in figures else "",
        created=time.strftime("%Y-%m-%d", time.gmtime()),
    )
