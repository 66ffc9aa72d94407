"""The page's plots as inline SVG. Places along x are percentages (see `scale`), along y pixels.

Colours and strokes are classes of the page's style sheet, so that plots follow dark and light.
Nothing is told by colour alone: arms differ by symbol, intervals by stroke, verdicts by a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from services.experiments.report.html.scale import Scale, around_values, around_zero, round_values
from services.experiments.statistics.effects import Interval

SEQUENCE_Y, FIXED_Y = 18, 32  # within a forest's row, which is as high as its texts
FULL = "100%"
MINUS = "\N{MINUS SIGN}"
DAYS_HEIGHT = 210
DAY_LABELS = 6  # that fit on the narrowest screen
BARS_APART = 7  # px between the error bars of two arms on one day
SYMBOLS = (  # around (0, 0); one per arm, so that colour is not needed
    "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0 -8.4 0z",
    "M-3.9 -3.9h7.8v7.8h-7.8z",
    "M0 -5.2l5 8.8h-10z",
    "M0 -5.4l5.4 5.4l-5.4 5.4l-5.4 -5.4z",
    "M0 5.2l5 -8.8h-10z",
    "M-4.6 -1.6h3v-3h3.2v3h3v3.2h-3v3h-3.2v-3h-3z",
)


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


def forest_row(mark: Mark, scale: Scale) -> Markup:
    """One effect with its intervals on the forest's axis."""
    drawn = [_vertical(scale.place(tick), 0, FULL, "grid") for tick in scale.ticks()]
    if mark.band:
        drawn.insert(0, _between(scale, -mark.band, mark.band, "band"))
    if math.isfinite(mark.limit):
        drawn.insert(0, _between(scale, mark.limit, scale.high, "beyond"))
    drawn.append(_vertical(scale.place(0), 0, FULL, "zero"))
    if math.isfinite(mark.limit):
        drawn.append(_vertical(scale.place(mark.limit), 0, FULL, "limit"))
    if mark.known:
        if mark.fixed:
            drawn.append(_interval(mark.fixed, scale, FIXED_Y, "fixed", 3))
        drawn.append(_interval(mark.sequence, scale, SEQUENCE_Y, f"sequence {mark.tone}", 6))
        drawn.append(_symbol(0, scale.clipped(mark.point), SEQUENCE_Y, f"point {mark.tone}"))
    else:
        drawn.append(_text(50, 26, "not known yet", "quiet", "middle"))
    return _svg(FULL, mark.said, drawn)


def axis(scale: Scale, labels: Sequence[str], left: str = "", right: str = "") -> Markup:
    """The ticks' labels (one for each of `scale.ticks()`), and what lies to each side."""
    drawn = [
        Markup("{}{}").format(
            _vertical(scale.place(tick), 0, 5, "tick"),
            _text(scale.place(tick), 18, label, "label", "middle"),
        )
        for tick, label in zip(scale.ticks(), labels, strict=True)
    ]
    if left:
        drawn.append(_text(0, 36, f"← {left}", "label", "start"))
    if right:
        drawn.append(_text(100, 36, f"{right} →", "label", "end"))
    return _svg(42 if left or right else 24, "", drawn)


def preference(value: float, sequence: Interval, fixed: Interval, tone: str, said: str) -> Markup:
    """A preference on the whole scale from -1 (all for the first ranking) to 1."""
    whole = Scale(-1.16, 1.16)  # the labels of -1 and 1 fit
    height = 76
    drawn = [_between(whole, -1, 1, "band", 8, 40)]
    for tick, label in (
        (-1, f"{MINUS}1"),
        (-0.5, f"{MINUS}0.5"),
        (0, "0"),
        (0.5, "+0.5"),
        (1, "+1"),
    ):
        drawn.append(_vertical(whole.place(tick), 8, 48, "zero" if tick == 0 else "grid"))
        drawn.append(_text(whole.place(tick), 66, label, "label", "middle"))
    if math.isfinite(sequence.low) and math.isfinite(sequence.high):
        drawn.append(_interval(fixed, whole, 39, "fixed", 3))
        drawn.append(_interval(sequence, whole, 25, f"sequence {tone}", 6))
        drawn.append(_symbol(0, whole.clipped(value), 25, f"point {tone}"))
    else:
        drawn.append(_text(50, 30, "not known yet", "quiet", "middle"))
    return _svg(height, said, drawn)


@dataclass(frozen=True)
class Series:
    """An arm's values by day: (day's place among all days, value, half the error bar)."""

    arm: str
    number: int  # of the arm: its symbol and colour
    points: tuple[tuple[int, float, float], ...]


