"""Users, rows and models to test on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.inputs import UserBatch
from models.schema import GENRE_SLOTS, MODEL_HISTORY


def users(count: int, num_items: int, seed: int = 0) -> UserBatch:
    """Users with histories of 1 to 19 items."""
    rng = np.random.default_rng(seed)
    history = rng.integers(1, num_items + 1, (count, MODEL_HISTORY))
    history[np.arange(MODEL_HISTORY) >= rng.integers(1, 20, (count, 1))] = 0
    genres = rng.random((count, GENRE_SLOTS)).astype(np.float32)
    return UserBatch(
        history,
        (rng.random(history.shape) < 0.5) & (history > 0),
        rng.integers(0, 30, (count, 3)).astype(np.float32),
        genres / genres.sum(1, keepdims=True),
        (rng.random(count) * 1e6).astype(np.float32),
    )


def nobody() -> UserBatch:
    """One user of whom nothing is known."""
    return UserBatch(
        np.zeros((1, MODEL_HISTORY), np.int64),
        np.zeros((1, MODEL_HISTORY), bool),
        np.zeros((1, 3), np.float32),
        np.zeros((1, GENRE_SLOTS), np.float32),
        np.zeros(1, np.float32),
    )


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
