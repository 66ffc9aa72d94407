"""What the multi-task ranking models share: one tower per task, and the loss.

A new task is a name in a model's config; nothing else of a model knows how many tasks there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers.mlp import mlp


class TaskTowers(nn.ModuleList):
    """One perceptron per task, of the same shape and with weights of its own, ending in a logit."""

    def __init__(self, tasks: int, width: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__(_tower(width, hidden, dropout) for _ in range(tasks))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits float[N, T] of float[N, w], which all tasks read, or float[N, T, w], one each."""
        each = inputs.unbind(1) if inputs.dim() == 3 else [inputs] * len(self)
        return torch.cat([tower(x) for tower, x in zip(self, each, strict=True)], dim=1)


def _tower(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    tower = mlp(width, hidden, 1)
    if not dropout:
        return tower
    layers: list[nn.Module] = []
    for layer in tower:
        layers += [layer, nn.Dropout(dropout)] if isinstance(layer, nn.ReLU) else [layer]
    return nn.Sequential(*layers)


def multi_task_loss(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Sum over tasks of the mean cross entropy of the rows whose label is known, a scalar.

    `logits`, `labels` float[N, T], `known` bool[N, T]: a like is known only where there was a
    click. A task without a known label adds nothing.
    """
    each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    weight = known.to(each.dtype)
    return ((each * weight).sum(0) / weight.sum(0).clamp_min(1.0)).sum()
