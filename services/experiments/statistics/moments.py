"""Sufficient statistics of an arm: sums that days and epochs merge by addition.

Every value is rounded once to a grid of millionths, and the sums of values and of their products
are whole numbers of any size. So they are exact: neither the order of events, nor a restart
changes a bit, and the variance suffers no cancellation. The price is that a value below
half a millionth counts as zero: declare metrics in units that are not tiny.

A *unit* (user, session) contributes one row with a number per column: a mean or binary metric has
one column, a ratio two (numerator, denominator), and CUPED adds its covariate as the last.

To merge by addition, parts must hold different units. So moments by day are those of the units
first exposed on that day, not of the events of that day.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

SCALE = 10**6  # grid steps in 1
LARGEST = 10.0**12  # absolute value of a metric; its square still fits the arithmetic below

# Whole numbers are split into limbs of so few bits that the sum of products over a block is at most
# 2^(20 + 20 + 13) = 2^53: floating-point arithmetic is exact then, in any order of addition.
_LIMB_BITS = 20
_BLOCK = 1 << 13

Row: TypeAlias = tuple[int, ...]
"""A unit's values in grid steps, one per column."""


def on_grid(value: float) -> int:
    """`value` in grid steps (millionths), ties to even.

    A value that grows with every event must be added up in grid steps, or its last bits would
    depend on the order. ValueError for NaN and for more than 10^12.
    """
    number = float(value)
    if not -LARGEST <= number <= LARGEST:
        raise ValueError(_unfit(number))
    return round(number * SCALE)


def _unfit(value: float) -> str:
    return f"{value} is not a metric's value: give a finite number of at most {LARGEST:g}"


@dataclass(frozen=True, slots=True)
class Moments:
    """Units, sums of their columns in grid steps, and sums of products of two columns in squared
    grid steps: (0, 0), (0, 1), ..., (1, 1), ... `+` merges moments of different units."""

    n: int
    sums: Row
    products: Row

    @staticmethod
    def empty(columns: int) -> Moments:
        """Of no unit yet."""
        return Moments(0, (0,) * columns, (0,) * (columns * (columns + 1) // 2))

    @property
    def columns(self) -> int:
        return len(self.sums)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.n + other.n,
            tuple([a + b for a, b in zip(self.sums, other.sums, strict=True)]),
            tuple([a + b for a, b in zip(self.products, other.products, strict=True)]),
        )

    def mean(self, column: int = 0) -> float:
        """Mean of a column, correctly rounded; NaN without a unit."""
        return self.sums[column] / (self.n * SCALE) if self.n else float("nan")

    def covariance(self, i: int = 0, j: int = 0) -> float:
        """Sample covariance of two columns (variance if the same), correctly rounded; NaN with
        fewer than two units."""
        if self.n < 2:
            return float("nan")
        # Exact until the one division: n Σxy - Σx Σy of whole numbers.
        i, j = min(i, j), max(i, j)
        product = self.products[i * self.columns - i * (i - 1) // 2 + j - i]
        top = self.n * product - self.sums[i] * self.sums[j]
        return top / (self.n * (self.n - 1) * SCALE * SCALE)

    def to_json(self) -> str:
        """As text that `from_json` reads back exactly; numbers are strings, because most JSON
        readers would cut them to 53 bits."""
        return json.dumps(
            {
                "n": self.n,
                "sums": [str(s) for s in self.sums],
                "products": [str(p) for p in self.products],
            }
        )

    @staticmethod
    def from_json(text: str) -> Moments:
        """ValueError when the text is not of `to_json`."""
        try:
            fields: dict[str, Any] = json.loads(text)
            sums = tuple(int(s) for s in fields["sums"])
            products = tuple(int(p) for p in fields["products"])
            n = int(fields["n"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"these are no moments ({error!r}). Count them anew.") from error
        if n < 0 or len(products) != len(sums) * (len(sums) + 1) // 2:
            raise ValueError(
                f"{n} units with {len(sums)} sums and {len(products)} products are no moments. "
                "Count them anew."
            )
        return Moments(n, sums, products)


def moments_of(*columns: ArrayLike) -> Moments:
    """Moments of whole arrays, one per column, each with one value per unit (n,): the same to the
    bit as adding the units one by one. ValueError for unequal lengths and unfit values."""
    return moments_of_grids([grid_of(column) for column in columns])


def grid_of(column: ArrayLike) -> NDArray[np.int64]:
    values = np.asarray(column, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"a column has one axis, not {values.ndim}: give one value per unit")
    fits = np.abs(values) <= LARGEST  # False for NaN
    if not fits.all():
        raise ValueError(_unfit(float(values[~fits][0])))
    return np.rint(values * SCALE).astype(np.int64)


def moments_of_grids(grids: Sequence[NDArray[np.int64]]) -> Moments:
    """Exact sums by floating-point matrix products of the columns' limbs (and a row of ones)."""
    n = len(grids[0])
    counts = [_num_limbs(grid) for grid in grids]
    gram = np.zeros((1 + sum(counts), 1 + sum(counts)), dtype=object)
    for start in range(0, n, _BLOCK):
        limbs = [np.ones(min(_BLOCK, n - start))]
        for grid, count in zip(grids, counts, strict=True):
            limbs += _limbs(grid[start : start + _BLOCK], count)
        rows = np.stack(limbs)
        gram += (rows @ rows.T).astype(np.int64).astype(object)  # into ints of any size
    ends = np.cumsum([1, *counts]).tolist()
    places = [range(a, b) for a, b in pairwise(ends)]
    sums = tuple(
        sum(int(gram[0, row]) << _LIMB_BITS * i for i, row in enumerate(rows)) for rows in places
    )
    products = tuple(
        sum(
            int(gram[left, right]) << _LIMB_BITS * (i + j)
            for i, left in enumerate(lefts)
            for j, right in enumerate(rights)
        )
        for lefts, rights in combinations_with_replacement(places, 2)
    )
    return Moments(n, sums, products)


def _num_limbs(grid: NDArray[np.int64]) -> int:
    largest = max(int(grid.max()), -int(grid.min())) if len(grid) else 0
    return max(1, -(-largest.bit_length() // _LIMB_BITS))


def _limbs(grid: NDArray[np.int64], count: int) -> list[NDArray[np.float64]]:
    """Numbers within ±2^20 that make up the grid steps, lowest place first, the last with sign."""
    low = [
        ((grid >> _LIMB_BITS * i) & ((1 << _LIMB_BITS) - 1)).astype(np.float64)
        for i in range(count - 1)
    ]
    return [*low, (grid >> _LIMB_BITS * (count - 1)).astype(np.float64)]
