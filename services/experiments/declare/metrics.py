"""Metrics as experiments.yaml declares them: what of the log they count, and what for.

A metric has one value per unit (user or session), over the unit's requests from its first exposure
on: the number of its events (`of: purchase`), the sum of what came with them (`of:
purchase.value`), or something that serving itself tells. `kind` says what is made of the units'
values:

    binary    the share of units with any, or with `at_least` so much
    mean      the mean per unit; with `winsorise` no unit counts more than a cap (`observations`)
    ratio     the sum over units of one thing divided by the sum of another (clicks per impression)
    quantile  of the units' values; of latency, that of single requests

Feedback counts for a request when it happened at or up to `window_s` after it; with `where` only
events of `of` whose properties have one of the values named.

A *source* is what records and folds have in place of a name: an event's id, for how often it
happened, or the same negative, for the sum of its values. `adds_values` and `event_of` tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, TypeAlias

from models.schema.declaration import NEVER_FADES, Amount, Count, Declaration, Event

MetricKind: TypeAlias = Literal["binary", "mean", "ratio", "quantile"]
Better: TypeAlias = Literal["higher", "lower"]

VALUE = ".value"  # behind an event's name: the sum of its values
Source: TypeAlias = int  # 0: none, where there need not be one


def source_of(event_id: int, values: bool = False) -> Source:
    """Of the number of an event, or of the sum of its values."""
    return -event_id if values else event_id


def event_of(source: Source) -> int:
    """The id of the event that a source counts, or whose values it adds up."""
    return abs(source)


def adds_values(source: Source) -> bool:
    return source < 0


class Kept(NamedTuple):
    """A number that the feature store keeps of each user."""

    name: str  # `purchase`, or `purchase.value`
    source: Source
    kept: Count

    @property
    def tested(self) -> bool:
        """Whether conditions may look at it: what fades is stored as it was at the user's last
        event."""
        return self.kept.half_life_s == NEVER_FADES


@dataclass(frozen=True)
class Events:
    """What experiments may know of a domain's events."""

    declared: tuple[Event, ...]
    kept: tuple[Kept, ...]  # one per source: of several half-lives the longest

    @cached_property
    def sources(self) -> Mapping[str, Source]:
        """By the names that metrics may be of."""
        counted = {event.name: source_of(event.id) for event in self.declared}
        return counted | {
            event.name + VALUE: source_of(event.id, True) for event in self.declared if event.value
        }

    @cached_property
    def by_id(self) -> Mapping[int, Event]:
        return {event.id: event for event in self.declared}

    @cached_property
    def impression(self) -> int:
        """The id of the event that says that an item was seen; 0: there is none."""
        return next((event.id for event in self.declared if event.impression), 0)

    @cached_property
    def choices(self) -> tuple[int, ...]:
        """The ids of the events by which users choose an item: those of the history."""
        return tuple(event.id for event in self.declared if event.history)

    @cached_property
    def tested(self) -> tuple[str, ...]:
        """The names of the kept numbers that conditions may look at."""
        return tuple(kept.name for kept in self.kept if kept.tested)

    @cached_property
    def kept_sources(self) -> frozenset[Source]:
        return frozenset(kept.source for kept in self.kept)


def events_of(declaration: Declaration) -> Events:
    """What a schema.yaml says of events."""
    longest: dict[Source, Kept] = {}
    for count in declaration.user_counts:
        event_id = declaration.event[count.event].id
        name = count.event + (VALUE if count.of_value else "")
        kept = Kept(name, source_of(event_id, count.of_value), count)
        known = longest.setdefault(kept.source, kept)
        if count.half_life_s > known.kept.half_life_s:
            longest[kept.source] = kept
    return Events(declaration.events, tuple(longest.values()))


@lru_cache(1)
def default_events() -> Events:
    """Of the domain that there is where the settings name none."""
    from services.common.schema import DEFAULT

    return events_of(DEFAULT.declaration)


def allowed_of(kind: MetricKind, events: Events) -> tuple[str, ...]:
    """What a metric of a kind may be of."""
    sources = events.sources
    match kind:
        case "binary":
            return (*sources, "error", "degraded")
        case "mean":
            return (*sources, "request", "error", "degraded")
        case "ratio":
            return (*sources, "error", "degraded", "latency")
        case "quantile":
            return (*sources, "latency")


DEFAULT_WINDOW_S = 1800.0
DEFAULT_OBSERVE_S = 86_400.0
# Of guardrails on what serving itself tells: a unit's value is final a minute after its first
# exposure, so that a broken arm is found within minutes and not after a day.
DEFAULT_SERVING_OBSERVE_S = 60.0
DEFAULT_PLANNED_UNITS = 10_000


@dataclass(frozen=True)
class Having:
    """A property that events must have to count, with one of these values."""

    name: str
    values: tuple[str | bool, ...]  # of a category, of a flag

    def __str__(self) -> str:
        values = ["yes" if value is True else value or "no" for value in self.values]
        return f"{self.name}: {' or '.join(values)}"


@dataclass(frozen=True)
class Metric:
    """One declared metric; `of` and `per` are names of `Events.sources` or of SERVING."""

    name: str
    kind: MetricKind
    of: str
    better: Better
    per: str = ""  # of a ratio only
    quantile: float = 0.5  # of a quantile only
    window_s: float = DEFAULT_WINDOW_S  # of feedback only
    at_least: float | None = None  # of a binary: what a unit must have; None: anything above 0
    winsorise: float | None = None  # of a mean: the quantile at which units' values are capped
    where: tuple[Having, ...] = ()  # of the events that `of` names
    line: int = field(default=0, compare=False)
    file: str = field(default="", compare=False)  # as Problem.file
    events: Events = field(default_factory=default_events, compare=False, repr=False)

    @property
    def source(self) -> Source:
        """What `of` names; 0: it is of SERVING."""
        return self.events.sources.get(self.of, 0)

    @property
    def per_source(self) -> Source:
        """Likewise of `per`."""
        return self.events.sources.get(self.per, 0)

    @property
    def of_feedback(self) -> bool:
        """Whether feedback events enter, so that there is an attribution window."""
        return bool(self.source or self.per_source)

    @property
    def amount(self) -> Amount | None:
        """What the values are measured in that `of` adds up; None: it counts."""
        return self.events.by_id[event_of(self.source)].value if adds_values(self.source) else None

    @property
    def covariate(self) -> Source:
        """The source of the number, kept of users, by which CUPED takes noise out; 0: there is
        none. That of the metric itself; else of values the count; of requests that of what was
        seen."""
        if self.kind == "quantile":
            return 0
        source = self.events.impression if self.of == "request" else self.source
        known = (s for s in (source, source_of(event_of(source))) if s in self.events.kept_sources)
        return next(known, 0)


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
    _: KW_ONLY
    # A unit's requests count for so long from its first exposure on; then its outcome is final.
    observe_s: float = DEFAULT_OBSERVE_S
    # Units of all arms together for which the confidence sequences are tuned. It must not follow
    # the data: a sequence that is tuned anew at every look holds at none.
    planned_units: int | None = None
    preference_window_s: float = DEFAULT_WINDOW_S  # of choices on interleaved lists

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
