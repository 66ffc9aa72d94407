"""From values to places on an axis, in percent of its width, and the ticks that are worth a label.

Plots are as wide as the page lets them be, and text in them must stay as large as it is around
them. So places are percentages, which SVG takes for lines, rectangles and texts; nothing is scaled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

MARGIN = 6.0  # percent at each end that no tick label stands in: half of one must fit
FARTHEST = 4.0  # times the median reach: what goes beyond is cut off, or one wide row hides all


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` at its left end to `high` at its right one."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Percent of the width; beyond the ends for values beyond them."""
        return 100 * (value - self.low) / (self.high - self.low)

    def clipped(self, value: float) -> float:
        """Percent of the width, within it; for infinite values, too."""
        return self.place(min(max(value, self.low), self.high))

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def ticks(self, about: int = 6) -> tuple[float, ...]:
        """Round values in the inner part, where their labels fit."""
        return tuple(
            tick
            for tick in round_values(self.low, self.high, about)
            if MARGIN <= self.place(tick) <= 100 - MARGIN
        )


def round_values(low: float, high: float, about: int) -> tuple[float, ...]:
    """The multiples of 1, 2, 2.5 or 5 times a power of ten between two values, about so many."""
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(float(f"{k * step:.12g}") for k in range(first, last + 1))


def around_zero(points: Sequence[float], bounds: Sequence[float], marks: Sequence[float]) -> Scale:
    """An axis for changes: holds 0, all finite points and marks, and of the finite bounds those
    that do not go far beyond the others."""
    reach = [abs(b) for b in bounds if math.isfinite(b) and b]
    needed = [p for p in (*points, *marks) if math.isfinite(p)]
    limit = max([abs(p) for p in needed] + ([FARTHEST * median(reach)] if reach else []), default=0)
    if not limit:
        return Scale(-1.0, 1.0)
    shown = [*needed, 0.0, *(math.copysign(min(abs(b), limit), b) for b in _finite(bounds))]
    low, high = min(shown), max(shown)
    room = (high - low) * (MARGIN + 2) / 100
    return Scale(low - room, high + room)


def around_values(lows: Sequence[float], highs: Sequence[float]) -> Scale:
    """An axis for values with error bars, from just below the lowest to just above the highest."""
    low, high = min(lows), max(highs)
    if low == high == 0.0:  # nothing was seen at all: no metric can be below
        return Scale(-0.001, 0.02)
    if high - low <= 1e-9 * abs(low):  # they are equal but for rounding
        pad = abs(low) / 10
        return Scale(low - pad, high + pad)
    room = (high - low) * 0.08
    return Scale(low - room, high + room)


def _finite(values: Iterable[float]) -> list[float]:
    return [v for v in values if math.isfinite(v)]
