"""The changes that a person or the worker makes to a running experiment. Pure: each is made of the
declaration and of the state before it, and holds the state after it (`state`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

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


def stop(
    experiment: Experiment,
    state: LiveState,
    arm: str,
    *,
    actor: str,
    reason: str,
    now_ms: float,
    evidence: str = "",
) -> ExperimentChange:
    """The change that stops an arm. ActionRefused if it cannot be stopped or is stopped already."""
    _check_arm(experiment, arm)
    if arm in state.stopped or stopped_in_file(experiment, arm):
        raise ActionRefused(f"{experiment.name}: {arm} is stopped already")
    before = state.pauses.get(arm, ())
    begin = max([int(now_ms), *(int(p.to_ms) for p in before)])  # clocks disagree
    after = replace(state, pauses=dict(state.pauses) | {arm: (*before, Pause(begin))})
    kind = ExperimentChange.ARM_STOPPED
    return _change(
        experiment, kind, after, arm=arm, number=len(before), at_ms=begin, actor=actor,
        reason=reason, evidence=evidence,
    )  # fmt: skip


def stop_all(
    experiment: Experiment,
    state: LiveState,
    arms: Sequence[str],
    *,
    actor: str,
    reason: str,
    now_ms: float,
) -> list[ExperimentChange]:
    """The changes that stop some arms, each upon the one before it. ActionRefused if there is none
    or one cannot be stopped."""
    if not arms:
        raise ActionRefused(f"{experiment.name}: nothing of it is live that could be stopped")
    changes = []
    for arm in arms:
        change = stop(experiment, state, arm, actor=actor, reason=reason, now_ms=now_ms)
        state = state_of(change.state)
        changes.append(change)
    return changes


def resume(
    experiment: Experiment, state: LiveState, arm: str, *, actor: str, reason: str, now_ms: float
) -> ExperimentChange:
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
    end = max([int(now_ms), *(int(p.from_ms) + 1 for p in before)])
    own = tuple(p if p.to_ms < math.inf else Pause(p.from_ms, end) for p in before)
    after = replace(state, pauses=dict(state.pauses) | {arm: own})
    kind = ExperimentChange.ARM_RESUMED
    return _change(
        experiment, kind, after, arm=arm, number=len(before), at_ms=end, actor=actor, reason=reason
    )


def advance(
    experiment: Experiment,
    state: LiveState,
    *,
    actor: str,
    reason: str,
    now_ms: float,
    evidence: str = "",
) -> ExperimentChange:
    """The change to the ramp's next step. ActionRefused if there is none."""
    step = ramp_step(experiment, state) + 1
    if experiment.ramp is None or step >= len(experiment.ramp.steps):
        raise ActionRefused(f"{experiment.name}: there is no further step of a ramp")
    after = replace(state, ramp_step=step, ramp_step_since_ms=int(now_ms))
    kind = ExperimentChange.RAMP_ADVANCED
    return _change(
        experiment, kind, after, number=step, at_ms=int(now_ms), actor=actor, reason=reason,
        evidence=evidence,
    )  # fmt: skip


def _change(
    experiment: Experiment,
    kind: ExperimentChange.Kind,
    after: LiveState,
    *,
    arm: str = "",
    number: int,
    at_ms: int,
    actor: str,
    reason: str,
    evidence: str = "",
) -> ExperimentChange:
    """`number` of the pause or the step: with it who decides the same twice makes one change."""
    name = ExperimentChange.Kind.Name(kind)
    identity = "\0".join([experiment.salt, name, arm, str(number), actor])
    return ExperimentChange(
        change_id=xxhash.xxh3_128_hexdigest(identity.encode()),
        experiment=experiment.name,
        salt=experiment.salt,
        kind=kind,
        arm=arm,
        event_time_ms=at_ms,
        actor=actor,
        reason=reason,
        evidence=evidence,
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
