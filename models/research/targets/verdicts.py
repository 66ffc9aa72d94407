"""A target, what was measured for it and the verdict: what the page of targets is made of.

A model counts as above another one when the 95 % interval of their paired difference lies above the
bound; where the interval holds it nothing is shown, whatever the means are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from models.research.comparison import Difference, difference
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


@dataclass
class Measured:
    """The results by table and model, and the verdicts found so far."""

    results: Sequence[ModelResult]
    found: list[Verdict] = field(default_factory=list)
    group: str = ""

    def get(self, table: str, model: str) -> ModelResult | None:
        """A row's result; None if it was not measured."""
        return next((r for r in self.results if (r.table, r.model) == (table, model)), None)

    def mean(self, table: str, model: str, metric: str) -> float | None:
        """Mean over seeds; None if it was not measured."""
        result = self.get(table, model)
        return None if result is None or metric not in result.metrics else result.mean(metric)

    def gain(self, table: str, model: str, other: str, metric: str) -> Difference | None:
        """The paired difference of two rows; None if one was not measured."""
        one, two = self.get(table, model), self.get(table, other)
        return None if one is None or two is None else difference(one, two, metric)

    def say(self, target: str, measured: str, reached: bool | None, cause: str = "") -> None:
        """Add a verdict; None: the results it needs are not there."""
        verdict = NOT_MEASURED if reached is None else REACHED if reached else MISSED
        self.found.append(Verdict(self.group, target, measured, verdict, cause))

    def compare(
        self, target: str, gain: Difference | None, text: str, bound: float = 0.0, cause: str = ""
    ) -> None:
        """Add the verdict on a difference that is to be above `bound`; `text`: what it is of."""
        measured = "-" if gain is None else f"{text} {gain_text(gain, named=False)}"
        self.found.append(Verdict(self.group, target, measured, _above(gain, bound), cause))

    def above(
        self, target: str, table: str, model: str, other: str, metric: str,
        bound: float = 0.0, cause: str = "",
    ) -> None:  # fmt: skip
        """A paired comparison: `model` is to be more than `bound` above `other`."""
        self.compare(target, self.gain(table, model, other, metric), metric, bound, cause)

    def level(
        self, target: str, table: str, model: str, metric: str, band: tuple[float, float],
        cause: str = "",
    ) -> None:  # fmt: skip
        """A row's mean is to lie in `band`."""
        value = self.mean(table, model, metric)
        inside = None if value is None else band[0] <= value <= band[1]
        self.say(target, "-" if value is None else f"{metric} {value:.4f}", inside, cause)


def _above(gain: Difference | None, bound: float = 0.0) -> str:
    if gain is None:
        return NOT_MEASURED
    if gain.interval.low > bound:
        return REACHED
    return MISSED if gain.interval.high < bound else NOT_SHOWN
