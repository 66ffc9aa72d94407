"""Arms against control: effects, verdicts, guardrails, segments; and preferences (see `build`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from services.experiments.declare.config import INTERLEAVED, Experiment
from services.experiments.declare.metrics import Goal, Guardrail, Metric
from services.experiments.declare.parameters import values_text
from services.experiments.declare.splits import sizes_in
from services.experiments.measure.measure import milliseconds
from services.experiments.measure.results import Cell, Measured, Statistic
from services.experiments.report.findings import (
    GoalReport,
    GuardrailReport,
    Preference,
    Role,
    Safety,
    SegmentEffect,
    Verdict,
)
from services.experiments.report.sentences import (
    goal_sentence,
    guardrail_sentence,
    preference_sentence,
)
from services.experiments.statistics import cuped, effects, harm, power, sequential
from services.experiments.statistics.arms import Arms, Effect, effect_of, floats
from services.experiments.statistics.estimates import (
    Estimate,
    Kind,
    can_be_estimated,
    cautious,
    estimate,
    unknown,
)
from services.experiments.statistics.moments import SCALE, Moments
from services.experiments.statistics.multiple import benjamini_hochberg, holm

ALPHA = 0.05
POWER = 0.8
GUARDRAIL_RHO = sequential.rho_for(harm.PLANNED_UNITS, ALPHA)


def value_of(statistic: Statistic | None, metric: Metric, units: int) -> Estimate:
    """An arm's value of a metric; unknown without statistics."""
    if statistic is None:
        return unknown(units)
    if isinstance(statistic, Moments):
        return estimate(statistic, _kind(metric))
    return statistic.quantile(metric.quantile, units, tied=metric.of != "latency")


def step_of(statistic: Statistic | None, metric: Metric, size: float = 1.0) -> float:
    """What one event more, of this size, adds to a unit's contribution to the metric
    (`estimates.cautious`).

    Requests fail by units: of a share of requests it is a unit all of whose requests do. 0 of a
    quantile, whose error knows the width of its buckets.
    """
    kind = _kind(metric)
    if not isinstance(statistic, Moments) or not can_be_estimated(statistic, kind):
        return 0.0
    if kind == "mean" or (metric.of in ("error", "degraded") and metric.per == "request"):
        return size
    return size / statistic.mean(1)


def size_of(metric: Metric, *statistics: Statistic | None) -> float:
    """How much an event, more exactly a unit with any, adds: of counts 1, of values the mean of the
    units' values weighted by these values, which is v if all that have any have v.

    Of all arms together: one in which nobody bought anything knows nothing of prices.
    """
    if metric.kind == "binary" or metric.amount is None:
        return 1.0
    known = [s for s in statistics if isinstance(s, Moments)]
    total = sum(s.sums[0] for s in known)
    squares = sum(s.products[0] for s in known)
    return squares / (abs(total) * SCALE) if total else 1.0


class Compared(NamedTuple):
    """A metric in both arms, as it is and, if it has a covariate, with less variance."""

    plain: Arms
    adjusted: Arms | None
    correlation: float  # with the covariate

    @property
    def judged(self) -> Arms:
        return self.adjusted or self.plain


class Known(NamedTuple):
    """What is known of a metric in an arm."""

    statistic: Statistic | None
    units: int


def compared(metric: Metric, splits: Sequence[tuple[Known, Known]], share: float) -> Compared:
    """From what is known of treatment and control in every split; CUPED is within each."""
    plain = _arms(metric, splits, share)
    columns = (2 if metric.kind == "ratio" else 1) + 1
    statistics = [known.statistic for pair in splits for known in pair]
    moments = [s for s in statistics if isinstance(s, Moments) and s.columns == columns]
    if not metric.covariate or len(moments) < len(statistics):
        return Compared(plain, None, 0.0)
    kind = _kind(metric)
    adjusted = [
        cuped.adjusted_estimates(both, kind)
        for both in zip(moments[::2], moments[1::2], strict=True)
    ]
    return Compared(
        plain,
        Arms.of(
            [(treatment, control) for treatment, control in adjusted], _steps(metric, splits), share
        ),
        cuped.correlation(moments, kind),
    )


def _arms(metric: Metric, splits: Sequence[tuple[Known, Known]], share: float) -> Arms:
    pairs = [
        (value_of(t.statistic, metric, t.units), value_of(c.statistic, metric, c.units))
        for t, c in splits
    ]
    return Arms.of(pairs, _steps(metric, splits), share)


def _steps(metric: Metric, splits: Sequence[tuple[Known, Known]]) -> list[tuple[float, float]]:
    size = size_of(metric, *(known.statistic for pair in splits for known in pair))
    return [
        (step_of(t.statistic, metric, size), step_of(c.statistic, metric, size)) for t, c in splits
    ]


