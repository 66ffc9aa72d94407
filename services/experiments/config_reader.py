"""Reading experiments.yaml: every error of the file, each with its line and the way to repair it.

The file is read as a tree of YAML nodes, because nodes know their lines. A part that is wrong is
reported and left out, and reading goes on, so that one run of `tandem experiments validate` shows
everything. Only a file without any problem becomes an `ExperimentsConfig`.

Instead of one file there may be a folder: all its *.yaml are read in the order of their names, each
a whole file of its own, and their layers make one configuration. Names, salts and parameters are as
unique across the files as within one.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias, cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from services.experiments.analysis.moments import LARGEST
from services.experiments.config import (
    BUCKETS,
    NO_HOLDOUT,
    Arm,
    Experiment,
    ExperimentsConfig,
    ExperimentsError,
    Holdout,
    Layer,
    Problem,
)
from services.experiments.metrics import (
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
from services.experiments.parameters import ParameterError, Value, spec_of
from services.experiments.schema import (
    ARM,
    BETTER,
    EXPERIMENT,
    FILE,
    GOAL,
    GUARDRAIL,
    HOLDOUT,
    KINDS,
    LAYER,
    MAX_ID_BYTES,
    MAX_LIFT,
    MAX_SECONDS,
    MAX_UNITS,
    METRIC,
    NAME,
    TIMESTAMP,
    UNITS,
    VERSION,
    WHERE,
    Block,
    names,
)
from services.experiments.targeting import (
    CONTEXT_OPERATORS,
    MEMBERSHIP,
    SURFACE_OPERATORS,
    Condition,
)

NUMBER = re.compile(r"[-+]?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})([eE][-+]?\d{1,3})?")
PERCENT = re.compile(r"\d{1,3}(\.\d{1,2})?")
MAX_READS = 10
MARGINS = {"allowed_harm": float(MAX_LIFT), "allowed_absolute_harm": LARGEST}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_STR, _INT, _FLOAT, _BOOL, _TIME = (
    f"tag:yaml.org,2002:{t}" for t in ("str", "int", "float", "bool", "timestamp")
)

Sources: TypeAlias = Mapping[str, bytes]  # a file's bytes by its name within the folder, or by ""


def load(path: Path) -> ExperimentsConfig:
    """Read a file or a folder; ExperimentsError with all problems, OSError when it cannot be."""
    return parse_all(read(path), str(path))


def read(path: Path) -> Sources:
    """The bytes of a file, or of the *.yaml of a folder in the order of their names. OSError.

    Hidden files are left out. A folder is read until two readings agree, so that a replaced one
    (Kubernetes exchanges a mounted ConfigMap by one rename) is not taken half old and half new.
    """
    if not path.is_dir():
        return {"": path.read_bytes()}
    sources = _read_folder(path)
    for _ in range(MAX_READS):
        again = _read_folder(path)
        if again == sources:
            break
        sources = again
    return sources


def _read_folder(path: Path) -> Sources:
    found = {}
    for file in sorted(f for f in path.glob("*.yaml") if not f.name.startswith(".")):
        # One that is gone since it was listed makes two readings differ, or was never there.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            found[file.name] = file.read_bytes()
    return found


def parse(data: bytes, file: str) -> ExperimentsConfig:
    """Read one file's bytes; `file` is its name in error messages. Raises ExperimentsError."""
    return parse_all({"": data}, file)


def parse_all(sources: Sources, file: str) -> ExperimentsConfig:
    """One configuration of what `read` gave; `file` names it in errors. Raises ExperimentsError."""
    reader = _Reader()
    config = reader.files(sources)
    if reader.problems:
        raise ExperimentsError(file, reader.problems)
    return config


def instant_ms(text: str) -> int | None:
    """A timestamp with its zone as ms since the epoch; None when it is not one."""
    if not TIMESTAMP.fullmatch(text):
        return None
    try:
        return (datetime.fromisoformat(text) - EPOCH) // timedelta(milliseconds=1)
    except ValueError:  # the 31st of June
        return None


class _Loader(yaml.SafeLoader):
    """YAML without aliases: an anchor would let one line stand in two places; and without escapes
    that make no characters, because ids and names are hashed and sent as UTF-8."""

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not supported", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def compose_scalar_node(self, anchor: dict[Any, Node]) -> ScalarNode:
        node = super().compose_scalar_node(anchor)
        try:
            node.value.encode()
        except UnicodeEncodeError as error:
            raise yaml.MarkedYAMLError(
                problem=f"{node.value!r} cannot be written in UTF-8 ({error.reason})",
                problem_mark=node.start_mark,
            ) from error
        return node


