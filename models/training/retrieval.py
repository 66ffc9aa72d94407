"""Trains and measures the retrieval model (SSL two-tower) beside popularity and Markov."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from rich.console import Console

from models.data.events import Dataset
from models.retrieval.ssl_two_tower import SSLTwoTower, SSLTwoTowerConfig
from models.training.baselines import markov_scores, markov_transitions, popularity_scores
from models.training.evaluation import RetrievalCases, retrieval_cases
from models.training.loop import LoopConfig, LoopReport, fit
from models.training.metrics import Estimate, recall_at
from models.training.replay import Examples

RECALL_AT = 50
LOOP = LoopConfig(epochs=6, batch_size=1024, learning_rate=4e-3, patience=2)


def model_config(dataset: Dataset) -> SSLTwoTowerConfig:
    """The default model for a data set's catalogue."""
    return SSLTwoTowerConfig(len(dataset.items), len(dataset.tag_vocabulary))


def train(
    dataset: Dataset,
    examples: Examples,
    loop: LoopConfig = LOOP,
    model: SSLTwoTowerConfig | None = None,
    device: str = "cpu",
    console: Console | None = None,
) -> tuple[SSLTwoTower, LoopReport]:
    """Find the number of epochs on the validation period, then train on the whole training period.

    Returns the final model and the report of the first run.
    """
    config = model or model_config(dataset)
    cases = retrieval_cases(examples, dataset.valid_from_ms, dataset.train_until_ms)
    trial = _new(config, loop.seed, device)
    report = _fit(
        trial, dataset, examples, dataset.valid_from_ms, loop, cases, console, "retrieval: epochs"
    )
    final = _new(config, loop.seed, device)
    loop = replace(loop, epochs=report.best_epoch)
    _fit(final, dataset, examples, dataset.train_until_ms, loop, None, console, "retrieval: final")
    return final, report


def _new(config: SSLTwoTowerConfig, seed: int, device: str) -> SSLTwoTower:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SSLTwoTower(config).to(device)


def _fit(
    model: SSLTwoTower,
    dataset: Dataset,
    examples: Examples,
    before_ms: int,
    loop: LoopConfig,
    cases: RetrievalCases | None,
    console: Console | None,
    title: str,
) -> LoopReport:
    index = np.flatnonzero((examples.time_ms < before_ms) & (examples.item > 0))
    clicks = np.bincount(examples.item[index], minlength=len(dataset.items) + 1)
    model.prepare_training(dataset.items, clicks)

    def loss(batch: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        targets = torch.from_numpy(examples.item[batch].astype(np.int64)).to(model.device)
        return model.loss(examples.user_batch(batch), targets, generator)

    validate = None if cases is None else lambda: model_recall(model, cases).mean
    return fit(model, loss, index, loop, validate, console, title)


def model_recall(model: SSLTwoTower, cases: RetrievalCases) -> Estimate:
    """Recall@50 of the model over the cases' users."""
    vectors = model.encode_users(cases.batch)
    scores = torch.einsum("bkd,nd->bkn", vectors, model.item_vectors()).amax(1)
    return recall_at(scores.cpu().numpy(), cases.seen, cases.targets, RECALL_AT)


def baseline_recall(
    dataset: Dataset, examples: Examples, cases: RetrievalCases, before_ms: int
) -> dict[str, Estimate]:
    """Recall@50 of popularity and Markov counted over events before `before_ms`."""
    past = examples.time_ms < before_ms
    user, rows, n = examples.user[past], examples.item[past], len(dataset.items)
    popular = popularity_scores(rows, n)
    scores = {
        "popularity": np.tile(popular, (len(cases.targets), 1)),
        "markov": markov_scores(markov_transitions(user, rows, n), popular, cases.last),
    }
    return {k: recall_at(v, cases.seen, cases.targets, RECALL_AT) for k, v in scores.items()}