class Comparisons:
    """Every treatment against control, over the units in all of whose time it was live."""

    def __init__(self, experiment: Experiment, result: Measured, planned_units: int) -> None:
        self._experiment, self._result = experiment, result
        self._control = experiment.control
        # By the split that came first: what a sequence is tuned to must not change while it runs.
        first = min(result.splits, key=lambda split: (result.splits[split], split), default="")
        sizes = sizes_in(first, experiment)
        total = sum(sizes.values())
        self.treatments = [a.name for a in experiment.arms if a.name != experiment.control]
        if experiment.interleave:
            self.treatments = []  # nobody gets an arm of its own
        self._summed: dict[tuple[str, int | None], list[tuple[Cell, Cell]]] = {}  # by arm and time
        # The units of both arms that are planned for, and treatment's share of them.
        self._rho: dict[str, float] = {}
        self._share: dict[str, float] = {}
        for name in self.treatments:
            both = sizes[name] + sizes[self._control]
            planned = max(1.0, planned_units * both / total) if total else 1.0
            self._rho[name] = sequential.rho_for(planned, ALPHA)
            self._share[name] = sizes[name] / both if both else 0.5

    def share(self, arm: str) -> float:
        """A treatment's planned share of its units and control's."""
        return self._share[arm]

    def goals(self, role: Role, goals: Sequence[Goal], forecast: bool = False) -> list[GoalReport]:
        """All of one role, adjusted together."""
        pairs = [(goal, arm) for goal in goals for arm in self.treatments]
        found = [self._compared(goal.metric, arm) for goal, arm in pairs]
        judged = [
            effect_of(both.judged, self._rho[arm], ALPHA)
            for both, (_, arm) in zip(found, pairs, strict=True)
        ]
        adjusted = holm([effect.p for effect in judged]).tolist()
        return [
            self._goal(role, goal, arm, both, effect, p, forecast)
            for (goal, arm), both, effect, p in zip(pairs, found, judged, adjusted, strict=True)
        ]

    def _goal(
        self,
        role: Role,
        goal: Goal,
        arm: str,
        both: Compared,
        judged: Effect,
        p: float,
        forecast: bool,
    ) -> GoalReport:
        rho = self._rho[arm]
        verdict = _verdict(judged, goal, p)
        needed = self._needed_units(goal, arm, both.judged) if forecast else None
        name = goal.metric.name
        undegraded = [
            (
                Known(t.undegraded_statistics.get(name), t.undegraded),
                Known(c.undegraded_statistics.get(name), c.undegraded),
            )
            for t, c in self.cells(arm)
        ]
        return GoalReport(
            role=role,
            metric=goal.metric,
            minimal_effect=goal.minimal_effect,
            arm=arm,
            all_units=effect_of(both.plain, rho, ALPHA) if both.adjusted else judged,
            undegraded=effect_of(_arms(goal.metric, undegraded, self._share[arm]), rho, ALPHA),
            adjusted_p=p,
            verdict=verdict,
            sentence=goal_sentence(goal, arm, self._control, judged, verdict, needed),
            implausible=effects.is_implausible(judged.sequence_lift, goal.minimal_effect),
            needed_units=needed,
            cuped=judged if both.adjusted else None,
            covariate_correlation=both.correlation,
            cap=self._cap(name, self._experiment.plan.observe_s),
        )

    def guardrails(self, guardrails: Sequence[Guardrail]) -> list[GuardrailReport]:
        """Each by itself: an alarm in vain costs less than one that waits for the others."""
        return [self._guardrail(g, arm) for g in guardrails for arm in self.treatments]

    def _guardrail(self, guardrail: Guardrail, arm: str) -> GuardrailReport:
        metric, rho = guardrail.metric, GUARDRAIL_RHO
        observe_s = guardrail.seconds(self._experiment.plan)
        both = self._compared(metric, arm, observe_s)
        steady, arms = both.judged.steady, (both.judged.treatment, both.judged.control)
        allowed = harm.Allowed(guardrail.allowed_harm, guardrail.absolute, metric.better == "lower")
        beyond = harm.excess(*steady, allowed)
        log_e = float(sequential.log_e_value_above(beyond, rho))
        safety: Safety = "undecided"
        if log_e >= -math.log(ALPHA):
            safety = "breached"
        elif sequential.confidence_sequence(beyond, rho, ALPHA).high < 0:
            safety = "holds"
        adjusted = effect_of(both.adjusted, rho, ALPHA) if both.adjusted else None
        effect = effect_of(both.plain, rho, ALPHA)
        judged = adjusted or effect
        change = judged.effect if guardrail.absolute else _share_of_control(judged)
        found = GuardrailReport(
            metric=metric,
            allowed_harm=guardrail.allowed_harm,
            absolute=guardrail.absolute,
            arm=arm,
            effect=effect,
            harm=allowed.sign * change,
            harm_sequence=harm.harm_sequence(*steady, allowed, rho, ALPHA),
            log_e=log_e,
            safety=safety,
            sentence="",
            observe_s=observe_s,
            cuped=adjusted,
            undecidable=all(a.n > sequential.MIN_DOF for a in arms)
            and any(math.isnan(float(a.value)) for a in arms),
            cap=self._cap(metric.name, observe_s),
        )
        return replace(found, sentence=guardrail_sentence(found, self._control))

    def segments(self, goal: Goal) -> list[SegmentEffect]:
        """Of a goal metric, in every segment that final units were in."""
        found = []
        for arm in self.treatments:
            splits = self.cells(arm)
            names = {name for cells in splits for cell in cells for name in cell.segments}
            for name in sorted(names):
                parts = [
                    (_part(treatment, name), _part(control, name)) for treatment, control in splits
                ]
                both = compared(goal.metric, _met(parts), self._share[arm])
                effect = effect_of(both.judged, self._rho[arm], ALPHA)
                found.append(SegmentEffect(name, arm, effect))
        adjusted = benjamini_hochberg([segment.effect.p for segment in found])
        return [
            replace(segment, adjusted_p=p)
            for segment, p in zip(found, adjusted.tolist(), strict=True)
        ]

    def _compared(self, metric: Metric, arm: str, observe_s: float | None = None) -> Compared:
        known = [
            (
                Known(treatment.statistics.get(metric.name), treatment.final),
                Known(control.statistics.get(metric.name), control.final),
            )
            for treatment, control in self.cells(arm, observe_s)
        ]
        return compared(metric, _met(known), self._share[arm])

    def cells(self, arm: str, observe_s: float | None = None) -> list[tuple[Cell, Cell]]:
        """Treatment's and control's in every split, one at least; watched for as long as the plan
        says, or for `observe_s`."""
        watched = None if observe_s is None else milliseconds(observe_s)
        if watched == milliseconds(self._experiment.plan.observe_s):
            watched = None
        if (arm, watched) not in self._summed:
            found = self._result.of_splits((arm, self._control), (arm,), watched)
            self._summed[arm, watched] = [(t, c) for t, c in found] or [(Cell(), Cell())]
        return self._summed[arm, watched]

    def _cap(self, metric: str, observe_s: float) -> float | None:
        return self._result.caps.get(milliseconds(observe_s), {}).get(metric)

    def _needed_units(self, goal: Goal, arm: str, arms: Arms) -> int | None:
        """Units of both arms by which the sequence finds the minimal effect with POWER, judged by
        the variances seen so far; None while they are not known."""
        t, c = arms.treatment, arms.control
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
            rho=self._rho[arm],
        )
        return math.ceil(sample.units)


