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
import heapq
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from yaml.nodes import Node

from services.experiments.declare.config import (
    NO_HOLDOUT,
    Experiment,
    ExperimentsConfig,
    ExperimentsError,
    Holdout,
    Layer,
    Problem,
)
from services.experiments.declare.parameters import ParameterError, spec_of
from services.experiments.declare.reader.claims import Claims
from services.experiments.declare.reader.conditions import ConditionReader
from services.experiments.declare.reader.experiments import ExperimentReader
from services.experiments.declare.reader.metrics import MetricReader
from services.experiments.declare.reader.nodes import INT, Nodes, line_of
from services.experiments.declare.reader.nodes import instant_ms as instant_ms
from services.experiments.declare.schema import FILE, HOLDOUT, LAYER, VERSION

MAX_READS = 10

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


class _Reader:
    """Turns the files into the types of config.py and collects what is wrong on the way."""

    def __init__(self) -> None:
        self._nodes = Nodes()
        self._claims = Claims(self._nodes)
        self._metrics = MetricReader(self._nodes)
        self._conditions = ConditionReader(self._nodes, self._claims)
        self._experiments = ExperimentReader(
            self._nodes, self._claims, self._conditions, self._metrics
        )
        self._layers: dict[str, str] = {}  # name -> place of its first use
        self._owners: dict[str, str] = {}  # parameter -> the layer that owns it
        self._holdout: Holdout | None = None
        self._interleaving: list[tuple[Experiment, str]] = []  # of earlier layers, with its place

    @property
    def problems(self) -> list[Problem]:
        return self._nodes.problems

    def files(self, sources: Sources) -> ExperimentsConfig:
        if not sources:
            self._nodes.add(
                1,
                "",
                "the folder has no *.yaml file",
                "Write one with `version: 1` and `layers: []` to run nothing",
            )
        contents = {}
        # First what experiments of any file may use.
        for self._nodes.file, data in sources.items():
            root = self._nodes.compose(data)
            contents[self._nodes.file] = {} if root is None else self._nodes.mapping(root, "", FILE)
            self._metrics.declared(contents[self._nodes.file].get("metrics"), "metrics")
            self._experiments.declare_units(contents[self._nodes.file].get("units"), "units")
        layers: list[Layer] = []
        for self._nodes.file, fields in contents.items():
            layers += self._one_file(fields)
        return ExperimentsConfig(
            tuple(layers),
            self._holdout or NO_HOLDOUT,
            self._metrics.metrics,
            tuple(self._experiments.units),
            tuple(self._conditions.segments),
        )

    def _one_file(self, fields: dict[str, Node]) -> list[Layer]:
        if "version" in fields and self._nodes.plain(fields["version"]) != (INT, str(VERSION)):
            self._nodes.report(
                fields["version"],
                "version",
                "this version is not known",
                f"Write `version: {VERSION}`",
            )
        if "holdout" in fields:
            self._read_holdout(fields["holdout"], "holdout")
        self._conditions.declare_segments(fields.get("segments"), "segments")
        children = self._nodes.sequence(fields.get("layers"), "layers")
        return [self._layer(child, f"layers[{i}]") for i, child in enumerate(children)]

    def _read_holdout(self, node: Node, path: str) -> None:
        if self._holdout is not None:
            self._nodes.report(
                node,
                path,
                f"{self._holdout.file} has a holdout already",
                "Declare the one holdout in one of the files",
            )
            return
        fields = self._nodes.mapping(node, path, HOLDOUT)
        salt = self._claims.salt(fields, path, NO_HOLDOUT.salt, node)
        buckets = self._nodes.percent(fields.get("percent"), f"{path}.percent", 0)
        self._holdout = Holdout(salt, buckets, line_of(node), self._nodes.file)

    def _layer(self, node: Node, path: str) -> Layer:
        fields = self._nodes.mapping(node, path, LAYER)
        name = self._nodes.name(fields.get("name"), f"{path}.name")
        salt = self._claims.salt(
            fields, path, self._claims.first_use(name, self._layers, node, path), node
        )
        owned = self._owned(fields.get("parameters"), f"{path}.parameters", name)
        experiments, nodes = [], []
        for i, child in enumerate(
            self._nodes.sequence(fields.get("experiments"), f"{path}.experiments")
        ):
            experiments.append(
                self._experiments.experiment(child, f"{path}.experiments[{i}]", owned, name)
            )
            nodes.append(child)
        self._check_exclusion(experiments, nodes, path)
        self._check_interleaving(experiments, nodes, path)
        return Layer(name, salt, tuple(owned), tuple(experiments))

    def _owned(self, node: Node | None, path: str, layer: str) -> list[str]:
        owned = []
        for i, child in enumerate(self._nodes.sequence(node, path)):
            where = f"{path}[{i}]"
            name = self._nodes.string(child, where)
            try:
                spec_of(name)
            except ParameterError as error:
                self._nodes.report(child, where, error.reason, error.fix)
                continue
            if name in self._owners:
                self._nodes.report(
                    child,
                    where,
                    f"{self._owners[name]} already owns {name!r}",
                    "Let one layer own it and move its experiments into that layer",
                )
            self._owners.setdefault(name, self._nodes.place(f"layer {layer!r}"))
            owned.append(name)
        return owned

    def _check_exclusion(
        self, experiments: Sequence[Experiment], nodes: Sequence[Node], path: str
    ) -> None:
        """Enabled experiments of a layer share a unit; and, if there is an instant at which both
        run, no bucket and no allow-listed id."""
        enabled = [i for i, experiment in enumerate(experiments) if experiment.enabled]
        for i in enabled[1:]:
            if experiments[i].unit != (unit := experiments[enabled[0]].unit):
                self._nodes.report(
                    nodes[i],
                    f"{path}.experiments[{i}].unit",
                    f"{path}.experiments[{enabled[0]}] has the unit {unit!r}",
                    "Use one unit for all experiments of a layer, or another layer",
                )
        for j, i in shared_buckets(experiments):
            lo = max(experiments[i].buckets[0], experiments[j].buckets[0])
            hi = min(experiments[i].buckets[1], experiments[j].buckets[1])
            self._nodes.report(
                nodes[i],
                f"{path}.experiments[{i}].buckets",
                f"buckets [{lo}, {hi}) also belong to {path}.experiments[{j}]",
                "Give the experiments of a layer separate buckets or times, or another layer",
            )
        listing: dict[str, list[int]] = {}
        for i in enabled:
            for unit in experiments[i].allow_list:
                for j in listing.setdefault(unit, []):
                    if _overlap(experiments[i], experiments[j]):
                        self._nodes.report(
                            nodes[i],
                            f"{path}.experiments[{i}].allow_list.{unit}",
                            f"{path}.experiments[{j}] lists the same id",
                            "List an id in one experiment of a layer only",
                        )
                listing[unit].append(i)

    def _check_interleaving(
        self, experiments: Sequence[Experiment], nodes: Sequence[Node], path: str
    ) -> None:
        """A request can be interleaved once only, whatever the layers and files; of one layer it is
        in one experiment at most (`_check_exclusion`)."""
        own = []
        for i, experiment in enumerate(experiments):
            if not (experiment.interleave and experiment.enabled):
                continue
            where = f"{path}.experiments[{i}]"
            for other, place in self._interleaving:
                if _overlap(experiment, other):
                    self._nodes.report(
                        nodes[i],
                        f"{where}.interleave",
                        f"{place} interleaves at the same time, and a request can be interleaved "
                        "once",
                        "Give them separate times, put both into one layer on separate buckets, or "
                        "switch one off with `enabled: false`",
                    )
            own.append((experiment, self._nodes.place(where)))
        self._interleaving += own


