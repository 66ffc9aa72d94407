"""Layers, experiments and arms, and the contract by which a unit gets its arm.

THE CONTRACT. Clients in any language may compute assignments themselves; the cases in
`tests/cases/assignment.json` pin it. A *unit* is a user id, a session id, or the id of one of the
further units that the file declares (`units`: a household, a device), as UTF-8. `xxh3` is XXH3
64-bit, seed 0, unsigned. An assignment is a function of the file, the ids, the surface, the
context, the user's counts and the instant of the request, and of nothing else.

    holdout bucket    xxh3(holdout salt + ":" + user id) mod 10,000
    layer bucket      xxh3(layer salt + ":" + unit) mod 10,000
    h                 xxh3(experiment salt + ":" + unit)
    arm bucket        h mod 10,000
    enrolment bucket  (h >> 32) mod 10,000

0. A user whose holdout bucket is below 100 * the holdout's percent is in no experiment at all, of
   any unit: the sessions of a held-out user are out, too, and so are the user's requests from a
   household or a device. No list makes an exception. A request without a user id is held out of
   nothing.
   An experiment is *open* to a request iff it is enabled, start <= instant < stop (each bound if
   there is one) and all its conditions hold (targeting.py). The others do not exist for it; their
   buckets stay theirs all the same.
1. A unit named in an open experiment's allow-list gets that arm of it, flagged `overridden`.
2. Otherwise the layer bucket chooses the experiment of the layer: the open one whose `buckets`
   [lo, hi) hold it. There is at most one: enabled experiments share a bucket only if one stops
   before, or at the instant that, the other starts, whatever their order in the file.
3. The arms, in the file's order, own consecutive stripes of the 10,000 arm buckets, 100 per
   percent of weight. The stripe that holds the arm bucket is the unit's arm.
4. The unit is in iff its enrolment bucket < 100 * traffic percent of that arm. Otherwise it has no
   arm in this layer. A unit whose id is empty (no session id) has no arm either.
   An experiment with a ramp has, in every arm, the traffic of the ramp's step in force; as the file
   is read that is the first one. Later ones are in the event log (changes/state.py), and in
   `Experiments.Describe`.
5. An arm that is `stopped`, in the file or by the event log, keeps its stripe and its traffic. Who
   would get it, by 1 or by 4, gets control's name and parameters instead, flagged `overridden`.
   Control is the arm named `control`, else the first; it cannot be stopped.
6. An experiment that interleaves has two arms without stripes: A is the first, B the second. A unit
   is in iff its enrolment bucket < 100 * the experiment's traffic percent. Its arm is
   "interleaved": the lists of both arms are shown as one. Who cannot interleave serves A's
   parameters. While such an experiment is stopped, which only the event log can say, who is in gets
   arm A by its name, flagged `overridden`.

WHY TWO NUMBERS. Stripes depend on weights only and enrolment only grows with traffic, so growing an
arm's traffic never moves a unit that is already in, nor does a new experiment on free buckets.
Growing the stripes themselves cannot do that with three arms or more: growing one arm would have to
leave the units of every other alone, so an arm's units could depend on its own size only; then at
50 % the second arm's are those outside the first arm's 50 %, the third's too, yet they must differ.
The two numbers are independent for a good hash: with h = 2^32 * hi + lo, whatever hi is, lo alone
makes h mod 10,000 uniform to within 3 in a million.

WHY AN INSTANT IS AN ARGUMENT. Compiling the file anew at each start and stop would keep the time
out of the lookup, but processes would take the boundary when each of them notices it, and a record
could not say which side it was on. With the request's own instant (the decision record's
`event_time_ms`) every process agrees to the millisecond and the log can be replayed; it costs two
comparisons, and only for experiments that have a bound.

Changing weights under the same salt would move units, and changing the holdout's salt would swap
who is held out: `moving_changes` finds that, and a running process refuses such a file
(`experiments_file`). Start, stop, conditions, traffic, ramps and the holdout's percent
only let units in or take them out; a unit that comes back gets the arm that it had. An arm is taken
out by stopping it: nobody but its own units gets another one then. Without its stripe the others
would have to be dealt anew.

WHAT ELSE WANTS A NEW SALT. An edit that moves nobody may still make one experiment of two, or one
test of two, and nobody could tell from the report. `moving_changes` finds these as well:

    parameters of an arm with units   units before and after it had different treatments
    the primary metric                choosing it among metrics that were looked at is choosing the
                                      luckiest. The first goal of an experiment without any is free
    a metric in use: whatever of it   the outcomes of all units become others, after a look at them;
                                      a guardrail that is turned round watches over nothing
    planned_units                     tunes the confidence sequences: one that is tuned anew on the
                                      way holds at no level

Free, because every look is right by itself: guardrails and secondary metrics that are added, taken
out or given another margin, `minimal_effect` (the verdicts better and worse do not rest on it).
`observe_s` is free, too, and `remarks` says what it does.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, get_args

from models.yaml_reader.problems import Problem, YamlError
from services.experiments.declare.metrics import (
    DEFAULT_PLANNED_UNITS,
    NO_PLAN,
    Events,
    Metric,
    Plan,
    default_events,
)
from services.experiments.declare.parameters import ParameterSpecs, Value, value_text
from services.experiments.declare.targeting import Condition

BUCKETS = 10_000
USER, SESSION = "user", "session"
WITHOUT_WEIGHTS = ParameterSpecs()  # of what no reader has made, who knows the domain
INTERLEAVED = "interleaved"  # what stands for an arm in the records of an interleaving experiment

Gate = Literal["no_breach", "holds"]
Interleave = Literal["team_draft"]
INTERLEAVES: tuple[str, ...] = get_args(Interleave)
State = Literal["off", "scheduled", "running", "ended"]


class ExperimentsError(YamlError):
    """Experiments files cannot be used; `problems` lists everything that is wrong with them."""


@dataclass(frozen=True)
class Arm:
    """One arm: its stripe [first, end) of the arm buckets and how many enrolment buckets are in."""

    name: str
    first: int
    end: int
    enrolled: int
    parameters: Mapping[str, Value]
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)  # of the parameters
    stopped: bool = False  # its units get control's parameters, flagged `overridden`

    @property
    def weight(self) -> float:
        """Percent of the experiment's units that belong to the arm, whether enrolled or not."""
        return (self.end - self.first) / 100

    @property
    def traffic(self) -> float:
        """Percent of the arm's units that are enrolled."""
        return self.enrolled / 100


