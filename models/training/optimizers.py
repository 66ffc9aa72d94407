"""Optimizers by name.

All embedding tables and dense weights share one optimizer; torch's fused step walks every tensor
once instead of once per operation. Gradients of tables are dense by default. With
`sparse_embeddings` a lookup yields the gradient of the looked-up rows only and the tables are
stepped by SparseAdam: a row's moments then change only when it is looked up ("lazy" Adam), and
there is no weight decay on tables. That pays when a table is large beside a batch; the figures are
in `load_tests/peers/bench_training.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, SparseAdam

OptimizerName = Literal["adamw", "adam", "adagrad", "sgd"]


class Optimizers:
    """One or two torch optimizers stepped as one."""

    def __init__(self, parts: Iterable[Optimizer]) -> None:
        self.parts = tuple(parts)

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state(self) -> list[dict[int, dict[str, Any]]]:
        """Per optimizer the state of each parameter by its number."""
        return [part.state_dict()["state"] for part in self.parts]

    def load_state(self, states: list[dict[int, dict[str, Any]]]) -> None:
        """Take over states of optimizers built with the same settings for the same model."""
        for part, state in zip(self.parts, states, strict=True):
            groups = part.state_dict()["param_groups"]
            part.load_state_dict({"state": state, "param_groups": groups})


def build(
    name: OptimizerName,
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.0,
    sparse_embeddings: bool = False,
) -> Optimizers:
    """The optimizers of a model's parameters.

    `sparse_embeddings` switches every `nn.Embedding` of the model to sparse gradients; ValueError
    for an optimizer without a lazy form.
    """
    tables: list[Tensor] = []
    if sparse_embeddings:
        if name not in ("adamw", "adam"):
            raise ValueError(f"sparse_embeddings needs the optimizer adamw or adam, not {name}")
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = True
                tables.append(module.weight)
    taken = {id(table) for table in tables}
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    parts: list[Optimizer] = []
    if dense:
        parts.append(_dense(name, dense, learning_rate, weight_decay))
    if tables:
        parts.append(SparseAdam(tables, learning_rate))
    return Optimizers(parts)


def _dense(
    name: OptimizerName, parameters: list[nn.Parameter], learning_rate: float, decay: float
) -> Optimizer:
    kinds: dict[str, Any] = {"adamw": AdamW, "adam": Adam, "adagrad": Adagrad, "sgd": SGD}
    fused = all(torch.is_floating_point(p) for p in parameters)
    # Adagrad keeps its state in float32 tensors on the CPU path only, therefore not fused on a GPU.
    if name == "adagrad" and parameters[0].device.type != "cpu":
        fused = False
    return kinds[name](parameters, learning_rate, weight_decay=decay, fused=fused)
