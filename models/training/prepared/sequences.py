"""Trains any retrieval model on `models/data/sequences.py`.

A training example is a user at a moment: what they chose before it and what they chose next. Three
ways to draw them (`Sampling`): "users" draws distinct users uniformly and one moment of each
(protocol A: activity does not weigh), "events" draws moments uniformly, "sequences" takes whole
users for models that learn from every step at once (SASRec), users of like length together so that
padding is short. Everything is drawn from the generator that the loop hands over, so that a resumed
training continues as if it had not stopped.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from models import registry
from models.catalogue import ItemTable
from models.configs import ModelConfig, derived
from models.data.sequences import Sequences, Split
from models.inputs import UserBatch
from models.schema.inputs import Reads
from models.training import phases
from models.training.checkpoint import Checkpointing
from models.training.loop import LoopConfig, LoopReport, fit
from models.training.prepared import domain
from models.training.prepared.sequence_evaluation import (
    mean_metric,
    model_scorer,
    neutral_batch,
    newest_first,
)

Sampling = Literal["users", "events", "sequences"]
VALID_METRICS = r"(recall|hr|ndcg|ndcg_comirec|map)@[1-9]\d*"


@dataclass(frozen=True)
class SequenceTraining:
    """A budget of `steps` batches; every `validate_every` the model is measured on validation.

    `patience` validations without a better one end the training. `min_history` is the shortest
    history of a drawn moment, `random_windows` lets "sequences" end before a long user's last
    event. `valid_cases` limits the validation to that many cases, the same every time (0: all).
    `epochs`, when given, replaces `steps`: one is as many examples as there are users to draw, or
    moments with `sampling` "events".
    """

    steps: int = 5000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    validate_every: int = 500
    patience: int = 4
    seed: int = 19
    sampling: Sampling = "users"
    min_history: int = 4
    random_windows: bool = False
    valid_metric: str = "recall@50"
    valid_cases: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.min_history < 1:
            raise ValueError(f"min_history must be at least 1, is {self.min_history}")
        if self.valid_cases < 0:
            raise ValueError(f"valid_cases must not be negative, is {self.valid_cases}")
        if not re.fullmatch(VALID_METRICS, self.valid_metric):
            raise ValueError(
                f"valid_metric {self.valid_metric!r} is not recall@N, hr@N, ndcg@N or map@N"
            )
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, is {self.epochs}")
        self.loop(self.steps)

    def loop(self, steps: int) -> LoopConfig:
        """The loop of so many steps; ValueError names a value that it refuses."""
        return derived(LoopConfig, self, epochs=1, steps=steps)


class Moments:
    """Draws the training examples of a split, whole batches at a time."""

    def __init__(self, split: Split, history: int, training: SequenceTraining) -> None:
        self._items = split.sequences.items
        self._history, self._training = history, training
        least = 1 if training.sampling == "sequences" else training.min_history
        usable = split.train_end - split.train_start > least
        if not usable.any():
            raise ValueError(f"no training user has more than {least} events")
        self._start, self._end = split.train_start[usable], split.train_end[usable]
        if training.sampling == "sequences":
            order = np.argsort(self._end - self._start, kind="stable")
            self._start, self._end = self._start[order], self._end[order]
        # "events": the number of moments up to and including each user.
        self._moments = np.cumsum(self._end - self._start - least)

    def __len__(self) -> int:
        """How many different examples may be drawn; with "sequences" a user is one."""
        by_moment = self._training.sampling == "events"
        return int(self._moments[-1]) if by_moment else len(self._start)

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[UserBatch, Tensor]:
        """Histories and the items int64[B] that follow them."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        start, at = getattr(self, f"_{self._training.sampling}")(batch_size, rng)
        rows = newest_first(self._items, start, at, self._history)
        if self._training.sampling == "sequences":
            rows = rows[:, : int((at - start).max())]  # the batch's longest: no needless padding
        return neutral_batch(rows), torch.from_numpy(self._items[at].astype(np.int64))

    def _users(self, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Distinct users, uniform; the target's place uniform in [min_history, length)."""
        size = min(batch_size, len(self._start))
        user = rng.choice(len(self._start), size, replace=False, shuffle=False)
        start, end = self._start[user], self._end[user]
        return start, rng.integers(start + self._training.min_history, end)

    def _events(self, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Any moment with at least min_history known events, uniform."""
        moment = rng.integers(self._moments[-1], size=batch_size)
        user = np.searchsorted(self._moments, moment, side="right")
        from_end = self._moments[user] - moment  # 1 is the user's last event
        return self._start[user], self._end[user] - from_end

    def _sequences(
        self, batch_size: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Users of similar length, each up to the last training event or to a random window's."""
        size = min(batch_size, len(self._start))
        centre = rng.integers(len(self._start))
        near = (centre + rng.choice(min(4 * size, len(self._start)), size, replace=False)) % len(
            self._start
        )
        start, end = self._start[near], self._end[near]
        if self._training.random_windows:
            full = np.minimum(start + self._history + 1, end)
            end = rng.integers(full, end + 1)
        return np.maximum(start, end - 1 - self._history), end - 1


def item_table(split: Split) -> ItemTable:
    """The split's items with the last of their attributes, the finest ones.

    Clicks are those of the training events: what is asked about later has not been seen.
    """
    sequences = split.sequences
    features = np.zeros(sequences.num_items, domain.SCHEMA.layout.item.dtype)
    for row, attributes in enumerate(sequences.item_attributes or ()):
        kept = attributes[-domain.SLOTS :]
        features[domain.ATTRIBUTES][row, : len(kept)] = kept
    clicks = split.train_counts()[1:]
    vocabulary = np.arange(1, num_attributes(sequences) + 1, dtype=np.uint64)
    return ItemTable.build(
        sequences.item_ids, features, clicks[:, None], {domain.ATTRIBUTES: vocabulary}
    )


def train(
    model: Any,
    split: Split,
    training: SequenceTraining,
    console: Console | None = None,
    checkpoint: Checkpointing | None = None,
) -> LoopReport:
    """Train in place, ending with the weights of the best validation.

    `model` is any of `models/retrieval`, built for the sequences' items (`build_model`). A round of
    the report is the stretch between two validations.
    """
    history = model_history(model)
    model.prepare_training(item_table(split), split.train_counts())
    moments = Moments(split, history, training)
    cases = split.valid
    if training.valid_cases and training.valid_cases < len(cases):
        chosen = np.random.default_rng(0).permutation(len(cases))[: training.valid_cases]
        cases = cases.take(np.sort(chosen))

    def loss(index: np.ndarray, generator: torch.Generator) -> Tensor:
        batch, targets = moments.draw(len(index), generator)
        return model.loss(batch, targets.to(model.device), generator)

    def validate() -> float:
        scorer = model_scorer(model, split.sequences, history)
        return mean_metric(split, cases, scorer, training.valid_metric)

    # Examples are drawn, not numbered: the loop's numbers only say how many to draw.
    steps = training.steps
    if training.epochs is not None:
        steps = math.ceil(training.epochs * len(moments) / training.batch_size)
    numbers = np.arange(training.validate_every * training.batch_size)
    loop = training.loop(steps)
    return fit(model, loss, numbers, loop, validate, console, model.source, checkpoint)


def model_history(model: Any) -> int:
    """How many events of a history the model reads."""
    return int(getattr(model.cfg, "history", domain.HISTORY_LENGTH))


def build_model(name: str, sequences: Sequences, seed: int, **settings: Any) -> Any:
    """A new retrieval model of the registry for the sequences' items, its weights from `seed`.

    Settings are those of the model's config. UnknownModel names the nearest model.
    """
    config = ModelConfig(reads_of(sequences), build_config(name, sequences, **settings))
    return phases.build(name, config, seed, "cpu")


def reads_of(sequences: Sequences) -> Reads:
    """What models read of sequences."""
    return domain.reads(sequences.num_items, num_attributes(sequences))


def build_config(name: str, sequences: Sequences, **settings: Any) -> Any:
    """The settings of `build_model`, every default filled in."""
    kind = registry.kind_of(name, "retrieval")
    return kind.configure(**registry.of_data(kind, sequences.num_items), **settings)


def num_attributes(sequences: Sequences) -> int:
    """The largest attribute number, 0 without attributes."""
    return max((max(a, default=0) for a in sequences.item_attributes or ()), default=0)
