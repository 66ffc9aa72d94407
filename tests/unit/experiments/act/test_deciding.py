"""What the worker does and what it leaves alone, from reports made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1.records_pb2 import ExperimentChange
from services.experiments.act.deciding import decide, ramp_report, waits_for
from services.experiments.changes.state import AT_START, LiveState, Pause, state_of
from services.experiments.declare.config import INTERLEAVED, Arm, Experiment, Ramp
from services.experiments.declare.metrics import Metric
from services.experiments.measure.results import Measured
from services.experiments.report.build import build_report
from services.experiments.report.findings import (
    Coverage,
    GuardrailReport,
    Report,
    Safety,
    SampleRatio,
)
from services.experiments.statistics.arms import Effect
from services.experiments.statistics.effects import Interval

ARMS = (
    Arm("control", 0, 4000, 100, {}),
    Arm("b", 4000, 7000, 100, {}),
    Arm("c", 7000, 10_000, 100, {}),
)
BEGAN_MS, HOLD_S, UNITS = 1_000_000.0, 60.0, 10
EXPERIMENT = Experiment("mix", "salt", "user", (0, 10_000), ARMS, {}, True)
RAMPED = replace(EXPERIMENT, ramp=Ramp((100, 500, 10_000), HOLD_S, UNITS))
METRIC = Metric("degraded_share", "ratio", "degraded", "lower", per="request")
LATER_MS = BEGAN_MS + 1000 * HOLD_S
NOTHING = Interval(-math.inf, math.inf)
INTACT = SampleRatio(expected=(0.4, 0.3, 0.3), observed=(40, 30, 30), p=1.0, broken=False, hops=())
BROKEN = replace(INTACT, observed=(40, 30, 3), p=1e-9, broken=True)


def guardrail(arm: str, safety: Safety) -> GuardrailReport:
    effect = Effect(
        value=0.2,
        control_value=0.1,
        units=500,
        effect=0.1,
        lift=1.0,
        fixed=NOTHING,
        fixed_lift=NOTHING,
        sequence=NOTHING,
        sequence_lift=NOTHING,
        p=0.0,
    )
    sentence = f"{METRIC.name}: {safety} for {arm}."
    harm = Interval(0.05, 0.15)
    return GuardrailReport(
        metric=METRIC,
        allowed_harm=0.01,
        absolute=True,
        arm=arm,
        effect=effect,
        harm=0.1,
        harm_sequence=harm,
        log_e=9.0,
        safety=safety,
        sentence=sentence,
    )


def said(ratio: SampleRatio | None = INTACT, **safeties: Safety) -> Report:
    """A report on an experiment that runs since BEGAN_MS."""
    found = build_report("value", EXPERIMENT, Measured({}), LATER_MS, Coverage())
    return replace(
        found,
        first_ms=BEGAN_MS,
        sample_ratio=ratio,
        guardrails=tuple(guardrail(arm, safety) for arm, safety in safeties.items()),
    )


def done(
    experiment: Experiment,
    found: Report,
    state: LiveState = AT_START,
    now_ms: float = LATER_MS,
    units: int = UNITS,
) -> list[tuple[str, str]]:
    return [
        (ExperimentChange.Kind.Name(c.kind), c.arm)
        for c in decide(experiment, state, found, now_ms, units)
    ]


def test_a_breach_stops_its_arm_and_no_other() -> None:
    assert done(EXPERIMENT, said(b="holds", c="breached")) == [("ARM_STOPPED", "c")]


def test_reason_and_evidence_are_those_of_the_guardrail() -> None:
    (change,) = decide(EXPERIMENT, AT_START, said(c="breached"), LATER_MS, 0)
    assert change.reason == "degraded_share: breached for c."
    assert change.actor == "worker"
    assert change.event_time_ms == LATER_MS
    assert json.loads(change.evidence) == {
        "guardrails": [
            {
                "metric": "degraded_share",
                "arm": "c",
                "safety": "breached",
                "harm": 0.1,
                "interval": [0.05, 0.15],
                "log_e": 9.0,
                "allowed": 0.01,
                "absolute": True,
                "units": 500,
            }
        ]
    }
    assert state_of(change.state).stopped == {"c"}


def test_two_breaches_are_two_changes_each_upon_the_one_before() -> None:
    changes = decide(EXPERIMENT, AT_START, said(b="breached", c="breached"), LATER_MS, 0)
    assert [state_of(c.state).stopped for c in changes] == [{"b"}, {"b", "c"}]


def test_a_broken_sample_ratio_stops_every_treatment_and_never_control() -> None:
    found = said(BROKEN)
    assert done(EXPERIMENT, found) == [("ARM_STOPPED", "b"), ("ARM_STOPPED", "c")]
    evidence = json.loads(decide(EXPERIMENT, AT_START, found, LATER_MS, 0)[0].evidence)
    assert evidence["sample_ratio"]["observed"] == [40, 30, 3]


def test_what_is_stopped_already_is_left_alone() -> None:
    found = said(b="breached", c="breached")
    assert done(EXPERIMENT, found, LiveState({"b": (Pause(1),), "c": (Pause(1),)})) == []
    by_hand = replace(EXPERIMENT, arms=(*ARMS[:2], replace(ARMS[2], stopped=True)))
    assert done(by_hand, found) == [("ARM_STOPPED", "b")]


def test_nothing_is_ever_resumed() -> None:
    for safety in ("holds", "undecided"):
        assert done(RAMPED, said(b=safety), LiveState({"b": (Pause(1),)})) == []


def test_an_interleaving_experiment_is_not_stopped() -> None:
    both = replace(EXPERIMENT, arms=ARMS[:2], interleave="team_draft")
    assert done(both, said(BROKEN, b="breached")) == []


@pytest.mark.parametrize(
    "change",
    [{"enabled": False}, {"start_ms": LATER_MS + 1}, {"stop_ms": LATER_MS}],
    ids=["off", "scheduled", "ended"],
)
def test_an_experiment_that_does_not_run_is_not_acted_upon(change: dict[str, Any]) -> None:
    assert done(replace(RAMPED, **change), said(BROKEN, b="breached")) == []
    assert done(replace(RAMPED, **change), said()) == []


def test_the_ramp_takes_one_step_when_all_holds() -> None:
    (change,) = decide(RAMPED, AT_START, said(b="undecided"), LATER_MS, UNITS)
    assert change.kind == ExperimentChange.RAMP_ADVANCED
    assert "From 1 % to 5 %" in change.reason
    state = state_of(change.state)
    assert (state.ramp_step, state.ramp_step_since_ms) == (1, LATER_MS)
    assert json.loads(change.evidence)["units"] == UNITS
    assert done(RAMPED, said(), state, LATER_MS + 1) == []  # the new step begins with no hold


def test_the_ramp_waits_for_time_units_and_its_gate() -> None:
    def waits(found: Report, **how: Any) -> str:
        state, now_ms = how.get("state", AT_START), how.get("now_ms", LATER_MS)
        units = how.get("units", UNITS)
        assert done(how.get("of", RAMPED), found, state, now_ms, units) == []
        return waits_for(how.get("of", RAMPED), state, found, now_ms, units)

    time = "It waits for time: the step lasts at least 60 s, 1 s to go."
    assert waits(said(), now_ms=LATER_MS - 1) == time
    assert waits(said(), units=UNITS - 1).startswith("It waits for units: 9 ")
    strict = replace(RAMPED, ramp=Ramp((100, 500), HOLD_S, UNITS, "holds"))
    assert waits(said(b="undecided", c="holds"), of=strict) == (
        "It waits for guardrails: degraded_share of b (undecided)."
    )
    assert waits(replace(said(), first_ms=math.inf)) == "It waits for the first request."
    resumed = LiveState({"b": (Pause(1, BEGAN_MS + 1000),)})
    assert waits(said(), state=resumed) == time
    stopped = waits(said(), state=LiveState({"b": (Pause(1),)}))
    assert stopped.startswith("It waits for b, which is stopped")
    assert waits(said(), of=replace(RAMPED, start_ms=LATER_MS + 1)).endswith("(it is scheduled).")
    assert "stopped in its file" in waits(said(), of=replace(RAMPED, stopped=True))


def test_a_ramp_of_interleaved_arms_has_no_gate() -> None:
    mixed = replace(RAMPED, interleave="team_draft")
    assert waits_for(mixed, AT_START, said(BROKEN, b="breached"), LATER_MS, UNITS) == ""


def test_an_arm_that_is_stopped_in_the_file_holds_up_no_ramp() -> None:
    by_hand = replace(RAMPED, arms=(*ARMS[:2], replace(ARMS[2], stopped=True)))
    assert done(by_hand, said(b="holds", c="breached")) == [("RAMP_ADVANCED", "")]


def test_a_breach_comes_before_the_ramp() -> None:
    assert done(RAMPED, said(b="breached")) == [("ARM_STOPPED", "b")]


def test_after_the_last_step_nothing_happens_and_nothing_is_waited_for() -> None:
    last = LiveState({}, 2, 1)
    assert done(RAMPED, said(), last) == []
    found = ramp_report(RAMPED, last, said(), LATER_MS, UNITS)
    assert found is not None
    assert (found.steps, found.step, found.waits_for) == ((1.0, 5.0, 100.0), 2, "")
    assert ramp_report(EXPERIMENT, AT_START, said(), LATER_MS, UNITS) is None


def test_a_ramp_that_may_go_on_says_that_it_waits_for_the_worker_only() -> None:
    found = ramp_report(RAMPED, AT_START, said(), LATER_MS, UNITS)
    assert found is not None
    assert found.waits_for.startswith("It waits for the worker")
    assert found.since_ms == BEGAN_MS


SAFETIES = st.sampled_from(["breached", "holds", "undecided"])


@given(
    st.fixed_dictionaries({"b": SAFETIES, "c": SAFETIES}),
    st.sampled_from([INTACT, BROKEN, None]),
    st.integers(0, 3),
    st.integers(0, 200_000),
    st.integers(0, 20),
    st.sampled_from(["no_breach", "holds"]),
    st.sets(st.sampled_from(["b", "c", INTERLEAVED])),
)
def test_whatever_is_seen_control_stays_and_ramps_go_one_step_with_nothing_breached(
    safeties: dict[str, Safety],
    ratio: SampleRatio | None,
    step: int,
    since_ms: int,
    units: int,
    gate: Any,
    stopped: set[str],
) -> None:
    experiment = replace(RAMPED, ramp=Ramp((100, 500, 10_000), HOLD_S, UNITS, gate))
    state = LiveState({arm: (Pause(1),) for arm in stopped}, step, since_ms)
    found = said(ratio, **safeties)
    changes = decide(experiment, state, found, LATER_MS, units)
    breached = {arm for arm, safety in safeties.items() if safety == "breached"}
    wanted = ({"b", "c"} if ratio is BROKEN else breached) - stopped
    assert {c.arm for c in changes if c.kind == c.ARM_STOPPED} == wanted
    for change in changes:
        after = state_of(change.state)
        assert "control" not in after.stopped
        assert after.stopped >= state.stopped
        if change.kind == change.RAMP_ADVANCED:
            assert len(changes) == 1
            assert after.ramp_step == step + 1
            assert not breached
            assert ratio is not BROKEN
            assert not stopped & {"b", "c"}
            assert units >= UNITS
            assert LATER_MS - (since_ms or BEGAN_MS) >= 1000 * HOLD_S
            assert gate == "no_breach" or set(safeties.values()) == {"holds"}
