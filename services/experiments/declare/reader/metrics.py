"""Metrics, and how experiments are judged by them: goals and guardrails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, get_args

from pydantic import Field

from models.schema.declaration import SERVING, Amount
from models.schema.declaration import Field as EventProperty
from models.yaml_reader.places import Place, Wrong, cannot_stand, suggestion
from models.yaml_reader.values import (
    ByName,
    Many,
    Name,
    Reads,
    Seconds,
    Text,
    choice,
    positive,
    value_of,
)
from services.experiments.declare.metrics import (
    DEFAULT_WINDOW_S,
    VALUE,
    Better,
    Goal,
    Guardrail,
    Having,
    Metric,
    MetricKind,
    adds_values,
    allowed_of,
    event_of,
)
from services.experiments.declare.reader.section import NamedSection, Section
from services.experiments.statistics.moments import LARGEST


def _property_value(place: Place) -> str | bool:
    value = value_of(place)
    if isinstance(value, str | bool) and value != "":
        return value
    text = place.plain[1]
    raise Wrong(f"{text!r} is no text and no flag", "Write it in quotes, or true or false")


PropertyValue = Annotated[str | bool, Reads(_property_value, {"type": ["string", "boolean"]}, "")]
Share = Annotated[float, positive(10)]  # of control's value


class MetricBlock(NamedSection):
    required = ("name", "kind", "of", "better")
    kind: Annotated[MetricKind | None, choice(get_args(MetricKind))] = None
    """binary: share of units with any; mean: per unit; ratio: one thing per other; quantile: of
    the units' numbers, of latency that of single requests."""
    of: Text = ""
    """What is counted: an event, EVENT.value (the sum of what came with it), or a word of
    serving."""
    better: Annotated[Better | None, choice(get_args(Better))] = None
    """Which direction is good."""
    per: Text = ""
    """What a ratio divides by."""
    quantile: Annotated[float, positive(1, "exclusiveMaximum")] = 0.5
    """Which quantile: 0.99 is the 99th percentile."""
    window_s: Seconds = DEFAULT_WINDOW_S
    """Feedback counts up to so many seconds after its request."""
    at_least: Annotated[float | None, positive(LARGEST)] = None
    """Of a binary: how much a unit must have to count; default: anything above 0."""
    winsorise: Annotated[float | None, positive(1, "exclusiveMaximum")] = None
    """Of a mean: no unit counts more than this quantile of the first units that have any (0.99)."""
    where: ByName[Many[PropertyValue]] = Field({})
    """By name of a property of the event: the values of which it must have one. Several properties
    must all hold."""

    def check(self) -> None:
        events, kind = self.files.domain.events, self.kind
        allowed = allowed_of(kind, events) if kind else (*events.sources, *SERVING)
        self._check_word("of", allowed, f" in a {kind}" if kind else "")
        per = ("request",) if self.of == "latency" else (*events.sources, "request")
        self._check_word("per", per)
        for key, of, needed in (
            ("per", "ratio", True),
            ("quantile", "quantile", True),
            ("at_least", "binary", False),
            ("winsorise", "mean", False),
        ):
            if kind == of:
                if needed:
                    self.need(key, f"a {of} needs this key")
            elif kind and self.has(key):
                self.wrong(key, f"a {kind} has no use for this key", "Delete it")
        if self.of and kind and self.per == self.of:
            self.wrong("per", "this divides by itself", "Name another")
        if self.has("window_s") and self.of and not {self.of, self.per} & events.sources.keys():
            reason = (
                f"there is no feedback to wait for: {self.of} is known when the request is answered"
            )
            self.wrong("window_s", reason, "Delete this key")
        self._check_where()
        amount = self._amount(self.of)
        if kind == "quantile" and amount and amount.low < 0:
            reason = f"{self.of} may be below 0 (schema.yaml), and quantiles are of what is not"
            self.wrong("of", reason, "Declare a `min` of 0 there, or ask for a mean")
        below = self._amount(self.per)
        if below and below.low < 0:
            reason = f"{self.per} may be below 0 (schema.yaml), so that its sum may be nothing"
            self.wrong("per", reason, "Declare a `min` of 0 there, or divide by a count")

    def _check_where(self) -> None:
        events = self.files.domain.events
        source = events.sources.get(self.of, 0)
        if self.has("where") and self.of and not source:
            self.wrong("where", f"{self.of} is no event: it has no properties", "Delete this key")
        if not source:
            return
        event = events.by_id[event_of(source)]
        declared = {field.name: field for field in event.properties}
        for name, place in (self.files.entries(self.at("where")) if self.where else {}).items():
            field = declared.get(name)
            if field is None:
                reason = f"schema.yaml declares no such property of {event.name}"
                fix = suggestion(name, declared) if declared else "Declare it there (`properties`)"
                self.files.add(place.of_key, reason, fix)
            elif field.type == "number":
                fix = "Name a flag or category, or declare it as the event's value"
                self.files.add(place.of_key, f"{name} is a number", fix)
            elif self.where.get(name):
                self._check_values(field, place)
            elif place.node.value == []:
                self.files.add(place, "there is no value", "List one at least")

    def _check_values(self, field: EventProperty, place: Place) -> None:
        for value, at in zip(self.where[field.name], place.items(), strict=True):
            if value == "":
                continue  # wrong in itself
            if (field.type == "flag") != isinstance(value, bool):
                expected = "true or false" if field.type == "flag" else "a text"
                self.files.add(at, f"{field.name} is a {field.type}", f"Write {expected}")
            elif field.vocabulary and not field.vocabulary.lists(str(value)):
                values = field.vocabulary.values
                self.files.add(at, f"{value!r} is no value of it", suggestion(str(value), values))

    def _amount(self, name: str) -> Amount | None:
        """What a name is the values of, if it is of values."""
        events = self.files.domain.events
        source = events.sources.get(name, 0)
        return events.by_id[event_of(source)].value if adds_values(source) else None

    def _check_word(self, key: str, allowed: Sequence[str], where: str = "") -> None:
        text = getattr(self, key)
        if not text or text in allowed:
            return
        event, sources = text.removesuffix(VALUE), self.files.domain.events.sources
        if event != text and text not in sources and sources.get(event, 0) > 0:
            fix = f"Write `{event}` to count"
            if sources[event] != self.files.domain.events.impression:  # which has none
                fix += f", or declare it in schema.yaml (events: {event}: value)"
            self.wrong(key, f"no value comes with {event}", fix)
        else:
            self.wrong(key, *cannot_stand(text, allowed, where))
        setattr(self, key, "")

    def declare(self) -> None:
        if name := self.own_name():
            place, events = self.place, self.files.domain.events
            where = tuple(Having(of, values) for of, values in self.where.items())
            own = dict(self) | {"where": where}
            made = Metric(**own, line=place.line, file=place.file, events=events)
            self.files.metrics[name] = made if self.clean else None


