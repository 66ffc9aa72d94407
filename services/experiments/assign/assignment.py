"""Step 1 of a request: which arms are in force for this user, and so which parameters.

`Assigner` is pure: the same configuration, ids, context, user and instant give the same decision in
every process on every machine (the contract is the docstring of config.py). `experiments_file` has
the one in force.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import xxhash

from protos.tandem.v1 import records_pb2
from services.experiments.declare.config import (
    BUCKETS,
    INTERLEAVED,
    SESSION,
    USER,
    Arm,
    Experiment,
    ExperimentsConfig,
    Interleave,
    Layer,
)
from services.experiments.declare.fingerprints import fingerprint_of
from services.experiments.declare.parameters import Parameters, Value, values_text
from services.experiments.declare.splits import split_of
from services.experiments.declare.targeting import NOTHING, Context, compiled, hold

MAX_CACHED_DECISIONS = 4096
NO_UNITS: Mapping[str, str] = MappingProxyType({})

_xxh3 = xxhash.xxh3_64_intdigest


def xxh3_64(text: str) -> int:
    """XXH3 64-bit with seed 0 of the text's UTF-8 bytes, unsigned."""
    return _xxh3(text.encode())


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Assignment:
    """An arm that a unit is in. There is one object per arm, equal to itself only, so that hashing
    a combination of arms costs next to nothing."""

    layer: str
    experiment: str
    arm: str  # INTERLEAVED: both; then `parameters` and `overrides` are A's
    # By the allow-list, or because the unit's own arm is stopped and it gets control's: such units
    # are left out of statistics.
    overridden: bool
    message: records_pb2.Assignment  # the same for responses and records; never to be changed
    unread_message: records_pb2.Assignment  # the same, flagged `unread`
    # Steps at which a request reads parameters that the experiment changes in any arm.
    read_in: frozenset[str]
    parameters: Mapping[str, Value]  # that the arm sets, by dotted name
    attributes: Mapping[str, Any]  # the same as `ParameterSpecs.split` splits them
    weights: Mapping[str, Any]
    overrides: Mapping[str, str]  # the same as text
    interleaves: Experiment | None = None  # both arms of it
    plain: bool = True  # it sets no weight and does not interleave: asked for each new combination


