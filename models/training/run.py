"""The state of a running training: what the loop moves on and a checkpoint holds."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.training.optimizers import Optimizers


@dataclass
class Run:
    """Everything of a running training that a checkpoint must hold."""

    model: nn.Module
    optimizer: Optimizers
    rng: np.random.Generator  # shuffles
    generator: torch.Generator  # for the loss
    loss_sum: Tensor  # float64 of this round, weighted by examples; stays on the device
    loss_examples: int = 0
    order_state: dict[str, Any] = field(default_factory=dict)  # rng before this epoch's shuffle
    step: int = 0
    scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_step: int = 0
    examples: int = 0
    training_s: float = 0.0
    validation_s: float = 0.0
    over: bool = False

    def shuffle(self, examples: np.ndarray) -> np.ndarray:
        """The order of the next epoch."""
        self.order_state = dict(copy.deepcopy(self.rng.bit_generator.state))
        return self.rng.permutation(examples)

    def best_round(self) -> int:
        """Counted from 1; the first of equals."""
        return int(np.argmax(self.scores)) + 1

    def mean_loss(self) -> float:
        """Mean over this round's examples so far; waits for the device."""
        return float(self.loss_sum) / max(self.loss_examples, 1)
