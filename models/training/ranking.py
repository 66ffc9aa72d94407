"""Trains and measures the ranking models on the serving path, beside logistic regression.

The rows of an example are its item and the sampled negatives of its slate, with the features as
they stood just before the event (`models/training/replay.py`).

What is unknown must not win. An item's first event cannot teach clicks: no negative is drawn from
items without events, so "no clicks so far" would stand beside the label 1 alone, and an item of
which nothing is known looks the same. Instead rows of both labels are shown as an unknown item's
(`unknown_at_random`): row 0 is scored as an item drawn from the catalogue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.stats import spearmanr
from torch import Tensor

from models import registry
from models.catalogue import ItemTable
from models.configs import ModelConfig
from models.data.errors import DataError
from models.data.events import Dataset
from models.layers import shared_batch
from models.layers.embedding_tables import EmbeddingOptions, Features
from models.ranking.interface import Ranker
from models.ranking.model import RankingModel
from models.schema.compiled import Schema
from models.schema.declaration import Declaration
from models.schema.inputs import Kind, Side, reads_of
from models.training import distributed
from models.training.baselines.counting import OneHotRegression
from models.training.checkpoint import CheckpointFolder
from models.training.loop import LoopConfig, LoopReport
from models.training.metrics import auc
from models.training.phases import Prepared, build, train_twice
from models.training.replay import Examples

LOOP = LoopConfig(epochs=2, batch_size=384, learning_rate=1e-3, patience=1)  # MaskNet's
EVALUATION_BATCH = 2048
SAMPLE = 4096  # examples that are looked at for inputs that do not vary
UNKNOWN = 0.05  # events per item and epoch that are shown as those of an unknown item


# What the serving path trains with unless told otherwise; products of small embeddings are smaller
# still, so that of MLCC the raw columns carry the early learning.
SETTINGS: dict[str, dict[str, Any]] = {
    "masknet": {"units": 256, "tower": (128, 64)},
    "infnet": {"own_history": True},
}
INIT_STD = {"mlcc": 0.01, "mc_mlcc": 0.01}


def loop_of(name: str) -> LoopConfig:
    """How a model is trained unless told otherwise."""
    return LOOP


def model_config(
    schema: Schema, items: ItemTable, name: str = "masknet", **settings: Any
) -> ModelConfig:
    """The model's config for a domain's items; `settings` over the serving path's own."""
    kind = registry.kind_of(name, "ranking")
    reads = reads_of(schema.declaration, schema.layout, "ranking", items.sizes)
    init_std = INIT_STD.get(name, EmbeddingOptions.init_std)
    options = EmbeddingOptions(**vars(reads.tables), init_std=init_std)
    own = registry.checked(kind.configure, {**SETTINGS.get(name, {}), **settings})
    return ModelConfig(reads, own, options)


