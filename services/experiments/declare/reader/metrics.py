"""Metrics, and the plan of an experiment: goals, guardrails, how long, for how many units."""

from __future__ import annotations

from typing import cast

from yaml.nodes import MappingNode, Node

from services.experiments.declare.metrics import (
    ALLOWED_OF,
    ALLOWED_PER,
    DEFAULT_OBSERVE_S,
    DEFAULT_WINDOW_S,
    SOURCES,
    Better,
    Goal,
    Guardrail,
    Metric,
    MetricKind,
    Plan,
)
from services.experiments.declare.reader.nodes import Nodes, line_of, suggestion
from services.experiments.declare.schema import (
    BETTER,
    GOAL,
    GUARDRAIL,
    KINDS,
    MAX_LIFT,
    MAX_SECONDS,
    MAX_UNITS,
    METRIC,
)
from services.experiments.statistics.moments import LARGEST

MARGINS = {"allowed_harm": float(MAX_LIFT), "allowed_absolute_harm": LARGEST}


class MetricReader:
    """Reads the declared metrics of all files, then the plans that use them."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._metrics: dict[str, Metric] = {}
        self._wrong_metrics: set[str] = set()  # declared, but with a problem of their own

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(self._metrics.values())

    def declared(self, node: Node | None, path: str) -> None:
        for i, child in enumerate(self._nodes.sequence(node, path)):
            before = len(self._nodes.problems)
            metric = self._metric(child, f"{path}[{i}]")
            if metric.name in self._metrics or metric.name in self._wrong_metrics:
                self._nodes.report(
                    child,
                    f"{path}[{i}].name",
                    f"there is already a metric {metric.name!r}",
                    "Give it a name of its own",
                )
            elif len(self._nodes.problems) > before:
                self._wrong_metrics.add(metric.name)
            else:
                self._metrics[metric.name] = metric

    def _metric(self, node: Node, path: str) -> Metric:
        fields = self._nodes.mapping(node, path, METRIC)
        kind = self._nodes.choice(fields.get("kind"), f"{path}.kind", KINDS)
        allowed = ALLOWED_OF.get(cast("MetricKind", kind), SOURCES)
        of = self._nodes.choice(
            fields.get("of"), f"{path}.of", allowed, f" in a {kind}" if kind else ""
        )
        per_choices = ("request",) if of == "latency" else ALLOWED_PER
        per = self._nodes.choice(fields.get("per"), f"{path}.per", per_choices)
        metric = Metric(
            self._nodes.name(fields.get("name"), f"{path}.name"),
            cast("MetricKind", kind),
            of,
            cast("Better", self._nodes.choice(fields.get("better"), f"{path}.better", BETTER)),
            per,
            self._nodes.positive(fields.get("quantile"), f"{path}.quantile", 0.5, 1, below=True),
            self._nodes.positive(
                fields.get("window_s"), f"{path}.window_s", DEFAULT_WINDOW_S, MAX_SECONDS
            ),
            line_of(node),
            self._nodes.file,
        )
        if kind:
            self._belongs(node, fields, path, "per", kind == "ratio", f"a {kind}")
            self._belongs(node, fields, path, "quantile", kind == "quantile", f"a {kind}")
        if of and kind and per == of:
            self._nodes.report(
                fields["per"], f"{path}.per", "this divides by itself", "Name another"
            )
        if "window_s" in fields and of and not metric.of_feedback:
            self._nodes.report(
                fields["window_s"],
                f"{path}.window_s",
                f"there is no feedback to wait for: {of} is known when the request is answered",
                "Delete this key",
            )
        return metric

    def _belongs(
        self, node: Node, fields: dict[str, Node], path: str, key: str, needed: bool, what: str
    ) -> None:
        """Report a key that its metric's kind needs and has not, or has and does not use."""
        if needed and key not in fields:
            self._nodes.report(node, f"{path}.{key}", f"{what} needs this key", f"Add `{key}:`")
        elif not needed and key in fields:
            self._nodes.report(
                fields[key], f"{path}.{key}", f"{what} has no use for this key", "Delete it"
            )

    def plan(self, fields: dict[str, Node], path: str) -> Plan:
        primary, secondary, guardrails = None, [], []
        observe_s = self._nodes.positive(
            fields.get("observe_s"), f"{path}.observe_s", DEFAULT_OBSERVE_S, MAX_SECONDS
        )
        goals: set[str] = set()
        if "primary" in fields:
            primary = self._goal(fields["primary"], f"{path}.primary", goals)
        for i, child in enumerate(
            self._nodes.sequence(fields.get("secondary"), f"{path}.secondary")
        ):
            if goal := self._goal(child, f"{path}.secondary[{i}]", goals):
                secondary.append(goal)
        guarded: set[str] = set()
        for i, child in enumerate(
            self._nodes.sequence(fields.get("guardrails"), f"{path}.guardrails")
        ):
            where = f"{path}.guardrails[{i}]"
            if guardrail := self._guardrail(child, where, guarded, observe_s):
                guardrails.append(guardrail)
        planned = self._nodes.positive(
            fields.get("planned_units"), f"{path}.planned_units", 0.0, MAX_UNITS, whole=True
        )
        window_s = self._nodes.positive(
            fields.get("window_s"), f"{path}.window_s", DEFAULT_WINDOW_S, MAX_SECONDS
        )
        return Plan(
            primary, tuple(secondary), tuple(guardrails), observe_s, int(planned) or None, window_s
        )

    def _goal(self, node: Node, path: str, used: set[str]) -> Goal | None:
        fields = self._nodes.mapping(node, path, GOAL)
        metric = self._used_metric(fields.get("metric"), f"{path}.metric", used)
        effect = self._nodes.positive(
            fields.get("minimal_effect"), f"{path}.minimal_effect", 0.0, MAX_LIFT
        )
        return Goal(metric, effect) if metric else None

    def _guardrail(self, node: Node, path: str, used: set[str], plan_s: float) -> Guardrail | None:
        """`plan_s`: how long the experiment observes a unit."""
        fields = self._nodes.mapping(node, path, GUARDRAIL)
        metric = self._used_metric(fields.get("metric"), f"{path}.metric", used)
        margins = [key for key in MARGINS if key in fields]
        if isinstance(node, MappingNode) and len(margins) != 1:
            self._nodes.report(
                node,
                path,
                "a guardrail needs a margin" if not margins else "a guardrail has one margin",
                "Write `allowed_harm: 0.05` for 5 % of control's value, or "
                "`allowed_absolute_harm:` with a number in the metric's own unit",
            )
        relative, absolute = (
            self._nodes.positive(fields.get(key), f"{path}.{key}", 0.0, most)
            for key, most in MARGINS.items()
        )
        observe_s: float | None = None
        if "observe_s" in fields:
            observe_s = self._nodes.positive(
                fields["observe_s"], f"{path}.observe_s", plan_s, MAX_SECONDS
            )
            if observe_s > plan_s:
                self._nodes.report(
                    fields["observe_s"],
                    f"{path}.observe_s",
                    f"the experiment observes a unit for {plan_s:g} s only",
                    "Write less here, or give the experiment a longer `observe_s`",
                )
        if metric is None or len(margins) != 1:
            return None
        is_absolute = margins == ["allowed_absolute_harm"]
        return Guardrail(metric, absolute if is_absolute else relative, is_absolute, observe_s)

    def _used_metric(self, node: Node | None, path: str, used: set[str]) -> Metric | None:
        """The metric of that name; one with a problem of its own is reported there only."""
        name = self._nodes.name(node, path)
        if node is None or not name:
            return None
        if name not in self._metrics and name not in self._wrong_metrics:
            known = self._metrics
            self._nodes.report(
                node,
                path,
                f"there is no metric {name!r}",
                suggestion(name, known) if known else "Declare it in `metrics`",
            )
        elif name in used:
            self._nodes.report(node, path, f"{name!r} is judged here already", "List a metric once")
        used.add(name)
        return self._metrics.get(name)
