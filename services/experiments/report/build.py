"""What an experiment's statistics say: values, effects, intervals, verdicts and warnings.

Pure: from the declaration and what was measured to plain data that the terminal, JSON and later
readers show. Verdicts rest on what may be looked at any time (confidence sequences, always-valid
p-values, e-values), never on the fixed-horizon interval, which stands beside for comparison.

WHICH EFFECT. A metric that has a covariate (`Metric.covariate`) is judged by the effect
with CUPED, always; the others by the effect as it is. So the declaration decides before there are
data, and nobody picks the more pleasing of two. The effect of all units as it is stands beside. It
is the same for guardrails and segments.

WHICH RHO. Sequences are tuned to the units that the experiment plans for (`planned_units`), each
comparison to its two arms' share of them; without a plan to DEFAULT_PLANNED_UNITS. Those of
guardrails are tuned to `harm.PLANNED_UNITS`, so that harm is found early however large the plan.
They are not tuned to the units observed so far: a sequence that is tuned anew at every look has a
constant critical value and is crossed by chance alone sooner or later.

WHICH UNITS. A treatment is compared with control over the units in all of whose observation it was
live (`Measured.throughout`): those first exposed after its stop are not its match, and those
that the stop cut short, in either arm, are left out of this comparison. Sample ratios are tested
within the epochs of the same live arms and within one split between them (`splits`), against its
sizes; these are of different units, so their e-values multiply.

SEVERAL SPLITS. If an arm's own traffic was edited while the experiment ran, arms are of different
days and differ without any effect where the metric drifts (Simpson's paradox). So they are compared
among the units of one split, CUPED included, and the splits are put together by their precision
(`statistics.strata`). Values are then weighted means, units those that were counted. Planned units
and shares are those of the split that came first, so that an edit tunes no sequence anew. Who is
left out at the seams is said in `measure`, and how many in the warnings.

SEGMENTS are exploratory: they say where to look next, with intervals that hold at every look, each
by itself, and p-values adjusted for the number of segments (Benjamini and Hochberg).

WHAT THE LOG CANNOT KNOW. A request that failed left a record with its arms, so that a unit which
never got an answer is counted (assigned, not served). But a unit whose every record was lost left
nothing behind that names its arm; the router's tandem_router_decisions_lost_total and the unmatched
feedback say whether records were lost, but not of which arm. Unequal loss before the log still
shows in the arrivals' ratio, less sharply.

WHAT IS NOT GUARANTEED. Records of routers that did not write the split yet count for the split of
the file now. An arm that is stopped by hand in the file has no epoch: its sizes are not tested, and
that is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from services.experiments.declare.config import INTERLEAVED, Experiment
from services.experiments.declare.metrics import DEFAULT_PLANNED_UNITS
from services.experiments.declare.parameters import values_text
from services.experiments.declare.splits import sizes_in, split_of
from services.experiments.measure.measure import window_s_of
from services.experiments.measure.results import DAY_MS, ArmDay, Cell, Measured
from services.experiments.report.comparisons import (
    ALPHA,
    Comparisons,
    preference_of,
    step_of,
    value_of,
)
from services.experiments.report.findings import (
    ArmReport,
    BrokenHop,
    ChangeReport,
    Coverage,
    DayValue,
    GoalReport,
    RampReport,
    Report,
    SampleRatio,
)
from services.experiments.report.losses import broken_hops
from services.experiments.report.wording import instant
from services.experiments.statistics import sample_ratio
from services.experiments.statistics.estimates import cautious

SRM_ALPHA = 0.01

_LOST = {  # by the hop that does not get there: which units, and what that may mean
    "joined": ("without any feedback", "an arm loses feedback, or its users react less."),
    "served": (
        "that never got an answer",
        "requests of an arm fail, or take so long that nobody waits.",
    ),
    "undegraded": (
        "with failed or degraded answers",
        "an effect may be one of load. Compare the row of units served undegraded.",
    ),
}


def build_report(
    layer: str,
    experiment: Experiment,
    result: Measured,
    as_of_ms: float,
    coverage: Coverage,
    *,
    forecast: bool = True,
    changes: Sequence[ChangeReport] = (),
    ramp: RampReport | None = None,
) -> Report:
    """The report of what was measured at `as_of_ms`.

    `forecast`: also say how many units would find the primary metric's minimal effect, which takes
    longer than all the rest. `changes` and `ramp` are reported as they are given.
    """
    plan = experiment.plan
    planned = plan.planned_units or DEFAULT_PLANNED_UNITS
    comparisons = Comparisons(experiment, result, planned)
    goals = [
        *comparisons.goals("primary", [plan.primary] if plan.primary else [], forecast),
        *comparisons.goals("secondary", plan.secondary),
    ]
    arms = [_arm_report(*row, result) for row in _rows(experiment)]
    ratio = _sample_ratio(experiment, result)
    broken = broken_hops(comparisons, plan, experiment.control)
    return Report(
        experiment=experiment.name,
        layer=layer,
        unit=experiment.unit,
        state=experiment.state(as_of_ms),
        control=experiment.control,
        as_of_ms=as_of_ms,
        first_ms=result.first_ms,
        last_ms=result.last_ms,
        decisions=result.decisions,
        alpha=ALPHA,
        planned_units=planned,
        planned_by="planned_units" if plan.planned_units else "default",
        observe_s=plan.observe_s,
        window_s=window_s_of(experiment),
        arms=tuple(arms),
        sample_ratio=ratio,
        goals=tuple(goals),
        guardrails=tuple(comparisons.guardrails(plan.guardrails)),
        days=tuple(_days(experiment, result)),
        late=result.late,
        crossed=result.crossed,
        coverage=coverage,
        warnings=tuple(_warnings(experiment, result, arms, ratio, broken, goals, coverage)),
        segments=tuple(comparisons.segments(plan.primary)) if plan.primary else (),
        preference=preference_of(experiment, result, planned),
        changes=tuple(changes),
        ramp=ramp,
        broken_hops=tuple(broken),
    )


def _rows(experiment: Experiment) -> list[tuple[str, float, float, Mapping[str, str]]]:
    """Name, weight, traffic and parameters of what units are counted under."""
    if experiment.interleave:
        return [(INTERLEAVED, 100.0, max(arm.traffic for arm in experiment.arms), {})]
    return [
        (arm.name, arm.weight, arm.traffic, values_text(arm.parameters)) for arm in experiment.arms
    ]


def _arm_report(
    arm: str, weight: float, traffic: float, parameters: Mapping[str, str], result: Measured
) -> ArmReport:
    """Of the units that were first exposed while the arm was live."""
    own = {key: cell for key, cell in result.cells.items() if key.arm == arm}
    exposed = sum(cell.exposed for key, cell in own.items() if result.live_at(key, arm))
    whole = sum((c.counts for key, c in own.items() if result.throughout(key, (arm,))), Cell())
    return ArmReport(
        arm=arm,
        weight=weight,
        traffic=traffic,
        exposed=exposed,
        final=whole.final,
        joined=whole.joined,
        undegraded=whole.undegraded,
        served=whole.served,
        cut=exposed - whole.exposed,
        parameters=parameters,
    )


def _sample_ratio(experiment: Experiment, result: Measured) -> SampleRatio | None:
    """Over the arms that get units, each epoch and split by itself; None with fewer than two."""
    stopped_since = {name for epoch in result.epochs for name in epoch.stopped}
    sizes_of = {
        split: sizes_in(split, experiment)
        for split in ["", *sorted({key.split for key in result.cells})]
    }
    names = [
        arm.name
        for arm in experiment.arms
        if any(sizes[arm.name] > 0 for sizes in sizes_of.values())
        and (not arm.stopped or arm.name in stopped_since)
    ]
    if len(names) < 2 or experiment.interleave:
        return None
    log_e, expected, observed = 0.0, dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    for (_, split), counts in _arrivals(names, result, sizes_of).items():
        sizes = sizes_of[split]
        total = sum(sizes[name] for name in counts)
        for name, count in counts.items():
            observed[name] += count
            expected[name] += sum(counts.values()) * sizes[name] / total
        if len(counts) > 1:
            weights = [sizes[name] for name in counts]
            log_e += float(sample_ratio.log_e_value(list(counts.values()), weights))
    units = sum(expected.values())
    shares = expected if units else {name: sizes_of[""][name] for name in names}
    p = math.exp(-max(log_e, 0.0))
    return SampleRatio(
        expected=tuple(share / sum(shares.values()) for share in shares.values()),
        observed=tuple(observed.values()),
        p=p,
        broken=p <= SRM_ALPHA,
        hops=tuple(_hops(names, result)),
        arms=tuple(names),
    )


def _arrivals(
    names: Sequence[str], result: Measured, sizes_of: Mapping[str, Mapping[str, float]]
) -> dict[tuple[int, str], dict[str, int]]:
    """Epoch and split -> live arm that gets units by it -> units first exposed in both."""
    found: dict[tuple[int, str], dict[str, int]] = {}
    for epoch, split in sorted({(key.epoch, key.split) for key in result.cells}):
        stopped = result.epochs[epoch].stopped if result.epochs else frozenset[str]()
        found[epoch, split] = {
            name: 0 for name in names if name not in stopped and sizes_of[split][name] > 0
        }
    for key, cell in result.cells.items():
        if key.arm in (counts := found[key.epoch, key.split]):
            counts[key.arm] += cell.exposed
    return found


def _hops(names: Sequence[str], result: Measured) -> list[sample_ratio.HopLoss]:
    """Where units were lost on the way. Among the units of the same epochs and split: an outage in
    one of them is not the fault of the arms that were live, or larger, then."""
    times: dict[tuple[int, int, str], dict[str, Cell]] = {}
    for key, cell in result.cells.items():
        if key.arm in names and result.throughout(key, (key.arm,)):
            place = (key.epoch, key.until, key.split)
            own = times.setdefault(place, dict.fromkeys(names, Cell()))
            own[key.arm] += cell.counts
    counts = [
        {
            "assigned": [cell.final for cell in cells],
            "served": [cell.served for cell in cells],
            "joined": [cell.joined for cell in cells],
            "undegraded": [cell.undegraded for cell in cells],
        }
        for cells in ([own[name] for name in names] for own in times.values())
    ]
    return [
        hop
        for path in (("assigned", "served", "joined"), ("assigned", "undegraded"))
        for hop in sample_ratio.name_the_hop(
            [{name: own[name] for name in path} for own in counts], SRM_ALPHA
        )
    ]


def _days(experiment: Experiment, result: Measured) -> list[DayValue]:
    """Of every arm's units that were first exposed on a day and not cut short."""
    by_day = [_by_day(cells, result) for cells in (result.cells, *result.watched.values())]
    found = []
    for day, arm in sorted({key for days in by_day for key in days}):
        cells = [days[day, arm] for days in by_day if (day, arm) in days]
        for metric in experiment.plan.metrics:
            cell = next((cell for cell in cells if metric.name in cell.statistics), Cell())
            if not cell.final:
                continue
            statistic = cell.statistics[metric.name]
            value = value_of(statistic, metric, cell.final)
            error = value if value.known else cautious(value, step_of(statistic, metric))
            found.append(
                DayValue(
                    day=datetime.fromtimestamp(day * DAY_MS / 1000, UTC).date().isoformat(),
                    arm=arm,
                    metric=metric.name,
                    units=cell.final,
                    value=float(value.value),
                    standard_error=math.sqrt(error.variance) if error.known else math.nan,
                )
            )
    return found


