"""Layers, experiments and arms, and the contract by which a unit gets its arm.

THE CONTRACT. Clients in any language may compute assignments themselves; the cases in
`tests/cases/assignment.json` pin it. A *unit* is a user id or a session id, as UTF-8. `xxh3` is
XXH3 64-bit, seed 0, unsigned.

    layer bucket      xxh3(layer salt + ":" + unit) mod 10,000
    h                 xxh3(experiment salt + ":" + unit)
    arm bucket        h mod 10,000
    enrolment bucket  (h >> 32) mod 10,000

1. A unit named in an enabled experiment's allow-list gets that arm of it, flagged `overridden`.
2. Otherwise the layer bucket chooses the experiment of the layer: the enabled one whose `buckets`
   [lo, hi) hold it; there is at most one.
3. The arms, in the file's order, own consecutive stripes of the 10,000 arm buckets, 100 per
   percent of weight. The stripe that holds the arm bucket is the unit's arm.
4. The unit is in iff its enrolment bucket < 100 * traffic percent of that arm. Otherwise it has no
   arm in this layer. A unit whose id is empty (no session id) has no arm either.

WHY TWO NUMBERS. Stripes depend on weights only and enrolment only grows with traffic, so growing an
arm's traffic never moves a unit that is already in, nor does a new experiment on free buckets.
Growing the stripes themselves cannot do that with three arms or more: growing one arm would have to
leave the units of every other alone, so an arm's units could depend on its own size only; then at
50 % the second arm's are those outside the first arm's 50 %, the third's too, yet they must differ.
The two numbers are independent for a good hash: with h = 2^32 * hi + lo, whatever hi is, lo alone
makes h mod 10,000 uniform to within 3 in a million.

Changing weights under the same salt would move units: `moving_changes` finds that, and a running
process refuses such a file (`assignment.ExperimentsFile`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from services.experiments.parameters import Value

BUCKETS = 10_000

Unit = Literal["user", "session"]


@dataclass(frozen=True)
class Problem:
    """One error of an experiments file: where it is, why it is one, and how to repair it."""

    line: int
    path: str
    reason: str
    fix: str

    def text(self, file: str) -> str:
        where = f"{self.path}: " if self.path else ""
        return f"{file}:{self.line}: {where}{self.reason}. {self.fix}."


class ExperimentsError(Exception):
    """An experiments file cannot be used; `problems` lists everything that is wrong with it."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = sorted(problems, key=lambda p: p.line)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line per problem: `file:line: path: reason. fix.`"""
        return [problem.text(self.file) for problem in self.problems]


@dataclass(frozen=True)
class Arm:
    """One arm: its stripe [first, end) of the arm buckets and how many enrolment buckets are in."""

    name: str
    first: int
    end: int
    enrolled: int
    parameters: Mapping[str, Value]
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)  # of the parameters

    @property
    def weight(self) -> float:
        """Percent of the experiment's units that belong to the arm, whether enrolled or not."""
        return (self.end - self.first) / 100

    @property
    def traffic(self) -> float:
        """Percent of the arm's units that are enrolled."""
        return self.enrolled / 100


@dataclass(frozen=True)
class Experiment:
    """One experiment on the layer's buckets [buckets[0], buckets[1])."""

    name: str
    salt: str
    unit: Unit
    buckets: tuple[int, int]
    arms: tuple[Arm, ...]
    allow_list: Mapping[str, str]  # unit id -> arm name
    enabled: bool
    line: int = field(default=0, compare=False)

    @property
    def spans_layer(self) -> bool:
        return self.buckets == (0, BUCKETS)


@dataclass(frozen=True)
class Layer:
    """Experiments that exclude each other and together own some parameters."""

    name: str
    salt: str
    parameters: tuple[str, ...]
    experiments: tuple[Experiment, ...]


@dataclass(frozen=True)
class ExperimentsConfig:
    """A whole, valid experiments file (services/experiments/config_reader.py makes them)."""

    layers: tuple[Layer, ...] = ()

    def experiments(self) -> Iterator[tuple[Layer, Experiment]]:
        return ((layer, e) for layer in self.layers for e in layer.experiments)


def moving_changes(old: ExperimentsConfig, new: ExperimentsConfig) -> list[Problem]:
    """Changes from `old` to `new` that would move units from one arm to another, or shuffle who is
    in an experiment at all.

    An experiment is the same one as long as it keeps its salt. Traffic may change (more lets units
    in, less lets them out), so may its buckets, its parameters and arms without weight.
    """
    running = {experiment.salt: (layer, experiment) for layer, experiment in old.experiments()}
    problems = []
    for layer, experiment in new.experiments():
        if experiment.salt not in running:
            continue
        old_layer, before = running[experiment.salt]
        changed = []
        if _stripes(before) != _stripes(experiment):
            changed.append("the names, order or weights of its arms")
        if before.unit != experiment.unit:
            changed.append("its unit")
        if old_layer.salt != layer.salt and not (before.spans_layer and experiment.spans_layer):
            changed.append("the salt of its layer")
        problems += [
            Problem(
                experiment.line,
                f"experiment {experiment.name}",
                f"{what} changed while it runs, which would move units that are already in",
                "Give the experiment a new salt to start it afresh, or take the change back",
            )
            for what in changed
        ]
    return problems


def _stripes(experiment: Experiment) -> list[tuple[str, int, int]]:
    return [(a.name, a.first, a.end) for a in experiment.arms if a.end > a.first]
