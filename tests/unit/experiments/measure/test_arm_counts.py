"""What each arm was shown to and what came of it, counted over all that the log holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given

from protos.tandem.v1.records_pb2 import ABANDONED, ANSWERED, CLICK, FAILED, IMPRESSION, LIKE
from services.experiments.declare.config import Experiment
from services.experiments.declare.metrics import Goal, Metric, Plan
from services.experiments.measure.measure import measured
from services.experiments.measure.results import ArmCounts
from tests.unit.experiments.messages import (
    T0,
    Message,
    Traffic,
    decision,
    event,
    folded,
    traffic,
)

LIKED = Metric("liked", "binary", "like", "higher", window_s=50)
EXPERIMENT = Experiment(
    "e", "e", "user", (0, 10_000), (), {}, True, plan=Plan(Goal(LIKED, 0.02), observe_s=100)
)
BY_DEVICE = replace(EXPERIMENT, name="dev", unit="device")
BY_SESSION = replace(EXPERIMENT, unit="session")
LATER = T0 + 10**9
NO_EVENTS = {"impression": 0, "click": 0, "like": 0}


def counts(
    messages: Sequence[Message], experiment: Experiment = EXPERIMENT
) -> Mapping[str, ArmCounts]:
    return measured(folded(messages).settled(), experiment, LATER).arms


def test_each_kind_of_event_moves_its_own_number_whenever_it_came() -> None:
    kinds = [IMPRESSION] * 3 + [CLICK] * 2 + [LIKE]
    events = [event("p", 10_000 * i, kind, n=i) for i, kind in enumerate(kinds)]
    assert counts([decision("p", 0, degraded=True), *events]) == {
        "control": ArmCounts(1, 1, 1, {"impression": 3, "click": 2, "like": 1})
    }


def test_a_unit_counts_once_in_its_first_arm_however_many_requests_there_are() -> None:
    requests = [
        decision("p", 0), decision("q", 1), decision("r", 9999, arm="treatment"),
        decision("s", 2, "someone else", arm="treatment"),
    ]  # fmt: skip
    assert counts(requests) == {
        "control": ArmCounts(1, 3, 0, NO_EVENTS),
        "treatment": ArmCounts(1, 1, 0, NO_EVENTS),
    }


def test_units_are_counted_by_the_id_that_the_experiment_assigns() -> None:
    requests = [decision(f"r{i}", i) for i in range(3)]
    for request, session, device in zip(requests, "aab", "xyy", strict=True):
        request.session_id = session
        request.assignments.add(experiment="dev", arm="d", unit="device")
        request.unit_ids["device"] = device
    assert counts(requests)["control"].units == 1
    assert counts(requests, BY_SESSION)["control"].units == 2
    assert counts(requests, BY_DEVICE) == {"d": ArmCounts(2, 3, 0, NO_EVENTS)}


@pytest.mark.parametrize("flag", ["overridden", "unread"])
def test_an_assignment_that_is_no_exposure_counts_nowhere(flag: str) -> None:
    assert counts([decision("p", 0, **{flag: True}), event("p", 1, CLICK)]) == {}


@pytest.mark.parametrize("outcome", [FAILED, ABANDONED])
def test_a_request_without_an_answer_exposes_and_is_no_request(outcome: int) -> None:
    assert counts([decision("p", 0, outcome=outcome), event("p", 1, CLICK)]) == {
        "control": ArmCounts(1, 0, 0, NO_EVENTS)
    }


def test_the_same_event_id_of_two_users_is_two_events_and_of_one_user_one() -> None:
    events = [event("p", 1, CLICK), event("p", 1, CLICK), event("p", 1, CLICK, user="v")]
    assert counts([decision("p", 0), *events])["control"].events["click"] == 2


@given(traffic())
def test_units_are_those_of_the_statistics_and_the_rest_a_plain_count(made: Traffic) -> None:
    for experiment in (EXPERIMENT, BY_DEVICE):
        result = measured(folded(made.messages).settled(), experiment, LATER)
        cells = sorted((key.arm, cell.exposed) for key, cell in result.cells.items())
        assert {arm: n.units for arm, n in result.arms.items()} == {
            arm: sum(exposed for _, exposed in of_arm)
            for arm, of_arm in groupby(cells, lambda cell: cell[0])
        }
    # Devices keep their arms, and nothing of that experiment is overridden, unread or edited.
    answered = {
        m.request_id: a.arm
        for m in made.messages
        for a in getattr(m, "assignments", ())
        if a.experiment == "dev" and m.unit_ids.get("device") and m.outcome == ANSWERED
    }
    kinds = {IMPRESSION: "impression", CLICK: "click", LIKE: "like"}
    events = [
        (answered[m.request_id], kinds[m.event_type])
        for m in made.messages
        if not hasattr(m, "assignments") and m.request_id in answered
    ]
    for arm, found in result.arms.items():
        assert found.requests == list(answered.values()).count(arm)
        for kind in kinds.values():
            assert found.events[kind] == events.count((arm, kind))