def _by_day(cells: Mapping[ArmDay, Cell], result: Measured) -> dict[tuple[int, str], Cell]:
    found: dict[tuple[int, str], Cell] = {}
    for key, cell in cells.items():
        if result.throughout(key, (key.arm,)):
            found[key.day, key.arm] = found.get((key.day, key.arm), Cell()) + cell
    return found


def _warnings(
    experiment: Experiment,
    result: Measured,
    arms: Sequence[ArmReport],
    ratio: SampleRatio | None,
    broken: Sequence[BrokenHop],
    goals: Sequence[GoalReport],
    coverage: Coverage,
) -> list[str]:
    found = []
    if ratio and ratio.broken:
        said = ", ".join(
            f"{name} {count:,} instead of {share * sum(ratio.observed):,.0f}"
            for name, count, share in zip(ratio.arms, ratio.observed, ratio.expected, strict=True)
        )
        found.append(
            f"Sample ratio mismatch: the arms' sizes are not those of the weights ({said}). Trust "
            "no effect before the reason is found: assignment, or decisions lost before the log."
        )
    if len(result.splits) > 1:
        turns = sorted((since_ms, split) for split, since_ms in result.splits.items())
        said = ", ".join(f"{split} since {instant(since_ms)}" for since_ms, split in turns)
        found.append(
            f"The split between the arms changed on the way, by an edit of their traffic: {said}. "
            f"The file says {split_of(experiment)}. Sample ratio and effects are those within one "
            "split, put together."
        )
    found += [f"{hop.sentence} Stop the arm." for hop in broken]
    for hop in ratio.hops if ratio else ():
        if hop.broken:
            rates = ", ".join(f"{100 * rate:.1f} %" for rate in hop.rates)
            lost, why = _LOST[hop.target]
            found.append(f"Units {lost} differ between arms ({rates}): {why}")
    found += [
        f"{goal.metric.name}: the lift of {goal.arm} is implausibly large. Look for a bug before "
        "you believe it (Twyman's law)."
        for goal in goals
        if goal.implausible
    ]
    known = {arm.arm for arm in arms}
    if unknown_arms := sorted({key.arm for key in result.cells} - known):
        found.append(
            f"The log has units of arms that the file does not know: {', '.join(unknown_arms)}."
        )
    counts = {
        f"{experiment.unit.capitalize()}s whose observation was cut short because their arm was "
        "stopped or the split changed, which are in no comparison": sum(arm.cut for arm in arms),
        f"{experiment.unit.capitalize()}s that met more than one arm (they count for the first)": (
            result.crossed
        ),
        f"{experiment.unit.capitalize()}s that met the experiment overridden before (their arm was "
        "stopped then, or the allow-list named them), which were left out": result.overridden,
        f"{experiment.unit.capitalize()}s that had come before the split between the arms changed "
        "and were first exposed after it (an arm that grew had kept them waiting), which were left "
        "out": result.backlog,
        f"{experiment.unit.capitalize()}s that were first exposed to arms with other parameters "
        "than the file's (they were edited under the same salt, or a router has another file), "
        "which were left out; a new salt starts afresh": result.edited,
        f"{experiment.unit.capitalize()}s that met arms with other parameters later (they count by "
        "those that they met first)": result.mixed,
        "Feedback events after every window, which were not added": result.late,
        "Feedback events on requests of which the log has no decision, of whatever experiment "
        "(records were lost, or request ids made up)": coverage.unmatched,
        "Records that could not be read (a broken writer)": coverage.undecodable,
    }
    found += [f"{text}: {number:,}." for text, number in counts.items() if number]
    stopped_since = {name for epoch in result.epochs for name in epoch.stopped}
    if by_hand := [a.name for a in experiment.arms if a.stopped and a.name not in stopped_since]:
        found.append(
            f"Stopped in the file, and the log does not say since when: {', '.join(by_hand)}. "
            "Whether its size is that of its weight was not tested; control's later units stand "
            "against its earlier ones. `tandem experiments stop` leaves a record."
        )
    if not experiment.plan.metrics and not experiment.interleave:
        found.append(
            "No metric is declared for this experiment: write `primary:` in its declaration."
        )
    return found