class UseBlock(Section):
    required: ClassVar[tuple[str, ...]] = ("metric",)
    metric: Name = ""
    """The name of a metric."""

    def used(self, names: set[str]) -> Metric | None:
        """The metric, whose name joins the others; one with a problem of its own is reported there
        only."""
        name, known = self.metric, self.files.metrics
        if name and name not in known:
            usable = [other for other, metric in known.items() if metric]
            fix = suggestion(name, usable) if usable else "Declare it in `metrics`"
            self.wrong("metric", f"there is no metric {name!r}", fix)
        elif name in names:
            self.wrong("metric", f"{name!r} is judged here already", "List a metric once")
        if name:
            names.add(name)
        return known.get(name)


class GoalBlock(UseBlock):
    required = ("metric", "minimal_effect")
    minimal_effect: Share = 0.0
    """The smallest lift of interest, as a share of control: 0.02 is 2 %."""

    def goal(self, names: set[str]) -> Goal | None:
        metric = self.used(names)
        return Goal(metric, self.minimal_effect) if metric else None


class GuardrailBlock(UseBlock):
    allowed_harm: Share | None = None
    """Tolerated change to the worse as a share of control: 0.05 is 5 %. Either this or
    allowed_absolute_harm must be there."""
    allowed_absolute_harm: Annotated[float, positive(LARGEST)] | None = None
    """The same in the metric's own unit, for a metric that may be 0."""
    observe_s: Seconds | None = None
    """A unit's requests count for so many seconds in this test; default: a minute at most for
    metrics of serving, else the experiment's."""

    @property
    def is_absolute(self) -> bool:
        return self.has("allowed_absolute_harm")

    @property
    def one_margin(self) -> bool:
        return self.has("allowed_harm") != self.is_absolute

    def check(self) -> None:
        if self.place.is_mapping and not self.one_margin:
            self.wrong(
                "",
                "a guardrail has one margin" if self.is_absolute else "a guardrail needs a margin",
                "Write `allowed_harm: 0.05` for 5 % of control's value, or "
                "`allowed_absolute_harm:` with a number in the metric's own unit",
            )

    def guardrail(self, names: set[str], plan_s: float) -> Guardrail | None:
        """`plan_s`: how long the experiment observes a unit."""
        metric = self.used(names)
        if self.observe_s and self.observe_s > plan_s:
            self.wrong(
                "observe_s",
                f"the experiment observes a unit for {plan_s:g} s only",
                "Write less here, or give the experiment a longer `observe_s`",
            )
        harm = self.allowed_absolute_harm if self.is_absolute else self.allowed_harm
        if not (metric and harm):
            return None
        return Guardrail(metric, harm, self.is_absolute, self.observe_s)