def shared_buckets(experiments: Sequence[Experiment]) -> list[tuple[int, int]]:
    """The places (j, i), j < i, of the enabled ones that share a bucket at some instant.

    From start to start, those that run then are kept in the order of their buckets, where an
    experiment has its rivals beside it: O(n log n) as long as there are none. Who has rivals is
    kept apart, and everybody who starts later is compared with each of them.
    """
    order = sorted(
        (i for i, e in enumerate(experiments) if e.enabled and e.buckets[0] < e.buckets[1]),
        key=lambda i: (experiments[i].start_ms, i),
    )
    running: list[tuple[int, int, int]] = []  # (first, end, place), no two of them with a bucket
    rivals: list[int] = []
    ending: list[tuple[float, tuple[int, int, int]]] = []  # a heap of the running
    found = set()
    for i in order:
        own = experiments[i]
        while ending and ending[0][0] <= own.start_ms:
            del running[bisect_left(running, heapq.heappop(ending)[1])]
        first, end = own.buckets
        at = bisect_left(running, (first,))
        at -= at > 0 and running[at - 1][1] > first
        beside = at
        while beside < len(running) and running[beside][0] < end:
            beside += 1
        met = [place for _, _, place in running[at:beside]] + [
            j
            for j in rivals
            if _overlap(own, experiments[j])
            and first < experiments[j].buckets[1]
            and experiments[j].buckets[0] < end
        ]
        if met:
            found |= {(min(i, j), max(i, j)) for j in met}
            rivals.append(i)
        else:
            running.insert(at, (first, end, i))
            heapq.heappush(ending, (own.stop_ms, (first, end, i)))
    return sorted(found)


def _overlap(one: Experiment, other: Experiment) -> bool:
    """Whether there is an instant at which both run."""
    return one.start_ms < other.stop_ms and other.start_ms < one.stop_ms
