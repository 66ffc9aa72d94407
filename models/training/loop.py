"""The training loop: shuffled mini-batches, regular validation, early stopping.

A model brings its own loss; the loop knows nothing else of it. With the same seed and thread count
on one machine's CPU two runs give the same weights, and so does a run that was killed and resumed
from its checkpoint (`models/training/checkpoint.py`). Inside the workers of
`models/training/distributed.py` the same loop trains data-parallel: every worker walks the same
batches and takes its share of each.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from models.data.errors import DataError
from models.training import distributed, optimizers
from models.training.checkpoint import Checkpointing, open_or_resume
from models.training.compilation import compiled
from models.training.optimizers import OptimizerName
from models.training.run import Run

BatchLoss = Callable[[np.ndarray, torch.Generator], Tensor]
LARGEST_RATE = 10.0  # of learning: beyond it every optimizer here only overflows
SHOW_EVERY_S = 0.25  # reading the loss waits for the device: not at every step


class TrainingError(Exception):
    """A training cannot go on; the message says what to change."""


@dataclass(frozen=True)
class LoopConfig:
    """How to train.

    A round is an epoch, or `validate_every` steps; each ends with a validation, and `patience`
    rounds without a better one end the training. `steps`, when given, replaces `epochs`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    patience: int = 2
    seed: int = 0
    optimizer: OptimizerName = "adamw"
    steps: int | None = None
    validate_every: int | None = None
    clip_norm: float | None = None  # largest norm of the whole gradient
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast; weights stay float32
    compile: bool = False  # see models/training/compilation.py
    sparse_embeddings: bool = False  # see models/training/optimizers.py

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "steps", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, is {value}")
        if not 0 < self.learning_rate <= LARGEST_RATE:
            raise ValueError(
                f"learning_rate must be positive and at most {LARGEST_RATE:g}, is "
                f"{self.learning_rate}"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, is {self.clip_norm}")
        if not 0 <= self.weight_decay <= 1 / self.learning_rate:
            # A step takes learning_rate * weight_decay of every weight.
            raise ValueError(
                f"weight_decay must be between 0 and 1 / learning_rate, is {self.weight_decay}"
            )


@dataclass(frozen=True)
class LoopReport:
    """What happened: validation (higher is better) and mean training loss of each round."""

    validation: tuple[float, ...]
    best_epoch: int  # the best round, counted from 1; without validation all epochs
    seconds: float  # of this and, after a resume, of the earlier processes
    losses: tuple[float, ...] = ()
    best_step: int = 0  # steps after which the best round ended
    steps: int = 0  # steps taken
    examples_per_s: float = 0.0  # in training steps, validation not counted

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LoopReport:
        """The report that `asdict` and JSON have made of it."""
        lists = {key: tuple(document[key]) for key in ("validation", "losses")}
        return cls(**{**document, **lists})


def fit(
    model: nn.Module,
    loss: BatchLoss,
    examples: np.ndarray,
    config: LoopConfig,
    validate: Callable[[], float] | None = None,
    console: Console | None = None,
    title: str = "training",
    checkpoint: Checkpointing | None = None,
) -> LoopReport:
    """Train in place on the example numbers int[N]; ends with the best round's weights.

    `loss(index, generator)` is the mean loss of a batch of example numbers. Without `validate` all
    steps are taken and the last weights kept. With `checkpoint` the training can be killed at any
    moment and resumed. Raises TrainingError when loss, weights or validation are not finite,
    DataError without examples, CheckpointError when a checkpoint cannot be used.
    """
    if not len(examples):
        raise DataError(f"{title}: there are no examples to train on: the training split is empty")
    size = config.batch_size
    per_epoch = math.ceil(len(examples) / size)
    last = config.steps or config.epochs * per_epoch
    every = config.validate_every or per_epoch
    device = next(model.parameters()).device
    with (
        distributed.seeded(config.seed, device),
        compiled(model, config.compile),
        _display(console, title, last, size) as show,
    ):
        run = _new_run(model, config, device)
        saver = open_or_resume(checkpoint, run, _identity(config, examples, title))
        batch_loss = distributed.shared_loss(model, loss)
        order = run.shuffle(examples)
        model.train()
        clock = time.perf_counter()
        while not run.over:
            at = run.step % per_epoch
            if at == 0 and run.step:
                order = run.shuffle(examples)
            index = order[at * size : (at + 1) * size]
            with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
                value = batch_loss(index, run.generator)
            run.optimizer.zero_grad()
            value.backward()
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            run.optimizer.step()
            run.step += 1
            run.examples += len(index)
            run.loss_examples += len(index)
            run.loss_sum += value.detach() * len(index)
            show(run)
            if run.step % every == 0 or run.step == last:
                _close_round(run, title)
                clock = _lap(run, "training_s", clock)
                if validate is not None:
                    model.eval()
                    _judge(run, distributed.from_main(validate, device), title)
                    model.train()
                    clock = _lap(run, "validation_s", clock)
                late = bool(run.scores) and len(run.scores) - run.best_round() >= config.patience
                run.over = run.step == last or late
            saver.save(run, always=run.loss_examples == 0)
        if run.best is not None:
            model.load_state_dict(run.best)
        model.eval()
        return _report(run, config)


def _new_run(model: nn.Module, config: LoopConfig, device: torch.device) -> Run:
    return Run(
        model,
        optimizers.build(
            config.optimizer, model, config.learning_rate, config.weight_decay,
            config.sparse_embeddings,
        ),
        np.random.default_rng(config.seed),
        torch.Generator().manual_seed(config.seed),
        torch.zeros((), dtype=torch.float64, device=device),
    )  # fmt: skip


def _identity(config: LoopConfig, examples: np.ndarray, title: str) -> dict[str, Any]:
    """What makes two trainings the same, as far as the loop knows."""
    digest = xxhash.xxh3_64_hexdigest(np.ascontiguousarray(examples).tobytes())
    return {
        "loop": asdict(config),
        "training": title,
        "examples": {"count": len(examples), "digest": digest},
    }


def _close_round(run: Run, title: str) -> None:
    """Note the round's mean loss over all workers and begin the next; what is kept is finite."""
    distributed.summed(run.loss_sum)
    run.loss_sum /= distributed.world_size()
    mean = run.mean_loss()
    if not math.isfinite(mean):
        raise TrainingError(
            f"{title}: the loss is {mean} after step {run.step}: lower learning_rate, set clip_norm"
            " or look for extreme values in the data"
        )
    for name, weight in run.model.named_parameters():
        if not weight.isfinite().all():
            raise TrainingError(
                f"{title}: weights of {name} are no longer finite after step {run.step}: lower "
                "learning_rate or set clip_norm"
            )
    run.losses.append(mean)
    run.loss_sum.zero_()
    run.loss_examples = 0


def _judge(run: Run, score: float, title: str) -> None:
    """Note a validation; the weights of the best one are kept."""
    if not math.isfinite(score):
        raise TrainingError(
            f"{title}: validation gave {score} after step {run.step}: the validation split lacks "
            "a class or has no usable case"
        )
    if not run.scores or score > max(run.scores):
        run.best = copy.deepcopy(run.model.state_dict())
        run.best_step = run.step
    run.scores.append(score)


def _lap(run: Run, name: str, since: float) -> float:
    """Add the time since `since` to a total; the time now."""
    now = time.perf_counter()
    setattr(run, name, getattr(run, name) + now - since)
    return now


def _report(run: Run, config: LoopConfig) -> LoopReport:
    return LoopReport(
        tuple(run.scores),
        run.best_round() if run.scores else config.epochs,
        run.training_s + run.validation_s,
        tuple(run.losses),
        run.best_step or run.step,
        run.step,
        run.examples / max(run.training_s, 1e-9),
    )


@contextlib.contextmanager
def _display(
    console: Console | None, title: str, last: int, batch_size: int
) -> Iterator[Callable[[Run], None]]:
    """A progress bar with loss, validation, examples/s and the remaining time; yields what shows
    a run there, now and then: reading the loss waits for the device."""
    if console is None:
        yield lambda run: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(),
        TextColumn("{task.fields[status]}"), TimeRemainingColumn(),
    )  # fmt: skip
    started, due, first = time.perf_counter(), 0.0, 0

    def show(run: Run) -> None:
        nonlocal due, first
        now = time.perf_counter()
        if now < due and run.step < last:
            return
        due, first = now + SHOW_EVERY_S, first or run.step
        rate = (run.step - first) * batch_size / max(now - started, 1e-9)
        valid = f" valid {run.scores[-1]:.4f}" if run.scores else ""
        status = f"loss {run.mean_loss():.4f}{valid} {rate:,.0f} examples/s"
        progress.update(task, completed=run.step, status=status)

    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=last, status="")
        yield show