@dataclass(frozen=True)
class Ramp:
    """How an experiment's traffic grows by itself; the state of a running one is in `changes`.

    All arms grow alike, so that the split between them stays the same. An experiment as it is read
    stands at the first step: its arms' `enrolled` is `steps[0]`.
    """

    steps: tuple[int, ...]  # enrolment buckets of every arm, ascending
    hold_s: float  # a step lasts at least so long
    min_units: int  # and until so many units first exposed in it have a final outcome
    gate: Gate = "no_breach"  # what must hold: no guardrail is breached, or all are shown to hold


@dataclass(frozen=True)
class Segment:
    """A part of the requests, by conditions on what is known before the answer is made."""

    name: str
    where: tuple[Condition, ...]
    line: int = field(default=0, compare=False)
    file: str = field(default="", compare=False)  # as Problem.file


@dataclass(frozen=True)
class Experiment:
    """One experiment on the layer's buckets [buckets[0], buckets[1])."""

    name: str
    salt: str
    unit: str  # USER, SESSION or a key that the file declares
    buckets: tuple[int, int]
    arms: tuple[Arm, ...]
    allow_list: Mapping[str, str]  # unit id -> arm name
    enabled: bool
    _: KW_ONLY
    line: int = field(default=0, compare=False)
    file: str = field(default="", compare=False)  # as Problem.file
    start_ms: float = -math.inf  # ms since the epoch; -inf: has always been running
    stop_ms: float = math.inf  # the first ms after it; inf: runs until it is taken out
    where: tuple[Condition, ...] = ()  # all must hold
    plan: Plan = NO_PLAN  # what it is judged by; moves nobody
    ramp: Ramp | None = None  # without one traffic is what the arms say
    # Both arms' rankings as one list, for every enrolled unit. Both stripes are empty, and both
    # arms have the same `enrolled`, which is the experiment's.
    interleave: Interleave | None = None
    # Of an interleaving experiment only: nobody is interleaved, who is in gets the first arm,
    # flagged `overridden`. Never in a file; `changes` sets it. Other experiments stop single arms.
    stopped: bool = False
    specs: ParameterSpecs = field(default=WITHOUT_WEIGHTS, compare=False, repr=False)
    events: Events = field(default_factory=default_events, compare=False, repr=False)

    @property
    def control(self) -> str:
        """The arm that others are compared to, and that stopped ones are replaced by.

        The one named `control`, else the first; of an interleaving experiment always the first.
        """
        names = [arm.name for arm in self.arms]
        return "control" if "control" in names and not self.interleave else names[0]

    @property
    def ramp_step(self) -> int:
        """Index of the ramp's step in force, which all arms' `enrolled` is; 0 without a ramp."""
        steps = self.ramp.steps if self.ramp else ()
        return max(0, bisect_right(steps, self.arms[0].enrolled) - 1)

    @property
    def questions(self) -> frozenset[str]:
        """The parameters that any of its arms sets: a request is an exposure if it read one."""
        return frozenset(name for arm in self.arms for name in arm.parameters)

    @property
    def dealt_arms(self) -> tuple[Arm, ...]:
        """The arms that can have units: those with weight, or both that are interleaved."""
        return tuple(arm for arm in self.arms if self.interleave or arm.end > arm.first)

    @property
    def treatments(self) -> tuple[tuple[str, Mapping[str, str]], ...]:
        """What each arm with units does, by its name: the values, as text, of all parameters that
        one of these arms sets otherwise than production."""
        defaults = {name: self.specs.spec_of(name).default for name in sorted(self.questions)}
        set_by = [defaults | dict(arm.parameters) for arm in self.dealt_arms]
        names = [n for n in defaults if any(values[n] != defaults[n] for values in set_by)]
        return tuple(
            (arm.name, {name: value_text(values[name]) for name in names})
            for arm, values in zip(self.dealt_arms, set_by, strict=True)
        )

    @property
    def spans_layer(self) -> bool:
        return self.buckets == (0, BUCKETS)

    @property
    def bounded(self) -> bool:
        """Whether it has a start or a stop."""
        return self.start_ms > -math.inf or self.stop_ms < math.inf

    def state(self, now_ms: float) -> State:
        """What it is doing at an instant."""
        if not self.enabled:
            return "off"
        if now_ms < self.start_ms:
            return "scheduled"
        return "running" if now_ms < self.stop_ms else "ended"


