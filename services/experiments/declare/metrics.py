"""Metrics as experiments.yaml declares them: what of the log they count, and what for.

A metric has one value per unit (user or session): the number of its events, or of something that
serving itself tells, over the unit's requests from its first exposure on. `kind` says what is made
of the units' values:

    binary    the share of units with at least one
    mean      the mean number per unit
    ratio     the sum over units of one thing divided by the sum of another (clicks per impression)
    quantile  of single requests (the 99th percentile of latency)

Feedback counts for a request when it happened at or up to `window_s` after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

MetricKind: TypeAlias = Literal["binary", "mean", "ratio", "quantile"]
Better: TypeAlias = Literal["higher", "lower"]

Events: TypeAlias = Mapping[str, int]  # names of the domain's events, and their ids in records

# Of the films, and of metrics that are made without a domain.
EVENTS: Events = {"impression": 1, "click": 2, "like": 3}
# request: asked, answered or not; error: got no answer; degraded: answered although a stage failed
# or was late; latency: sum of the router's stage times of an answer, in ms.
SERVING = ("request", "error", "degraded", "latency")


def allowed_of(kind: MetricKind, events: Events) -> tuple[str, ...]:
    """What a metric of a kind may be of."""
    match kind:
        case "binary":
            return (*events, "error", "degraded")
        case "mean":
            return (*events, "request", "error", "degraded")
        case "ratio":
            return (*events, "error", "degraded", "latency")
        case "quantile":
            return ("latency",)


DEFAULT_WINDOW_S = 1800.0
DEFAULT_OBSERVE_S = 86_400.0
# Of guardrails on what serving itself tells: a unit's value is final a minute after its first
# exposure, so that a broken arm is found within minutes and not after a day.
DEFAULT_SERVING_OBSERVE_S = 60.0
DEFAULT_PLANNED_UNITS = 10_000


@dataclass(frozen=True)
class Metric:
    """One declared metric; `of` and `per` are names of events or of SERVING."""

    name: str
    kind: MetricKind
    of: str
    better: Better
    per: str = ""  # of a ratio only
    quantile: float = 0.5  # of a quantile only
    window_s: float = DEFAULT_WINDOW_S  # of feedback only
    line: int = field(default=0, compare=False)
    file: str = field(default="", compare=False)  # as Problem.file
    events: Events = field(default_factory=lambda: EVENTS, compare=False, repr=False)

    @property
    def event(self) -> int:
        """The id of the event that `of` names; 0: it is of SERVING."""
        return self.events.get(self.of, 0)

    @property
    def per_event(self) -> int:
        """Likewise of `per`."""
        return self.events.get(self.per, 0)

    @property
    def of_feedback(self) -> bool:
        """Whether feedback events enter, so that there is an attribution window."""
        return bool(self.event or self.per_event)


@dataclass(frozen=True)
class Goal:
    """A metric that an experiment is to move."""

    metric: Metric
    minimal_effect: float  # the smallest lift of interest, as a share of control: 0.02 is 2 %


@dataclass(frozen=True)
class Guardrail:
    """A metric that an experiment must not harm by more than it is allowed to."""

    metric: Metric
    allowed_harm: float  # towards worse: a share of control's value, or in the metric's own unit
    absolute: bool = False  # whether in the metric's own unit, for metrics that may be zero
    # How long a unit's requests count for this test, from its first exposure on; `seconds` says
    # what holds if it is None. A short time finds harm soon, and only what shows as soon.
    observe_s: float | None = None

    def seconds(self, plan: Plan) -> float:
        """How long a unit's requests count for this test, in a plan that it belongs to.

        If the guardrail does not say: as long as for the goals where feedback enters, and at most
        DEFAULT_SERVING_OBSERVE_S where only serving does.
        """
        if self.observe_s is not None:
            return self.observe_s
        if self.metric.of_feedback:
            return plan.observe_s
        return serving_observe_s(plan)


@dataclass(frozen=True)
class Plan:
    """What an experiment is judged by."""

    primary: Goal | None = None
    secondary: tuple[Goal, ...] = ()
    guardrails: tuple[Guardrail, ...] = ()
    # A unit's requests count for so long from its first exposure on; then its outcome is final.
    observe_s: float = DEFAULT_OBSERVE_S
    # Units of all arms together for which the confidence sequences are tuned. It must not follow
    # the data: a sequence that is tuned anew at every look holds at none.
    planned_units: int | None = None
    preference_window_s: float = DEFAULT_WINDOW_S  # of clicks on interleaved lists

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The primary one, if there is one, and the secondary ones."""
        return (self.primary, *self.secondary) if self.primary else self.secondary

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Every metric in use, once, in the order of the report."""
        used = [g.metric for g in self.goals] + [g.metric for g in self.guardrails]
        return tuple({metric.name: metric for metric in used}.values())

    @property
    def window_s(self) -> float:
        """The longest attribution window in use; 0 without a metric of feedback."""
        return max((m.window_s for m in self.metrics if m.of_feedback), default=0.0)


NO_PLAN = Plan()


def serving_observe_s(plan: Plan) -> float:
    """How long a unit's requests count, unless declared, for what serving itself tells."""
    return min(DEFAULT_SERVING_OBSERVE_S, plan.observe_s)
