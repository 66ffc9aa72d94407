"""The batch that data-parallel workers share, for losses that compare its rows with each other.

A worker computes the rows of its own share (`models/training/distributed.py`) and needs those of
all workers as negatives. Outside workers the share is the whole batch and nothing is changed here.

Why N rows on W workers give one worker's gradient. With X the gathered item vectors the batch's
loss is L = 1/N sum_i l_i(q_i, X); a worker backpropagates (W/N) sum_{i own} l_i, its mean times the
weight of its share, so that the workers' losses add up to W L. The backward of `gathered` adds up
what all workers send to x_j, which is dWL/dx_j, at the worker that computed x_j, and q_i is in no
other worker's loss: the workers' parameter gradients add up to that of W L and their average, which
DistributedDataParallel takes, is that of L.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

Rows = TypeVar("Rows", Tensor, np.ndarray)


@dataclass(frozen=True)
class Share:
    """Rows [start, start + rows) of a batch of `total` rows.

    A worker that is left without rows, as a loss of none is no number, computes row 0 of the batch
    in their place: start and rows are 0 then, and the row counts for nothing.
    """

    start: int
    rows: int
    total: int

    def of(self, batch: Rows) -> Rows:
        """What this worker computes of a batch's rows."""
        return batch[self.start : self.start + max(self.rows, 1)]


_share: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def within(share: Share) -> Iterator[None]:
    """Losses computed inside are those of this share; all workers must compute the same ones."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def share() -> Share | None:
    """The share whose loss is being computed; None outside workers."""
    return _share.get()


def first_row() -> int:
    """The number, within the batch, of the first row that this worker computes."""
    own = _share.get()
    return 0 if own is None else own.start


def drawn(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """`draw(n)`, random numbers of n rows, for this worker's `rows`: its part of the batch's.

    Every worker draws for the whole batch, so that a row's numbers do not depend on the number of
    workers and the workers' generators stay in step.
    """
    own = _share.get()
    return draw(rows) if own is None else own.of(draw(own.total))


def gathered(values: Tensor) -> Tensor:
    """The rows [total, ...] of all workers from this worker's [rows, ...], differentiable."""
    own = _share.get()
    if own is None:
        return values
    before = values.new_zeros((own.start, *values.shape[1:]))
    after = values.new_zeros((own.total - own.start - own.rows, *values.shape[1:]))
    # Each row is one worker's and zero in the others: their sum, which allows unequal shares.
    return _Sum.apply(torch.cat([before, values[: own.rows], after]))


class _Sum(torch.autograd.Function):
    """The sum over the workers; its gradient is the sum of the workers' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