def check_labels(dataset: Dataset, examples: Examples) -> None:
    """DataError if a period has one class of a task only: nothing can be learned or measured."""
    edges = (0, dataset.valid_from_ms, dataset.train_until_ms, np.iinfo(np.int64).max)
    tasks = dataset.schema.declaration.tasks
    for period, start, end in zip(
        ("training", "validation", "test"), edges, edges[1:], strict=False
    ):
        within = (examples.time_ms >= start) & (examples.time_ms < end)
        labels, known = examples.labels[within], examples.known[within]
        for t, task in enumerate(tasks):
            found = np.unique(labels[..., t][known[..., t]])
            where = f"{dataset.name}: task {task.name}: "
            if not len(found):
                raise DataError(
                    f"{where}nothing of the {period} split is known of it: use more events"
                )
            if task.target == "value":
                continue
            if 1.0 not in found:
                raise DataError(
                    f"{where}no {task.event} of the {period} split is of an item known before: use"
                    " more events"
                )
            if 0.0 not in found:
                raise DataError(
                    f"{where}the {period} split has nothing without a {task.event}: use more events"
                    if task.given
                    else f"{where}the {period} split has no negatives: its users have chosen every"
                    " item that there was: use more items or users"
                )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The slates of B examples as N = B * S model rows."""

    row_user: Tensor  # int64[N]
    items: Tensor  # int64[N]
    counters: Tensor  # float32[N, C]
    positions: Tensor  # int64[N]: places in the list, from 1; 0: not known
    labels: Tensor  # float32[N, T]
    known: Tensor  # bool[N, T]


def rows_of(
    examples: Examples,
    index: np.ndarray,
    device: torch.device | str = "cpu",
    columns: Sequence[str] | None = None,
) -> Rows:
    """Rows of the chosen examples: the item of each, then its sampled negatives; of the items'
    counts those in `columns` (all)."""
    slate, counters = examples.slate[index], examples.counters[index]
    if columns is not None:
        counters = counters[..., [examples.columns.index(name) for name in columns]]

    positions = np.zeros(slate.shape, np.int64)
    positions[:, 0] = examples.positions[index]

    def to(array: np.ndarray) -> Tensor:
        flat = np.ascontiguousarray(array).reshape(slate.size, *array.shape[2:])
        return torch.from_numpy(flat).to(device)

    return Rows(
        row_user=torch.arange(len(index), device=device).repeat_interleave(slate.shape[1]),
        items=to(slate.astype(np.int64)),
        counters=to(counters),
        positions=to(positions),
        labels=to(examples.labels[index]),
        known=to(examples.known[index]),
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

    Each with the chance `rates` float[n + 1] of its item: row 0 without counters, as
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

    `model` is the config, the default one of model `name` unless given. Validation is the mean
    `task_quality`, weighted by the rows that each task is measured on: with one weight each the few
    rows of a task given another would outvote the others. Returns the final model and the first
    run's report.
    """
    config = model or model_config(dataset.schema, dataset.items, name)
    time_ms, until = examples.time_ms, dataset.train_until_ms
    valid = np.flatnonzero((time_ms >= dataset.valid_from_ms) & (time_ms < until))
    weights = examples.known[valid].sum((0, 1))

    def prepare(before_ms: int) -> Prepared:
        index = np.flatnonzero(time_ms < before_ms)
        built = build(name, config, loop.seed, device)
        built.inputs.learn(dataset.items, examples.users.take(index), examples.positions[index])
        built.load_items(dataset.items)
        if console is not None and before_ms == dataset.valid_from_ms:
            for field in constant_inputs(built, examples, index):
                console.print(f"{name}: {field} is the same in all of the training", style="yellow")
        rates = unknown_rates(examples.item[index], len(dataset.items)).to(built.device)

        def loss(batch: np.ndarray, generator: torch.Generator) -> Tensor:
            rows = rows_of(examples, batch, built.device, built.counters)
            rows = unknown_at_random(rows, rates, len(batch), generator)
            users = examples.user_batch(batch)
            logits = built(users, rows.row_user, rows.items, rows.counters, rows.positions)
            return task_loss(built, logits, rows.labels, rows.known)

        def validate() -> float:
            found = task_quality(built, examples, valid)
            return float(np.average(list(found.values()), weights=weights))

        return Prepared(built, loss, index, validate)

    return train_twice(name, dataset, loop, prepare, console, checkpoint)


