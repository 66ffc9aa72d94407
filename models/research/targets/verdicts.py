"""The targets of `targets.yaml`, and the verdict on each from saved results.

A model counts as above another one when the 95 % interval of their paired difference lies above the
bound; where the interval holds it nothing is shown, whatever the means are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from models.research.comparison import Difference, difference, drops, result_tables
from models.research.pages.text import gain_text
from models.training.results import ModelResult

REACHED, MISSED, NOT_SHOWN, NOT_MEASURED = "reached", "missed", "not shown", "not measured"
NOT_LOOKED_FOR = "The cause was not looked for"


@dataclass(frozen=True)
class Verdict:
    """One target: what was measured for it and whether that reaches it.

    `cause` is what is known, or only supposed and then said so, should it not be reached.
    """

    group: str
    target: str
    measured: str
    verdict: str
    cause: str = ""

    @property
    def why(self) -> str:
        """What is said of the cause if it was measured and not reached; else empty."""
        return (self.cause or NOT_LOOKED_FOR) if self.verdict in (MISSED, NOT_SHOWN) else ""


def judged(
    group: str, target: str, measured: str, reached: bool | None, cause: str = ""
) -> Verdict:
    """A verdict without an interval; None: what it needs is not there."""
    verdict = NOT_MEASURED if reached is None else REACHED if reached else MISSED
    return Verdict(group, target, measured or "-", verdict, cause)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a row of a table of results is to reach; the fields are those of `targets.yaml`."""

    group: str
    table: str
    model: str
    metric: str
    target: str = "{model} above {over}"
    over: str = ""
    bound: float = 0.0
    band: tuple[float, float] | None = None
    drop_from: str = ""
    shares: tuple[str, ...] = ()
    cause: str = ""

    @property
    def text(self) -> str:
        """What the page says of it."""
        low, high = self.band or (0.0, 0.0)
        return self.target.format(**vars(self), low=low, high=high)

    def verdict(self, results: Sequence[ModelResult]) -> Verdict:
        """What the results say of it."""
        rows = {r.model: r for r in results if r.table == self.table}
        own, other = rows.get(self.model), rows.get(self.over)
        if self.band is not None:
            return self._level(own, *self.band)
        if self.shares:
            return self._shares(own, other)
        if self.drop_from:
            gain, of = self._smaller_drop(results), "drop smaller by"
        else:
            gain = None if own is None or other is None else difference(own, other, self.metric)
            of = self.metric
        if gain is None:
            return judged(self.group, self.text, "", None)
        measured = f"{of} {gain_text(gain, named=False)}"
        low, high = gain.interval.low, gain.interval.high
        verdict = REACHED if low > self.bound else MISSED if high < self.bound else NOT_SHOWN
        return Verdict(self.group, self.text, measured, verdict, self.cause)

    def _level(self, own: ModelResult | None, low: float, high: float) -> Verdict:
        if own is None or self.metric not in own.metrics:
            return judged(self.group, self.text, "", None)
        value = own.mean(self.metric)
        measured = f"{self.metric} {value:.4f}"
        return judged(self.group, self.text, measured, low <= value <= high, self.cause)

    def _shares(self, own: ModelResult | None, other: ModelResult | None) -> Verdict:
        gains = {
            metric.partition("_")[0]: own.mean(metric) / other.mean(metric) - 1
            for metric in self.shares
            if own and other and metric in own.metrics and any(other.metrics.get(metric, ()))
        }
        measured = ", ".join(f"{part} {gain:+.1%}" for part, gain in gains.items())
        first, *rest = gains.values() or [0.0]
        reached = first > rest[0] if rest else None
        return judged(self.group, self.text, measured, reached, self.cause)

    def _smaller_drop(self, results: Sequence[ModelResult]) -> Difference | None:
        sides = (self.table, self.drop_from)
        tables = {t.name: t for t in result_tables([r for r in results if r.table in sides])}
        if len(tables) < len(sides):
            return None
        found = {d.model: d for d in drops(tables[self.table], tables[self.drop_from])}
        smaller = found[self.model].smaller if self.model in found else ()
        return next((gain for gain in smaller if gain.reference == self.over), None)


DOCUMENT = yaml.safe_load(Path(__file__).with_name("targets.yaml").read_text())
TARGETS = TypeAdapter(tuple[Target, ...]).validate_python(
    {"group": group["name"], **group["all"], **row, "over": over}
    for group in DOCUMENT["groups"]
    for row in group["targets"]
    for over in row.get("over", [""])
)