def _part(cell: Cell, segment: str) -> Known:
    part = cell.segments.get(segment)
    return Known(part.statistic, part.units) if part else Known(None, 0)


def _met(splits: Sequence[tuple[Known, Known]]) -> list[tuple[Known, Known]]:
    """Those in which both arms have units; one at least."""
    return [pair for pair in splits if all(known.units for known in pair)] or list(splits[:1])


def preference_of(
    experiment: Experiment, result: Measured, planned_units: int
) -> Preference | None:
    """What an interleaving experiment says; None of others."""
    if not experiment.interleave:
        return None
    a, b = experiment.arms
    cell = result.of_arm(INTERLEAVED, (INTERLEAVED,))
    plain = estimate(cell.preference)
    mean = cautious(plain, 1.0, middle=0.0)
    rho = sequential.rho_for(planned_units, ALPHA)
    p = float(sequential.always_valid_p(sequential.log_e_value(mean, rho))[-1])
    found = Preference(
        method=experiment.interleave,
        arm_a=a.name,
        arm_b=b.name,
        units=cell.preference.n,
        requests=cell.lists,
        value=float(plain.value),
        fixed=floats(effects.interval(plain if plain.known else mean, ALPHA)),
        sequence=floats(sequential.confidence_sequence(mean, rho, ALPHA)),
        p=p,
        verdict="undecided" if p > ALPHA else "b is better" if mean.value > 0 else "a is better",
        sentence="",
        parameters_a=values_text(a.parameters),
        parameters_b=values_text(b.parameters),
    )
    return replace(found, sentence=preference_sentence(found))


def _verdict(effect: Effect, goal: Goal, p: float) -> Verdict:
    if p <= ALPHA:
        return "better" if (effect.effect > 0) == (goal.metric.better == "higher") else "worse"
    lift = effect.sequence_lift
    if -goal.minimal_effect < lift.low and lift.high < goal.minimal_effect:
        return "no difference that matters"
    return "undecided"


def _share_of_control(effect: Effect) -> float:
    """The change as a share of control's value; infinite if that is 0, and NaN if both are."""
    if effect.control_value:
        return effect.effect / effect.control_value
    return math.copysign(math.inf, effect.effect) if effect.effect else math.nan


def _kind(metric: Metric) -> Kind:
    return "ratio" if metric.kind == "ratio" else "mean"
