"""One experiment: its arms, when it runs, for whom and on which buckets."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from yaml.nodes import MappingNode, Node

from services.experiments.config import BUCKETS, Arm, Experiment
from services.experiments.parameters import ParameterError, Value, spec_of
from services.experiments.reader.claims import Claims
from services.experiments.reader.conditions import ConditionReader
from services.experiments.reader.metrics import MetricReader
from services.experiments.reader.nodes import INT, STR, Nodes, line_of
from services.experiments.schema import ARM, EXPERIMENT, MAX_ID_BYTES, UNITS


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

    def experiment(self, node: Node, path: str, owned: Sequence[str], layer: str) -> Experiment:
        fields = self._nodes.mapping(node, path, EXPERIMENT)
        name = self._nodes.name(fields.get("name"), f"{path}.name")
        salt = self._claims.salt(
            fields, path, self._claims.first_use(name, self._experiments, node, path), node
        )
        enrolled = self._nodes.percent(fields.get("traffic"), f"{path}.traffic", BUCKETS)
        arms = self._arms(fields.get("arms"), f"{path}.arms", enrolled, owned, layer)
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
        )

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
        self, node: Node | None, path: str, enrolled: int, owned: Sequence[str], layer: str
    ) -> tuple[Arm, ...]:
        before = len(self._nodes.problems)
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
            end = first + self._nodes.percent(fields.get("weight"), f"{where}.weight", 0)
            traffic = self._nodes.percent(fields.get("traffic"), f"{where}.traffic", enrolled)
            parameters = fields.get("parameters")
            overrides = self._overrides(parameters, f"{where}.parameters", owned, layer)
            written = parameters.value if isinstance(parameters, MappingNode) else ()
            lines = {str(key.value): line_of(key) for key, _ in written}
            arms.append(Arm(name, first, end, traffic, overrides, lines))
            first = end
        if node is not None and len(self._nodes.problems) == before:
            if not arms:
                self._nodes.report(node, path, "there is no arm", "List at least one arm")
            elif first != BUCKETS:
                self._nodes.report(
                    node,
                    path,
                    f"the weights add up to {first / 100:g} and not to 100",
                    "Change the weights so that they add up to 100",
                )
        return tuple(arms)

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
            return "user"
        unit = self._nodes.string(node, path)
        if unit and unit not in UNITS:
            self._nodes.report(node, path, f"{unit!r} is not a unit", "Write `user` or `session`")
        return "session" if unit == "session" else "user"

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