class InterleavedArms(NamedTuple):
    """Both arms of an interleaving experiment, whose rankings make one list."""

    experiment: str
    method: Interleave
    arm_a: str
    arm_b: str
    a: Parameters
    b: Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What holds for one request. Shared by all requests with the same arms: never change it."""

    assignments: tuple[Assignment, ...]
    messages: tuple[records_pb2.Assignment, ...]
    parameters: Parameters  # with an interleaving experiment: those of its arm A
    overrides: Mapping[str, str]  # the parameters that an arm set, as text, by dotted name
    held_out: bool = False  # by the global holdout: no experiment and production's parameters
    interleaved: InterleavedArms | None = None  # None: one ranking, by `parameters`


class Assigner:
    """Assigns arms by one configuration; immutable but for a bounded cache, thread-safe."""

    def __init__(self, config: ExperimentsConfig) -> None:
        self.config = config
        # Whether a condition of an enabled experiment, or of a segment, looks at the user.
        self.needs_user = any(
            c.of_user for _, e in config.experiments() if e.enabled for c in e.where
        )
        self.segments_need_user = any(c.of_user for s in config.segments for c in s.where)
        self._segments = [(s.name, compiled(s.where)) for s in config.segments]
        self._layers = [mine for layer in config.layers if (mine := _CompiledLayer(layer)).segments]
        self._held_out = config.holdout.buckets
        self._holdout_prefix = f"{config.holdout.salt}:".encode()
        self._cache: dict[tuple[Assignment, ...], Decision] = {}
        production = config.specs.production
        self._weights = production.weights
        self._held = Decision(
            assignments=(), messages=(), parameters=production, overrides={}, held_out=True
        )

    def assign(
        self,
        user_id: str,
        session_id: str = "",
        *,
        now_ms: float,
        surface: str = "",
        context: Context = NOTHING,
        unit_ids: Mapping[str, str] = NO_UNITS,
        user: Context = NOTHING,
    ) -> Decision:
        """The decision for a request at the instant `now_ms`, ms since the epoch.

        An empty id is in no experiment of its unit; `unit_ids` are those of further units, by name.
        `surface`, `context` and `user` (name -> number; the user's features, needed if
        `needs_user`) are what conditions look at.
        """
        of_user, session = user_id.encode(), session_id.encode()
        if (
            of_user
            and self._held_out
            and _xxh3(self._holdout_prefix + of_user) % BUCKETS < self._held_out
        ):
            return self._held
        assignments = []
        for layer in self._layers:
            if layer.by_user:
                unit, name = of_user, user_id
            elif layer.by_session:
                unit, name = session, session_id
            else:
                name = unit_ids.get(layer.unit, "")
                unit = name.encode()
            if not unit:
                continue
            if layer.allowed and name in layer.allowed:
                allowed = layer.allowed_arm(name, now_ms, surface, context, user)
                if allowed is not None:
                    assignments.append(allowed)
                    continue
            bucket = _xxh3(layer.prefix + unit) % BUCKETS
            for experiment in layer.segments[bisect_right(layer.starts, bucket)]:
                if experiment.conditional and not experiment.open(now_ms, surface, context, user):
                    continue
                h = _xxh3(experiment.prefix + unit)
                # The first stripe that ends after the bucket: an empty one ends where it begins.
                enrolled, assignment = experiment.arms[bisect_right(experiment.ends, h % BUCKETS)]
                if (h >> 32) % BUCKETS < enrolled:
                    assignments.append(assignment)
                break
        key = tuple(assignments)
        return self._cache.get(key) or self._decide(key)

    def segments_of(self, surface: str, context: Context, user: Context) -> tuple[str, ...]:
        """The names of the segments that a request is in, in the order of the file.

        `user`: as in `assign`, needed if `segments_need_user`.
        """
        if not self._segments:
            return ()
        return tuple(
            [name for name, tests in self._segments if hold(tests, surface, context, user)]
        )

    def _decide(self, assignments: tuple[Assignment, ...]) -> Decision:
        attributes: dict[str, Any] = {"weights": self._weights}
        overrides: dict[str, str] = {}
        plain = True
        for assignment in assignments:  # disjoint: a parameter has one layer
            attributes.update(assignment.attributes)
            overrides.update(assignment.overrides)
            if not assignment.plain:
                plain = False
        interleaved = None
        if not plain:
            weights = (assignment.weights for assignment in assignments)
            attributes["weights"] = {
                n: w for of in (self._weights, *weights) for n, w in of.items()
            }
        parameters = Parameters(**attributes)  # the reader has checked them
        if not plain:
            interleaved = self._interleaved(assignments, parameters)
        decision = Decision(
            assignments=assignments,
            messages=tuple([a.message for a in assignments]),
            parameters=parameters,
            overrides=overrides,
            interleaved=interleaved,
        )
        if len(self._cache) >= MAX_CACHED_DECISIONS:
            self._cache.clear()
        self._cache[assignments] = decision
        return decision

    def _interleaved(
        self, assignments: tuple[Assignment, ...], parameters: Parameters
    ) -> InterleavedArms | None:
        """Both arms where one of the experiments interleaves; the reader lets no two of them do so
        of one request. `parameters` are those with its arm A."""
        own = next((each for each in assignments if each.interleaves), None)
        if own is None or not (both := own.interleaves) or not both.interleave:
            return None
        a, b = both.arms
        others = [each.parameters for each in assignments if each is not own]
        of_b = {n: v for values in (*others, b.parameters) for n, v in values.items()}
        specs = self.config.specs
        b_parameters = specs.changed(specs.production, of_b)
        return InterleavedArms(both.name, both.interleave, a.name, b.name, parameters, b_parameters)


class _CompiledLayer:
    """A layer's enabled experiments by their buckets, with everything ready that a lookup needs.

    `segments[bisect_right(starts, bucket)]` are the experiments that own a bucket: none, one, or
    several that run one after the other.
    """

    __slots__ = ("allowed", "by_session", "by_user", "prefix", "segments", "starts", "unit")

    def __init__(self, layer: Layer) -> None:
        enabled = [e for e in layer.experiments if e.enabled]
        experiments = [(e, _CompiledExperiment(layer, e)) for e in enabled]
        self.unit = enabled[0].unit if enabled else USER  # the reader: that of all of them
        self.by_user, self.by_session = self.unit == USER, self.unit == SESSION
        self.prefix = f"{layer.salt}:".encode()
        self.starts = sorted({bound for e in enabled for bound in e.buckets})
        self.segments: list[tuple[_CompiledExperiment, ...]] = [
            tuple(c for e, c in experiments if e.buckets[0] <= start < e.buckets[1])
            for start in self.starts
        ]
        if self.segments:
            self.segments.insert(0, ())  # the buckets below every experiment's
        self.allowed: dict[str, list[tuple[_CompiledExperiment, Assignment]]] = {}
        for experiment, c in experiments:
            for unit, arm in experiment.allow_list.items():
                self.allowed.setdefault(unit, []).append((c, c.overridden[arm]))

    def allowed_arm(
        self, unit: str, now_ms: float, surface: str, context: Context, user: Context
    ) -> Assignment | None:
        """The arm that an allow-list gives a listed unit in the experiments open to the request."""
        for experiment, assignment in self.allowed[unit]:
            if not experiment.conditional or experiment.open(now_ms, surface, context, user):
                return assignment
        return None


class _CompiledExperiment:
    def __init__(self, layer: Layer, experiment: Experiment) -> None:
        self.prefix = f"{experiment.salt}:".encode()
        overridden = {
            arm.name: _assignment(layer, experiment, arm, overridden=True)
            for arm in experiment.arms
        }
        instead = overridden[experiment.control]
        # What the allow-list gives: a stopped arm is nobody's, not even a listed unit's.
        self.overridden = {
            arm.name: instead if arm.stopped else overridden[arm.name] for arm in experiment.arms
        }
        stripes = experiment.arms
        if experiment.interleave:  # one stripe for everybody, in place of two empty ones
            both = replace(stripes[0], name=INTERLEAVED, end=BUCKETS, stopped=experiment.stopped)
            stripes = (both,)
        self.ends = [arm.end for arm in stripes]
        self.arms = [
            (
                arm.enrolled,
                instead if arm.stopped else _assignment(layer, experiment, arm, overridden=False),
            )
            for arm in stripes
        ]
        self.start_ms, self.stop_ms = experiment.start_ms, experiment.stop_ms
        self.tests = compiled(experiment.where)
        self.conditional = experiment.bounded or bool(experiment.where)

    def open(self, now_ms: float, surface: str, context: Context, user: Context) -> bool:
        """Whether a request at this instant may be in."""
        return self.start_ms <= now_ms < self.stop_ms and hold(self.tests, surface, context, user)


def _assignment(layer: Layer, experiment: Experiment, arm: Arm, overridden: bool) -> Assignment:
    message = records_pb2.Assignment(
        layer=layer.name,
        experiment=experiment.name,
        arm=arm.name,
        overridden=overridden,
        unit=experiment.unit,
        salt=experiment.salt,
        split=split_of(experiment),
        fingerprint=fingerprint_of(experiment),
    )
    unread = records_pb2.Assignment(unread=True)
    unread.MergeFrom(message)
    attributes, weights = experiment.specs.split(arm.parameters)
    interleaves = bool(experiment.interleave) and not overridden
    return Assignment(
        layer=layer.name,
        experiment=experiment.name,
        arm=arm.name,
        overridden=overridden,
        message=message,
        unread_message=unread,
        read_in=frozenset(
            step for name in experiment.questions for step in experiment.specs.spec_of(name).read_in
        ),
        parameters=arm.parameters,
        attributes=attributes,
        weights=weights,
        overrides=values_text(arm.parameters),
        interleaves=experiment if interleaves else None,
        plain=not (weights or interleaves),
    )
