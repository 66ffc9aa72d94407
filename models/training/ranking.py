"""Trains and measures the ranking models on the serving path, beside logistic regression.

The rows of an example are its item and the sampled negatives of its slate, with the features as
they stood just before the event (`models/training/replay.py`).

What is unknown must not win. An item's first event cannot teach clicks: no negative is drawn from
items without events, so "no clicks so far" would stand beside the label 1 alone, and an item of
which nothing is known looks the same. Instead rows of both labels are shown as an unknown item's
(`unknown_at_random`): row 0 is scored as an item drawn from the catalogue.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from models import registry
from models.data.errors import DataError
from models.data.events import Dataset
from models.layers import shared_batch
from models.schema.films import GENRE_SLOTS
from models.training import distributed
from models.training.baselines.counting import OneHotRegression
from models.training.checkpoint import CheckpointFolder
from models.training.loop import LoopConfig, LoopReport
from models.training.metrics import auc
from models.training.phases import Prepared, build, train_twice
from models.training.replay import Examples

LOOP = LoopConfig(epochs=2, batch_size=384, learning_rate=1e-3, patience=1)  # MaskNet's
EVALUATION_BATCH = 2048
UNKNOWN = 0.05  # events per item and epoch that are shown as those of an unknown item


def loop_of(name: str) -> LoopConfig:
    """How a model is trained unless told otherwise."""
    return LOOP


def model_config(dataset: Dataset, name: str = "masknet", **settings: Any) -> Any:
    """The model's config for a data set's catalogue."""
    kind = registry.kind_of(name, "ranking")
    return registry.checked(kind.configure, {**settings, "num_items": len(dataset.items)})


def check_labels(dataset: Dataset, examples: Examples) -> None:
    """DataError if a period has one class of a task only: nothing can be learned or measured."""
    edges = (0, dataset.valid_from_ms, dataset.train_until_ms, np.iinfo(np.int64).max)
    for period, start, end in zip(
        ("training", "validation", "test"), edges, edges[1:], strict=False
    ):
        rows = rows_of(
            examples, np.flatnonzero((examples.time_ms >= start) & (examples.time_ms < end))
        )
        click, like = (rows.labels[rows.known[:, t], t].unique().tolist() for t in (0, 1))
        if len(like) < 2:
            raise DataError(
                f"{dataset.name}: the {period} split has only likes or only events without one: "
                "use more events"
            )
        if 1.0 not in click:
            raise DataError(
                f"{dataset.name}: no event of the {period} split is of an item known before: use "
                "more events"
            )
        if 0.0 not in click:
            raise DataError(
                f"{dataset.name}: the {period} split has no negatives: its users have rated every "
                "item that there was: use more items or users"
            )


@dataclass(frozen=True)
class Rows:
    """The slates of B examples as N = B * S model rows; labels are (click, like)."""

    row_user: Tensor  # int64[N]
    items: Tensor  # int64[N]
    counters: Tensor  # float32[N, 2]
    lifetime: Tensor  # float32[N, 2]
    labels: Tensor  # float32[N, 2]
    known: Tensor  # bool[N, 2]: like only of clicked rows; click only of items that had an event


def rows_of(examples: Examples, index: np.ndarray, device: torch.device | str = "cpu") -> Rows:
    """Rows of the chosen examples: the rated item, then its sampled negatives."""
    slate, lifetime = examples.slate[index], examples.lifetime[index]
    seen = (slate > 0) & (lifetime[:, :, 0] > 0)  # as every item that a negative is drawn from
    rated = np.zeros(slate.shape, bool)
    rated[:, 0] = True
    liked = rated & examples.like[index][:, None]

    def to(array: np.ndarray, dtype: type) -> Tensor:
        return torch.from_numpy(array.reshape(slate.size, -1).astype(dtype)).to(device)

    return Rows(
        torch.arange(len(index), device=device).repeat_interleave(slate.shape[1]),
        to(slate, np.int64).squeeze(1),
        to(examples.counters[index], np.float32),
        to(lifetime, np.float32),
        torch.cat([to(rated, np.float32), to(liked, np.float32)], dim=1),
        torch.cat([to(seen, np.bool_), to(rated, np.bool_)], dim=1),
    )


def unknown_rates(rows: np.ndarray, num_items: int) -> Tensor:
    """float32[n + 1]: the share of each item's rows that training shows as an unknown item's.

    `rows` int[N] are the items of the training events. UNKNOWN of its number of events: each item
    of the catalogue stands for the unknown one as often as any other, whatever its popularity.
    """
    events = np.bincount(rows, minlength=num_items + 1)
    rates = UNKNOWN / np.maximum(events, 1)
    rates[0] = 0.0
    return torch.from_numpy(rates.astype(np.float32))


def unknown_at_random(rows: Rows, rates: Tensor, examples: int, generator: torch.Generator) -> Rows:
    """The rows of so many examples, a random part of them as if their items were not known.

    Each with the chance `rates` float[n + 1] of its item: row 0 without counters and counts, as
    serving gives it to the model. Labels stay, so that the unknown item is learned from both.
    """
    size = len(rows.items) // examples
    drawn = shared_batch.drawn(
        lambda count: torch.rand((count, size), generator=generator), examples
    )
    hidden = drawn.to(rates.device).flatten() < rates[rows.items]
    return replace(
        rows,
        items=rows.items.masked_fill(hidden, 0),
        counters=rows.counters.masked_fill(hidden[:, None], 0.0),
        lifetime=rows.lifetime.masked_fill(hidden[:, None], 0.0),
    )


def train(
    dataset: Dataset,
    examples: Examples,
    loop: LoopConfig = LOOP,
    model: Any = None,
    device: str | torch.device = "cpu",
    console: Console | None = None,
    name: str = "masknet",
    checkpoint: CheckpointFolder | None = None,
) -> tuple[Any, LoopReport]:
    """Find the number of epochs on the validation period, then train on the whole training period.

    `model` is the config, the default one of model `name` unless given. Validation is the mean AUC
    of the tasks, weighted by the rows that each is measured on: with one weight each the few
    clicked rows of likes would outvote the clicks. Returns the final model and the first run's
    report.
    """
    config = model or model_config(dataset, name)
    time_ms, until = examples.time_ms, dataset.train_until_ms
    valid = np.flatnonzero((time_ms >= dataset.valid_from_ms) & (time_ms < until))
    weights = rows_of(examples, valid).known.sum(0).numpy()

    def prepare(before_ms: int) -> Prepared:
        built = build(name, config, loop.seed, device)
        built.load_items(dataset.items)
        index = np.flatnonzero(time_ms < before_ms)
        rates = unknown_rates(examples.item[index], len(dataset.items)).to(built.device)

        def loss(batch: np.ndarray, generator: torch.Generator) -> Tensor:
            rows = rows_of(examples, batch, built.device)
            rows = unknown_at_random(rows, rates, len(batch), generator)
            logits = built(
                examples.user_batch(batch), rows.row_user, rows.items, rows.counters, rows.lifetime
            )
            return task_loss(built, logits, rows.labels, rows.known)

        def validate() -> float:
            found = model_auc(built, examples, valid, as_of_event=True)
            return float(np.average(list(found.values()), weights=weights))

        return Prepared(built, loss, index, validate)

    return train_twice(name, dataset, loop, prepare, console, checkpoint)


def task_loss(model: Any, logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """The model's multi-task loss of a batch, or of a worker's share of it."""
    logits = logits.float()
    if distributed.world_size() == 1:
        return model.loss(logits, labels, known)
    each = [
        model.loss(logits[:, t : t + 1], labels[:, t : t + 1], known[:, t : t + 1])
        for t in range(labels.shape[1])
    ]
    return (torch.stack(each) * distributed.task_weights(known)).sum()


def train_in_worker(**arguments: Any) -> tuple[Any, dict[str, Any]]:
    """`train` on a worker's own device (`models.training.distributed.run`)."""
    model, report = train(**arguments, device=distributed.worker_device())
    return model, asdict(report)


def model_auc(
    model: Any, examples: Examples, index: np.ndarray, as_of_event: bool = False
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
    fitted, tested = rows_of(examples, past), rows_of(examples, index)
    result = {}
    for t, task in enumerate(("click", "like")):
        regression = regression_of(dataset, examples, past, fitted, t)
        user, rows, labels = _regression_rows(examples, index, tested, t)
        result[task] = auc(labels, regression.predict(user, rows))
    return result


def regression_of(
    dataset: Dataset, examples: Examples, index: np.ndarray, rows: Rows, task: int
) -> OneHotRegression:
    """One-hot logistic regression of a task, fitted on the `rows` of these examples."""
    users = int(examples.user.max()) + 1
    regression = OneHotRegression(users, dataset.items.multi_hot("genres", GENRE_SLOTS - 1))
    return regression.fit(*_regression_rows(examples, index, rows, task))


def _regression_rows(
    examples: Examples, index: np.ndarray, rows: Rows, task: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    known = rows.known[:, task].numpy()
    user = examples.user[index][rows.row_user.numpy()]
    return user[known], rows.items.numpy()[known], rows.labels[:, task].numpy()[known]
