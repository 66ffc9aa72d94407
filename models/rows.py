"""A model's own rows, those of the catalogue that it is served over, and how it follows that.

A model's embeddings are numbered as the item table that it was published with; it is served over
another table, whose items may be more or fewer, in another order and with other fields. An item of
that table which the model's own lacks is cold: its row in the model is 0.

What a model makes of the items lies in tensors by the rows of the catalogue. A later state of that
has other values in some rows and new rows at its end: only they are computed anew, to the same bits
as if all were.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models.catalogue import ItemTable

BLOCK = 128  # rows; a change of one costs as much
SPARE = 1.25  # of rows for which there is room from the start


def rows_in(known: ItemTable, items: ItemTable, rows: np.ndarray | None = None) -> np.ndarray:
    """int64: the rows in `known` of the items in `rows` int64[N] of `items`, or in all of its n + 1
    rows; 0 for one that `known` lacks."""
    if known is items:
        return np.arange(len(items) + 1) if rows is None else rows
    found = known.index_of(items.keys if rows is None else items.keys[rows])
    if rows is None:
        found[0] = 0
    return found


def changed_rows(before: ItemTable, items: ItemTable) -> np.ndarray | None:
    """int64, ascending: what is new or other in `items` than in an earlier state `before` of it.
    None where everything may be: `before` is of another catalogue, or one that was read anew.
    """
    if items.lineage is not before.lineage or items.version < before.version:
        return None
    changed = items.changed_since(before.version)
    # A row may come before its item, with which it then changes.
    return np.union1d(changed, np.arange(len(before) + 1, len(items) + 1))


def with_room(values: Tensor) -> Tensor:
    """`values` [n, ...] in memory with room for the rows that come first."""
    return _moved(values, len(values), int(len(values) * SPARE) + BLOCK)


def put(values: Tensor, rows: np.ndarray, found: Tensor, count: int) -> Tensor:
    """`values` [n, ...] with `count` >= n rows, of which those in `rows` int64[N], among which are
    all new ones, are `found`.

    In the same memory, which the result takes over; when that is full in new memory for twice as
    much, so that rows that come one by one are copied once or twice."""
    if count > len(values):
        values = _longer(values, count)
    values[torch.from_numpy(rows).to(values.device)] = found.to(values.dtype)
    return values


def _longer(values: Tensor, count: int) -> Tensor:
    shape = (count, *values.shape[1:])
    room = values.untyped_storage().nbytes() // values.element_size() - values.storage_offset()
    if values.is_contiguous() and math.prod(shape) <= room:
        return values.as_strided(shape, values.stride())
    return _moved(values, count, 2 * count)


def _moved(values: Tensor, count: int, room: int) -> Tensor:
    moved = values.new_empty((room, *values.shape[1:]))[:count]
    moved[: len(values)] = values
    return moved


def by_blocks(
    compute: Callable[[Tensor], Tensor], rows: np.ndarray, device: torch.device
) -> Tensor:
    """`compute` of rows int64[N] on a device: [N, ...] of it.

    It is always asked for BLOCK rows, the last ones of which may be row 0: a product of matrices
    may round otherwise for another number of rows, and a row's values are not to depend on how many
    others are asked for with it."""
    found = []
    for part in np.split(rows, range(BLOCK, len(rows), BLOCK)):
        block = np.zeros(BLOCK, np.int64)
        block[: len(part)] = part
        found.append(compute(torch.from_numpy(block).to(device))[: len(part)])
    return torch.cat(found)
