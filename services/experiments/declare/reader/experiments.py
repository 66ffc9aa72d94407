"""One experiment: its arms, when it runs, for whom, on which buckets and with what traffic."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

from yaml.nodes import MappingNode, Node, SequenceNode

from services.experiments.declare.config import (
    BUCKETS,
    INTERLEAVED,
    USER,
    Arm,
    Experiment,
    Gate,
    Interleave,
    Ramp,
)
from services.experiments.declare.parameters import ParameterError, Value, spec_of
from services.experiments.declare.reader.claims import Claims
from services.experiments.declare.reader.conditions import ConditionReader
from services.experiments.declare.reader.metrics import MetricReader
from services.experiments.declare.reader.nodes import INT, STR, Nodes, line_of, suggestion
from services.experiments.declare.schema import (
    ARM,
    DEFAULT_HOLD_S,
    DEFAULT_MIN_UNITS,
    EXPERIMENT,
    GATES,
    INTERLEAVES,
    MAX_DECLARED_UNITS,
    MAX_ID_BYTES,
    MAX_SECONDS,
    MAX_STEPS,
    MAX_UNITS,
    RAMP,
    UNITS,
)

# What a ramp and interleaving rule out, in an experiment and in its arms: key -> (reason, fix).
BESIDE_RAMP = {
    "traffic": ("the ramp says what the traffic is", "Delete this key, or the ramp"),
}
ARM_BESIDE_RAMP = {
    "traffic": (
        "the ramp gives all arms the same traffic, so that the split between them stays as it is",
        "Delete this key, or the ramp",
    ),
}
_NO_METRIC = (
    "an interleaving experiment has one result, which of its arms' rankings the clicks prefer, "
    "and says nothing of metrics per arm",
    "Delete this key, or `interleave` to compare arms by metrics",
)
BESIDE_INTERLEAVE = {
    "primary": _NO_METRIC,
    "secondary": _NO_METRIC,
    "guardrails": _NO_METRIC,
    "allow_list": (
        "no unit has one arm of an interleaving experiment: all see both",
        "Delete this key, or `interleave`",
    ),
}
WITHOUT_INTERLEAVE = {
    "window_s": (
        "metrics have windows of their own",
        "Delete this key and write `window_s` in the metrics",
    ),
}
ARM_BESIDE_INTERLEAVE = {
    "weight": (
        "every unit sees both arms of an interleaving experiment, so that there is nothing to "
        "divide",
        "Delete this key, or `interleave`",
    ),
    "traffic": (
        "every unit sees both arms of an interleaving experiment",
        "Give the experiment `traffic` instead",
    ),
    "stopped": (
        "one arm alone cannot be interleaved",
        "Write `enabled: false` in the experiment to end it",
    ),
}


class ExperimentReader:
    """Reads experiments, whose names and salts are unique across all files."""

    def __init__(
        self, nodes: Nodes, claims: Claims, conditions: ConditionReader, metrics: MetricReader
    ) -> None:
        self._nodes = nodes
        self._claims = claims
        self._conditions = conditions
        self._metrics = metrics
        self._experiments: dict[str, str] = {}  # name -> place of its first use
        self.units: dict[str, str] = {}  # name of a declared unit -> place of its declaration

    def declare_units(self, node: Node | None, path: str) -> None:
        for i, child in enumerate(self._nodes.sequence(node, path)):
            where = f"{path}[{i}]"
            name = self._nodes.name(child, where)
            if name in UNITS:
                self._nodes.report(
                    child, where, f"{name!r} is always a unit", "Delete it from this list"
                )
            elif name in self.units:
                self._nodes.report(
                    child,
                    where,
                    f"{self.units[name]} has the same name {name!r}",
                    "Declare a unit once",
                )
            elif name:
                self.units[name] = self._nodes.place(where)
                if len(self.units) == MAX_DECLARED_UNITS + 1:
                    self._nodes.report(
                        child,
                        where,
                        f"there are more than {MAX_DECLARED_UNITS} units",
                        "Delete some: a request carries no more ids",
                    )

    def experiment(self, node: Node, path: str, owned: Sequence[str], layer: str) -> Experiment:
        fields = self._nodes.mapping(node, path, EXPERIMENT)
        name = self._nodes.name(fields.get("name"), f"{path}.name")
        salt = self._claims.salt(
            fields, path, self._claims.first_use(name, self._experiments, node, path), node
        )
        interleave = self._nodes.choice(fields.get("interleave"), f"{path}.interleave", INTERLEAVES)
        refused: dict[str, tuple[str, str]] = {}
        if "ramp" in fields:
            self._nodes.refuse(fields, path, BESIDE_RAMP)
            refused |= ARM_BESIDE_RAMP
        if "interleave" in fields:
            self._nodes.refuse(fields, path, BESIDE_INTERLEAVE)
            refused |= ARM_BESIDE_INTERLEAVE
        else:
            self._nodes.refuse(fields, path, WITHOUT_INTERLEAVE)
        ramp = self._ramp(fields, path)
        enrolled = self._nodes.percent(fields.get("traffic"), f"{path}.traffic", BUCKETS)
        if ramp and ramp.steps:
            enrolled = ramp.steps[0]
        before = len(self._nodes.problems)
        arms = self._arms(fields.get("arms"), f"{path}.arms", enrolled, refused, owned, layer)
        if "arms" in fields and len(self._nodes.problems) == before:
            self._check_arms(fields["arms"], f"{path}.arms", arms, "interleave" in fields)
        start_ms, stop_ms = self._window(fields, path)
        return Experiment(
            name,
            salt,
            self._unit(fields.get("unit"), f"{path}.unit"),
            self._buckets(fields.get("buckets"), f"{path}.buckets"),
            arms,
            self._allow_list(fields.get("allow_list"), f"{path}.allow_list", arms),
            self._nodes.bool(fields.get("enabled"), f"{path}.enabled", default=True),
            line_of(node),
            self._nodes.file,
            start_ms,
            stop_ms,
            self._conditions.where(fields.get("where"), f"{path}.where"),
            self._metrics.plan(fields, path),
            ramp,
            cast("Interleave", interleave) or None,
        )

    def _ramp(self, fields: dict[str, Node], path: str) -> Ramp | None:
        if "ramp" not in fields:
            return None
        path = f"{path}.ramp"
        own = self._nodes.mapping(fields["ramp"], path, RAMP)
        gate = self._nodes.choice(own.get("gate"), f"{path}.gate", GATES) or "no_breach"
        guardrails = fields.get("guardrails")
        none = isinstance(guardrails, SequenceNode) and not guardrails.value
        if gate == "holds" and (guardrails is None or none):
            self._nodes.report(
                own["gate"],
                f"{path}.gate",
                "there is no guardrail that could be shown to hold",
                "Write `no_breach`, or list `guardrails`",
            )
        return Ramp(
            self._steps(own.get("steps"), f"{path}.steps"),
            self._nodes.positive(own.get("hold_s"), f"{path}.hold_s", DEFAULT_HOLD_S, MAX_SECONDS),
            self._nodes.count(
                own.get("min_units"), f"{path}.min_units", DEFAULT_MIN_UNITS, MAX_UNITS
            ),
            cast("Gate", gate),
        )

    def _steps(self, node: Node | None, path: str) -> tuple[int, ...]:
        """A ramp's steps as enrolment buckets."""
        before = len(self._nodes.problems)
        children = self._nodes.sequence(node, path)
        steps = [self._nodes.percent(c, f"{path}[{i}]", 0) for i, c in enumerate(children)]
        if node is None or len(self._nodes.problems) > before:
            return ()
        if not 1 <= len(steps) <= MAX_STEPS:
            self._nodes.report(
                node,
                path,
                f"a ramp has 1 to {MAX_STEPS} steps, and this one has {len(steps)}",
                "Write percentages like [1, 5, 10, 25, 50]",
            )
        for i, (last, step) in enumerate(pairwise([0, *steps])):
            if step <= last:
                self._nodes.report(
                    children[i],
                    f"{path}[{i}]",
                    f"{step / 100:g} is not more than {last / 100:g}, the step before"
                    if i
                    else "nobody would be in at this step",
                    "Write percentages above 0 that rise from step to step",
                )
        return tuple(steps)

    def _window(self, fields: dict[str, Node], path: str) -> tuple[float, float]:
        """(start, stop) in ms since the epoch; a bound that is not there is infinite."""
        before = len(self._nodes.problems)
        start_ms = self._nodes.instant(fields.get("start"), f"{path}.start", -math.inf)
        stop_ms = self._nodes.instant(fields.get("stop"), f"{path}.stop", math.inf)
        if len(self._nodes.problems) == before and start_ms >= stop_ms:
            self._nodes.report(
                fields["stop"],
                f"{path}.stop",
                "it stops before it starts or in the same instant",
                "Give a later `stop` or an earlier `start`",
            )
        return start_ms, stop_ms

    def _arms(
        self,
        node: Node | None,
        path: str,
        enrolled: int,
        refused: Mapping[str, tuple[str, str]],
        owned: Sequence[str],
        layer: str,
    ) -> tuple[Arm, ...]:
        children = self._nodes.sequence(node, path)
        arms: list[Arm] = []
        first = 0
        for i, child in enumerate(children):
            where = f"{path}[{i}]"
            fields = self._nodes.mapping(child, where, ARM)
            name = self._nodes.name(fields.get("name"), f"{where}.name")
            if name and name in (arm.name for arm in arms):
                self._nodes.report(
                    child,
                    f"{where}.name",
                    f"there is already an arm {name!r}",
                    "Give every arm of an experiment a name of its own",
                )
            if (
                isinstance(child, MappingNode)
                and "weight" not in fields
                and "weight" not in refused
            ):
                self._nodes.report(child, f"{where}.weight", "this key is missing", "Add `weight:`")
            self._nodes.refuse(fields, where, refused)
            end = first + self._nodes.percent(fields.get("weight"), f"{where}.weight", 0)
            traffic = self._nodes.percent(fields.get("traffic"), f"{where}.traffic", enrolled)
            parameters = fields.get("parameters")
            overrides = self._overrides(parameters, f"{where}.parameters", owned, layer)
            written = parameters.value if isinstance(parameters, MappingNode) else ()
            lines = {str(key.value): line_of(key) for key, _ in written}
            stopped = self._nodes.bool(fields.get("stopped"), f"{where}.stopped", default=False)
            arms.append(Arm(name, first, end, traffic, overrides, lines, stopped))
            first = end
        return tuple(arms)

    def _check_arms(self, node: Node, path: str, arms: Sequence[Arm], interleaves: bool) -> None:
        """What arms without a problem of their own must be together."""
        if not arms:
            self._nodes.report(node, path, "there is no arm", "List at least one arm")
        elif interleaves:
            self._check_interleaved(node, path, [arm.name for arm in arms])
        elif arms[-1].end != BUCKETS:
            self._nodes.report(
                node,
                path,
                f"the weights add up to {arms[-1].end / 100:g} and not to 100",
                "Change the weights so that they add up to 100",
            )
        else:
            names = [arm.name for arm in arms]
            control = names.index("control") if "control" in names else 0
            if arms[control].stopped:
                self._nodes.report(
                    self._nodes.sequence(node, path)[control],
                    f"{path}[{control}].stopped",
                    "units of stopped arms get control's parameters, so that control goes on",
                    "Stop another arm, or write `enabled: false` in the experiment to end it",
                )

    def _check_interleaved(self, node: Node, path: str, names: Sequence[str]) -> None:
        if len(names) != 2:
            self._nodes.report(
                node,
                path,
                f"two arms are interleaved, and here are {len(names)}",
                "List two arms, or delete `interleave`",
            )
        if INTERLEAVED in names:
            self._nodes.report(
                node,
                path,
                f"{INTERLEAVED!r} is what stands for both arms in records",
                "Give the arm another name",
            )

    def _overrides(
        self, node: Node | None, path: str, owned: Sequence[str], layer: str
    ) -> dict[str, Value]:
        overrides: dict[str, Value] = {}
        for key, child in self._nodes.pairs(node, path):
            name, where = self._nodes.string(key, path), f"{path}.{key.value}"
            try:
                overrides[name] = spec_of(name).check(self._nodes.value(child, where))
            except ParameterError as error:
                self._nodes.report(child, where, error.reason, error.fix)
                continue
            if name not in owned:
                self._nodes.report(
                    key,
                    where,
                    f"layer {layer!r} does not own {name!r}",
                    "Add it to the layer's `parameters`, or move the experiment to its owner",
                )
        return overrides

    def _allow_list(self, node: Node | None, path: str, arms: Sequence[Arm]) -> dict[str, str]:
        allowed: dict[str, str] = {}
        for key, child in self._nodes.pairs(node, path):
            where = f"{path}.{key.value}"
            tag, unit = self._nodes.plain(key)
            if tag != STR and not (tag == INT and re.fullmatch(r"0|-?[1-9]\d*", unit)):
                self._nodes.report(
                    key, where, "this id could be read in two ways", "Put it in quotes"
                )
            elif not 1 <= len(unit.encode()) <= MAX_ID_BYTES:
                self._nodes.report(
                    key,
                    where,
                    "the id is empty or too long",
                    f"Use an id of 1 to {MAX_ID_BYTES} bytes",
                )
            arm = self._nodes.string(child, where)
            if arm and arm not in (a.name for a in arms):
                self._nodes.report(
                    child,
                    where,
                    f"there is no arm {arm!r}",
                    f"Use one of {', '.join(a.name for a in arms) or 'the arms you list'}",
                )
            allowed[unit] = arm
        return allowed

    def _unit(self, node: Node | None, path: str) -> str:
        if node is None:
            return USER
        unit = self._nodes.string(node, path)
        if unit and unit not in (known := [*UNITS, *self.units]):
            self._nodes.report(
                node,
                path,
                f"{unit!r} is not a unit",
                f"{suggestion(unit, known)}, or declare it in `units`",
            )
            return USER
        return unit or USER

    def _buckets(self, node: Node | None, path: str) -> tuple[int, int]:
        if node is None:
            return 0, BUCKETS
        plain = [self._nodes.plain(child) for child in self._nodes.sequence(node, path)]
        bounds = [int(text) for tag, text in plain if tag == INT and re.fullmatch(r"\d{1,5}", text)]
        if len(plain) == len(bounds) == 2 and bounds[0] < bounds[1] <= BUCKETS:
            return bounds[0], bounds[1]
        self._nodes.report(
            node,
            path,
            "this is not a range of buckets",
            f"Write [first, end] with 0 <= first < end <= {BUCKETS}; end is not in the range",
        )
        return 0, 0
