"""The two trainings of a model to serve: one to find how long, one on all that may be learned from.

What retrieval and ranking have in common there: the validation period chooses the number of epochs,
then the model is trained anew, for so long, on the whole training period.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console

from models import registry
from models.data.events import Dataset
from models.training.checkpoint import CheckpointFolder
from models.training.loop import BatchLoss, LoopConfig, LoopReport, fit


@dataclass(frozen=True)
class Prepared:
    """A new model with what its training takes: the loss, example numbers int[N], a validation."""

    model: Any
    loss: BatchLoss
    index: np.ndarray
    validate: Callable[[], float]


def train_twice(
    name: str,
    dataset: Dataset,
    loop: LoopConfig,
    prepare: Callable[[int], Prepared],
    console: Console | None,
    checkpoint: CheckpointFolder | None,
) -> tuple[Any, LoopReport]:
    """The final model and the report of the first training; `prepare(before_ms)` makes each."""

    def run(
        phase: str, before_ms: int, loop: LoopConfig, validated: bool
    ) -> tuple[Any, LoopReport]:
        made = prepare(before_ms)
        saved = None
        if checkpoint is not None:
            saved = checkpoint.phase(name, phase, identity(name, made.model, dataset))
        validate = made.validate if validated else None
        title = f"{name}: {phase}"
        return made.model, fit(
            made.model, made.loss, made.index, loop, validate, console, title, saved
        )

    _, report = run("epochs", dataset.valid_from_ms, loop, True)
    final, _ = run("final", dataset.train_until_ms, as_long(loop, report), False)
    return final, report


def build(name: str, config: Any, seed: int, device: str | torch.device) -> Any:
    """A new model, its weights drawn from `seed`, torch's own random numbers left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registry.kind_of(name).make(config).to(device)


def as_long(loop: LoopConfig, report: LoopReport) -> LoopConfig:
    """The loop of the final training: as long as was best."""
    if loop.steps is None and loop.validate_every is None:
        return replace(loop, epochs=report.best_epoch)
    return replace(loop, steps=report.best_step)


def identity(name: str, model: Any, dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint is of."""
    return {
        "model": name,
        "parameters": model.config(),
        "data": {
            "name": dataset.name,
            "digest": dataset.digest,
            "valid_from_ms": dataset.valid_from_ms,
            "train_until_ms": dataset.train_until_ms,
        },
    }
