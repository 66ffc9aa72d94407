"""From the set of decisions and feedback to an experiment's statistics per arm and day.

WHO COUNTS. A *unit* (user or session) is exposed by the first decision, by event time, that carries
an assignment of the experiment and not by the allow-list. It belongs to the arm of that decision
for good (intention to treat) and to that day (UTC). If it meets another arm later (an arm was
taken out, or a new salt dealt the units afresh under the same name), that is counted and said.

WHAT COUNTS. The unit's decisions that carry the experiment, from the first on and for
`Plan.observe_s`; and the feedback on them, from SKEW_MS before a decision (clocks disagree) to the
metric's window after it. Feedback beyond every window of the experiment is late: counted, not
added.

WHEN IT COUNTS. A unit enters the statistics once its outcome is final: `observe_s` and the longest
window after its first exposure. Until then a mean over units would be over outcomes that still
grow, for which no confidence sequence holds (`analysis.sequential`). What arrives for a final
unit after that (the log was behind) still corrects it: the statistics depend on the set of messages
and on `as_of_ms` only.

Statistics of different units add up: shards of disjoint users, and days.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protos.tandem.v1 import records_pb2
from services.experiments.analysis.moments import SCALE, Moments, moments_of
from services.experiments.analysis.quantiles import GroupedHistogram
from services.experiments.config import Experiment
from services.experiments.fold import NO_UNIT, UNKNOWN_LATENCY, Settled
from services.experiments.metrics import EVENTS, Metric
from services.feedback.whole_log import SKEW_MS

DAY_MS = 86_400_000

Statistic: TypeAlias = Moments | GroupedHistogram
Column: TypeAlias = NDArray[np.float64]

_TYPES = {name: records_pb2.EventType.Value(name.upper()) for name in EVENTS}


class ArmDay(NamedTuple):
    """The units of an arm that were first exposed on a day (counted from the epoch, UTC)."""

    arm: str
    day: int


@dataclass(frozen=True)
class Cell:
    """What is known of an arm's units of one day. `+` merges different units."""

    exposed: int = 0  # units with a decision in the log
    final: int = 0  # of these, whose time is up: the statistics are of them
    joined: int = 0  # of the final ones, of which any feedback came back
    undegraded: int = 0  # of the final ones, none of whose answers were degraded
    statistics: Mapping[str, Statistic] = field(default_factory=dict)  # by metric, final units
    undegraded_statistics: Mapping[str, Statistic] = field(default_factory=dict)

    def __add__(self, other: Cell) -> Cell:
        return Cell(
            self.exposed + other.exposed,
            self.final + other.final,
            self.joined + other.joined,
            self.undegraded + other.undegraded,
            _added(self.statistics, other.statistics),
            _added(self.undegraded_statistics, other.undegraded_statistics),
        )


