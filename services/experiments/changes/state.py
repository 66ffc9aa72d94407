"""What holds of running experiments beside their file: stopped arms and steps of ramps.

The event log's topic `experiments` holds every change (records.proto, ExperimentChange), each with
the whole state that its writer knew after it. Routers and the worker follow the topic and put the
states into the file's declarations. Pure: making changes is in `actions`, reading and writing them
in `log`.

WHICH STATE HOLDS. The join of the states of all changes of a salt: of the n-th pause of an arm the
earliest beginning and the earliest end (one that goes on ends at infinity), of ramp steps the
highest, of equal ones since the earliest instant. Each of these is commutative, associative and
idempotent, so neither the order of delivery nor a change that comes twice matters. While one
writer writes after the other, it is the state of the newest change. When two write at once without
knowing of each other (a person stops an arm while the worker advances the ramp), the newest alone
would take the other back; the join keeps both.

WHAT IS NOT GUARANTEED. A step is never taken back and a pause never undone but by its end: who
wants that gives the experiment a new salt. A state of a salt that the file does not have does
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import NamedTuple

from protos.tandem.v1.records_pb2 import ArmPause, ExperimentChange, ExperimentState
from services.experiments.changes import poison
from services.experiments.declare.config import INTERLEAVED, Experiment, ExperimentsConfig


class Epoch(NamedTuple):
    """A time in which the same arms of an experiment were live; it ends when the next begins."""

    start_ms: float
    stopped: frozenset[str] = frozenset()


class Pause(NamedTuple):
    """A time in which an arm was stopped; one that goes on ends at infinity."""

    from_ms: float
    to_ms: float = math.inf


_NEVER = Pause(math.inf, math.inf)


@dataclass(frozen=True)
class LiveState:
    """What holds for an experiment beside its declaration."""

    pauses: Mapping[str, tuple[Pause, ...]] = field(default_factory=dict)  # by arm, one by one
    ramp_step: int = 0
    ramp_step_since_ms: int = 0  # 0: since the experiment began

    @property
    def stopped(self) -> frozenset[str]:
        """The arms that are stopped now."""
        return frozenset(arm for arm, own in self.pauses.items() if _goes_on(own))

    @property
    def resumed_ms(self) -> Mapping[str, float]:
        """When each arm that was stopped and is live again was resumed for the last time."""
        return {
            arm: max(pause.to_ms for pause in own)
            for arm, own in self.pauses.items()
            if own and not _goes_on(own)
        }


AT_START = LiveState()


def joined(one: LiveState, other: LiveState) -> LiveState:
    """The state of which both are a part (see the module's docstring)."""
    pauses = {
        arm: tuple(
            Pause(min(a.from_ms, b.from_ms), min(a.to_ms, b.to_ms))
            for a, b in zip_longest(
                one.pauses.get(arm, ()), other.pauses.get(arm, ()), fillvalue=_NEVER
            )
        )
        for arm in sorted(one.pauses.keys() | other.pauses.keys())
    }
    step, since = max((s.ramp_step, -s.ramp_step_since_ms) for s in (one, other))
    return LiveState(pauses, step, -since)


def state_of(message: ExperimentState) -> LiveState:
    """The state that a message carries."""
    pauses: dict[str, tuple[Pause, ...]] = {}
    for p in message.pauses:
        pause = Pause(p.from_ms, p.to_ms if p.to_ms else math.inf)
        pauses[p.arm] = (*pauses.get(p.arm, ()), pause)
    return LiveState(pauses, message.ramp_step, message.ramp_step_since_ms)


def message_of(state: LiveState) -> ExperimentState:
    """The message that `state_of` reads back."""
    return ExperimentState(
        pauses=[
            ArmPause(arm=arm, from_ms=int(p.from_ms), to_ms=_finite_ms(p.to_ms))
            for arm, own in sorted(state.pauses.items())
            for p in own
        ],
        ramp_step=state.ramp_step,
        ramp_step_since_ms=state.ramp_step_since_ms,
    )


class Changes:
    """The changes that are known. The same set of them gives the same states and the same audit,
    in whatever order and however often they came."""

    def __init__(self, changes: Iterable[ExperimentChange] = ()) -> None:
        self._by_id: dict[str, ExperimentChange] = {}
        self._states: dict[str, LiveState] = {}
        for change in changes:
            self.add(change)

    def add(self, change: ExperimentChange) -> bool:
        """Take in a change; whether its id was unknown. ValueError if it cannot be meant
        (`poison`), with the reason.

        Of changes with one id and different contents (two workers decided the same at once) the
        audit has the earliest.
        """
        if reason := poison.of_change(change):
            raise ValueError(reason)
        self._states[change.salt] = joined(self.state(change.salt), state_of(change.state))
        known = self._by_id.get(change.change_id)
        if known is None or _precedence(change) < _precedence(known):
            self._by_id[change.change_id] = change
        return known is None

    def states(self) -> dict[str, LiveState]:
        """By salt."""
        return dict(self._states)

    def state(self, salt: str) -> LiveState:
        """Of one salt, also of one that nothing was done to."""
        return self._states.get(salt, AT_START)

    def all(self) -> list[ExperimentChange]:
        """In the order in which they were made."""
        return sorted(self._by_id.values(), key=_precedence)

    def of(self, salt: str) -> list[ExperimentChange]:
        """Those of one salt, in the order in which they were made."""
        return [change for change in self.all() if change.salt == salt]


def in_force(config: ExperimentsConfig, states: Mapping[str, LiveState]) -> ExperimentsConfig:
    """The file's declarations with what has changed since; `config` itself if nothing has.

    `states` by salt; an experiment without one is at the first step of its ramp, if it has one.
    """
    layers = tuple(
        replace(
            layer,
            experiments=tuple(
                experiment_in_force(e, states.get(e.salt, AT_START)) for e in layer.experiments
            ),
        )
        for layer in config.layers
    )
    return config if layers == config.layers else replace(config, layers=layers)


def experiment_in_force(experiment: Experiment, state: LiveState) -> Experiment:
    """One declaration with what has changed since. Its control is never stopped."""
    stopped, ramp = state.stopped, experiment.ramp
    arms = tuple(
        replace(
            arm,
            stopped=arm.stopped or (arm.name in stopped and arm.name in stoppable(experiment)),
            enrolled=ramp.steps[ramp_step(experiment, state)] if ramp else arm.enrolled,
        )
        for arm in experiment.arms
    )
    off = experiment.stopped or bool(experiment.interleave and INTERLEAVED in stopped)
    if arms == experiment.arms and off == experiment.stopped:
        return experiment
    return replace(experiment, arms=arms, stopped=off)


def ramp_step(experiment: Experiment, state: LiveState) -> int:
    """Index of the ramp's step in force: the last one if the file has fewer now. 0 without one."""
    return min(state.ramp_step, len(experiment.ramp.steps) - 1) if experiment.ramp else 0


def at_last_step(experiment: Experiment, state: LiveState) -> bool:
    """Whether there is no further step of a ramp."""
    ramp = experiment.ramp
    return ramp is None or ramp_step(experiment, state) == len(ramp.steps) - 1


def stoppable(experiment: Experiment) -> tuple[str, ...]:
    """The names of the arms that can be stopped: the treatments, or the interleaving as a whole."""
    if experiment.interleave:
        return (INTERLEAVED,)
    return tuple(arm.name for arm in experiment.arms if arm.name != experiment.control)


def live_arms(experiment: Experiment, state: LiveState) -> list[str]:
    """What could be stopped and is not, by a change or in the file."""
    return [
        name
        for name in stoppable(experiment)
        if name not in state.stopped and not stopped_in_file(experiment, name)
    ]


def stopped_in_file(experiment: Experiment, arm: str) -> bool:
    """Whether the file itself says that an arm, or the interleaving, is stopped."""
    if experiment.interleave:
        return experiment.stopped
    return any(a.stopped for a in experiment.arms if a.name == arm)


def epochs(state: LiveState) -> tuple[Epoch, ...]:
    """The times between which the set of stopped arms changed; the first begins at -infinity."""
    return _epochs(state.pauses)


def judged_epochs(state: LiveState) -> tuple[Epoch, ...]:
    """The epochs as guardrails and sample ratios that may stop an arm are judged by.

    An arm that was resumed counts as stopped until then: its test begins anew and rests on units
    that were first exposed since. Otherwise the evidence that has stopped it would do so again.
    Each resumption is a further chance of a false alarm, so it is left to people.
    """
    return _epochs(
        dict(state.pauses)
        | {arm: (Pause(-math.inf, to_ms),) for arm, to_ms in state.resumed_ms.items()}
    )


def _epochs(pauses: Mapping[str, tuple[Pause, ...]]) -> tuple[Epoch, ...]:
    real = [(arm, p) for arm, own in pauses.items() for p in own if p.from_ms < p.to_ms]
    cuts = {-math.inf} | {ms for _, p in real for ms in p if ms < math.inf}
    found: list[Epoch] = []
    for cut in sorted(cuts):
        stopped = frozenset(arm for arm, p in real if p.from_ms <= cut < p.to_ms)
        if not found or found[-1].stopped != stopped:
            found.append(Epoch(cut, stopped))
    return tuple(found)


def _goes_on(own: tuple[Pause, ...]) -> bool:
    return any(pause.to_ms == math.inf for pause in own)


def _finite_ms(ms: float) -> int:
    return int(ms) if ms < math.inf else 0


def _precedence(change: ExperimentChange) -> tuple[int, str, bytes]:
    content = change.SerializeToString(deterministic=True)
    return change.event_time_ms, change.change_id, content
