"""The changes that a person or the worker makes to a running experiment. Pure: each is made of the
declaration and of the state before it, and holds the state after it (`state`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import xxhash

from protos.tandem.v1.records_pb2 import ExperimentChange
from services.experiments.changes.state import (
    LiveState,
    Pause,
    message_of,
    ramp_step,
    state_of,
    stoppable,
    stopped_in_file,
)
from services.experiments.declare.config import Experiment


class ActionRefused(Exception):
    """What was asked for cannot be done; the message says why and what to do instead."""


class By(NamedTuple):
    """Who makes a change, why and when."""

    actor: str
    reason: str
    now_ms: float
    evidence: str = ""  # JSON


def stop(experiment: Experiment, state: LiveState, arm: str, by: By) -> ExperimentChange:
    """The change that stops an arm. ActionRefused if it cannot be stopped or is stopped already."""
    _check_arm(experiment, arm)
    if arm in state.stopped or stopped_in_file(experiment, arm):
        raise ActionRefused(f"{experiment.name}: {arm} is stopped already")
    before = state.pauses.get(arm, ())
    begin = max([int(by.now_ms), *(int(p.to_ms) for p in before)])  # clocks disagree
    after = replace(state, pauses=dict(state.pauses) | {arm: (*before, Pause(begin))})
    kind = ExperimentChange.ARM_STOPPED
    return _change(experiment, kind, after, by, arm=arm, number=len(before), at_ms=begin)


def stop_all(
    experiment: Experiment, state: LiveState, arms: Mapping[str, By]
) -> list[ExperimentChange]:
    """The changes that stop some arms, each upon the one before it. ActionRefused if there is none
    or one cannot be stopped."""
    if not arms:
        raise ActionRefused(f"{experiment.name}: nothing of it is live that could be stopped")
    changes = []
    for arm, by in arms.items():
        change = stop(experiment, state, arm, by)
        state = state_of(change.state)
        changes.append(change)
    return changes


def resume(experiment: Experiment, state: LiveState, arm: str, by: By) -> ExperimentChange:
    """The change that lets an arm's units have it again. ActionRefused if it is not stopped."""
    _check_arm(experiment, arm)
    if stopped_in_file(experiment, arm):
        raise ActionRefused(
            f"{experiment.name}: {arm} is stopped in the experiments file. "
            "Take `stopped: true` out of it"
        )
    if arm not in state.stopped:
        raise ActionRefused(f"{experiment.name}: {arm} is not stopped")
    before = state.pauses[arm]
    end = max([int(by.now_ms), *(int(p.from_ms) + 1 for p in before)])
    own = tuple(p if p.to_ms < math.inf else Pause(p.from_ms, end) for p in before)
    after = replace(state, pauses=dict(state.pauses) | {arm: own})
    kind = ExperimentChange.ARM_RESUMED
    return _change(experiment, kind, after, by, arm=arm, number=len(before), at_ms=end)


def advance(experiment: Experiment, state: LiveState, by: By) -> ExperimentChange:
    """The change to the ramp's next step. ActionRefused if there is none."""
    step = ramp_step(experiment, state) + 1
    if experiment.ramp is None or step >= len(experiment.ramp.steps):
        raise ActionRefused(f"{experiment.name}: there is no further step of a ramp")
    after = replace(state, ramp_step=step, ramp_step_since_ms=int(by.now_ms))
    kind = ExperimentChange.RAMP_ADVANCED
    return _change(experiment, kind, after, by, number=step, at_ms=int(by.now_ms))


def _change(
    experiment: Experiment,
    kind: ExperimentChange.Kind,
    after: LiveState,
    by: By,
    *,
    arm: str = "",
    number: int,
    at_ms: int,
) -> ExperimentChange:
    """`number` of the pause or the step: with it who decides the same twice makes one change."""
    name = ExperimentChange.Kind.Name(kind)
    identity = "\0".join([experiment.salt, name, arm, str(number), by.actor])
    return ExperimentChange(
        change_id=xxhash.xxh3_128_hexdigest(identity.encode()),
        experiment=experiment.name,
        salt=experiment.salt,
        kind=kind,
        arm=arm,
        event_time_ms=at_ms,
        actor=by.actor,
        reason=by.reason,
        evidence=by.evidence,
        state=message_of(after),
    )


def _check_arm(experiment: Experiment, arm: str) -> None:
    known = stoppable(experiment)
    if arm in known:
        return
    if arm == experiment.control and not experiment.interleave:
        raise ActionRefused(
            f"{experiment.name}: {arm} is the control, which stopped arms fall back to. To end the "
            "experiment write `enabled: false` in the experiments file"
        )
    raise ActionRefused(
        f"{experiment.name} has no arm {arm!r} that can be stopped. "
        f"Use one of {', '.join(known) or 'those you declare beside control'}"
    )
