"""What the worker does by itself: stopped arms and steps of ramps, round by round."""

from __future__ import annotations

import contextlib
import json

import pytest
from prometheus_client import REGISTRY

from services.event_log.topics import EXPERIMENTS
from services.experiments.act.worker import Worker
from services.experiments.changes import actions
from services.experiments.changes.log import ChangeLog
from services.experiments.changes.state import state_of
from services.experiments.declare import config_reader
from tests.domains import FILMS
from tests.integration.acting.installation import (
    EXPERIMENTS_FILE,
    FINAL_S,
    HARMFUL,
    HARMLESS,
    RAMPED_FILE,
    T0_MS,
    Installation,
    Start,
    harmed,
)


def test_an_arm_that_does_harm_is_stopped_and_its_users_get_control(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    actions_before = REGISTRY.get_sample_value(
        "tandem_experiments_actions_total", {"kind": "arm_stopped"}
    )
    arms = installed.visits(range(400), HARMFUL)
    assert set(arms.values()) == {"control", "mixed"}
    installed.round()
    assert installed.done() == []  # no outcome is final
    installed.pass_s(FINAL_S)
    content = installed.round()
    assert installed.done() == ["ARM_STOPPED"]
    actions_after = REGISTRY.get_sample_value(
        "tandem_experiments_actions_total", {"kind": "arm_stopped"}
    )
    assert (actions_after or 0) - (actions_before or 0) == 1
    (told,) = content["experiments"]["mix"]["changes"]
    assert told["arm"] == "mixed"
    # The follower has heard of it.
    after = installed.visits(range(400), HARMFUL)
    assert after == {user: arm for user, arm in arms.items() if arm == "control"}
    mixed = next(user for user, arm in arms.items() if arm == "mixed")
    decision = installed.experiments.assigner().assign(f"u{mixed}", now_ms=installed.now_ms)
    (assignment,) = decision.assignments
    assert (assignment.arm, assignment.overridden) == ("control", True)
    assert not decision.overrides
    # Nothing more happens, however long it goes on.
    for _ in range(3):
        installed.pass_s(FINAL_S)
        installed.round()
    assert installed.done() == ["ARM_STOPPED"]


def test_a_restart_of_both_ends_is_in_the_same_state_and_changes_nothing(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    harmed(installed)
    installed.round()
    state, arms = installed.state(), installed.visits(range(400), HARMFUL)
    before = installed.audited()
    installed.end()  # nothing of its memory was saved: it reads the whole log once more
    installed.begin()
    installed.round()
    assert installed.state() == state
    assert installed.visits(range(400), HARMFUL) == arms
    assert installed.audited() == before


def test_two_workers_that_decide_at_once_make_one_change(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    other = ChangeLog(installed.log)
    other.read_all(10.0)
    other.read = lambda wait_s=0.0: True  # type: ignore[method-assign]  # what follows it misses
    harmed(installed)
    installed.round()
    Worker(installed.reader, other, installed.file, FILMS, "log").round(installed.now_ms + 400)
    with contextlib.closing(installed.log.consumer(EXPERIMENTS, "count")) as records:
        found = [record for _ in range(3) for record in records.poll(100, 0.0)]
    assert len(found) == 2
    (change,) = installed.audited()
    assert change.event_time_ms == installed.now_ms
    other.close()


def test_a_ramp_steps_up_when_its_gate_holds_and_moves_nobody(start: Start) -> None:
    installed = start(RAMPED_FILE)
    users = range(500)
    first = installed.visits(users, HARMLESS)
    assert 150 < len(first) < 250
    installed.pass_s(FINAL_S)
    content = installed.round()
    assert installed.done() == ["RAMP_ADVANCED"]
    assert content["experiments"]["mix"]["ramp"]["step"] == 1
    second = installed.visits(users, HARMLESS)
    assert 300 < len(second) < 400
    assert first.items() <= second.items()
    installed.pass_s(99)
    content = installed.round()
    assert installed.done() == ["RAMP_ADVANCED"]
    assert "1 s to go" in content["experiments"]["mix"]["ramp"]["waits_for"]
    installed.pass_s(1)
    assert installed.round()["experiments"]["mix"]["ramp"]["waits_for"].startswith(
        "It waits for units: 0 "
    )
    installed.pass_s(FINAL_S)
    installed.round()
    assert installed.done() == ["RAMP_ADVANCED", "RAMP_ADVANCED"]
    last = installed.visits(users, HARMLESS)
    assert len(last) == 500
    assert second.items() <= last.items()
    installed.pass_s(10 * FINAL_S)
    installed.round()
    assert installed.done() == ["RAMP_ADVANCED", "RAMP_ADVANCED"]
    assert installed.state().ramp_step == 2


def test_a_ramp_does_not_step_up_into_harm(start: Start) -> None:
    installed = start(RAMPED_FILE)
    installed.visits(range(1000), HARMFUL)
    for _ in range(4):
        installed.pass_s(FINAL_S)
        content = installed.round()
    assert installed.done() == ["ARM_STOPPED"]
    assert content["experiments"]["mix"]["ramp"]["step"] == 0
    assert "mixed, which is stopped" in content["experiments"]["mix"]["ramp"]["waits_for"]


def resumed(installed: Installation) -> None:
    ((_, experiment),) = config_reader.load(installed.file, FILMS).experiments()
    change = actions.resume(
        experiment,
        installed.state(),
        "mixed",
        actions.By("ann", "the ranker's pool was doubled", installed.now_ms),
    )
    with contextlib.closing(ChangeLog(installed.log)) as elsewhere:
        elsewhere.append([change], installed.now_ms)
    installed.round()
    assert installed.state() == state_of(change.state)


def test_a_resumed_arm_is_not_stopped_by_old_evidence_but_by_new(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    harmed(installed)
    installed.round()
    assert installed.done() == ["ARM_STOPPED"]
    installed.pass_s(10)
    resumed(installed)
    for _ in range(3):
        installed.pass_s(FINAL_S)
        installed.visits(range(400), HARMLESS)  # who has met it before
        installed.round()
    assert installed.done() == ["ARM_STOPPED", "ARM_RESUMED"]
    harmed(installed, range(1000, 1400))
    installed.round()
    assert installed.done() == ["ARM_STOPPED", "ARM_RESUMED", "ARM_STOPPED"]
    assert installed.state().stopped == {"mixed"}


@pytest.mark.parametrize(("before", "after"), [(10, 100), (100, 10)])
def test_an_edit_of_one_arms_traffic_stops_nothing(start: Start, before: int, after: int) -> None:
    """Neither by the ratio, though users come back whom the arm had kept out or keeps out now, nor
    by a guardrail, though everything is degraded more often than before the edit."""

    def file(traffic: int) -> str:
        return EXPERIMENTS_FILE.replace(
            "mixed, weight: 50", f"mixed, weight: 50, traffic: {traffic}"
        )

    installed = start(file(before))
    installed.visits(range(1500), HARMLESS)
    installed.pass_s(FINAL_S)
    installed.round()
    installed.visits(range(1500, 2000), HARMLESS)
    installed.pass_s(10)
    installed.file.write_text(file(after))
    installed.experiments.reload_if_changed()
    arms = installed.visits(range(3500), dict.fromkeys(HARMLESS, 0.4))
    sizes = [list(arms.values()).count(arm) for arm in ("control", "mixed")]
    assert sizes[1] / sizes[0] == pytest.approx(after / 100, rel=0.2)
    for _ in range(3):
        installed.pass_s(FINAL_S)
        installed.round()
    assert installed.done() == []
    broken = "tandem_experiments_sample_ratio_broken"
    assert REGISTRY.get_sample_value(broken, {"experiment": "mix"}) == 0
    at = "2023-11-14T22:21:34Z"
    assert installed.now_ms == T0_MS + 494_000
    found = json.loads(installed.command("report", "mix", "--json", "--at", at).output)
    assert any("The split between the arms changed" in w for w in found["warnings"])
    # Real harm after it is still found.
    installed.visits(range(3500, 8500), {"control": 0.4, "mixed": 1.0})
    installed.pass_s(FINAL_S)
    installed.round()
    assert installed.done() == ["ARM_STOPPED"]
