"""Trains and measures the retrieval models on the serving path, beside the usual baselines.

Serving path: examples are replayed events (`models/training/replay.py`), users reach a model as
the service would send them (`models/inputs.py`), and what is measured is what would be published.
The protocols of the papers are in `models/training/prepared/sequences.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from models import registry
from models.catalogue import ItemTable
from models.configs import ModelConfig
from models.data.errors import DataError
from models.data.events import Dataset
from models.schema.compiled import Schema
from models.schema.inputs import reads_of
from models.training import distributed
from models.training.baselines.scorers import FITS
from models.training.checkpoint import CheckpointFolder
from models.training.loop import LoopConfig, LoopReport
from models.training.metrics import Estimate, recall_at
from models.training.phases import Prepared, build, train_twice
from models.training.replay import Examples
from models.training.retrieval_cases import RetrievalCases, retrieval_cases

RECALL_AT = 50
LOOP = LoopConfig(epochs=6, batch_size=1024, learning_rate=4e-3, patience=2)  # the two-tower's
_SEQUENCE_LOOP = LoopConfig(epochs=12, batch_size=256, learning_rate=1e-3, patience=2)
_COSINE: dict[str, Any] = {"normalise": True, "temperature": 0.1, "history": 50}
SETTINGS: dict[str, dict[str, Any]] = {
    name: _COSINE for name in registry.names("retrieval") if name not in ("ssl_two_tower", "sasrec")
}
# Every event is an example of its own here: the newest position of a history is enough.
SETTINGS["sasrec"] = {"positions": "last", "loss": "sampled", **_COSINE}
BASELINES = ("popularity", "markov", "item_knn", "ease")
EASE_ITEMS = 20_000  # two dense float32 matrices of this many rows are 3.2 GB


def loop_of(name: str) -> LoopConfig:
    """How a model is trained unless told otherwise."""
    return LOOP if name == "ssl_two_tower" else _SEQUENCE_LOOP


def model_config(
    schema: Schema, items: ItemTable, name: str = "ssl_two_tower", **settings: Any
) -> ModelConfig:
    """The model's config for a domain's items; `settings` over the serving path's own."""
    kind = registry.kind_of(name, "retrieval")
    reads = reads_of(schema.declaration, schema.layout, "retrieval", items.sizes)
    own = {**SETTINGS.get(name, {}), **settings, **registry.of_data(kind, len(items))}
    return ModelConfig(reads, registry.checked(kind.configure, own))


def cases_of(
    dataset: Dataset, examples: Examples, period: Literal["validation", "test"]
) -> RetrievalCases:
    """Who is asked what in a period; DataError if that is nobody."""
    if period == "test":
        cases = retrieval_cases(examples, dataset.train_until_ms)
    else:
        cases = retrieval_cases(examples, dataset.valid_from_ms, dataset.train_until_ms)
    if not cases.targets:
        raise DataError(
            f"{dataset.name}: no user of the {period} split has a target in the catalogue: its "
            "items are all new: use more events"
        )
    return cases


def train(
    dataset: Dataset,
    examples: Examples,
    loop: LoopConfig = LOOP,
    model: Any = None,
    device: str | torch.device = "cpu",
    console: Console | None = None,
    name: str = "ssl_two_tower",
    checkpoint: CheckpointFolder | None = None,
) -> tuple[Any, LoopReport]:
    """Find the number of epochs on the validation period, then train on the whole training period.

    `model` is the config, the default one of model `name` unless given. Returns the final model and
    the report of the first run.
    """
    config = model or model_config(dataset.schema, dataset.items, name)
    cases = cases_of(dataset, examples, "validation")

    def prepare(before_ms: int) -> Prepared:
        built = build(name, config, loop.seed, device)
        before = (examples.time_ms < before_ms) & examples.chosen
        index = np.flatnonzero(before & (examples.item > 0))
        built.learn(dataset.items, examples.users.take(index))
        if console is not None and before_ms == dataset.valid_from_ms and hasattr(built, "inputs"):
            for field in built.inputs.constant():
                console.print(f"{name}: {field} is the same in all of the training", style="yellow")
        clicks = np.bincount(examples.item[index], minlength=len(dataset.items) + 1)
        built.prepare_training(dataset.items, clicks)

        def loss(batch: np.ndarray, generator: torch.Generator) -> torch.Tensor:
            targets = torch.from_numpy(examples.item[batch].astype(np.int64)).to(built.device)
            return built.loss(examples.user_batch(batch), targets, generator)

        return Prepared(built, loss, index, lambda: model_recall(built, cases).mean)

    return train_twice(name, dataset, loop, prepare, console, checkpoint)


def train_in_worker(**arguments: Any) -> tuple[Any, dict[str, Any]]:
    """`train` on a worker's own device (`models.training.distributed.run`)."""
    model, report = train(**arguments, device=distributed.worker_device())
    return model, asdict(report)


def model_recall(model: Any, cases: RetrievalCases) -> Estimate:
    """Recall@50 of the model over the cases' users."""
    vectors = model.encode_users(cases.batch)
    scores = torch.einsum("bkd,nd->bkn", vectors, model.item_vectors()).amax(1)
    return recall_at(scores.cpu().numpy(), cases.seen, cases.targets, RECALL_AT)


def baseline_recall(
    dataset: Dataset,
    examples: Examples,
    cases: RetrievalCases,
    before_ms: int,
    names: Sequence[str] = ("popularity", "markov"),
) -> dict[str, Estimate]:
    """Recall@50 of baselines counted over events before `before_ms`.

    EASE is left out for a catalogue of more than EASE_ITEMS.
    """
    past = (examples.time_ms < before_ms) & examples.chosen
    events = examples.user[past], examples.item[past], len(dataset.items)
    asked = [name for name in names if name != "ease" or len(dataset.items) <= EASE_ITEMS]
    return {
        name: recall_at(
            FITS[name](*events)(cases.last, cases.seen), cases.seen, cases.targets, RECALL_AT
        )
        for name in asked
    }
