"""What was measured of an experiment: statistics per arm and day, which add up and survive JSON.

Statistics of different units add up: days, epochs and splits. All sums are exact
(`statistics.moments`), so no split, order or restart changes a bit of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

from services.experiments.changes.state import Epoch
from services.experiments.statistics.moments import Moments
from services.experiments.statistics.quantiles import GroupedHistogram

DAY_MS = 86_400_000

Statistic: TypeAlias = Moments | GroupedHistogram
Part = TypeVar("Part")


class ArmDay(NamedTuple):
    """The units of an arm that were first exposed on a day (counted from the epoch, UTC), in an
    epoch of the experiment, and whose observation ended in another or the same; by the split that
    was in force at their first exposure, and whether it was still at their observation's end."""

    arm: str
    day: int
    epoch: int = 0  # index into Measured.epochs
    until: int = 0
    split: str = ""  # `splits`; empty: the file's, or interleaved
    cut: bool = False  # the split changed during their observation


class SegmentPart(NamedTuple):
    """The final units of a cell that were in a segment when they were first exposed."""

    units: int
    statistic: Statistic  # of the primary metric


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is known of some units of an arm. `+` merges different units."""

    exposed: int = 0  # units with a decision in the log, answered or not: all that were assigned
    final: int = 0  # of these, whose time is up: the statistics are of them
    joined: int = 0  # of the final ones, of which any feedback came back
    undegraded: int = 0  # of the final ones, all of whose requests were answered and undegraded
    statistics: Mapping[str, Statistic] = field(default_factory=dict)  # by metric, final units
    undegraded_statistics: Mapping[str, Statistic] = field(default_factory=dict)
    served: int = 0  # of the final ones, which got any answer
    segments: Mapping[str, SegmentPart] = field(default_factory=dict)
    preference: Moments = field(default=Moments.empty(1))  # of final units with interleaved lists
    lists: int = 0  # these lists

    @property
    def counts(self) -> Cell:
        """Without what is expensive to add up."""
        return Cell(**{name: getattr(self, name) for name in _CELL_COUNTS})

    def __add__(self, other: Cell) -> Cell:
        return Cell(
            **{name: getattr(self, name) + getattr(other, name) for name in _CELL_COUNTS},
            statistics=merged(self.statistics, other.statistics, added),
            undegraded_statistics=merged(
                self.undegraded_statistics, other.undegraded_statistics, added
            ),
            segments=merged(self.segments, other.segments, _added_segments),
            preference=self.preference + other.preference,
        )


class ArmCounts(NamedTuple):
    """What an arm was shown to and what came of it."""

    units: int = 0  # exposed
    requests: int = 0  # of these, that were answered
    degraded: int = 0  # of these answers
    events: Mapping[str, int] = {}  # by name: the feedback on them


@dataclass(frozen=True)
class Measured:
    """An experiment's statistics."""

    cells: Mapping[ArmDay, Cell]  # observed for as long as the plan says
    _: KW_ONLY
    decisions: int = 0  # that carry the experiment
    crossed: int = 0  # units that met more than one arm
    late: int = 0  # events outside every window
    outside: int = 0  # decisions after their unit's observation was over
    first_ms: float = math.inf  # of the decisions
    last_ms: float = -math.inf
    # The same units, observed for another time: ms -> cells with the guardrails of that time.
    watched: Mapping[int, Mapping[ArmDay, Cell]] = field(default_factory=dict)
    epochs: tuple[Epoch, ...] = ()  # the first begins at -inf; (): no decision was measured
    overridden: int = 0  # units left out: they met the experiment overridden before
    backlog: int = 0  # units left out: they came before the split was changed (`exposures`)
    splits: Mapping[str, float] = field(default_factory=dict)  # first exposure by each
    edited: int = 0  # units left out: the arms set something else at their first exposure
    mixed: int = 0  # units that count, and met other parameters of the arms later
    elsewhere_ms: float = 0.0  # of the last exposure by other parameters of the arms
    arms: Mapping[str, ArmCounts] = field(default_factory=dict)
    # By how long units were observed (ms), and winsorised metric.
    caps: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    def of_arm(self, arm: str, live: Collection[str] = ()) -> Cell:
        """All units of an arm together, of any day.

        `live`: only those in all of whose observation these arms were live.
        """
        own = {key: cell for key, cell in self.cells.items() if key.arm == arm}
        return sum((c for key, c in own.items() if not live or self.throughout(key, live)), Cell())

    def of_splits(
        self, arms: Sequence[str], live: Collection[str], observe_ms: int | None = None
    ) -> list[tuple[Cell, ...]]:
        """One cell for each of these arms, as `of_arm`, in every split in which one has units.

        `observe_ms`: of the units that were watched for so long; None: as long as the plan says.
        """
        cells = self.cells if observe_ms is None else self.watched.get(observe_ms, {})
        found: dict[str, dict[str, list[Cell]]] = {}
        for key, cell in cells.items():
            if key.arm in arms and self.throughout(key, live):
                found.setdefault(key.split, {}).setdefault(key.arm, []).append(cell)
        return [
            tuple(sum(found[split].get(arm, ()), Cell()) for arm in arms) for split in sorted(found)
        ]

    def throughout(self, key: ArmDay, arms: Collection[str]) -> bool:
        """Whether these arms were live, and the split the same, from the units' first exposure to
        their observation's end.

        A stop ends an arm's treatment and its records, but not those of the others: units that it
        cut short are no match for control's. A split that changes may take units out as well."""
        if key.cut:
            return False
        epochs = self.epochs[key.epoch : key.until + 1]
        return not any(arm in epoch.stopped for epoch in epochs for arm in arms)

    def live_at(self, key: ArmDay, arm: str) -> bool:
        """Whether an arm was live when the units were first exposed."""
        return self.throughout(key._replace(until=key.epoch, cut=False), (arm,))

    def to_json(self) -> dict[str, Any]:
        """As JSON that `from_json` reads back exactly."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "span_ms": [self.first_ms, self.last_ms] if self.decisions else None,
            "epochs": [
                [e.start_ms if math.isfinite(e.start_ms) else None, sorted(e.stopped)]
                for e in self.epochs
            ],
            "cells": _cells_json(self.cells),
            "splits": dict(self.splits),
            "arms": {arm: counts._asdict() for arm, counts in self.arms.items()},
            "caps": [[ms, dict(caps)] for ms, caps in self.caps.items()],
            "watched": [[ms, _cells_json(cells)] for ms, cells in self.watched.items()],
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Measured:
        """ValueError when the content is not of `to_json`."""
        try:
            first_ms, last_ms = content["span_ms"] or (math.inf, -math.inf)
            return Measured(
                _cells_of(content["cells"]),
                first_ms=first_ms,
                last_ms=last_ms,
                watched={ms: _cells_of(cells) for ms, cells in content["watched"]},
                epochs=tuple(
                    Epoch(-math.inf if start_ms is None else start_ms, frozenset(stopped))
                    for start_ms, stopped in content["epochs"]
                ),
                splits=dict(content["splits"]),
                arms={arm: ArmCounts(**counts) for arm, counts in content["arms"].items()},
                caps={ms: dict(caps) for ms, caps in content["caps"]},
                **{name: content[name] for name in _COUNTS},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no statistics ({error!r}). Measure anew.") from error


_COUNTS = (
    "decisions", "crossed", "late", "outside", "overridden", "backlog", "edited", "mixed",
    "elsewhere_ms",
)  # fmt: skip
_CELL_COUNTS = "exposed", "final", "joined", "undegraded", "served", "lists"


def added(one: Statistic, other: Statistic) -> Statistic:
    """The statistic of the units of both."""
    if isinstance(one, Moments) and isinstance(other, Moments):
        return one + other
    assert isinstance(one, GroupedHistogram)
    assert isinstance(other, GroupedHistogram)
    return one + other


def _added_segments(one: SegmentPart, other: SegmentPart) -> SegmentPart:
    return SegmentPart(one.units + other.units, added(one.statistic, other.statistic))


def merged(one: Mapping[Any, Part], other: Mapping[Any, Part], add: Any) -> Mapping[Any, Part]:
    """Both mappings in one, ascending by key; `add` makes one of the two values of a key."""
    found = {**one, **other}
    for key in one.keys() & other.keys():
        found[key] = add(one[key], other[key])
    return {key: found[key] for key in sorted(found)}


def _cells_json(cells: Mapping[ArmDay, Cell]) -> list[Any]:
    return [
        [
            *key,
            {
                **{name: getattr(cell, name) for name in _CELL_COUNTS},
                "statistics": _statistics_json(cell.statistics),
                "undegraded_statistics": _statistics_json(cell.undegraded_statistics),
                "segments": {
                    n: [s.units, _statistic_json(s.statistic)] for n, s in cell.segments.items()
                },
                "preference": cell.preference.to_json(),
            },
        ]
        for key, cell in cells.items()
    ]


def _cells_of(content: Any) -> dict[ArmDay, Cell]:
    return {ArmDay(*key): _cell_of(cell) for *key, cell in content}


def _cell_of(content: Mapping[str, Any]) -> Cell:
    return Cell(
        **{name: content[name] for name in _CELL_COUNTS},
        statistics=_statistics_of(content["statistics"]),
        undegraded_statistics=_statistics_of(content["undegraded_statistics"]),
        segments={
            name: SegmentPart(units, _statistic_of(statistic))
            for name, (units, statistic) in content["segments"].items()
        },
        preference=Moments.from_json(content["preference"]),
    )


def _statistics_of(content: Mapping[str, Any]) -> dict[str, Statistic]:
    return {name: _statistic_of(statistic) for name, statistic in content.items()}


def _statistics_json(statistics: Mapping[str, Statistic]) -> dict[str, list[str]]:
    return {name: _statistic_json(statistic) for name, statistic in statistics.items()}


def _statistic_json(statistic: Statistic) -> list[str]:
    kind = "moments" if isinstance(statistic, Moments) else "histogram"
    return [kind, statistic.to_json()]


def _statistic_of(content: Any) -> Statistic:
    kind, text = content
    return Moments.from_json(text) if kind == "moments" else GroupedHistogram.from_json(text)
