"""Metrics, and how experiments are judged by them: goals and guardrails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, get_args

from models.yaml_reader.places import cannot_stand, suggestion
from models.yaml_reader.values import Name, Seconds, Text, choice, positive
from services.experiments.declare.metrics import (
    DEFAULT_WINDOW_S,
    SERVING,
    Better,
    Goal,
    Guardrail,
    Metric,
    MetricKind,
    allowed_of,
)
from services.experiments.declare.reader.section import NamedSection, Section
from services.experiments.statistics.moments import LARGEST

Share = Annotated[float, positive(10)]  # of control's value


class MetricBlock(NamedSection):
    required = ("name", "kind", "of", "better")
    kind: Annotated[MetricKind | None, choice(get_args(MetricKind))] = None
    """binary: share of units with any; mean: number per unit; ratio: one thing per other; quantile:
    of single requests."""
    of: Text = ""
    """What is counted."""
    better: Annotated[Better | None, choice(get_args(Better))] = None
    """Which direction is good."""
    per: Text = ""
    """What a ratio divides by."""
    quantile: Annotated[float, positive(1, "exclusiveMaximum")] = 0.5
    """Which quantile: 0.99 is the 99th percentile."""
    window_s: Seconds = DEFAULT_WINDOW_S
    """Feedback counts up to so many seconds after its request."""

    def check(self) -> None:
        events = self.files.domain.events
        allowed = allowed_of(self.kind, events) if self.kind else (*events, *SERVING)
        self._check_word("of", allowed, f" in a {self.kind}" if self.kind else "")
        self._check_word("per", ("request",) if self.of == "latency" else (*events, "request"))
        for key, kind in (("per", "ratio"), ("quantile", "quantile")):
            if self.kind == kind:
                self.need(key, f"a {kind} needs this key")
            elif self.kind and self.has(key):
                self.wrong(key, f"a {self.kind} has no use for this key", "Delete it")
        if self.of and self.kind and self.per == self.of:
            self.wrong("per", "this divides by itself", "Name another")
        if self.has("window_s") and self.of and not {self.of, self.per} & events.keys():
            reason = (
                f"there is no feedback to wait for: {self.of} is known when the request is answered"
            )
            self.wrong("window_s", reason, "Delete this key")

    def _check_word(self, key: str, allowed: Sequence[str], where: str = "") -> None:
        if (text := getattr(self, key)) and text not in allowed:
            self.wrong(key, *cannot_stand(text, allowed, where))
            setattr(self, key, "")

    def declare(self) -> None:
        if name := self.own_name():
            place, events = self.place, self.files.domain.events
            made = Metric(**dict(self), line=place.line, file=place.file, events=events)
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
