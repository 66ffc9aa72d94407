"""States from changes: laws that hold for every history, every delivery, every pair of writers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1.records_pb2 import ExperimentChange
from services.experiments.assign.assignment import Assigner
from services.experiments.changes import actions
from services.experiments.changes.actions import ActionRefused
from services.experiments.changes.state import (
    AT_START,
    Changes,
    Epoch,
    LiveState,
    Pause,
    epochs,
    experiment_in_force,
    in_force,
    joined,
    judged_epochs,
    message_of,
    state_of,
)
from services.experiments.declare.config import (
    INTERLEAVED,
    Arm,
    Experiment,
    ExperimentsConfig,
    Layer,
    Ramp,
)

ARMS = (
    Arm("control", 0, 4000, 100, {}),
    Arm("b", 4000, 7000, 100, {"rerank.diversity": 0.5}),
    Arm("c", 7000, 10_000, 100, {"rerank.diversity": 0.9}),
)
EXPERIMENT = Experiment(
    "mix", "salt", "user", (0, 10_000), ARMS, {}, True, ramp=Ramp((100, 500, 10_000), 60.0, 10)
)
CONFIG = ExperimentsConfig((Layer("value", "value", ("rerank.diversity",), (EXPERIMENT,)),))

Step = Callable[[LiveState, float, str], ExperimentChange]

STEPS: dict[str, Step] = {
    "stop b": lambda s, t, who: actions.stop(EXPERIMENT, s, "b", actions.By(who, "r", t)),
    "stop c": lambda s, t, who: actions.stop(EXPERIMENT, s, "c", actions.By(who, "r", t)),
    "resume b": lambda s, t, who: actions.resume(EXPERIMENT, s, "b", actions.By(who, "r", t)),
    "resume c": lambda s, t, who: actions.resume(EXPERIMENT, s, "c", actions.By(who, "r", t)),
    "advance": lambda s, t, who: actions.advance(EXPERIMENT, s, actions.By(who, "r", t)),
}
PLANS = st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 50)), max_size=12)


def history(
    plan: list[tuple[str, int]], start: LiveState = AT_START, who: str = "worker", at: float = 1e12
) -> list[ExperimentChange]:
    """What one writer makes of a plan: what is refused it does not do."""
    changes, state = [], start
    for name, later in plan:
        at += later  # or in the same millisecond
        try:
            change = STEPS[name](state, at, who)
        except ActionRefused:
            continue
        state = state_of(change.state)
        changes.append(change)
    return changes


def newest_state(changes: list[ExperimentChange]) -> LiveState:
    return state_of(changes[-1].state) if changes else AT_START


@st.composite
def deliveries(draw: st.DrawFn, changes: list[ExperimentChange]) -> list[ExperimentChange]:
    """All of the changes, in any order, some of them several times."""
    again = draw(st.lists(st.sampled_from(changes), max_size=8)) if changes else []
    return draw(st.permutations([*changes, *again]))


@given(PLANS, st.data())
def test_the_state_of_one_writer_is_that_of_its_newest_change_however_delivered(
    plan: list[tuple[str, int]], data: st.DataObject
) -> None:
    changes = history(plan)
    known = Changes(data.draw(deliveries(changes)))
    assert known.states().get("salt", AT_START) == newest_state(changes)
    assert len(known.all()) == len(changes)


@given(PLANS, PLANS, PLANS, st.data())
def test_nothing_that_two_writers_do_at_once_is_lost(
    before: list[tuple[str, int]],
    mine: list[tuple[str, int]],
    yours: list[tuple[str, int]],
    data: st.DataObject,
) -> None:
    common = history(before)
    start = newest_state(common)
    ours = history(mine, start, "worker", 2e12), history(yours, start, "ann", 2e12 + 7)
    everything = [*common, *ours[0], *ours[1]]
    one = Changes(data.draw(deliveries(everything))).states().get("salt", AT_START)
    other = Changes(data.draw(deliveries(everything))).states().get("salt", AT_START)
    assert one == other
    assert one.ramp_step == max(newest_state(h or common).ramp_step for h in ours)
    for h in ours:
        own = newest_state(h or common)
        for arm, pauses in own.pauses.items():
            found = one.pauses[arm]
            assert len(found) >= len(pauses)
            assert all(f.from_ms <= p.from_ms for f, p in zip(found, pauses, strict=False))
            assert all(f.to_ms <= p.to_ms for f, p in zip(found, pauses, strict=False))


@given(PLANS, PLANS, PLANS)
def test_joining_is_commutative_associative_and_idempotent(
    x: list[tuple[str, int]], y: list[tuple[str, int]], z: list[tuple[str, int]]
) -> None:
    a, b, c = (newest_state(history(p, who=w)) for p, w in ((x, "a"), (y, "b"), (z, "c")))
    assert joined(a, b) == joined(b, a)
    assert joined(joined(a, b), c) == joined(a, joined(b, c))
    assert joined(a, a) == joined(a, AT_START) == a


def test_a_ramp_step_does_not_take_back_a_stop_that_its_writer_did_not_know() -> None:
    stopped = STEPS["stop b"](AT_START, 1000, "ann")
    advanced = STEPS["advance"](AT_START, 2000, "worker")  # newer, and of a state without the stop
    state = Changes([stopped, advanced]).states()["salt"]
    assert state.stopped == {"b"}
    assert state.ramp_step == 1


@given(PLANS)
def test_the_same_decision_made_twice_is_one_change(plan: list[tuple[str, int]]) -> None:
    once, again = history(plan), history(plan, at=1e12 + 250)  # two workers, two clocks
    known = Changes([*again, *once])
    assert known.all() == Changes(once).all()
    assert [c.change_id for c in once] == [c.change_id for c in again]
    assert len({c.change_id for c in once}) == len(once)
    state = known.states().get("salt", AT_START)
    assert state.stopped == newest_state(once).stopped
    assert {a: len(p) for a, p in state.pauses.items()} == {
        a: len(p) for a, p in newest_state(once).pauses.items()
    }


@given(PLANS)
def test_a_state_survives_its_message(plan: list[tuple[str, int]]) -> None:
    state = newest_state(history(plan))
    assert state_of(message_of(state)) == state


@given(PLANS)
def test_epochs_ascend_from_the_beginning_of_time_and_say_who_was_stopped(
    plan: list[tuple[str, int]],
) -> None:
    state = newest_state(history(plan))
    found = epochs(state)
    assert found[0].start_ms == -math.inf
    starts = [epoch.start_ms for epoch in found]
    assert starts == sorted(set(starts))
    assert found[-1].stopped == state.stopped
    instants = [ms for own in state.pauses.values() for p in own for ms in p if ms < math.inf]
    for at in [*instants, *(ms - 1 for ms in instants)]:
        epoch = [e for e in found if e.start_ms <= at][-1]
        assert epoch.stopped == {
            arm for arm, own in state.pauses.items() if any(p.from_ms <= at < p.to_ms for p in own)
        }


@given(PLANS)
def test_a_resumed_arm_is_judged_by_what_came_since(plan: list[tuple[str, int]]) -> None:
    state = newest_state(history(plan))
    for arm, resumed_ms in state.resumed_ms.items():
        for epoch in judged_epochs(state):
            assert (arm in epoch.stopped) == (epoch.start_ms < resumed_ms)
    assert judged_epochs(state)[-1].stopped == state.stopped


def test_a_step_of_the_ramp_begins_no_epoch() -> None:
    state = LiveState({"b": (Pause(5, 9),)}, 1, 7)
    assert epochs(state) == (Epoch(-math.inf), Epoch(5, frozenset("b")), Epoch(9))


def test_without_changes_the_file_is_in_force_and_at_the_first_step() -> None:
    assert in_force(CONFIG, {}) is CONFIG
    assert in_force(CONFIG, {"another salt": LiveState({"b": (Pause(1),)}, 2, 1)}) is CONFIG


@given(st.integers(0, 9))
def test_a_ramps_step_is_every_arms_traffic_and_the_last_one_stays(step: int) -> None:
    live = experiment_in_force(EXPERIMENT, LiveState({}, step, 1))
    assert {arm.enrolled for arm in live.arms} == {(100, 500, 10_000)[min(step, 2)]}


def test_a_stopped_arm_is_flagged_and_control_never_is() -> None:
    state = LiveState({"b": (Pause(1),), "c": (Pause(1, 2),), "control": (Pause(1),)})
    live = experiment_in_force(EXPERIMENT, state)
    assert [arm.stopped for arm in live.arms] == [False, True, False]
    file = replace(EXPERIMENT, arms=(ARMS[0], replace(ARMS[1], stopped=True), ARMS[2]))
    assert [arm.stopped for arm in experiment_in_force(file, AT_START).arms] == [False, True, False]


def test_an_interleaving_experiment_is_stopped_as_a_whole() -> None:
    both = replace(EXPERIMENT, arms=ARMS[:2], interleave="team_draft", ramp=None)
    live = experiment_in_force(both, LiveState({INTERLEAVED: (Pause(1),)}))
    assert live.stopped
    assert live.arms == both.arms
    with pytest.raises(ActionRefused, match="Use one of interleaved"):
        actions.stop(both, AT_START, "b", actions.By("a", "r", 1))


@given(PLANS, PLANS)
def test_a_growing_ramp_moves_nobody(
    plan: list[tuple[str, int]], more: list[tuple[str, int]]
) -> None:
    """Whoever was in before a step is in the same arm after it."""
    before = replace(newest_state(history(plan)), pauses={})
    after = joined(before, replace(newest_state(history([*plan, *more])), pauses={}))
    one, other = (Assigner(in_force(CONFIG, {"salt": s})) for s in (before, after))
    for user in map(str, range(300)):
        was = one.assign(user, now_ms=0).assignments
        now = other.assign(user, now_ms=0).assignments
        assert not was or [a.arm for a in was] == [a.arm for a in now]


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: STEPS["resume b"](AT_START, 1, "a"), "b is not stopped"),
        (
            lambda: STEPS["stop b"](LiveState({"b": (Pause(1),)}), 2, "a"),
            "b is stopped already",
        ),
        (lambda: STEPS["advance"](LiveState({}, 2, 1), 2, "a"), "no further step"),
        (
            lambda: actions.stop(EXPERIMENT, AT_START, "control", actions.By("a", "", 1)),
            "enabled: false",
        ),
        (
            lambda: actions.stop(EXPERIMENT, AT_START, "d", actions.By("a", "", 1)),
            "no arm 'd' that can be stopped. Use one of b, c",
        ),
        (
            lambda: actions.resume(
                replace(EXPERIMENT, arms=(ARMS[0], replace(ARMS[1], stopped=True))),
                AT_START,
                "b",
                actions.By("a", "", 1),
            ),
            "stopped: true",
        ),
        (
            lambda: actions.stop_all(EXPERIMENT, AT_START, {}),
            "nothing of it is live",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(
    act: Callable[[], object], said: str
) -> None:
    with pytest.raises(ActionRefused) as refused:
        act()
    assert said in str(refused.value)


def test_clocks_that_go_backwards_make_no_pause_end_before_it_began() -> None:
    stopped = STEPS["stop b"](AT_START, 5000, "a")
    resumed = STEPS["resume b"](state_of(stopped.state), 1000, "b")
    again = STEPS["stop b"](state_of(resumed.state), 10, "c")
    assert state_of(again.state).pauses["b"] == (Pause(5000, 5001), Pause(5001))


def test_a_change_without_an_id_or_a_salt_is_none() -> None:
    for broken, reason in (
        (ExperimentChange(salt="s"), "id"),
        (ExperimentChange(change_id="i"), "name"),
    ):
        with pytest.raises(ValueError, match=reason):
            Changes([broken])
