"""What an experiment's statistics say: values, effects, intervals, verdicts and warnings.

Pure: from the declaration and what was measured to plain data that the terminal, JSON and later
readers show. Verdicts rest on what may be looked at any time (confidence sequences, always-valid
p-values, e-values), never on the fixed-horizon interval, which stands beside for comparison.

WHICH RHO. Sequences are tuned to the units that the experiment plans for (`planned_units`), each
comparison to its two arms' share of them; without a plan to DEFAULT_PLANNED_UNITS. They are not
tuned to the units observed so far: a sequence that is tuned anew at every look has a constant
critical value and is crossed by chance alone sooner or later.

WHAT THE LOG CANNOT KNOW. A unit that was assigned and whose answer or decision record was lost left
nothing behind that names its arm. The first hop seen is therefore `logged`; the router's
tandem_router_decisions_lost_total and the unmatched feedback say whether records were lost, but not
of which arm. Unequal loss before the log still shows in the arrivals' ratio, less sharply.

WHAT IS NOT GUARANTEED. The weights and traffic are those of the file now. If an arm's own traffic
was changed while the experiment ran, the arrivals' test looks for a ratio that was not always asked
for, and arms are not of the same days (`analysis.strata` would compare within steps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from services.experiments.analysis import effects, power, sample_ratio, sequential
from services.experiments.analysis.effects import Interval
from services.experiments.analysis.estimates import Estimate, estimate, unknown
from services.experiments.analysis.moments import Moments
from services.experiments.analysis.multiple import holm
from services.experiments.config import Arm, Experiment
from services.experiments.measure import DAY_MS, Cell, Measured, Statistic
from services.experiments.metrics import (
    DEFAULT_PLANNED_UNITS,
    Goal,
    Guardrail,
    Metric,
)

ALPHA = 0.05
SRM_ALPHA = 0.01
POWER = 0.8

Role: TypeAlias = Literal["primary", "secondary"]
Verdict: TypeAlias = Literal["better", "worse", "no difference that matters", "undecided"]
Safety: TypeAlias = Literal["breached", "holds", "undecided"]


@dataclass(frozen=True)
class ArmReport:
    """Units of an arm along the way."""

    arm: str
    weight: float  # percent
    traffic: float  # percent
    exposed: int  # with a decision in the log
    final: int  # whose outcome is final: all statistics are of these
    joined: int  # of which feedback came back
    undegraded: int  # that never got a degraded answer


@dataclass(frozen=True)
class Effect:
    """A treatment against control. Intervals that are not known are infinite."""

    value: float
    control_value: float
    units: int  # of both arms
    effect: float  # difference, in the metric's unit
    lift: float  # as a share of control; NaN where control is too close to 0
    fixed: Interval  # of the effect, at a horizon fixed in advance
    fixed_lift: Interval
    fixed_p: float
    sequence: Interval  # of the effect, at every look
    sequence_lift: Interval
    p: float  # always valid
    msprt_p: float = math.nan  # of the mSPRT, for comparison


@dataclass(frozen=True)
class GoalReport:
    """A goal metric of one treatment."""

    role: Role
    metric: Metric
    minimal_effect: float
    arm: str
    all_units: Effect  # intention to treat: what the verdict rests on
    undegraded: Effect  # of the units that never got a degraded answer
    adjusted_p: float  # Holm's over all comparisons of the role
    verdict: Verdict
    sentence: str
    implausible: bool  # Twyman's law: look for a bug first
    needed_units: int | None  # of both arms, to find the minimal effect; if it was forecast
    cuped: Effect | None = None  # with less variance by the covariate; None: the metric has none
    covariate_correlation: float = 0.0  # of metric and covariate; CUPED saves its square


@dataclass(frozen=True)
class GuardrailReport:
    """A guardrail metric of one treatment; `harm` is positive towards worse."""

    metric: Metric
    allowed_harm: float
    absolute: bool
    arm: str
    effect: Effect
    harm: float
    harm_sequence: Interval
    log_e: float  # evidence that the harm is more than allowed
    safety: Safety
    sentence: str


@dataclass(frozen=True)
class SampleRatio:
    """Whether the arms' sizes are those of the weights."""

    expected: tuple[float, ...]  # shares, by arm
    observed: tuple[int, ...]  # exposed units
    p: float  # always valid
    broken: bool
    hops: tuple[sample_ratio.HopLoss, ...]


