"""What the event log says of production before an experiment starts: metrics per unit, arrivals.

As if a dummy experiment with one arm had run over all units of the log: every decision is read as
one that carries it, and the fold and `measure` do the rest. So a metric has the very meaning that
the report will give it, and new units come as they will come to the experiment: all are new at
first, then fewer.

WHAT IS NOT KNOWN. Records carry the surface but neither context nor user features, so conditions
on those select nobody here. Users of other experiments count like all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from protos.tandem.v1 import records_pb2
from services.experiments.declare.config import BUCKETS, Arm, Experiment
from services.experiments.declare.metrics import Goal, Metric, Plan
from services.experiments.declare.targeting import MEMBERSHIP
from services.experiments.measure.fold import Fold, Settled
from services.experiments.measure.measure import measured
from services.experiments.measure.results import DAY_MS
from services.experiments.report.comparisons import value_of
from services.experiments.statistics import cuped
from services.experiments.statistics.estimates import Kind
from services.experiments.statistics.moments import Moments

PRODUCTION = "production"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A metric under production."""

    metric: Metric
    mean: float
    sd: float  # of a unit's contribution: a unit's value, or to first order its part of a ratio
    units: int | None = None  # that it was measured of; None: given by hand
    correlation: float | None = None  # with the covariate of CUPED; None: not known


class ProductionFold(Fold):
    """Reads every decision as one that carries the experiment, with one arm."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self._experiment = experiment

    def on_decision(self, record: records_pb2.DecisionRecord) -> bool:
        if not selected(record, self._experiment):
            return True
        return super().on_decision(as_production(record, self._experiment))


def selected(record: records_pb2.DecisionRecord, experiment: Experiment) -> bool:
    """Whether a record fulfils those of the experiment's conditions that it can be asked."""
    return all(
        bool(record.surface) and MEMBERSHIP[c.operator](record.surface, frozenset(c.values))
        for c in experiment.where
        if c.subject == "surface"
    )


def as_production(
    record: records_pb2.DecisionRecord, experiment: Experiment
) -> records_pb2.DecisionRecord:
    """The record as it would be if the experiment had had one arm, which changes nothing."""
    own = records_pb2.DecisionRecord()
    own.CopyFrom(record)
    del own.assignments[:]
    own.assignments.add(experiment=experiment.name, arm=PRODUCTION, unit=experiment.unit)
    own.ClearField("interleaving")
    return own


def baseline(
    settled: Settled, experiment: Experiment, metric: Metric, observe_s: float, as_of_ms: float
) -> Baseline:
    """A metric over the units whose outcome is final; NaN where there is nothing to tell of."""
    plan = Plan(Goal(metric, 0.0), observe_s=observe_s)
    cell = measured(settled, _dummy(experiment, plan), as_of_ms).of_arm(PRODUCTION)
    statistic = cell.statistics.get(metric.name)
    found = value_of(statistic, metric, cell.final)
    sd = math.sqrt(float(found.variance) * float(found.n)) if found.known else math.nan
    correlation = None
    if isinstance(statistic, Moments):
        kind: Kind = "ratio" if metric.kind == "ratio" else "mean"
        if statistic.columns == (3 if kind == "ratio" else 2):
            correlation = cuped.correlation([statistic], kind)
    mean = float(found.value)
    return Baseline(metric=metric, mean=mean, sd=sd, units=cell.final, correlation=correlation)


def arrivals(settled: Settled, experiment: Experiment) -> tuple[int, ...]:
    """New units on each whole day (UTC) that the log covers, as an experiment would meet them that
    starts with the first of these days; empty if it covers none."""
    times = settled.decisions["time_ms"]
    if not len(times):
        return ()
    first = -(-int(times.min()) // DAY_MS)
    end = int(times.max()) // DAY_MS
    if end <= first:
        return ()
    whole = replace(
        _dummy(experiment, Plan()), start_ms=first * DAY_MS, stop_ms=float(end * DAY_MS)
    )
    cells = measured(settled, whole, math.inf).cells
    by_day: dict[int, int] = {}
    for key, cell in cells.items():
        by_day[key.day] = by_day.get(key.day, 0) + cell.exposed
    return tuple(by_day.get(day, 0) for day in range(first, end))


def _dummy(experiment: Experiment, plan: Plan) -> Experiment:
    arm = Arm(PRODUCTION, 0, BUCKETS, BUCKETS, {})
    return replace(
        experiment,
        arms=(arm,),
        plan=plan,
        enabled=True,
        start_ms=-math.inf,
        stop_ms=math.inf,
        ramp=None,
        interleave=None,
    )