class _Reader:
    """Turns nodes into the types of config.py and collects what is wrong on the way."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._file = ""  # the one being read, as Problem.file
        self._salts: dict[str, str] = {}  # salt -> place of its first use
        self._layers: dict[str, str] = {}  # name -> place of its first use
        self._experiments: dict[str, str] = {}  # name -> place of its first use
        self._owners: dict[str, str] = {}  # parameter -> the layer that owns it
        self._holdout: Holdout | None = None
        self._metrics: dict[str, Metric] = {}
        self._wrong_metrics: set[str] = set()  # declared, but with a problem of their own

    # The files, from the outside in.

    def files(self, sources: Sources) -> ExperimentsConfig:
        if not sources:
            self._add(
                1,
                "",
                "the folder has no *.yaml file",
                "Write one with `version: 1` and `layers: []` to run nothing",
            )
        contents = {}
        for self._file, data in sources.items():  # experiments of one file may use all metrics
            root = self._compose(data)
            contents[self._file] = {} if root is None else self._mapping(root, "", FILE)
            self._read_metrics(contents[self._file].get("metrics"), "metrics")
        layers: list[Layer] = []
        for self._file, fields in contents.items():
            layers += self._one_file(fields)
        return ExperimentsConfig(
            tuple(layers), self._holdout or NO_HOLDOUT, tuple(self._metrics.values())
        )

    def _one_file(self, fields: dict[str, Node]) -> list[Layer]:
        if "version" in fields and self._plain(fields["version"]) != (_INT, str(VERSION)):
            self._report(
                fields["version"],
                "version",
                "this version is not known",
                f"Write `version: {VERSION}`",
            )
        if "holdout" in fields:
            self._read_holdout(fields["holdout"], "holdout")
        children = self._sequence(fields.get("layers"), "layers")
        return [self._layer(child, f"layers[{i}]") for i, child in enumerate(children)]

    def _read_holdout(self, node: Node, path: str) -> None:
        if self._holdout is not None:
            self._report(
                node,
                path,
                f"{self._holdout.file} has a holdout already",
                "Declare the one holdout in one of the files",
            )
            return
        fields = self._mapping(node, path, HOLDOUT)
        salt = self._salt(fields, path, NO_HOLDOUT.salt, node)
        buckets = self._percent(fields.get("percent"), f"{path}.percent", 0)
        self._holdout = Holdout(salt, buckets, _line(node), self._file)

    def _layer(self, node: Node, path: str) -> Layer:
        fields = self._mapping(node, path, LAYER)
        name = self._name(fields.get("name"), f"{path}.name")
        salt = self._salt(fields, path, self._first_use(name, self._layers, node, path), node)
        owned = self._owned(fields.get("parameters"), f"{path}.parameters", name)
        experiments, nodes = [], []
        for i, child in enumerate(self._sequence(fields.get("experiments"), f"{path}.experiments")):
            experiments.append(self._experiment(child, f"{path}.experiments[{i}]", owned, name))
            nodes.append(child)
        self._check_exclusion(experiments, nodes, path)
        return Layer(name, salt, tuple(owned), tuple(experiments))

    def _owned(self, node: Node | None, path: str, layer: str) -> list[str]:
        owned = []
        for i, child in enumerate(self._sequence(node, path)):
            where = f"{path}[{i}]"
            name = self._string(child, where)
            try:
                spec_of(name)
            except ParameterError as error:
                self._report(child, where, error.reason, error.fix)
                continue
            if name in self._owners:
                self._report(
                    child,
                    where,
                    f"{self._owners[name]} already owns {name!r}",
                    "Let one layer own it and move its experiments into that layer",
                )
            self._owners.setdefault(name, self._place(f"layer {layer!r}"))
            owned.append(name)
        return owned

    def _experiment(self, node: Node, path: str, owned: Sequence[str], layer: str) -> Experiment:
        fields = self._mapping(node, path, EXPERIMENT)
        name = self._name(fields.get("name"), f"{path}.name")
        salt = self._salt(fields, path, self._first_use(name, self._experiments, node, path), node)
        enrolled = self._percent(fields.get("traffic"), f"{path}.traffic", BUCKETS)
        arms = self._arms(fields.get("arms"), f"{path}.arms", enrolled, owned, layer)
        start_ms, stop_ms = self._window(fields, path)
        return Experiment(
            name,
            salt,
            self._unit(fields.get("unit"), f"{path}.unit"),
            self._buckets(fields.get("buckets"), f"{path}.buckets"),
            arms,
            self._allow_list(fields.get("allow_list"), f"{path}.allow_list", arms),
            self._bool(fields.get("enabled"), f"{path}.enabled", default=True),
            _line(node),
            self._file,
            start_ms,
            stop_ms,
            self._where(fields.get("where"), f"{path}.where"),
            self._plan(fields, path),
        )

    def _window(self, fields: dict[str, Node], path: str) -> tuple[float, float]:
        """(start, stop) in ms since the epoch; a bound that is not there is infinite."""
        before = len(self.problems)
        start_ms = self._instant(fields.get("start"), f"{path}.start", -math.inf)
        stop_ms = self._instant(fields.get("stop"), f"{path}.stop", math.inf)
        if len(self.problems) == before and start_ms >= stop_ms:
            self._report(
                fields["stop"],
                f"{path}.stop",
                "it stops before it starts or in the same instant",
                "Give a later `stop` or an earlier `start`",
            )
        return start_ms, stop_ms

    def _where(self, node: Node | None, path: str) -> tuple[Condition, ...]:
        if node is None:
            return ()
        before = len(self.problems)
        fields = self._mapping(node, path, WHERE)
        conditions: list[Condition] = []
        if "surface" in fields:
            where = f"{path}.surface"
            conditions += self._conditions(fields["surface"], where, "", SURFACE_OPERATORS)
        for key, child in self._pairs(fields.get("context"), f"{path}.context"):
            name, where = str(key.value), f"{path}.context.{key.value}"
            if not 1 <= len(name.encode()) <= MAX_ID_BYTES:
                self._report(
                    key,
                    where,
                    "the name is empty or too long",
                    f"Use the name of a context value, 1 to {MAX_ID_BYTES} bytes",
                )
                continue
            conditions += self._conditions(child, where, name, CONTEXT_OPERATORS)
        if not conditions and len(self.problems) == before:
            self._report(
                node,
                path,
                "there is no condition",
                "Name a surface or a context value with an operator, or delete this key",
            )
        return tuple(conditions)

    def _conditions(
        self, node: Node, path: str, context: str, operators: Sequence[str]
    ) -> list[Condition]:
        """The tests of one subject, the context value of that name or (empty) the surface."""
        before = len(self.problems)
        conditions = []
        for key, child in self._pairs(node, path):
            name, where = str(key.value), _join(path, str(key.value))
            if name not in operators:
                self._report(key, where, "this operator is not known", _suggestion(name, operators))
                continue
            read = self._number if context else self._string
            if name in MEMBERSHIP:
                children = self._sequence(child, where)
                if not children and isinstance(child, SequenceNode):
                    self._report(child, where, "the list is empty", "List at least one value")
                values = tuple(read(c, f"{where}[{i}]") for i, c in enumerate(children))
            else:
                values = (read(child, where),)
            conditions.append(Condition(context, name, values))  # type: ignore[arg-type]
        if not conditions and len(self.problems) == before:
            self._report(node, path, "there is no operator", f"Write one of {', '.join(operators)}")
        return conditions

    def _arms(
        self, node: Node | None, path: str, enrolled: int, owned: Sequence[str], layer: str
    ) -> tuple[Arm, ...]:
        before = len(self.problems)
        children = self._sequence(node, path)
        arms: list[Arm] = []
        first = 0
        for i, child in enumerate(children):
            where = f"{path}[{i}]"
            fields = self._mapping(child, where, ARM)
            name = self._name(fields.get("name"), f"{where}.name")
            if name and name in (arm.name for arm in arms):
                self._report(
                    child,
                    f"{where}.name",
                    f"there is already an arm {name!r}",
                    "Give every arm of an experiment a name of its own",
                )
            end = first + self._percent(fields.get("weight"), f"{where}.weight", 0)
            traffic = self._percent(fields.get("traffic"), f"{where}.traffic", enrolled)
            parameters = fields.get("parameters")
            overrides = self._overrides(parameters, f"{where}.parameters", owned, layer)
            written = parameters.value if isinstance(parameters, MappingNode) else ()
            lines = {str(key.value): _line(key) for key, _ in written}
            arms.append(Arm(name, first, end, traffic, overrides, lines))
            first = end
        if node is not None and len(self.problems) == before:
            if not arms:
                self._report(node, path, "there is no arm", "List at least one arm")
            elif first != BUCKETS:
                self._report(
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
        for key, child in self._pairs(node, path):
            name, where = self._string(key, path), f"{path}.{key.value}"
            try:
                overrides[name] = spec_of(name).check(self._value(child, where))
            except ParameterError as error:
                self._report(child, where, error.reason, error.fix)
                continue
            if name not in owned:
                self._report(
                    key,
                    where,
                    f"layer {layer!r} does not own {name!r}",
                    "Add it to the layer's `parameters`, or move the experiment to its owner",
                )
        return overrides

    def _allow_list(self, node: Node | None, path: str, arms: Sequence[Arm]) -> dict[str, str]:
        allowed: dict[str, str] = {}
        for key, child in self._pairs(node, path):
            where = f"{path}.{key.value}"
            tag, unit = self._plain(key)
            if tag != _STR and not (tag == _INT and re.fullmatch(r"0|-?[1-9]\d*", unit)):
                self._report(key, where, "this id could be read in two ways", "Put it in quotes")
            elif not 1 <= len(unit.encode()) <= MAX_ID_BYTES:
                self._report(
                    key,
                    where,
                    "the id is empty or too long",
                    f"Use an id of 1 to {MAX_ID_BYTES} bytes",
                )
            arm = self._string(child, where)
            if arm and arm not in (a.name for a in arms):
                self._report(
                    child,
                    where,
                    f"there is no arm {arm!r}",
                    f"Use one of {', '.join(a.name for a in arms) or 'the arms you list'}",
                )
            allowed[unit] = arm
        return allowed

    # What experiments are judged by.

    def _read_metrics(self, node: Node | None, path: str) -> None:
        for i, child in enumerate(self._sequence(node, path)):
            before = len(self.problems)
            metric = self._metric(child, f"{path}[{i}]")
            if metric.name in self._metrics or metric.name in self._wrong_metrics:
                self._report(
                    child,
                    f"{path}[{i}].name",
                    f"there is already a metric {metric.name!r}",
                    "Give it a name of its own",
                )
            elif len(self.problems) > before:
                self._wrong_metrics.add(metric.name)
            else:
                self._metrics[metric.name] = metric

    def _metric(self, node: Node, path: str) -> Metric:
        fields = self._mapping(node, path, METRIC)
        kind = self._choice(fields.get("kind"), f"{path}.kind", KINDS)
        allowed = ALLOWED_OF.get(cast("MetricKind", kind), SOURCES)
        of = self._choice(fields.get("of"), f"{path}.of", allowed, f" in a {kind}" if kind else "")
        per_choices = ("request",) if of == "latency" else ALLOWED_PER
        per = self._choice(fields.get("per"), f"{path}.per", per_choices)
        metric = Metric(
            self._name(fields.get("name"), f"{path}.name"),
            cast("MetricKind", kind),
            of,
            cast("Better", self._choice(fields.get("better"), f"{path}.better", BETTER)),
            per,
            self._positive(fields.get("quantile"), f"{path}.quantile", 0.5, 1, below=True),
            self._positive(
                fields.get("window_s"), f"{path}.window_s", DEFAULT_WINDOW_S, MAX_SECONDS
            ),
            _line(node),
            self._file,
        )
        if kind:
            self._belongs(node, fields, path, "per", kind == "ratio", f"a {kind}")
            self._belongs(node, fields, path, "quantile", kind == "quantile", f"a {kind}")
        if of and kind and per == of:
            self._report(fields["per"], f"{path}.per", "this divides by itself", "Name another")
        if "window_s" in fields and of and not metric.of_feedback:
            self._report(
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
            self._report(node, f"{path}.{key}", f"{what} needs this key", f"Add `{key}:`")
        elif not needed and key in fields:
            self._report(
                fields[key], f"{path}.{key}", f"{what} has no use for this key", "Delete it"
            )

    def _plan(self, fields: dict[str, Node], path: str) -> Plan:
        primary, secondary, guardrails = None, [], []
        goals: set[str] = set()
        if "primary" in fields:
            primary = self._goal(fields["primary"], f"{path}.primary", goals)
        for i, child in enumerate(self._sequence(fields.get("secondary"), f"{path}.secondary")):
            if goal := self._goal(child, f"{path}.secondary[{i}]", goals):
                secondary.append(goal)
        guarded: set[str] = set()
        for i, child in enumerate(self._sequence(fields.get("guardrails"), f"{path}.guardrails")):
            if guardrail := self._guardrail(child, f"{path}.guardrails[{i}]", guarded):
                guardrails.append(guardrail)
        observe_s = self._positive(
            fields.get("observe_s"), f"{path}.observe_s", DEFAULT_OBSERVE_S, MAX_SECONDS
        )
        planned = self._positive(
            fields.get("planned_units"), f"{path}.planned_units", 0.0, MAX_UNITS, whole=True
        )
        return Plan(primary, tuple(secondary), tuple(guardrails), observe_s, int(planned) or None)

    def _goal(self, node: Node, path: str, used: set[str]) -> Goal | None:
        fields = self._mapping(node, path, GOAL)
        metric = self._used_metric(fields.get("metric"), f"{path}.metric", used)
        effect = self._positive(
            fields.get("minimal_effect"), f"{path}.minimal_effect", 0.0, MAX_LIFT
        )
        return Goal(metric, effect) if metric else None

    def _guardrail(self, node: Node, path: str, used: set[str]) -> Guardrail | None:
        fields = self._mapping(node, path, GUARDRAIL)
        metric = self._used_metric(fields.get("metric"), f"{path}.metric", used)
        margins = [key for key in MARGINS if key in fields]
        if isinstance(node, MappingNode) and len(margins) != 1:
            self._report(
                node,
                path,
                "a guardrail needs a margin" if not margins else "a guardrail has one margin",
                "Write `allowed_harm: 0.05` for 5 % of control's value, or "
                "`allowed_absolute_harm:` with a number in the metric's own unit",
            )
        relative, absolute = (
            self._positive(fields.get(key), f"{path}.{key}", 0.0, most)
            for key, most in MARGINS.items()
        )
        if metric is None or len(margins) != 1:
            return None
        if margins == ["allowed_absolute_harm"]:
            return Guardrail(metric, absolute, absolute=True)
        return Guardrail(metric, relative)

    def _used_metric(self, node: Node | None, path: str, used: set[str]) -> Metric | None:
        """The metric of that name; one with a problem of its own is reported there only."""
        name = self._name(node, path)
        if node is None or not name:
            return None
        if name not in self._metrics and name not in self._wrong_metrics:
            known = self._metrics
            self._report(
                node,
                path,
                f"there is no metric {name!r}",
                _suggestion(name, known) if known else "Declare it in `metrics`",
            )
        elif name in used:
            self._report(node, path, f"{name!r} is judged here already", "List a metric once")
        used.add(name)
        return self._metrics.get(name)

    def _check_exclusion(
        self, experiments: Sequence[Experiment], nodes: Sequence[Node], path: str
    ) -> None:
        """Enabled experiments of a layer share a unit; and, if there is an instant at which both
        run, no bucket and no allow-listed id."""
        for i, one in enumerate(experiments):
            for j, other in enumerate(experiments[:i]):
                if not (one.enabled and other.enabled):
                    continue
                where = f"{path}.experiments[{i}]"
                if one.unit != other.unit:
                    self._report(
                        nodes[i],
                        f"{where}.unit",
                        f"{path}.experiments[{j}] has the unit {other.unit!r}",
                        "Use one unit for all experiments of a layer, or another layer",
                    )
                if one.stop_ms <= other.start_ms or other.stop_ms <= one.start_ms:
                    continue
                lo = max(one.buckets[0], other.buckets[0])
                hi = min(one.buckets[1], other.buckets[1])
                if lo < hi:
                    self._report(
                        nodes[i],
                        f"{where}.buckets",
                        f"buckets [{lo}, {hi}) also belong to {path}.experiments[{j}]",
                        "Give the experiments of a layer separate buckets or times, or another "
                        "layer",
                    )
                for unit in sorted(one.allow_list.keys() & other.allow_list.keys()):
                    self._report(
                        nodes[i],
                        f"{where}.allow_list.{unit}",
                        f"{path}.experiments[{j}] lists the same id",
                        "List an id in one experiment of a layer only",
                    )

    # Single values.

    def _first_use(self, name: str, used: dict[str, str], node: Node, path: str) -> str:
        """`name` if it is new among `used`; empty, and reported, if it is not."""
        if name and name in used:
            self._report(
                node,
                f"{path}.name",
                f"{used[name]} has the same name {name!r}",
                "Give it a name of its own",
            )
            return ""
        used.setdefault(name, self._place(path))
        return name

    def _salt(self, fields: dict[str, Node], path: str, name: str, owner: Node) -> str:
        salt = self._name(fields["salt"], f"{path}.salt") if "salt" in fields else name
        if salt and salt in self._salts:
            self._report(
                fields.get("salt", fields.get("name", owner)),
                f"{path}.salt",
                f"{self._salts[salt]} has the same salt {salt!r} (a name is its own salt), "
                "which would tie their units together",
                "Write a `salt` that nothing else has",
            )
        self._salts.setdefault(salt, self._place(path))
        return salt

    def _name(self, node: Node | None, path: str) -> str:
        if node is None:
            return ""
        name = self._string(node, path)
        if name and not NAME.fullmatch(name):
            self._report(
                node,
                path,
                f"{name!r} is not a name",
                "Use 1 to 64 letters, digits, dots, dashes and underscores",
            )
            return ""
        return name

    def _unit(self, node: Node | None, path: str) -> str:
        if node is None:
            return "user"
        unit = self._string(node, path)
        if unit and unit not in UNITS:
            self._report(node, path, f"{unit!r} is not a unit", "Write `user` or `session`")
        return "session" if unit == "session" else "user"

    def _buckets(self, node: Node | None, path: str) -> tuple[int, int]:
        if node is None:
            return 0, BUCKETS
        plain = [self._plain(child) for child in self._sequence(node, path)]
        bounds = [
            int(text) for tag, text in plain if tag == _INT and re.fullmatch(r"\d{1,5}", text)
        ]
        if len(plain) == len(bounds) == 2 and bounds[0] < bounds[1] <= BUCKETS:
            return bounds[0], bounds[1]
        self._report(
            node,
            path,
            "this is not a range of buckets",
            f"Write [first, end] with 0 <= first < end <= {BUCKETS}; end is not in the range",
        )
        return 0, 0

    def _percent(self, node: Node | None, path: str, default: int) -> int:
        """A percentage as a number of buckets, exactly; `default` is in buckets, too."""
        if node is None:
            return default
        tag, text = self._plain(node)
        if tag in (_INT, _FLOAT) and PERCENT.fullmatch(text) and Decimal(text) <= 100:
            return int(Decimal(text) * 100)
        self._report(
            node,
            path,
            f"{text!r} is not a percentage",
            "Write a number from 0 to 100 with at most two decimals, without a percent sign",
        )
        return 0

    def _instant(self, node: Node | None, path: str, default: float) -> float:
        """A timestamp in ms since the epoch."""
        if node is None:
            return default
        tag, text = self._plain(node)
        if tag in (_TIME, _STR) and (ms := instant_ms(text)) is not None:
            return ms
        self._report(
            node,
            path,
            f"{text!r} is not an instant",
            "Write date, time and zone like 2026-12-01T09:00:00Z or 2026-12-01T10:00:00+01:00",
        )
        return default

    def _choice(self, node: Node | None, path: str, choices: Sequence[str], where: str = "") -> str:
        """One of some words; empty when it is not there, or (reported) another."""
        if node is None:
            return ""
        text = self._string(node, path)
        if text and text not in choices:
            reason = f"{text!r} cannot stand here{where}"
            self._report(node, path, reason, _suggestion(text, choices))
            return ""
        return text

    def _positive(
        self,
        node: Node | None,
        path: str,
        default: float,
        most: float,
        *,
        below: bool = False,
        whole: bool = False,
    ) -> float:
        """A number above 0 and up to `most`, or `below` it."""
        if node is None:
            return default
        value = self._value(node, path)
        if (
            isinstance(value, int if whole else int | float)
            and not isinstance(value, bool)
            and (0 < value < most or (value == most and not below))
        ):
            return float(value)
        self._report(
            node,
            path,
            f"{self._plain(node)[1]!r} is not such a number",
            f"Write a {'whole ' if whole else ''}number above 0 and "
            f"{'below' if below else 'up to'} {most:.15g}",
        )
        return default

    def _number(self, node: Node, path: str) -> float:
        """A finite number as float64, which is what a request's context holds."""
        value = self._value(node, path)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        self._report(
            node,
            path,
            f"{self._plain(node)[1]!r} is not a number",
            "Write a finite number: context values are numbers",
        )
        return 0.0

    def _bool(self, node: Node | None, path: str, default: bool) -> bool:
        if node is None:
            return default
        tag, text = self._plain(node)
        if tag == _BOOL and text in ("true", "false"):
            return text == "true"
        self._report(node, path, f"{text!r} is not a switch", "Write `true` or `false`")
        return default

    def _string(self, node: Node, path: str) -> str:
        """A scalar's text; empty, and reported, for anything that YAML takes for something else."""
        tag, text = self._plain(node)
        if tag == _STR and text:
            return text
        reason = f"{text!r} is not text" if tag and text else "text is missing here"
        self._report(node, path, reason, "Write a name, in quotes if YAML takes it for a value")
        return ""

    def _value(self, node: Node, path: str) -> object:
        """A scalar as the Python value that YAML gives it; the parameter's spec checks it."""
        tag, text = self._plain(node)
        if tag not in (_STR, _INT, _FLOAT, _BOOL):
            return text or None
        if tag in (_INT, _FLOAT) and not NUMBER.fullmatch(text):
            return text  # 18:30, 0x1f, 1_000: numbers to YAML, which nobody means as one
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (ValueError, LookupError):  # an explicit tag that the text does not fit
            return text

    # YAML structure.

    def _compose(self, data: bytes) -> Node | None:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self._add(line, "", "the file is not UTF-8 text", "Save it in UTF-8")
            return None
        try:
            root = yaml.compose(text, _Loader)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self._add(line, "", "there is an invisible control character", "Delete it")
            return None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            reason = error.problem or error.context or "this is not YAML"
            self._add(mark.line + 1 if mark else 1, "", reason, "Correct the YAML syntax here")
            return None
        except RecursionError:
            self._add(1, "", "the file is nested too deeply", "Compare it with the manual")
            return None
        if root is None:
            self._add(
                1, "", "the file is empty", "Write `version: 1` and `layers: []` to run nothing"
            )
        return root

    def _mapping(self, node: Node, path: str, block: Block) -> dict[str, Node]:
        known = names(block)
        before = len(self.problems)
        fields = {str(key.value): child for key, child in self._pairs(node, path)}
        for key, child in list(fields.items()):
            if key not in known:
                self._report(
                    child, _join(path, key), "this key is not known", _suggestion(key, known)
                )
                del fields[key]
        if isinstance(node, MappingNode) or len(self.problems) == before:
            for key in [k.name for k in block if k.required]:
                if key not in fields:
                    self._report(node, _join(path, key), "this key is missing", f"Add `{key}:`")
        return fields

    def _pairs(self, node: Node | None, path: str) -> list[tuple[ScalarNode, Node]]:
        """The entries of a mapping, each key once; empty, and reported, when it is none."""
        if node is None:
            return []
        if not isinstance(node, MappingNode):
            self._report(node, path, "this is not a mapping", "Write `key: value` lines here")
            return []
        pairs: dict[str, tuple[ScalarNode, Node]] = {}
        for key, child in node.value:
            if not isinstance(key, ScalarNode):
                self._report(key, path, "a key must be plain text", "Write `key: value` lines here")
            elif key.value in pairs:
                self._report(
                    key, _join(path, key.value), "this key stands here twice", "Delete one of them"
                )
            else:
                pairs[key.value] = (key, child)
        return list(pairs.values())

    def _sequence(self, node: Node | None, path: str) -> list[Node]:
        if node is None:
            return []
        if not isinstance(node, SequenceNode):
            self._report(
                node, path, "this is not a list", "Write `- ` before every entry, or [] for none"
            )
            return []
        return cast("list[Node]", node.value)

    @staticmethod
    def _plain(node: Node) -> tuple[str, str]:
        """(tag, text) of a scalar; ("", "") for anything else."""
        return (node.tag, node.value) if isinstance(node, ScalarNode) else ("", "")

    def _report(self, node: Node, path: str, reason: str, fix: str) -> None:
        self._add(_line(node), path, reason, fix)

    def _add(self, line: int, path: str, reason: str, fix: str) -> None:
        self.problems.append(Problem(line, path, reason, fix, self._file))

    def _place(self, path: str) -> str:
        """A path for messages about another part, with its file where there are several."""
        return f"{path} of {self._file}" if self._file else path


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _suggestion(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), 1)
    return f"Write `{close[0]}` if you mean that" if close else f"Use one of {', '.join(known)}"