@dataclass(frozen=True)
class DayValue:
    """A metric's value over the units first exposed on a day."""

    day: str
    arm: str
    metric: str
    units: int
    value: float
    standard_error: float = math.nan


@dataclass(frozen=True)
class SegmentEffect:
    """The primary metric of one treatment among the units of a declared segment. Exploratory."""

    segment: str
    arm: str
    effect: Effect


@dataclass(frozen=True)
class Preference:
    """What an interleaving experiment says: above 0 the second arm's ranking is preferred."""

    method: str
    arm_a: str
    arm_b: str
    units: int  # with a final outcome
    requests: int  # of them
    value: float  # mean over units, in [-1, 1]
    fixed: Interval
    sequence: Interval
    p: float  # always valid
    verdict: Literal["a is better", "b is better", "undecided"]
    sentence: str


@dataclass(frozen=True)
class ChangeReport:
    """A change that was made while the experiment ran, by the worker or by a person."""

    at_ms: float
    actor: str
    kind: str  # name of ExperimentChange.Kind
    arm: str
    reason: str


@dataclass(frozen=True)
class RampReport:
    """Where a ramp stands."""

    steps: tuple[float, ...]  # percent
    step: int
    since_ms: float
    waits_for: str  # a sentence; empty: it is at its last step


@dataclass(frozen=True)
class Coverage:
    """What was read of the log, beside the experiment's own decisions."""

    unmatched: int = 0  # events of which no decision is in the log
    undecodable: int = 0  # records that are no valid message
    source: str = "the event log"


@dataclass(frozen=True)
class Report:
    """All that is said of an experiment."""

    experiment: str
    layer: str
    unit: str
    state: str
    control: str
    as_of_ms: float
    first_ms: float  # first and last decision in the log; infinite: there is none
    last_ms: float
    decisions: int
    alpha: float
    planned_units: int
    planned_by: Literal["planned_units", "default"]
    observe_s: float
    window_s: float
    arms: tuple[ArmReport, ...]
    sample_ratio: SampleRatio | None  # None: fewer than two arms get units
    goals: tuple[GoalReport, ...]
    guardrails: tuple[GuardrailReport, ...]
    days: tuple[DayValue, ...]
    late: int
    crossed: int
    coverage: Coverage
    warnings: tuple[str, ...]
    segments: tuple[SegmentEffect, ...] = ()
    preference: Preference | None = None  # of an interleaving experiment
    changes: tuple[ChangeReport, ...] = ()
    ramp: RampReport | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON: what is not known or infinite is null; instants are ms since the epoch."""
        json: dict[str, Any] = jsonable(asdict(self))
        return json


def report(
    layer: str,
    experiment: Experiment,
    result: Measured,
    as_of_ms: float,
    coverage: Coverage,
    *,
    forecast: bool = True,
) -> Report:
    """The report of what was measured at `as_of_ms`.

    `forecast`: also say how many units would find the primary metric's minimal effect, which takes
    longer than all the rest.
    """
    plan = experiment.plan
    cells = {arm.name: result.of_arm(arm.name) for arm in experiment.arms}
    planned = plan.planned_units or DEFAULT_PLANNED_UNITS
    comparisons = _Comparisons(experiment, cells, planned)
    goals = [
        *comparisons.goals("primary", [plan.primary] if plan.primary else [], forecast),
        *comparisons.goals("secondary", plan.secondary),
    ]
    guardrails = comparisons.guardrails(plan.guardrails)
    ratio = _sample_ratio(experiment, cells)
    return Report(
        experiment.name,
        layer,
        experiment.unit,
        experiment.state(as_of_ms),
        experiment.control,
        as_of_ms,
        result.first_ms,
        result.last_ms,
        result.decisions,
        ALPHA,
        planned,
        "planned_units" if plan.planned_units else "default",
        plan.observe_s,
        plan.window_s,
        tuple(_arm_report(arm, cells[arm.name]) for arm in experiment.arms),
        ratio,
        tuple(goals),
        tuple(guardrails),
        tuple(_days(experiment, result)),
        result.late,
        result.crossed,
        coverage,
        tuple(_warnings(experiment, result, ratio, goals, cells, coverage)),
    )


def value_of(statistic: Statistic | None, metric: Metric, units: int) -> Estimate:
    """An arm's value of a metric; unknown without statistics."""
    if statistic is None:
        return unknown(units)
    if isinstance(statistic, Moments):
        return estimate(statistic, "ratio" if metric.kind == "ratio" else "mean")
    return statistic.quantile(metric.quantile, units)


