"""torch.compile for the parts of a model where the arithmetic is, for as long as it is trained.

Losses draw random numbers and read numpy arrays, which would break a compiled graph into pieces;
the networks below them are pure tensor code. Sizes are dynamic: the last batch is smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Methods and submodules that hold a model's arithmetic; a model has some of them.
COMPILED = ("extract", "states", "row_logits", "backbone", "item_mlp", "query_mlp")


@contextmanager
def compiled(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Inside, COMPILED parts of `model` run compiled; weights and their names stay the same."""
    found = [name for name in COMPILED if hasattr(model, name)] if enabled else []
    modules = [part for name in found if isinstance(part := getattr(model, name), nn.Module)]
    methods = [name for name in found if not isinstance(getattr(model, name), nn.Module)]
    for module in modules:
        module.compile(dynamic=True)
    for name in methods:
        setattr(model, name, torch.compile(getattr(model, name), dynamic=True))
    try:
        yield
    finally:
        for module in modules:
            module._compiled_call_impl = None
        for name in methods:
            delattr(model, name)
