"""What the multi-task ranking models share: one tower per task, the losses, what logits say.

A new task is one more in what a model reads (`models/schema/inputs.py`); nothing else of a model
knows how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers.mlp import mlp

MOST_LOGIT = 50.0  # of a value: 5e21


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


class Head(nn.Module):
    """Dropout on what the tasks share, unless that has had it, then a tower per task."""

    def __init__(
        self,
        tasks: int,
        width: int,
        hidden: Sequence[int],
        dropout: float,
        drop_shared: bool = True,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout if drop_shared else 0.0)
        self.towers = TaskTowers(tasks, width, hidden, dropout)

    def forward(self, shared: Tensor) -> Tensor:
        """As `TaskTowers`."""
        logits: Tensor = self.towers(self.dropout(shared))
        return logits


def task_losses(
    logits: Tensor, labels: Tensor, known: Tensor, of_value: Sequence[bool] = ()
) -> Tensor:
    """The mean loss of each task over the rows whose label is known, float[T].

    `logits`, `labels` float[N, T], `known` bool[N, T]: a like, say, is known only where there was a
    click. A task without a known label has 0. Cross entropy; of tasks that predict a value
    (`of_value`) half the squared error of sign(v) log(1 + |v|), so that few large values do not
    decide alone.
    """
    each = functional.binary_cross_entropy_with_logits(logits, labels.clamp(0, 1), reduction="none")
    if any(of_value):
        error = logits - labels.sign() * labels.abs().log1p()
        values = torch.tensor(of_value, device=logits.device)
        each = torch.where(values, 0.5 * error.square(), each)
    weight = known.to(each.dtype)
    return (each * weight).sum(0) / weight.sum(0).clamp_min(1.0)


def probabilities(logits: Tensor, of_value: Sequence[bool] = ()) -> Tensor:
    """float32[N, T]: probabilities, or values, of logits float[N, T] trained by `task_losses`."""
    found = torch.sigmoid(logits)
    if not any(of_value):
        return found
    bounded = logits.clamp(-MOST_LOGIT, MOST_LOGIT)
    values = bounded.sign() * bounded.abs().expm1()
    return torch.where(torch.tensor(of_value, device=logits.device), values, found)