def effect_of(treatment: Estimate, control: Estimate, rho: float) -> Effect:
    """Treatment against control: fixed-horizon intervals of the estimates as they are, sequences of
    the stabilised ones."""
    difference, lift = effects.difference(treatment, control), effects.relative(treatment, control)
    steady = sequential.stabilised(treatment, control)
    watched = effects.difference(*steady)
    p = sequential.always_valid_p(sequential.log_e_value(watched, rho))
    return Effect(
        float(treatment.value),
        float(control.value),
        int(difference.n),
        float(difference.value),
        float(lift.value),
        _floats(effects.interval(difference, ALPHA)),
        _floats(effects.interval(lift, ALPHA)),
        float(effects.p_value(difference)),
        _floats(sequential.confidence_sequence(watched, rho, ALPHA)),
        _floats(sequential.confidence_sequence(effects.relative(*steady), rho, ALPHA)),
        float(p[-1]),
    )


class _Comparisons:
    """Every treatment against control."""

    def __init__(
        self, experiment: Experiment, cells: Mapping[str, Cell], planned_units: int
    ) -> None:
        self._cells = cells
        self._control = experiment.control
        sizes = {arm.name: _size(arm) for arm in experiment.arms}
        total = sum(sizes.values())
        self._treatments = [a.name for a in experiment.arms if a.name != experiment.control]
        # The units of both arms that are planned for, and treatment's share of them.
        self._planned: dict[str, float] = {}
        self._share: dict[str, float] = {}
        for name in self._treatments:
            both = sizes[name] + sizes[self._control]
            self._planned[name] = max(1.0, planned_units * both / total) if total else 1.0
            self._share[name] = sizes[name] / both if both else 0.5

    def goals(self, role: Role, goals: Sequence[Goal], forecast: bool = False) -> list[GoalReport]:
        """All of one role, adjusted together."""
        pairs = [(goal, arm) for goal in goals for arm in self._treatments]
        found = [self._effect(goal.metric, arm) for goal, arm in pairs]
        adjusted = holm([effect.p for effect in found])
        reports = []
        for (goal, arm), effect, p in zip(pairs, found, adjusted.tolist(), strict=True):
            verdict = _verdict(effect, goal, p)
            implausible = effects.is_implausible(effect.sequence_lift, goal.minimal_effect)
            needed = self._needed_units(goal, arm) if forecast else None
            reports.append(
                GoalReport(
                    role,
                    goal.metric,
                    goal.minimal_effect,
                    arm,
                    effect,
                    self._effect(goal.metric, arm, undegraded=True),
                    p,
                    verdict,
                    _goal_sentence(goal, arm, self._control, effect, verdict, needed),
                    implausible,
                    needed,
                )
            )
        return reports

    def guardrails(self, guardrails: Sequence[Guardrail]) -> list[GuardrailReport]:
        return [self._guardrail(g, arm) for g in guardrails for arm in self._treatments]

    def _guardrail(self, guardrail: Guardrail, arm: str) -> GuardrailReport:
        metric, rho = guardrail.metric, self._rho(arm)
        steady = sequential.stabilised(self._value(metric, arm), self._value(metric, self._control))
        change = (effects.difference if guardrail.absolute else effects.relative)(*steady)
        sign = 1.0 if metric.better == "lower" else -1.0
        harm = replace(change, value=sign * change.value)
        log_e = float(sequential.log_e_value_above(harm, rho, guardrail.allowed_harm))
        interval = _floats(sequential.confidence_sequence(harm, rho, ALPHA))
        safety: Safety = "undecided"
        if log_e >= -math.log(ALPHA):
            safety = "breached"
        elif interval.high < guardrail.allowed_harm:
            safety = "holds"
        effect = self._effect(metric, arm)
        return GuardrailReport(
            metric,
            guardrail.allowed_harm,
            guardrail.absolute,
            arm,
            effect,
            float(harm.value),
            interval,
            log_e,
            safety,
            _guardrail_sentence(guardrail, arm, float(harm.value), interval, effect, safety),
        )

    def _effect(self, metric: Metric, arm: str, undegraded: bool = False) -> Effect:
        return effect_of(
            self._value(metric, arm, undegraded),
            self._value(metric, self._control, undegraded),
            self._rho(arm),
        )

    def _value(self, metric: Metric, arm: str, undegraded: bool = False) -> Estimate:
        cell = self._cells[arm]
        if undegraded:
            statistics, units = cell.undegraded_statistics, cell.undegraded
        else:
            statistics, units = cell.statistics, cell.final
        return value_of(statistics.get(metric.name), metric, units)

    def _rho(self, arm: str) -> float:
        return sequential.rho_for(self._planned[arm], ALPHA)

    def _needed_units(self, goal: Goal, arm: str) -> int | None:
        """Units of both arms by which the sequence finds the minimal effect with POWER, judged by
        the variances seen so far; None while they are not known."""
        t, c = self._value(goal.metric, arm), self._value(goal.metric, self._control)
        target = goal.minimal_effect * abs(float(c.value))
        if not (t.known and c.known and target > 0 and 0 < self._share[arm] < 1):
            return None
        sample = power.sequential_sample(
            target,
            float(t.variance * t.n),
            float(c.variance * c.n),
            alpha=ALPHA,
            power=POWER,
            share=self._share[arm],
        )
        return math.ceil(sample.units)