@dataclass(frozen=True)
class Measured:
    """An experiment's statistics. `+` merges those of disjoint users at the same instant."""

    cells: Mapping[ArmDay, Cell]
    decisions: int = 0  # that carry the experiment
    crossed: int = 0  # units that met more than one arm
    late: int = 0  # events outside every window
    outside: int = 0  # decisions after their unit's observation was over
    first_ms: float = math.inf  # of the decisions
    last_ms: float = -math.inf

    def __add__(self, other: Measured) -> Measured:
        keys = self.cells.keys() | other.cells.keys()
        return Measured(
            {k: self.cells.get(k, Cell()) + other.cells.get(k, Cell()) for k in sorted(keys)},
            self.decisions + other.decisions,
            self.crossed + other.crossed,
            self.late + other.late,
            self.outside + other.outside,
            min(self.first_ms, other.first_ms),
            max(self.last_ms, other.last_ms),
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON that `from_json` reads back exactly."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        span = [self.first_ms, self.last_ms] if self.decisions else None
        return {
            **counts,
            "span_ms": span,
            "cells": [[*key, _cell_json(cell)] for key, cell in self.cells.items()],
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Measured:
        """ValueError when the content is not of `to_json`."""
        try:
            first_ms, last_ms = content["span_ms"] or (math.inf, -math.inf)
            return Measured(
                {ArmDay(arm, day): _cell_of(cell) for arm, day, cell in content["cells"]},
                first_ms=first_ms,
                last_ms=last_ms,
                **{name: content[name] for name in _COUNTS},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no statistics ({error!r}). Measure anew.") from error

    def of_arm(self, arm: str) -> Cell:
        """All days of an arm together."""
        return sum((cell for key, cell in self.cells.items() if key.arm == arm), Cell())


_COUNTS = "decisions", "crossed", "late", "outside"


def _cell_json(cell: Cell) -> dict[str, Any]:
    parts = (cell.statistics, cell.undegraded_statistics)
    all_units, undegraded = (
        {
            name: ["moments" if isinstance(s, Moments) else "histogram", s.to_json()]
            for name, s in part.items()
        }
        for part in parts
    )
    return {
        "units": [cell.exposed, cell.final, cell.joined, cell.undegraded],
        "statistics": all_units,
        "undegraded_statistics": undegraded,
    }


def _cell_of(content: Mapping[str, Any]) -> Cell:
    kinds = {"moments": Moments.from_json, "histogram": GroupedHistogram.from_json}
    return Cell(
        *content["units"],
        *(
            {name: kinds[kind](text) for name, (kind, text) in content[part].items()}
            for part in ("statistics", "undegraded_statistics")
        ),
    )


def measured(settled: Settled, experiment: Experiment, as_of_ms: float) -> Measured:
    """The statistics of an experiment as they are at the instant `as_of_ms`.

    Decisions outside of the experiment's start and stop are not its own. Arms that the log knows
    and the file does not are measured, too.
    """
    arm_of = {
        key: exposure.arm
        for key, combination in settled.combinations.items()
        for exposure in combination
        if exposure.experiment == experiment.name
    }
    names = sorted(set(arm_of.values()))
    rows = _own_rows(settled, experiment, sorted(arm_of))
    if not len(rows):
        return Measured({})
    own = settled.decisions[rows]
    keys = np.array(sorted(arm_of), np.int64)
    numbers = np.array([names.index(arm_of[key]) for key in keys.tolist()])
    arms = numbers[np.searchsorted(keys, own["arms"])]

    units, unit = np.unique(own[experiment.unit], return_inverse=True)
    first = _first_rows(own, unit, len(units))
    arm, first_ms = arms[first], own["time_ms"][first]
    met_another = np.zeros(len(units), bool)
    met_another[unit[arms != arm[unit]]] = True

    plan = experiment.plan
    observe_ms, window_ms = round(plan.observe_s * 1000), round(plan.window_s * 1000)
    counted = own["time_ms"] < first_ms[unit] + observe_ms
    final = first_ms + observe_ms + window_ms <= as_of_ms

    # Feedback on the counted decisions.
    place = np.full(len(settled.decisions), -1, np.int64)
    place[rows[counted]] = np.flatnonzero(counted)
    events = np.flatnonzero(settled.decision_of >= 0)
    of = place[settled.decision_of[events]]
    events, of = events[of >= 0], of[of >= 0]
    after_ms = settled.events["time_ms"][events] - own["time_ms"][of]
    in_window = (after_ms >= -SKEW_MS) & (after_ms <= window_ms)
    joined = np.zeros(len(units), bool)
    joined[unit[of[in_window]]] = True

    decisions = _Counted(own[counted], unit[counted], len(units))
    feedback = _Feedback(settled.events["type"][events], after_ms, unit[of], len(units))
    undegraded = decisions.per_unit("degraded") == 0

    day = first_ms // DAY_MS
    order = np.lexsort((day, arm))  # units by cell
    starts = np.flatnonzero(np.diff(arm[order], prepend=-1) | np.diff(day[order], prepend=-1))
    groups = [_Group(g, g[final[g]], undegraded) for g in np.split(order, starts[1:])]
    latencies = _Latencies(decisions, units)
    for metric in plan.metrics:  # one at a time: the columns of all would be as large as the rest
        columns = _columns(metric, decisions, feedback)
        for group in groups:
            group.add(metric, columns, latencies)
    cells = {
        ArmDay(names[arm[group.units[0]]], int(day[group.units[0]])): Cell(
            len(group.units),
            len(group.final),
            int(joined[group.final].sum()),
            len(group.undegraded),
            group.statistics,
            group.undegraded_statistics,
        )
        for group in groups
    }
    return Measured(
        cells,
        len(own),
        int(met_another.sum()),
        int((~in_window).sum()) if window_ms else 0,
        int((~counted).sum()),
        float(own["time_ms"].min()),
        float(own["time_ms"].max()),
    )


class _Group:
    """The units of a cell, by their numbers, and what was measured of them so far."""

    def __init__(
        self, units: NDArray[np.int64], final: NDArray[np.int64], undegraded: NDArray[np.bool_]
    ) -> None:
        self.units, self.final, self.undegraded = units, final, final[undegraded[final]]
        self.statistics: dict[str, Statistic] = {}
        self.undegraded_statistics: dict[str, Statistic] = {}

    def add(self, metric: Metric, columns: list[Column], latencies: _Latencies) -> None:
        for units, into in (
            (self.final, self.statistics),
            (self.undegraded, self.undegraded_statistics),
        ):
            into[metric.name] = (
                latencies.histogram(units)
                if metric.kind == "quantile"
                else moments_of(*[column[units] for column in columns])
            )


def _own_rows(settled: Settled, experiment: Experiment, keys: list[int]) -> NDArray[np.int64]:
    """Rows of the decisions that expose a unit to the experiment."""
    d = settled.decisions
    return np.flatnonzero(
        np.isin(d["arms"], np.array(keys, np.int64))
        & (d["time_ms"] >= experiment.start_ms)
        & (d["time_ms"] < experiment.stop_ms)
        & (d[experiment.unit] != NO_UNIT)
    )


def _first_rows(own: NDArray[np.void], unit: NDArray[np.int64], units: int) -> NDArray[np.int64]:
    """Each unit's first decision; of several in one millisecond that of the least request hash."""
    order = np.lexsort((own["request"], own["time_ms"], unit))
    starts = np.searchsorted(unit[order], np.arange(units))
    return np.asarray(order[starts])


class _Counted:
    """Counted decisions with the number of each one's unit."""

    def __init__(self, rows: NDArray[np.void], unit: NDArray[np.int64], units: int) -> None:
        self.rows, self.unit, self._units = rows, unit, units
        self.latency_known = rows["latency"] != UNKNOWN_LATENCY

    def per_unit(self, source: str) -> Column:
        if source == "latency":
            # Whole grid steps: below 2^53 they add up exactly in any order.
            steps = np.where(self.latency_known, self.rows["latency"], 0)
            return np.bincount(self.unit, steps, self._units) / SCALE
        weights = self.rows["degraded"] if source == "degraded" else None
        return np.bincount(self.unit, weights, self._units).astype(np.float64)

    def with_latency(self) -> Column:
        known = self.unit[self.latency_known]
        return np.bincount(known, minlength=self._units).astype(np.float64)


class _Feedback:
    """Feedback on counted decisions: type, ms after the decision, number of the unit."""

    def __init__(
        self,
        types: NDArray[np.int8],
        after_ms: NDArray[np.int64],
        unit: NDArray[np.int64],
        units: int,
    ) -> None:
        self._types, self._after_ms, self._unit, self._units = types, after_ms, unit, units

    def per_unit(self, source: str, window_s: float) -> Column:
        counts = (
            (self._types == _TYPES[source])
            & (self._after_ms >= -SKEW_MS)
            & (self._after_ms <= round(window_s * 1000))
        )
        return np.bincount(self._unit[counts], minlength=self._units).astype(np.float64)


def _columns(metric: Metric, decisions: _Counted, feedback: _Feedback) -> list[Column]:
    """The metric's values of every unit, one array (units,) per column of its moments."""

    def values(source: str) -> Column:
        if source in EVENTS:
            return feedback.per_unit(source, metric.window_s)
        return decisions.per_unit(source)

    match metric.kind:
        case "binary":
            return [(values(metric.of) > 0).astype(np.float64)]
        case "mean":
            return [values(metric.of)]
        case "ratio" if metric.of == "latency":  # per answer whose time is known
            return [values("latency"), decisions.with_latency()]
        case "ratio":
            return [values(metric.of), values(metric.per)]
        case "quantile":
            return []  # of requests, not of units


class _Latencies:
    """Known latencies of requests, by unit."""

    def __init__(self, decisions: _Counted, units: NDArray[np.int64]) -> None:
        known = decisions.latency_known
        order = np.argsort(decisions.unit[known], kind="stable")
        self._values = decisions.rows["latency"][known][order] / SCALE
        self._ends = np.cumsum(np.bincount(decisions.unit[known], minlength=len(units)))
        # Of the bare id: no assignment hashes without a salt.
        self._hashes = units.view(np.uint64)

    def histogram(self, chosen: NDArray[np.int64]) -> GroupedHistogram:
        """Of the requests of the chosen units (their numbers)."""
        ends = self._ends[chosen]
        counts = ends - np.where(chosen > 0, self._ends[chosen - 1], 0)
        before = np.cumsum(counts) - counts
        rows = np.arange(counts.sum()) + np.repeat(ends - counts - before, counts)
        return GroupedHistogram.of(self._values[rows], np.repeat(self._hashes[chosen], counts))


def _added(one: Mapping[str, Statistic], other: Mapping[str, Statistic]) -> Mapping[str, Statistic]:
    if not one or not other:
        return one or other
    return {name: _sum(one[name], other[name]) for name in one}


def _sum(one: Statistic, other: Statistic) -> Statistic:
    if isinstance(one, Moments) and isinstance(other, Moments):
        return one + other
    assert isinstance(one, GroupedHistogram)
    assert isinstance(other, GroupedHistogram)
    return one + other
