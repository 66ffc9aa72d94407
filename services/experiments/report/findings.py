"""What a report says of an experiment, as plain data (`build` makes it)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from services.experiments.declare.metrics import Metric
from services.experiments.statistics import sample_ratio
from services.experiments.statistics.arms import Effect
from services.experiments.statistics.effects import Interval

Role: TypeAlias = Literal["primary", "secondary"]
Verdict: TypeAlias = Literal["better", "worse", "no difference that matters", "undecided"]
Safety: TypeAlias = Literal["breached", "holds", "undecided"]


@dataclass(frozen=True, kw_only=True)
class ArmReport:
    """Units of an arm along the way."""

    arm: str
    weight: float  # percent
    traffic: float  # percent
    exposed: int  # with a decision in the log, answered or not
    final: int  # whose outcome is final: all statistics are of these
    joined: int  # of which feedback came back
    undegraded: int  # all of whose requests were answered and undegraded
    served: int = 0  # that got any answer
    cut: int = 0  # whose observation was cut short, because the arm was stopped: in no comparison
    # What it changes, name -> value as text; empty: production's defaults, or interleaved.
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GoalReport:
    """A goal metric of one treatment."""

    role: Role
    metric: Metric
    minimal_effect: float
    arm: str
    all_units: Effect  # intention to treat, as it is
    undegraded: Effect  # of the units all of whose requests were answered and undegraded
    adjusted_p: float  # Holm's over all comparisons of the role
    verdict: Verdict
    sentence: str
    implausible: bool  # Twyman's law: look for a bug first
    needed_units: int | None  # of both arms, to find the minimal effect; if it was forecast
    cuped: Effect | None = None  # with less variance by the covariate; None: the metric has none
    covariate_correlation: float = 0.0  # of metric and covariate; CUPED saves its square
    cap: float | None = None  # what no unit counts more than; None: it is not winsorised

    @property
    def judged(self) -> Effect:
        """What the verdict rests on: with CUPED wherever the metric has a covariate."""
        return self.cuped or self.all_units


@dataclass(frozen=True, kw_only=True)
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
    observe_s: float = 0.0  # for so long a unit's requests count for it
    cuped: Effect | None = None  # then the harm is the one with less variance
    undecidable: bool = False  # units enough, but an arm has no value: nothing to divide by
    cap: float | None = None  # as of a goal

    @property
    def judged(self) -> Effect:
        """What the harm is of."""
        return self.cuped or self.effect


@dataclass(frozen=True, kw_only=True)
class BrokenHop:
    """A hop at which a treatment plainly loses units that control does not (see `losses`)."""

    arm: str
    hop: str  # what units did not get: served, undegraded, joined
    entered: tuple[int, int]  # units of the arm and of control
    passed: tuple[int, int]
    least: float  # the arm's share passed is shown to be less than this part of control's
    log_e: float
    sentence: str


@dataclass(frozen=True, kw_only=True)
class SampleRatio:
    """Whether the arms' sizes are those of the weights."""

    expected: tuple[float, ...]  # shares, by arm, of the units exposed while it was live
    observed: tuple[int, ...]  # exposed units
    p: float  # always valid
    broken: bool
    hops: tuple[sample_ratio.HopLoss, ...]
    arms: tuple[str, ...] = ()  # that it is of


@dataclass(frozen=True, kw_only=True)
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
    effect: Effect  # with CUPED if the metric has a covariate
    adjusted_p: float = 1.0  # Benjamini and Hochberg's over all segments and arms


@dataclass(frozen=True, kw_only=True)
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
    parameters_a: Mapping[str, str] = field(default_factory=dict)  # as ArmReport.parameters
    parameters_b: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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
    broken_hops: tuple[BrokenHop, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON: what is not known or infinite is null; instants are ms since the epoch."""
        json: dict[str, Any] = jsonable(asdict(self, dict_factory=_said))
        return json


_NOT_SAID = frozenset({"line", "file", "events"})  # of a metric: where it stands, and the domain


def _said(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a dataclass. A mapping may have any keys, so it does not come here."""
    return {name: value for name, value in fields if name not in _NOT_SAID}


def jsonable(value: Any) -> Any:
    """Plain data as JSON takes it: no infinity and no NaN."""
    match value:
        case dict():
            return {key: jsonable(child) for key, child in value.items()}
        case list() | tuple():
            return [jsonable(child) for child in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