def _verdict(effect: Effect, goal: Goal, p: float) -> Verdict:
    if p <= ALPHA:
        return "better" if (effect.effect > 0) == (goal.metric.better == "higher") else "worse"
    lift = effect.sequence_lift
    if -goal.minimal_effect < lift.low and lift.high < goal.minimal_effect:
        return "no difference that matters"
    return "undecided"


def _goal_sentence(
    goal: Goal, arm: str, control: str, effect: Effect, verdict: Verdict, needed: int | None
) -> str:
    name = goal.metric.name
    if not _is_known(effect.sequence):
        return (
            f"{name}: nothing can be said of {arm} yet. There are {effect.units:,} units with a "
            "final outcome in both arms; it takes a hundred or two, and some that differ."
        )
    span = (
        f"{between(effect.sequence_lift, relative=True)} of {control}'s value"
        if _is_known(effect.sequence_lift)
        else between(effect.sequence, relative=False)
    )
    if verdict in ("better", "worse"):
        return f"{name}: {arm} is {verdict} than {control}. The change is {span}."
    limit = f"{100 * goal.minimal_effect:g} %"
    if verdict == "no difference that matters":
        return f"{name}: {arm} changes it by less than {limit} either way ({span})."
    more = (
        f" A lift of {limit} would be found with about {needed:,} units; there are "
        f"{effect.units:,}."
        if needed
        else ""
    )
    return f"{name}: undecided for {arm}. The change may be anything {span}.{more}"


def _guardrail_sentence(
    guardrail: Guardrail,
    arm: str,
    harm: float,
    interval: Interval,
    effect: Effect,
    safety: Safety,
) -> str:
    name = guardrail.metric.name

    def shown(number: float) -> str:
        return signed(number) if guardrail.absolute else percent(number)

    allowed = (
        f"{guardrail.allowed_harm:g}"
        if guardrail.absolute
        else f"{100 * guardrail.allowed_harm:g} %"
    )
    if not _is_known(interval):
        if not guardrail.absolute and _is_known(effect.sequence):
            return (
                f"{name}: control's value is too close to 0 for a share of it. Declare "
                "allowed_absolute_harm."
            )
        return f"{name}: nothing can be said of {arm} yet."
    span = between(interval, relative=not guardrail.absolute)
    match safety:
        case "breached":
            return (
                f"{name}: BREACHED by {arm}. It is worse by {shown(harm)} ({span}); "
                f"{allowed} is allowed. Stop the arm."
            )
        case "holds":
            return f"{name}: holds for {arm}. Any harm is below the allowed {allowed} ({span})."
        case "undecided":
            return f"{name}: no breach seen for {arm}; the harm is {span}, {allowed} is allowed."


def _size(arm: Arm) -> float:
    """Share of the experiment's units that get the arm, in any unit."""
    return float((arm.end - arm.first) * arm.enrolled)


def _arm_report(arm: Arm, cell: Cell) -> ArmReport:
    return ArmReport(
        arm.name,
        arm.weight,
        arm.traffic,
        cell.exposed,
        cell.final,
        cell.joined,
        cell.undegraded,
    )