@dataclass(frozen=True)
class Layer:
    """Experiments that exclude each other and together own some parameters."""

    name: str
    salt: str
    parameters: tuple[str, ...]
    experiments: tuple[Experiment, ...]


@dataclass(frozen=True)
class Holdout:
    """The users who are in no experiment: those in the first `buckets` holdout buckets."""

    salt: str
    buckets: int
    line: int = field(default=0, compare=False)
    file: str = field(default="", compare=False)  # as Problem.file

    @property
    def percent(self) -> float:
        return self.buckets / 100


NO_HOLDOUT = Holdout("holdout", 0)


@dataclass(frozen=True)
class ExperimentsConfig:
    """All experiments, valid (services/experiments/declare/config_reader.py makes them)."""

    layers: tuple[Layer, ...] = ()
    holdout: Holdout = NO_HOLDOUT
    metrics: tuple[Metric, ...] = ()
    units: tuple[str, ...] = ()  # further kinds of units, by whose ids experiments may assign
    segments: tuple[Segment, ...] = ()
    specs: ParameterSpecs = field(default=WITHOUT_WEIGHTS, compare=False, repr=False)

    def experiments(self) -> Iterator[tuple[Layer, Experiment]]:
        return ((layer, e) for layer in self.layers for e in layer.experiments)


def moving_changes(old: ExperimentsConfig, new: ExperimentsConfig) -> list[Problem]:
    """Changes from `old` to `new` that would move units from one arm to another, shuffle who is in
    an experiment at all, or make one experiment or test of two (see the module's docstring).

    An experiment is the same one as long as it keeps its salt. Traffic and ramp may change (more
    lets units in, less lets them out), so may its start, stop, conditions, buckets, stopped arms
    and arms without weight. The names and the order of two interleaved arms may not: choices are
    credited to the first and the second. The holdout's percent may change: more takes users out,
    less lets them in. Its salt may not while anything that `old` runs goes on.
    """
    running = {experiment.salt: (layer, experiment) for layer, experiment in old.experiments()}
    problems = []
    for layer, experiment in new.experiments():
        if experiment.salt not in running:
            continue
        old_layer, before = running[experiment.salt]
        changed = [*_moved(old_layer, before, layer, experiment), *_mixed(before, experiment)]
        problems += [
            Problem(
                experiment.line,
                f"experiment {experiment.name}",
                f"{what} changed under the same salt, {why}",
                "Give the experiment a new salt to start it afresh, or take the change back",
                experiment.file,
            )
            for what, why in changed
        ]
    return problems + _holdout_changes(old, new)