def days(
    said: str,
    labels: Sequence[str],
    series: Sequence[Series],
    show: Callable[[float], str],
) -> Markup:
    """Values by day with error bars, the arms side by side within a day; `show` writes a value."""
    scale = _day_scale(series)
    top, bottom = 16.0, DAYS_HEIGHT - 26.0

    def y(value: float) -> float:
        return bottom - (bottom - top) * scale.clipped(value) / 100

    def x(day: int) -> float:
        return 12 + 86 * (day + 0.5) / len(labels)

    drawn = []
    for tick in round_values(scale.low, scale.high, 4):
        drawn.append(_line(0, y(tick), 100, y(tick), "grid"))
        drawn.append(_text(0, y(tick) - 3, show(tick), "label", "start"))
    every = -(-len(labels) // DAY_LABELS)
    for day in range(0, len(labels), every):
        drawn.append(_text(x(day), DAYS_HEIGHT - 8, labels[day], "label", "middle"))
    for place, one in enumerate(series):
        shift = (place - (len(series) - 1) / 2) * min(BARS_APART, 200 / len(labels) / len(series))
        inner = []
        for (d0, v0, _), (d1, v1, _) in pairwise(one.points):
            inner.append(_line(x(d0), y(v0), x(d1), y(v1), "trend"))
        for day, value, half in one.points:
            if math.isfinite(half):
                inner.append(_line(x(day), y(value - half), x(day), y(value + half), "bar"))
            inner.append(_symbol(one.number, x(day), y(value), "dot"))
        drawn.append(
            Markup('<g class="arm{}" transform="translate({:.2f} 0)">{}</g>').format(
                one.number % len(SYMBOLS), shift, Markup("").join(inner)
            )
        )
    return _svg(DAYS_HEIGHT, said, drawn)


def _day_scale(series: Sequence[Series]) -> Scale:
    """Of all values, and of the error bars those that are not far longer than the others."""
    halves = sorted(h for s in series for _, _, h in s.points if math.isfinite(h))
    longest = 3 * halves[len(halves) // 2] if halves else 0.0
    bars = [
        (value, min(half, longest) if math.isfinite(half) else 0.0)
        for s in series
        for _, value, half in s.points
    ]
    return around_values([v - h for v, h in bars], [v + h for v, h in bars])


def shares(observed: float, expected: float, said: str) -> Markup:
    """An arm's share of the units as a bar, and where the weights want it to end."""
    drawn = [
        Markup('<rect class="track" x="0" y="5" width="100%" height="10"/>'),
        Markup('<rect class="share" x="0" y="5" width="{:.3f}%" height="10"/>').format(
            100 * observed
        ),
        _vertical(100 * expected, 1, 19, "wanted"),
    ]
    return _svg(20, said, drawn)


def arm_key(number: int) -> Markup:
    """An arm's symbol, for legends."""
    return Markup(
        '<svg class="key arm{}" width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true">'
        '<path class="dot" d="{}"/></svg>'
    ).format(number % len(SYMBOLS), SYMBOLS[number % len(SYMBOLS)])


def _svg(height: int | str, said: str, drawn: Sequence[Markup]) -> Markup:
    """A plot of full width; without words it only decorates and is hidden from screen readers."""
    if said:
        about = Markup('role="img" aria-label="{}"').format(said)
        title = Markup("<title>{}</title>").format(said)
    else:
        about, title = Markup('aria-hidden="true"'), Markup("")
    return Markup('<svg class="plot" width="100%" height="{}" {}>{}{}</svg>').format(
        height, about, title, Markup("").join(drawn)
    )


def _between(
    scale: Scale, low: float, high: float, kind: str, top: float = 0, height: float | str = FULL
) -> Markup:
    left, right = scale.clipped(low), scale.clipped(high)
    return Markup('<rect class="{}" x="{:.3f}%" y="{:g}" width="{:.3f}%" height="{}"/>').format(
        kind, left, top, right - left, height
    )


def _interval(interval: Interval, scale: Scale, y: float, kind: str, cap: float) -> Markup:
    """A line with a cap at each end, or an arrow where it goes on beyond the axis."""
    ends = []
    for value, outwards in ((float(interval.low), -1), (float(interval.high), 1)):
        at = scale.clipped(value)
        if scale.holds(value):
            ends.append(_vertical(at, y - cap, y + cap, "cap"))
        else:
            arrow = f"M0 0l{-7 * outwards} {-cap}v{2 * cap}z"
            ends.append(_path(at, y, arrow, "arrow"))
    low, high = scale.clipped(float(interval.low)), scale.clipped(float(interval.high))
    return Markup('<g class="{}">{}{}</g>').format(
        kind, _line(low, y, high, y, "span"), Markup("").join(ends)
    )


def _symbol(number: int, x: float, y: float, kind: str) -> Markup:
    return _path(x, y, SYMBOLS[number % len(SYMBOLS)], kind)


def _path(x: float, y: float, path: str, kind: str) -> Markup:
    # A path takes no percentages; an inner svg does, and carries the path to its place.
    return Markup(
        '<svg x="{:.3f}%" y="{:.2f}" overflow="visible"><path class="{}" d="{}"/></svg>'
    ).format(x, y, kind, path)


def _line(x1: float, y1: float | str, x2: float, y2: float | str, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.3f}%" y1="{}" x2="{:.3f}%" y2="{}"/>').format(
        kind, x1, _y(y1), x2, _y(y2)
    )


def _vertical(x: float, top: float | str, bottom: float | str, kind: str) -> Markup:
    return _line(x, top, x, bottom, kind)


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.3f}%" y="{:.2f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


def _y(y: float | str) -> str:
    return y if isinstance(y, str) else f"{y:.2f}"