def _sample_ratio(experiment: Experiment, cells: Mapping[str, Cell]) -> SampleRatio | None:
    """Over the arms that get units."""
    arms = [arm for arm in experiment.arms if _size(arm) > 0]
    if len(arms) < 2:
        return None
    sizes = [_size(arm) for arm in arms]
    own = [cells[arm.name] for arm in arms]
    observed = tuple(cell.exposed for cell in own)
    log_e = float(sample_ratio.log_e_value(observed, sizes))
    p = math.exp(-max(log_e, 0.0))
    hops = [
        *sample_ratio.name_the_hop(
            {"logged": [c.final for c in own], "joined": [c.joined for c in own]}, SRM_ALPHA
        ),
        *sample_ratio.name_the_hop(
            {"logged": [c.final for c in own], "undegraded": [c.undegraded for c in own]},
            SRM_ALPHA,
        ),
    ]
    shares = tuple(size / sum(sizes) for size in sizes)
    return SampleRatio(shares, observed, p, p <= SRM_ALPHA, tuple(hops))


def _days(experiment: Experiment, result: Measured) -> list[DayValue]:
    return [
        DayValue(
            datetime.fromtimestamp(key.day * DAY_MS / 1000, UTC).date().isoformat(),
            key.arm,
            metric.name,
            cell.final,
            float(value_of(cell.statistics.get(metric.name), metric, cell.final).value),
        )
        for key, cell in sorted(result.cells.items(), key=lambda item: (item[0].day, item[0].arm))
        for metric in experiment.plan.metrics
        if cell.final
    ]


def _warnings(
    experiment: Experiment,
    result: Measured,
    ratio: SampleRatio | None,
    goals: Sequence[GoalReport],
    cells: Mapping[str, Cell],
    coverage: Coverage,
) -> list[str]:
    found = []
    if ratio and ratio.broken:
        arms = [arm.name for arm in experiment.arms if _size(arm) > 0]
        said = ", ".join(
            f"{name} {count:,} instead of {share * sum(ratio.observed):,.0f}"
            for name, count, share in zip(arms, ratio.observed, ratio.expected, strict=True)
        )
        found.append(
            f"Sample ratio mismatch: the arms' sizes are not those of the weights ({said}). Trust "
            "no effect before the reason is found: assignment, traffic changed on the way, or "
            "decisions lost before the log."
        )
    for hop in ratio.hops if ratio else ():
        if not hop.broken:
            continue
        rates = ", ".join(f"{100 * rate:.1f} %" for rate in hop.rates)
        if hop.target == "joined":
            found.append(
                f"Units without any feedback differ between arms ({rates}): an arm loses feedback, "
                "or its users react less."
            )
        else:
            found.append(
                f"Units with degraded answers differ between arms ({rates}): an effect may be one "
                "of load. Compare the row of units served undegraded."
            )
    found += [
        f"{goal.metric.name}: the lift of {goal.arm} is implausibly large. Look for a bug before "
        "you believe it (Twyman's law)."
        for goal in goals
        if goal.implausible
    ]
    if unknown_arms := sorted({key.arm for key in result.cells} - cells.keys()):
        found.append(
            f"The log has units of arms that the file does not know: {', '.join(unknown_arms)}."
        )
    counts = {
        f"{experiment.unit.capitalize()}s that met more than one arm (they count for the first)": (
            result.crossed
        ),
        "Feedback events after every window, which were not added": result.late,
        "Feedback events on requests of which the log has no decision, of whatever experiment "
        "(records were lost, or request ids made up)": coverage.unmatched,
        "Records that could not be read (a broken writer)": coverage.undecodable,
    }
    found += [f"{text}: {number:,}." for text, number in counts.items() if number]
    if not experiment.plan.metrics:
        found.append(
            "No metric is declared for this experiment: write `primary:` in its declaration."
        )
    return found


def percent(share: float) -> str:
    """A change as signed percent."""
    return f"{100 * share:+.3g} %" if abs(share) < 10 else f"{100 * share:+,.0f} %"


def signed(number: float) -> str:
    return f"{number:+.3g}"


def between(interval: Interval, relative: bool) -> str:
    """An interval of changes in words."""
    show = percent if relative else signed
    return f"between {show(float(interval.low))} and {show(float(interval.high))}"


def _is_known(interval: Interval) -> bool:
    return math.isfinite(float(interval.low)) and math.isfinite(float(interval.high))


def _floats(interval: Interval) -> Interval:
    return Interval(float(interval.low), float(interval.high))


def jsonable(value: Any) -> Any:
    match value:
        case dict():
            return {
                key: jsonable(child) for key, child in value.items() if key not in ("line", "file")
            }
        case list() | tuple():
            return [jsonable(child) for child in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
