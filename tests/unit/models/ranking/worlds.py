"""Users, rows and models to test on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from models.inputs import UserBatch


def user(batch: UserBatch, index: int) -> UserBatch:
    """One user of a batch, as a batch."""
    return replace(batch, **{k: v[index : index + 1] for k, v in vars(batch).items()})


def rows(num_items: int, count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Users 0..2, item rows (the first unknown) and counters of `count` rows."""
    row_user = torch.arange(count) * 3 // count
    items = torch.randint(1, num_items + 1, (count,))
    items[0] = 0
    return row_user, items, torch.rand(count, 3) * 20


def count(*modules: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for m in modules for p in m.parameters())


def spread(module: Any, std: float = 0.3) -> Any:
    """The module with weights so large that every part of it shows in the output."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module
