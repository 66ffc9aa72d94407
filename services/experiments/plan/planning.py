"""How many units an experiment needs, and for how long it must run, before it starts.

Pure: from the declaration, what is known of its metrics under production (`baseline`) and how
many new units come a day, to a forecast. The statistics are those of `statistics.power`.

WHAT IS ASSUMED. Control spreads like production, and treatment as if the effect that is sought made
every value larger, or smaller, by the same factor. Arrivals go on after the days that are known as
on the last of them. The confidence sequence is tuned to `planned_units`, and where these are not
declared to the sample that the forecast asks for: declare it. Secondary metrics are forecast at the
strictest of Holm's levels, the primary at its share among the treatments, so that some will be
found with less. A guardrail is forecast to be shown to hold when nothing is harmed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from services.experiments.declare.config import BUCKETS, Experiment
from services.experiments.declare.metrics import Goal, Guardrail, Metric
from services.experiments.measure.fold import Settled
from services.experiments.plan.baseline import Baseline, baseline
from services.experiments.plan.traffic import (
    DAY_S,
    Traffic,
    come_by,
    days_until,
    entering,
    traffics,
)
from services.experiments.report.comparisons import ALPHA, GUARDRAIL_RHO
from services.experiments.report.findings import jsonable
from services.experiments.statistics import harm, sequential
from services.experiments.statistics import power as power_of

MIN_UNITS = 100  # behind a metric's mean and variance; with fewer they are anybody's guess
HORIZONS_DAYS = (7, 14, 28)

Role: TypeAlias = Literal["primary", "secondary", "guardrail"]
Key: TypeAlias = tuple[str, float]


class CannotPlan(Exception):
    """There is nothing to forecast from; the text says why and what to do."""


@dataclass(frozen=True)
class Sample:
    """Units of all arms together, and the days that they take under each of the forecast's
    traffics, the last outcome's observation included. Infinite where they never come; NaN where
    arrivals are not known."""

    units: int
    days: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class MetricForecast:
    """What one metric of one treatment needs."""

    role: Role
    metric: str
    arm: str
    mean: float
    sd: float
    measured_of: int | None  # units in the log; None: given by hand
    effect: float  # absolute
    relative: float  # as a share of the mean's size; NaN if the mean is 0
    alpha: float
    fixed: Sample  # a test that is looked at once
    sequential: Sample  # the confidence sequence, which decides
    expected_units: int  # seen on average if one stops as soon as it is found
    correlation: float | None  # with the covariate of CUPED
    fixed_cuped: Sample | None
    sequential_cuped: Sample | None
    # By HORIZONS_DAYS, at the last traffic: the smallest effect found, with CUPED if that is known,
    # as a share of the mean's size (absolute if `relative` is NaN). Infinite if no outcome is final
    # by then.
    detectable: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    experiment: str
    unit: str
    power: float
    traffics: tuple[Traffic, ...]
    metrics: tuple[MetricForecast, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What is not known or infinite is null."""
        json: dict[str, Any] = jsonable(asdict(self))
        return json


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A metric that the plan asks for, with what of it is to be found."""

    role: Role
    metric: Metric
    margin: float  # as a share of the mean, or absolute
    absolute: bool = False
    observe_s: float
    final_s: float  # from a unit's first exposure to the end of its outcome

    @property
    def key(self) -> Key:
        """What its baseline depends on."""
        return self.metric.name, self.observe_s


def wanted(experiment: Experiment, lift: float | None = None) -> list[Wanted]:
    """All metrics of the plan. `lift` stands for the minimal effects of the goals.

    CannotPlan when there is nothing to compare.
    """
    plan = experiment.plan
    if experiment.interleave:
        raise CannotPlan(
            f"{experiment.name} interleaves: what it compares are preferences, of which the log "
            "knows nothing before it runs. They take far fewer units than an A/B experiment: let "
            "it run and watch the interval."
        )
    if not plan.metrics:
        raise CannotPlan(
            f"{experiment.name} declares no metric. Write `primary:` with its minimal effect."
        )
    if not _treatments(experiment):
        raise CannotPlan(
            f"{experiment.name} has no second arm that gets units. Give control and another arm "
            "weight and traffic."
        )
    final_s = plan.observe_s + plan.window_s

    def of_goal(role: Role, goal: Goal) -> Wanted:
        margin = goal.minimal_effect if lift is None else lift
        return Wanted(
            role=role, metric=goal.metric, margin=margin, observe_s=plan.observe_s, final_s=final_s
        )

    def of_guardrail(g: Guardrail) -> Wanted:
        observe_s, window_s = g.seconds(plan), g.metric.window_s if g.metric.of_feedback else 0.0
        final = final_s if observe_s == plan.observe_s else observe_s + window_s
        return Wanted(
            role="guardrail", metric=g.metric, margin=g.allowed_harm, absolute=g.absolute,
            observe_s=observe_s, final_s=final,
        )  # fmt: skip

    return [
        *(of_goal("primary", goal) for goal in ([plan.primary] if plan.primary else [])),
        *(of_goal("secondary", goal) for goal in plan.secondary),
        *map(of_guardrail, plan.guardrails),
    ]


def too_little(found: Baseline, own: Wanted, unit: str) -> str:
    """Why a forecast cannot rest on this baseline; empty if it can."""
    by_hand = "give `--mean METRIC=NUMBER` and `--sd METRIC=NUMBER`"
    if found.units is not None and found.units < MIN_UNITS:
        return (
            f"{found.units:,} {unit}s of the log have a final outcome, and a forecast takes "
            f"{MIN_UNITS}. An outcome is final {own.final_s / 3600:.3g} hours after the first "
            f"request: let the log grow, or {by_hand}."
        )
    if not (math.isfinite(found.mean) and found.sd > 0):
        if own.role == "guardrail" and own.absolute and found.mean == 0:
            return (
                f"nothing of it was seen. While that is so in both arms, its margin of "
                f"{own.margin:g} is shown to hold by about {4.5 / own.margin:,.0f} {unit}s in the "
                f"smaller arm; for a forecast that reckons with some, {by_hand}."
            )
        return (
            f"it does not vary between {unit}s, or its error is not known, so nothing can be "
            f"forecast. Let the log grow, or {by_hand}."
        )
    if not own.absolute and found.mean == 0:
        return (
            "it is 0 in production, and of 0 there is no share to plan for. Judge by a metric "
            f"that is not 0, or {by_hand}."
        )
    return ""


def given(
    asked: Sequence[Wanted],
    mean: Mapping[str, float],
    sd: Mapping[str, float],
    correlation: Mapping[str, float],
) -> dict[Key, Baseline]:
    """Baselines by hand, of the metrics that have a mean. The sd of a share follows from it; of
    others CannotPlan when there is none."""
    found: dict[Key, Baseline] = {}
    for own in asked:
        metric, name = own.metric, own.metric.name
        if name not in mean:
            if name in sd:
                raise CannotPlan(f"{name} has an sd and no mean. Give `--mean {name}=...`, too.")
            continue
        if name not in sd and metric.kind != "binary":
            raise CannotPlan(f"{name} has a mean and no sd. Give `--sd {name}=...`, too.")
        spread = sd[name] if name in sd else math.sqrt(power_of.binary_variance(mean[name]))
        by_hand = Baseline(
            metric=metric, mean=mean[name], sd=spread, correlation=correlation.get(name)
        )
        if reason := too_little(by_hand, own, "unit"):
            raise CannotPlan(f"{name}: {reason}")
        found[own.key] = by_hand
    return found


def from_log(
    settled: Settled,
    experiment: Experiment,
    asked: Sequence[Wanted],
    correlation: Mapping[str, float],
    as_of_ms: float,
) -> tuple[dict[Key, Baseline], list[str]]:
    """Baselines of the log, and why some metrics have none. `correlation` stands for the log's.

    CannotPlan when the primary metric has none.
    """
    found: dict[Key, Baseline] = {}
    reasons: dict[str, list[str]] = {}
    for own in asked:
        name = own.metric.name
        measured = baseline(settled, experiment, own.metric, own.observe_s, as_of_ms)
        if name in correlation:
            measured = replace(measured, correlation=correlation[name])
        if not (reason := too_little(measured, own, experiment.unit)):
            found[own.key] = measured
        elif own.role == "primary":
            raise CannotPlan(f"{name}: {reason}")
        else:
            reasons.setdefault(reason, []).append(name)
    return found, [
        f"Not forecast: {', '.join(names)}: {reason}" for reason, names in reasons.items()
    ]


def forecast(
    experiment: Experiment,
    baselines: Mapping[Key, Baseline],
    arriving: Sequence[float],
    *,
    power: float = 0.8,
    lift: float | None = None,
    held_out: float = 0.0,
    notes: Sequence[str] = (),
) -> Forecast:
    """The forecast of all metrics that have a baseline.

    `arriving`: new units a day in all of production, before the experiment takes its part; empty if
    not known. `held_out`: percent of users that no experiment gets. `notes` come first. CannotPlan
    when there is nothing to forecast, or the primary metric has no baseline.
    """
    asked = wanted(experiment, lift)
    for own in asked:
        if own.role == "primary" and own.key not in baselines:
            raise CannotPlan(f"nothing is known of the primary metric {own.metric.name}")
    low, high = experiment.buckets
    part = (high - low) / BUCKETS * (1 - held_out / 100)
    plan = experiment.plan
    final_days = (plan.observe_s + plan.window_s) / DAY_S
    under = traffics(experiment, [new * part for new in arriving], final_days)
    planned: float | None = plan.planned_units
    metrics: list[MetricForecast] = []
    for own, level in zip(asked, _levels(asked, len(_treatments(experiment))), strict=True):
        if own.key not in baselines:
            continue
        metrics += [
            _metric(experiment, own, arm, baselines[own.key], under, power, level, planned)
            for arm in _treatments(experiment)
        ]
        planned = planned or _needed(metrics)
    if not metrics:
        raise CannotPlan(" ".join(notes) or "nothing is known of any metric")
    return Forecast(
        experiment=experiment.name,
        unit=experiment.unit,
        power=power,
        traffics=under,
        metrics=tuple(metrics),
        notes=(*notes, *_notes(experiment, metrics, arriving)),
    )


def _metric(
    experiment: Experiment,
    own: Wanted,
    arm: str,
    base: Baseline,
    under: Sequence[Traffic],
    power: float,
    alpha: float,
    planned: float | None,
) -> MetricForecast:
    """`planned`: units of all arms that sequences of goals are tuned to; None: those found here."""
    size = abs(base.mean)
    effect = own.margin if own.absolute else own.margin * size
    sizes = entering(experiment)
    both = sizes[arm] + sizes[experiment.control]
    share, all_arms = sizes[arm] / both, sum(sizes.values()) / both
    variance = base.sd**2
    tuned = sequential.rho_for(planned / all_arms, ALPHA) if planned else None
    delay_days = own.final_s / DAY_S

    def sample(units: float) -> Sample:
        return Sample(
            math.ceil(units),
            tuple(days_until(units, t.per_day) + delay_days for t in under),
        )

    def fixed(rho: float) -> float:
        treated = variance if own.role == "guardrail" else _treated_variance(own, base)
        both_arms = power_of.sample_size(
            effect, treated, variance, alpha=alpha, power=power, share=share, cuped_rho=rho
        )
        return both_arms * all_arms

    def watched(rho: float) -> power_of.SequentialSample:
        if own.role == "guardrail":
            allowed = harm.Allowed(own.margin, own.absolute, own.metric.better == "lower")
            return power_of.guardrail_sample(
                effect, variance, rho=GUARDRAIL_RHO, factor=allowed.factor,
                alpha=alpha, power=power, share=share, cuped_rho=rho,
            )  # fmt: skip
        return power_of.sequential_sample(
            effect, _treated_variance(own, base), variance,
            alpha=alpha, power=power, share=share, cuped_rho=rho, rho=tuned,
        )  # fmt: skip

    found = watched(0.0)
    units = found.units * all_arms
    rho = base.correlation
    decisive = watched(rho).units * all_arms if rho else units
    relative = effect / size if size else math.nan

    def detectable(days: int) -> float:
        # Units needed fall with the square of the effect.
        come = come_by(under[-1].per_day, days - delay_days) if under else math.nan
        if math.isnan(come):
            return math.nan
        least = effect * math.sqrt(decisive / come) if come > 0 else math.inf
        return least / size if size else least

    return MetricForecast(
        role=own.role,
        metric=own.metric.name,
        arm=arm,
        mean=base.mean,
        sd=base.sd,
        measured_of=base.units,
        effect=effect,
        relative=relative,
        alpha=alpha,
        fixed=sample(fixed(0.0)),
        sequential=sample(units),
        expected_units=math.ceil(found.expected_units * all_arms),
        correlation=rho,
        fixed_cuped=sample(fixed(rho)) if rho else None,
        sequential_cuped=sample(decisive) if rho else None,
        detectable=tuple(detectable(days) for days in HORIZONS_DAYS),
    )


def _levels(asked: Sequence[Wanted], treatments: int) -> list[float]:
    """The level of each one: that at which it must be decided among those adjusted with it."""
    counts = Counter(own.role for own in asked)
    return [
        ALPHA if own.role == "guardrail" else ALPHA / (counts[own.role] * treatments)
        for own in asked
    ]


def _treatments(experiment: Experiment) -> list[str]:
    sizes = entering(experiment)
    if not sizes.get(experiment.control):
        return []
    return [name for name, size in sizes.items() if size and name != experiment.control]


def _notes(
    experiment: Experiment, metrics: Sequence[MetricForecast], arriving: Sequence[float]
) -> list[str]:
    notes = []
    plan, unit = experiment.plan, experiment.unit
    if not arriving:
        notes.append(
            f"Days are not known: the log covers no whole day. Give `--units-per-day`, the new "
            f"{unit}s that come a day."
        )
    if units := _needed(metrics):
        needed = _rounded_up(units)
        if plan.planned_units is None:
            notes.append(
                f"Write `planned_units: {needed}` before the start: intervals are narrowest there."
            )
        elif not needed / 2 <= plan.planned_units <= needed * 2:
            notes.append(
                f"`planned_units: {plan.planned_units}` is far from the {needed:,} that the "
                "primary metric needs: intervals will be wider than forecast here."
            )
    unknown = [c.text for c in experiment.where if c.subject != "surface"]
    if unknown:
        notes.append(
            f"Records do not tell who fulfils {', '.join(unknown)}: metrics and arrivals are those "
            f"of all {unit}s. Give `--units-per-day` of those who do."
        )
    return notes


def _needed(metrics: Sequence[MetricForecast]) -> int:
    """Units of all arms for the primary metric; 0 without one."""
    found = [(m.sequential_cuped or m.sequential).units for m in metrics if m.role == "primary"]
    return max(found, default=0)


def _treated_variance(own: Wanted, base: Baseline) -> float:
    """A unit's variance in an arm with the effect that is sought: a share's own, and of other
    metrics that of values which are all larger, or smaller, by the same factor."""
    lift = own.margin if own.metric.better == "higher" else -own.margin
    treated = base.mean * (1 + lift)
    if own.metric.kind == "binary" and 0 < treated < 1:
        return power_of.binary_variance(treated)
    return base.sd**2 * (1 + lift) ** 2 if lift > -1 else base.sd**2


def _rounded_up(units: int) -> int:
    """To two digits: nobody needs more of a forecast."""
    step = 10 ** max(0, len(str(units)) - 2)
    return -(-units // step) * step
