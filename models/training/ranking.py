"""Trains and measures the ranking model (MaskNet) beside logistic regression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from models.data.events import Dataset
from models.ranking.masknet import MaskNet, MaskNetConfig
from models.training.baselines import OneHotRegression
from models.training.loop import LoopConfig, LoopReport, fit
from models.training.metrics import auc
from models.training.replay import Examples

LOOP = LoopConfig(epochs=2, batch_size=384, learning_rate=1e-3, patience=1)
EVALUATION_BATCH = 2048


@dataclass(frozen=True)
class Rows:
    """The slates of B examples as N = B * S model rows; labels are (click, like)."""

    row_user: Tensor  # int64[N]
    items: Tensor  # int64[N]
    counters: Tensor  # float32[N, 3]
    lifetime: Tensor  # float32[N, 2]
    labels: Tensor  # float32[N, 2]
    known: Tensor  # bool[N, 2]: like only of clicked rows; click only of items in the catalogue


def rows_of(examples: Examples, index: np.ndarray, device: torch.device | str = "cpu") -> Rows:
    """Rows of the chosen examples: the rated item, then its sampled negatives."""
    slate = examples.slate[index]
    rated = np.zeros(slate.shape, bool)
    rated[:, 0] = True
    liked = rated & examples.like[index][:, None]

    def to(array: np.ndarray, dtype: type) -> Tensor:
        return torch.from_numpy(array.reshape(slate.size, -1).astype(dtype)).to(device)

    return Rows(
        torch.arange(len(index), device=device).repeat_interleave(slate.shape[1]),
        to(slate, np.int64).squeeze(1),
        to(examples.counters[index], np.float32),
        to(examples.lifetime[index], np.float32),
        torch.cat([to(rated, np.float32), to(liked, np.float32)], dim=1),
        torch.cat([to(slate > 0, np.bool_), to(rated, np.bool_)], dim=1),
    )


def train(
    dataset: Dataset,
    examples: Examples,
    loop: LoopConfig = LOOP,
    model: MaskNetConfig | None = None,
    device: str = "cpu",
    console: Console | None = None,
) -> tuple[MaskNet, LoopReport]:
    """Find the number of epochs on the validation period, then train on the whole training period.

    Validation is the mean AUC of the tasks. Returns the final model and the first run's report.
    """
    config = model or MaskNetConfig(len(dataset.items))
    time_ms = examples.time_ms
    until, valid_from = dataset.train_until_ms, dataset.valid_from_ms
    valid = np.flatnonzero((time_ms >= valid_from) & (time_ms < until))

    trial = _new(config, dataset, loop.seed, device)

    def validate() -> float:
        return float(np.mean(list(model_auc(trial, examples, valid, as_of_event=True).values())))

    before = np.flatnonzero(time_ms < valid_from)
    report = _fit(trial, examples, before, loop, validate, console, "ranking: epochs")
    final = _new(config, dataset, loop.seed, device)
    loop = replace(loop, epochs=report.best_epoch)
    _fit(final, examples, np.flatnonzero(time_ms < until), loop, None, console, "ranking: final")
    return final, report


def _new(config: MaskNetConfig, dataset: Dataset, seed: int, device: str) -> MaskNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MaskNet(config).to(device)
    model.load_items(dataset.items)
    return model


def _fit(
    model: MaskNet,
    examples: Examples,
    index: np.ndarray,
    loop: LoopConfig,
    validate: Callable[[], float] | None,
    console: Console | None,
    title: str,
) -> LoopReport:
    def loss(batch: np.ndarray, generator: torch.Generator) -> Tensor:
        rows = rows_of(examples, batch, model.device)
        logits = model(
            examples.user_batch(batch), rows.row_user, rows.items, rows.counters, rows.lifetime
        )
        return model.loss(logits, rows.labels, rows.known)

    return fit(model, loss, index, loop, validate, console, title)


def model_auc(
    model: MaskNet, examples: Examples, index: np.ndarray, as_of_event: bool = False
) -> dict[str, float]:
    """AUC per task over the examples' rows: click against sampled negatives, like among clicked.

    Scored as the service would, with the lifetime counts of the item table; `as_of_event` takes
    those of the time of each event instead (the table would know the validation period).
    """
    probabilities, labels, known = [], [], []
    for start in range(0, len(index), EVALUATION_BATCH):
        part = index[start : start + EVALUATION_BATCH]
        rows = rows_of(examples, part, model.device)
        batch = examples.user_batch(part)
        if as_of_event:
            with torch.no_grad():
                scores = torch.sigmoid(
                    model(batch, rows.row_user, rows.items, rows.counters, rows.lifetime)
                )
        else:
            scores = model.score(model.user_part(batch), rows.row_user, rows.items, rows.counters)
        probabilities.append(scores)
        labels.append(rows.labels)
        known.append(rows.known)
    p, y, k = (torch.cat(t).cpu().numpy() for t in (probabilities, labels, known))
    return {task: auc(y[k[:, t], t], p[k[:, t], t]) for t, task in enumerate(model.tasks)}


def regression_auc(dataset: Dataset, examples: Examples, index: np.ndarray) -> dict[str, float]:
    """AUC per task of one-hot logistic regression, trained on the training period, same rows."""
    past = np.flatnonzero(examples.time_ms < dataset.train_until_ms)
    users = int(examples.user.max()) + 1
    fitted, tested = rows_of(examples, past), rows_of(examples, index)
    result = {}
    for t, task in enumerate(("click", "like")):
        regression = OneHotRegression(users, dataset.items.features["genres"])
        regression.fit(*_regression_rows(examples, past, fitted, t))
        user, rows, labels = _regression_rows(examples, index, tested, t)
        result[task] = auc(labels, regression.predict(user, rows))
    return result


def _regression_rows(
    examples: Examples, index: np.ndarray, rows: Rows, task: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    known = rows.known[:, task].numpy()
    user = examples.user[index][rows.row_user.numpy()]
    return user[known], rows.items.numpy()[known], rows.labels[:, task].numpy()[known]
