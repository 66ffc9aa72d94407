"""The statistics of an experiment's units, each observed for the same time (see `measure`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.common.ids import hash_of
from services.event_log.whole_log import SKEW_MS
from services.experiments.changes.state import Epoch
from services.experiments.declare.metrics import (
    Having,
    Metric,
    Source,
    adds_values,
    event_of,
)
from services.experiments.lists.interleaving import per_unit, team_preference
from services.experiments.measure.exposures import Exposed, JoinedFeedback, Numbers
from services.experiments.measure.fold import UNKNOWN_LATENCY, UNKNOWN_VALUE, property_key
from services.experiments.measure.results import DAY_MS, ArmDay, Cell, SegmentPart, Statistic, added
from services.experiments.measure.sorted_rows import rows_of
from services.experiments.statistics.moments import (
    LARGEST,
    SCALE,
    grid_of,
    moments_of_grids,
    on_grid,
)
from services.experiments.statistics.quantiles import GroupedHistogram

Floats: TypeAlias = NDArray[np.float64]

# So many units decide where values are capped (`_capped`).
CAP_UNITS = 200


class Span(NamedTuple):
    """Metrics for which units are observed equally long."""

    observe_ms: int
    window_ms: int  # the longest of the metrics: when it is over, too, the outcome is final
    metrics: tuple[Metric, ...]


class _Slices(NamedTuple):
    """The units of a cell, by the slots that they have."""

    key: ArmDay
    undegraded: slice  # the final ones that were served undegraded
    rest: slice  # the other final ones
    end: int  # behind those that are not final yet

    @property
    def final(self) -> slice:
        return slice(self.undegraded.start, self.rest.stop)


class Observed:
    """The units of an experiment over one span.

    Each unit has a slot: they are ordered by cell, within a cell those come first that are final
    and were served undegraded, then the other final ones, then the rest. So a statistic of a cell
    is one of two slices of columns that all metrics share.
    """

    def __init__(
        self,
        exposed: Exposed,
        feedback: JoinedFeedback,
        span: Span,
        as_of_ms: float,
        epochs: Sequence[Epoch],
    ) -> None:
        self._exposed, self._span = exposed, span
        first_ms = exposed.time_ms[exposed.first]
        end_ms = first_ms + span.observe_ms
        self.counted = np.flatnonzero(exposed.time_ms < end_ms[exposed.unit])
        self._unanswered = exposed.column("unanswered", self.counted)
        self._degraded = exposed.column("degraded", self.counted)
        impaired = np.zeros(len(first_ms), bool)
        impaired[exposed.unit[self.counted[self._unanswered | self._degraded]]] = True
        starts_ms = np.array([epoch.start_ms for epoch in epochs])
        self._order, self._slices = _by_cell(
            exposed,
            first_ms // DAY_MS,
            np.searchsorted(starts_ms, first_ms, "right") - 1,
            np.searchsorted(starts_ms, end_ms - 1, "right") - 1,
            np.where(end_ms + span.window_ms <= as_of_ms, impaired, 2),
            None if exposed.changed_ms is None else exposed.changed_ms < end_ms,
        )
        slots = np.empty(len(first_ms), np.int64)
        slots[self._order] = np.arange(len(first_ms))
        self._slot = slots[exposed.unit[self.counted]]

        is_counted = np.zeros(len(exposed.rows), bool)
        is_counted[self.counted] = True
        counts = is_counted[feedback.of]
        in_window = (feedback.after_ms >= -SKEW_MS) & (feedback.after_ms <= span.window_ms)
        self.late = int((counts & ~in_window).sum())
        kept = np.flatnonzero(counts & in_window)
        self._events, self._of = feedback.events[kept], feedback.of[kept]
        self._after_ms, self._types = feedback.after_ms[kept], feedback.types[kept]
        values = exposed.settled.events["value"][self._events]
        self._values = np.where(values == UNKNOWN_VALUE, 0, values)
        self._event_slot = slots[exposed.unit[self._of]]
        self._grids: dict[tuple[str | int, int, tuple[Having, ...]], Numbers] = {}
        self._properties = exposed.settled.properties
        self._declared = {e.id: e.properties for m in span.metrics for e in m.events.declared}
        self._covariates: dict[int, Numbers] = {}
        self.caps: dict[str, float] = {}  # of winsorised metrics, in their units

    def cells(self, primary: Metric | None = None) -> dict[ArmDay, Cell]:
        """Of every arm and day; with a primary metric, by segments as well."""
        histograms = {
            m.name: self._histograms(m) for m in self._span.metrics if m.kind == "quantile"
        }
        columns = {m.name: self._columns(m) for m in self._span.metrics}
        segments = self._segments() if primary else {}
        joined = _Ends(self._counts(self._event_slot))
        served = _Ends(self._counts(self._slot[~self._unanswered]))
        listed, values, lists = self._preferences()

        def statistic(metric: Metric, chosen: Numbers | slice) -> Statistic:
            if metric.kind != "quantile":
                return moments_of_grids([grid[chosen] for grid in columns[metric.name]])
            return histograms[metric.name].of(chosen)

        found = {}
        for slices in self._slices:
            final = slices.final
            undegraded, rest = (
                {m.name: statistic(m, chosen) for m in self._span.metrics}
                for chosen in (slices.undegraded, slices.rest)
            )
            parts = {}
            for name, members in segments.items():
                chosen = members[slice(*np.searchsorted(members, [final.start, final.stop]))]
                if primary and len(chosen):
                    parts[name] = SegmentPart(len(chosen), statistic(primary, chosen))
            of_cell = slice(*np.searchsorted(listed, [final.start, final.stop]))
            found[slices.key] = Cell(
                exposed=slices.end - final.start,
                final=final.stop - final.start,
                joined=joined.within(final),
                undegraded=slices.rest.start - final.start,
                statistics={name: added(s, rest[name]) for name, s in undegraded.items()},
                undegraded_statistics=undegraded,
                served=served.within(final),
                segments=parts,
                preference=moments_of_grids([grid_of(values[of_cell])]),
                lists=int(lists[of_cell].sum()),
            )
        return found

    def _columns(self, metric: Metric) -> list[Numbers]:
        """The metric's values of every unit in grid steps, one array (units,) per column of its
        moments: its own, and its covariate."""
        if metric.kind == "quantile":
            return []
        of = self._of_unit(metric, metric.of, metric.where)
        match metric.kind:
            case "binary" if metric.at_least is not None:
                columns = [np.where(of >= on_grid(metric.at_least), SCALE, 0)]
            case "binary":
                columns = [np.where(of > 0, SCALE, 0)]
            case "mean" if metric.winsorise is not None:
                columns = [self._capped(metric.name, of, metric.winsorise)]
            case "mean":
                columns = [of]
            case "ratio" if metric.of == "latency":  # per answer whose time is known
                columns = [of, self._grid("timed", 0)]
            case "ratio":
                columns = [of, self._of_unit(metric, metric.per)]
        return [*columns, self._before(metric.covariate)] if metric.covariate else columns

    def _of_unit(self, metric: Metric, name: str, where: tuple[Having, ...] = ()) -> Numbers:
        """What each unit has of `metric.of` or `metric.per`, in grid steps."""
        source = metric.events.sources.get(name, 0)
        return self._grid(source or name, round(metric.window_s * 1000) if source else 0, where)

    def _capped(self, name: str, column: Numbers, quantile: float) -> Numbers:
        """The units' values, none further from 0 than the cap: the quantile of the sizes of those
        that are not 0, of the first CAP_UNITS final units, by first exposure, that have such a one;
        of all arms together (WINSORISING in `measure`)."""
        is_final = np.zeros(len(column), bool)
        for slices in self._slices:
            is_final[slices.final] = True
        known = np.flatnonzero(is_final & (column != 0))
        if not len(known):
            return column
        exposed, units = self._exposed, self._order[known]
        earliest = np.lexsort((exposed.hashes[units], exposed.time_ms[exposed.first[units]]))
        sizes = np.sort(np.abs(column[known[earliest[:CAP_UNITS]]]))
        cap = sizes[math.ceil(quantile * len(sizes)) - 1]
        self.caps[name] = float(cap) / SCALE
        return np.clip(column, -cap, cap)

    def _before(self, source: Source) -> Numbers:
        """The covariate, in grid steps: the logarithm of one more than what was kept of each unit
        at its first exposure, with the sign of that."""
        if source not in self._covariates:
            exposed = self._exposed
            known = np.zeros(len(exposed.rows))
            if (kept := exposed.settled.before.get(source)) is not None:
                # Of all decisions, whose order is that of what is looked up: thrice as fast.
                row = rows_of(exposed.column("request"), kept["request"])
                known[row >= 0] = kept["number"][row[row >= 0]]
            found = known[exposed.first[self._order]]
            self._covariates[source] = grid_of(np.copysign(np.log1p(np.abs(found)), found))
        return self._covariates[source]

    def _grid(
        self, source: str | Source, window_ms: int, where: tuple[Having, ...] = ()
    ) -> Numbers:
        """A number per unit in grid steps; each is made once. `source`: of feedback, or the name of
        something that serving tells."""
        key = source, window_ms, where
        if key not in self._grids:
            self._grids[key] = self._made(source, window_ms, where)
        return self._grids[key]

    def _made(self, source: str | Source, window_ms: int, where: tuple[Having, ...]) -> Numbers:
        match source:
            case "latency":
                steps = self._latency_steps()
                known = np.where(steps == UNKNOWN_LATENCY, 0, steps)
                return _sums(self._slot, known, len(self._order))
            case "timed":
                chosen = self._slot[self._latency_steps() != UNKNOWN_LATENCY]
            case "request":
                chosen = self._slot
            case "error":
                chosen = self._slot[self._unanswered]
            case "degraded":
                chosen = self._slot[self._degraded]
            case _:
                assert isinstance(source, int)
                # All are in the span's window, which starts at the same time as theirs.
                counts = (self._types == event_of(source)) & (self._after_ms <= window_ms)
                for having in where:
                    counts &= self._having(event_of(source), having)
                chosen = self._event_slot[counts]
                if adds_values(source):
                    return _sums(chosen, self._values[counts], len(self._order))
        return self._counts(chosen) * SCALE

    def _having(self, event: int, having: Having) -> NDArray[np.bool_]:
        """Which events have the property with one of the values; of one that none came with, the
        declared default."""
        declared = next(p for p in self._declared[event] if p.name == having.name)
        default = -1 if declared.default is None else _stored(declared.default)  # unknown: no value
        found = np.full(len(self._events), default, np.int64)
        known = self._properties.get(property_key(event, having.name))
        if known is not None:
            row = rows_of(self._exposed.settled.events["event"][self._events], known["event"])
            found[row >= 0] = known["value"][row[row >= 0]]
        return np.isin(found, [_stored(value) for value in having.values])

    def _counts(self, slots: Numbers) -> Numbers:
        return np.bincount(slots, minlength=len(self._order))

    def _histograms(self, metric: Metric) -> _Histograms:
        """A unit's sum below 0 counts as 0: the schema allows none, but it may once have allowed
        values below 0 that the log still has."""
        if metric.of != "latency":  # one value of each unit
            slots = np.arange(len(self._order))
            of = np.maximum(self._of_unit(metric, metric.of, metric.where), 0)
            return _Histograms(self, of / SCALE, slots)
        steps = self._latency_steps()
        known = np.flatnonzero(steps != UNKNOWN_LATENCY)
        return _Histograms(self, steps[known] / SCALE, self._slot[known])

    def _latency_steps(self) -> Numbers:
        return self._exposed.column("latency", self.counted)

    def _segments(self) -> dict[str, Numbers]:
        """The slots, ascending, of the units that were in each segment when first exposed."""
        keys = self._exposed.column("segments", self._exposed.first[self._order])
        combinations, number = np.unique(keys, return_inverse=True)
        known = [self._exposed.settled.segments[key] for key in combinations.tolist()]
        names = sorted({name for segments in known for name in segments})
        return {
            name: np.flatnonzero(np.array([name in segments for segments in known])[number])
            for name in names
        }

    def _preferences(self) -> tuple[Numbers, Floats, Numbers]:
        """Of the units with interleaved lists: slots, ascending, mean preferences, and lists."""
        exposed = self._exposed
        shown = np.flatnonzero(exposed.column("drafted", self.counted))
        if not len(shown):
            return np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64)
        number = np.full(len(exposed.rows), -1, np.int64)
        number[self.counted[shown]] = np.arange(len(shown))
        chose = np.isin(self._types, exposed.events.choices)
        chosen = np.flatnonzero(chose & (number[self._of] >= 0))
        places = exposed.settled.places
        row = rows_of(exposed.settled.events["place"][self._events[chosen]], places["place"])
        row, at = np.unique(row, return_index=True)  # a place counts once
        at, row = at[row >= 0], row[row >= 0]
        request = number[self._of[chosen[at]]]
        preferred = team_preference(request, places["team"][row], len(shown))
        slots, means = per_unit(self._slot[shown], preferred)
        return slots, means, self._counts(self._slot[shown])[slots]


def _stored(value: str | float) -> int:
    """A value of a property as a fold has it (`PROPERTY`)."""
    return hash_of(value) if isinstance(value, str) else on_grid(float(value))


def _sums(slots: Numbers, steps: Numbers, count: int) -> Numbers:
    """The sums of whole grid steps (m,) by slot, exact in any order; none beyond what a metric can
    be (`moments.LARGEST`)."""
    limit = int(LARGEST) * SCALE
    roughly = np.bincount(slots, steps, count)
    sums = np.zeros(count, np.int64)
    np.add.at(sums, slots, steps)  # beyond 2^63, which is 9 times the limit, it is not used
    fits = np.abs(roughly) < 2 * limit
    return np.where(fits, np.clip(sums, -limit, limit), np.where(roughly > 0, limit, -limit))


class _Ends:
    """How many units of a slice have at least one."""

    def __init__(self, counts: Numbers) -> None:
        self._before = np.concatenate([[0], np.cumsum(counts > 0)])

    def within(self, slots: slice) -> int:
        return int(self._before[slots.stop] - self._before[slots.start])


class _Histograms:
    """Values (m,), and the slots (m,) of their units, in the order of these."""

    def __init__(self, observed: Observed, values: Floats, slots: Numbers) -> None:
        self._values = values[np.argsort(slots, kind="stable")]
        counts = np.bincount(slots, minlength=len(observed._order))
        self._ends = np.concatenate([[0], np.cumsum(counts)])
        # Of the bare id: no assignment hashes without a salt.
        self._hashes = observed._exposed.hashes[observed._order].view(np.uint64)

    def of(self, chosen: Numbers | slice) -> GroupedHistogram:
        """Of the values of the units in these slots."""
        slots = np.arange(chosen.start, chosen.stop) if isinstance(chosen, slice) else chosen
        counts = self._ends[slots + 1] - self._ends[slots]
        before = np.cumsum(counts) - counts
        rows = np.arange(counts.sum()) + np.repeat(self._ends[slots] - before, counts)
        return GroupedHistogram.of(self._values[rows], np.repeat(self._hashes[slots], counts))


def _by_cell(
    exposed: Exposed,
    day: Numbers,
    epoch: Numbers,
    until: Numbers,
    rank: Numbers,
    cut: NDArray[np.bool_] | None,
) -> tuple[Numbers, list[_Slices]]:
    """The units in the order of their slots (units,), and the cells; `rank` orders within them.
    `cut`: whose split changed on the way, where there are several splits."""
    cells = [exposed.arm, day, epoch, until]
    if exposed.split is not None and cut is not None:
        cells += [exposed.split, cut.astype(np.int64)]
    places = [*cells, rank]
    code = np.zeros(len(day), np.int64)
    for place in places:
        least = int(place.min())
        code = code * (int(place.max()) - least + 1) + (place - least)
    order = np.argsort(code, kind="stable")
    *cells, rank = (place[order] for place in places)
    new = np.zeros(len(order), bool)
    for place in cells:
        new[1:] |= place[1:] != place[:-1]
    starts = [0, *np.flatnonzero(new).tolist()]
    slices = []
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        first, second = (start + int(n) for n in np.searchsorted(rank[start:end], [1, 2]))
        arm, on, since, until_, *of_split = (int(place[start]) for place in cells)
        split, is_cut = of_split or (0, 0)
        name = exposed.names[arm]
        key = ArmDay(name, on, since, until_, exposed.splits[split], bool(is_cut))
        slices.append(_Slices(key, slice(start, first), slice(first, second), end))
    return order, slices
