"""What the page's plots show, from numbers to places; `plots.html.j2` draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from services.experiments.report.html.scale import Scale, around_values, around_zero, round_values
from services.experiments.statistics.effects import Interval

DAY_LABELS = 6  # that fit on the narrowest screen
BARS_APART = 7  # px between the error bars of two arms on one day
PREFERENCES = Scale(-1.16, 1.16)  # the labels of -1 and 1 fit


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A forest's row. `said` is what the plot shows in words, for those who do not see it."""

    said: str
    point: float
    sequence: Interval  # always valid
    fixed: Interval | None  # right if looked at once; None: not drawn
    tone: str  # a class: good, bad, even or open
    band: float = 0.0  # changes within ±band do not matter; 0: no band
    limit: float = math.inf  # harm beyond it is more than allowed

    @property
    def known(self) -> bool:
        """Whether an end is; the other one may be infinite."""
        return math.isfinite(self.sequence.low) or math.isfinite(self.sequence.high)


def scale_of(marks: Sequence[Mark]) -> Scale:
    """One axis for all rows of a forest."""
    known = [m for m in marks if m.known]
    intervals = [m.sequence for m in known] + [m.fixed for m in known if m.fixed]
    return around_zero(
        [m.point for m in known],
        [float(end) for i in intervals for end in (i.low, i.high)],
        [v for m in marks for v in (m.band, -m.band, m.limit) if math.isfinite(v)],
    )


@dataclass(frozen=True)
class Series:
    """An arm's values by day: (day's place among all days, value, half the error bar)."""

    arm: str
    number: int  # of the arm: its symbol and colour
    points: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True)
class Days:
    """Values by day of several arms, and where they stand; `show` writes a value."""

    said: str
    labels: Sequence[str]  # of all days
    series: Sequence[Series]
    show: Callable[[float], str]
    height: int = 210

    @property
    def ticks(self) -> tuple[float, ...]:
        return round_values(self._scale.low, self._scale.high, 4)

    @property
    def labelled(self) -> list[tuple[int, str]]:
        """The days that get a label."""
        return list(enumerate(self.labels))[:: -(-len(self.labels) // DAY_LABELS)]

    def x(self, day: int) -> float:
        return 12 + 86 * (day + 0.5) / len(self.labels)

    def y(self, value: float) -> float:
        top, bottom = 16, self.height - 26
        return bottom - (bottom - top) * self._scale.clipped(value) / 100

    def shift(self, place: int) -> float:
        """px by which the series at this place stands beside its day."""
        apart = min(BARS_APART, 200 / len(self.labels) / len(self.series))
        return (place - (len(self.series) - 1) / 2) * apart

    @cached_property
    def _scale(self) -> Scale:
        """Of all values, and of the error bars those that are not far longer than the others."""
        points = [(value, half) for s in self.series for _, value, half in s.points]
        halves = sorted(half for _, half in points if math.isfinite(half))
        longest = 3 * halves[len(halves) // 2] if halves else 0.0
        bars = [(v, min(half, longest) if math.isfinite(half) else 0.0) for v, half in points]
        return around_values([v - h for v, h in bars], [v + h for v, h in bars])