def constant_inputs(model: RankingModel, examples: Examples, index: np.ndarray) -> list[str]:
    """The inputs that have one value in up to SAMPLE of these examples: nothing is learned of them,
    and what they say when serving may be something else."""
    sample = index[:: max(len(index) // SAMPLE, 1)]
    rows = rows_of(examples, sample, model.device, model.counters)
    with torch.no_grad():
        users = model.inputs.user(examples.user_batch(sample))
        own = model.inputs.rows(users, rows.row_user, rows.items, rows.counters, rows.positions)
        items = model.inputs.items(rows.items[rows.items > 0])
    sides: dict[Side, Features] = {"user": users.features, "item": items, "row": own}
    schema, found = model.reads.schema, []
    for side, features in sides.items():
        columns: dict[Kind, Tensor] = {"id": features.ids, "number": features.numbers}
        for kind, values in columns.items():
            same = (values == values[:1]).all(0).tolist()
            found += [i.name for i, one in zip(schema.of(kind, side), same, strict=True) if one]
        found += [name for name, each in features.lists.items() if (each == each[:1]).all()]
    return found


def task_loss(model: RankingModel, logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """The model's multi-task loss of a batch, or of a worker's share of it."""
    each = model.losses(logits.float(), labels, known)
    if distributed.world_size() > 1:
        each = each * distributed.task_weights(known)
    return each.sum()


def train_in_worker(**arguments: Any) -> tuple[Any, dict[str, Any]]:
    """`train` on a worker's own device (`models.training.distributed.run`)."""
    model, report = train(**arguments, device=distributed.worker_device())
    return model, asdict(report)


def task_quality(model: RankingModel, examples: Examples, index: np.ndarray) -> dict[str, float]:
    """By task ("click auc"), over the examples' rows, scored as the service would: the AUC; of a
    task that predicts a value Spearman's correlation with it."""
    p, rows = scored(model, examples, index), rows_of(examples, index)
    y, k = rows.labels.numpy(), rows.known.numpy()
    found = {}
    for t, (task, of_value) in enumerate(zip(model.tasks, model.of_value, strict=True)):
        name, measure = ("correlation", _correlation) if of_value else ("auc", auc)
        found[f"{task} {name}"] = measure(y[k[:, t], t], p[k[:, t], t])
    return found


def scored(model: Ranker, examples: Examples, index: np.ndarray) -> np.ndarray:
    """float32[N, T]: scores of the rows of the chosen examples, as the service makes them."""
    parts = []
    for start in range(0, len(index), EVALUATION_BATCH):
        part = index[start : start + EVALUATION_BATCH]
        rows = rows_of(examples, part, model.device, model.counters)
        user = model.user_part(examples.user_batch(part))
        parts.append(model.score(user, rows.row_user, rows.items, rows.counters).cpu())
    return torch.cat(parts).numpy()


def _correlation(labels: np.ndarray, scores: np.ndarray) -> float:
    """0 where one of the two does not vary."""
    found = spearmanr(labels, scores).statistic if len(labels) > 1 else math.nan
    return 0.0 if math.isnan(found) else float(found)


def regression_auc(dataset: Dataset, examples: Examples, index: np.ndarray) -> dict[str, float]:
    """AUC per task of one-hot logistic regression, trained on the training period, same rows; of
    tasks that predict whether something happens."""
    past = np.flatnonzero(examples.time_ms < dataset.train_until_ms)
    fitted, tested = rows_of(examples, past), rows_of(examples, index)
    result = {}
    for t, task in enumerate(dataset.schema.declaration.tasks):
        if task.target == "happened":
            regression = regression_of(dataset, examples, past, fitted, t)
            user, rows, labels = _regression_rows(examples, index, tested, t)
            result[f"{task.name} auc"] = auc(labels, regression.predict(user, rows))
    return result


def regression_of(
    dataset: Dataset, examples: Examples, index: np.ndarray, rows: Rows, task: int
) -> OneHotRegression:
    """One-hot logistic regression of a task, fitted on the `rows` of these examples."""
    users = int(examples.user.max()) + 1
    regression = OneHotRegression(users, declared_values(dataset.items, dataset.schema.declaration))
    return regression.fit(*_regression_rows(examples, index, rows, task))


def declared_values(items: ItemTable, declaration: Declaration) -> np.ndarray:
    """float32[n + 1, V]: which declared values the fields of each item have, side by side."""
    found = [np.zeros((len(items) + 1, 0), np.float32)]
    for field in declaration.item_fields:
        if field.vocabulary is not None and field.vocabulary.source == "values":
            found.append(items.multi_hot(field.name, field.vocabulary.size))
    return np.concatenate(found, axis=1)


def _regression_rows(
    examples: Examples, index: np.ndarray, rows: Rows, task: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    known = rows.known[:, task].numpy()
    user = examples.user[index][rows.row_user.numpy()]
    return user[known], rows.items.numpy()[known], rows.labels[:, task].numpy()[known]