def _moved(
    old_layer: Layer, before: Experiment, layer: Layer, after: Experiment
) -> Iterator[tuple[str, str]]:
    """What would move units."""
    why = "which would move units that are or were in"
    stripes, stripes_now = (
        [(arm.name, arm.first, arm.end) for arm in e.dealt_arms] for e in (before, after)
    )
    if before.interleave != after.interleave:
        yield "whether it interleaves", why
    elif stripes != stripes_now:
        yield "the names, order or weights of its arms", why
    if before.unit != after.unit:
        yield "its unit", why
    if old_layer.salt != layer.salt and not (before.spans_layer and after.spans_layer):
        yield "the salt of its layer", why


def _mixed(before: Experiment, after: Experiment) -> Iterator[tuple[str, str]]:
    """What would make one of two experiments or tests, and how."""
    then, now = dict(before.treatments), dict(after.treatments)
    if then.keys() == now.keys() and then != now:
        names = ", ".join(name for name in now if then[name] != now[name])
        yield f"what its arms set ({names})", "so that units of two treatments would count as one"
    old, new = before.plan, after.plan
    primary, primary_now = (p.primary.metric.name if p.primary else "" for p in (old, new))
    if (old.primary or old.secondary) and primary != primary_now:
        yield "its primary metric", "and a metric that is chosen after a look wins too easily"
    metrics = {metric.name: metric for metric in old.metrics}
    for m in new.metrics:
        if metrics.get(m.name, m) != m:
            what = f"the definition of metric {m.name}"
            yield what, "so that the outcomes looked at become others"
    planned, planned_now = (p.planned_units or DEFAULT_PLANNED_UNITS for p in (old, new))
    if (old.metrics or before.interleave) and planned != planned_now:
        yield "planned_units", "and a confidence sequence that is tuned anew holds at no level"


def remarks(old: ExperimentsConfig, new: ExperimentsConfig) -> list[str]:
    """Sentences on changes from `old` to `new` that are no error and mean more than they look."""
    then, now = ({e.salt: (layer, e) for layer, e in c.experiments()} for c in (old, new))
    gone = [pair for salt, pair in then.items() if salt not in now]
    said = []
    for salt, (layer, experiment) in now.items():
        if salt not in then:
            said += [
                f"{experiment.name} stands in the place of {before.name} under another salt (a "
                "name is its own salt): all its users are dealt anew and its statistics begin "
                f"afresh. If that is not meant, write `salt: {before.salt}` in it."
                for old_layer, before in gone
                if layer.name == old_layer.name and _alike(before, experiment)
            ]
            continue
        before = then[salt][1]
        if before.plan.observe_s != experiment.plan.observe_s and before.plan.metrics:
            said.append(
                f"{experiment.name} observes its units for another time (observe_s): the outcomes "
                "of all of them are counted anew, so what was read before is of another metric."
            )
    return said


def _alike(one: Experiment, other: Experiment) -> bool:
    """Whether one experiment seems to be the other under another name or salt."""
    return one.name == other.name or (
        one.buckets[0] < other.buckets[1]
        and other.buckets[0] < one.buckets[1]
        and [arm.name for arm in one.arms] == [arm.name for arm in other.arms]
    )


def _holdout_changes(old: ExperimentsConfig, new: ExperimentsConfig) -> list[Problem]:
    before, after = old.holdout, new.holdout
    if before.salt == after.salt or not (before.buckets and after.buckets):
        return []  # nobody was held out, or nobody will be: users only come in or only go out
    if not {e.salt for _, e in old.experiments()} & {e.salt for _, e in new.experiments()}:
        return []  # none goes on
    return [
        Problem(
            after.line,
            "holdout.salt",
            "the salt changed while experiments run, which would exchange the users who are held "
            "out for others",
            f"Write `salt: {before.salt}` again, or change it when no experiment goes on",
            after.file,
        )
    ]
