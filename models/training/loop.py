"""The training loop: shuffled mini-batches, a validation after every epoch, early stopping.

A model brings its own loss; the loop knows nothing else of it. With the same seed and thread count
on one machine's CPU two runs give the same weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

BatchLoss = Callable[[np.ndarray, torch.Generator], Tensor]


@dataclass(frozen=True)
class LoopConfig:
    """How to train; `patience` epochs without a better validation end the training."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    patience: int = 2
    seed: int = 0


@dataclass(frozen=True)
class LoopReport:
    """What happened: validation per epoch (higher is better), the best one and the time."""

    validation: tuple[float, ...]
    best_epoch: int  # counted from 1
    seconds: float


def fit(
    model: nn.Module,
    loss: BatchLoss,
    examples: np.ndarray,
    config: LoopConfig,
    validate: Callable[[], float] | None = None,
    console: Console | None = None,
    title: str = "training",
) -> LoopReport:
    """Train in place on the example numbers int[N]; ends with the best epoch's weights.

    `loss(index, generator)` is the mean loss of a batch of example numbers. Without `validate` all
    epochs are run and the last weights kept.
    """
    started = time.perf_counter()
    rng = np.random.default_rng(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    scores: list[float] = []
    best: dict[str, Tensor] | None = None
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(),
        TextColumn("{task.fields[status]}"), TimeRemainingColumn(),
        console=console, disable=console is None,
    )  # fmt: skip
    with progress:
        task = progress.add_task(title, total=config.epochs * len(examples), status="")
        for epoch in range(config.epochs):
            model.train()
            order = rng.permutation(examples)
            for start in range(0, len(order), config.batch_size):
                index = order[start : start + config.batch_size]
                value = loss(index, generator)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                done = epoch * len(order) + start + len(index)
                rate = done / (time.perf_counter() - started)
                valid = f" valid {scores[-1]:.4f}" if scores else ""
                status = f"loss {value.item():.4f}{valid} {rate:,.0f} examples/s"
                progress.update(task, completed=done, status=status)
            if validate is None:
                continue
            model.eval()
            scores.append(validate())
            if scores[-1] >= max(scores):
                best = copy.deepcopy(model.state_dict())
            if len(scores) - int(np.argmax(scores)) > config.patience:
                progress.update(task, total=done, completed=done)
                break
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    best_epoch = int(np.argmax(scores)) + 1 if scores else config.epochs
    return LoopReport(tuple(scores), best_epoch, time.perf_counter() - started)
