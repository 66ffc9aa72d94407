"""The joiner's fold (services/feedback/joiner.py): order, repetition, window, forgetting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1.records_pb2 import (
    ABANDONED,
    CLICK,
    FAILED,
    IMPRESSION,
    LIKE,
    UNRANKED,
    Assignment,
    DecisionRecord,
    FeedbackEvent,
)
from services.common.ids import hash_of
from services.feedback.join_memory import JoinMemory
from services.feedback.joiner import ArmCounts, ArmKey, JoinState, write_snapshot

WINDOW_MS = 1000
SKEW_MS = 200
A, B = ArmKey("ranking", "ranker", "a"), ArmKey("ranking", "ranker", "b")


def decision(
    request: str, at_ms: int = 5000, user: str = "u", *, arm: ArmKey = A, **fields: object
) -> DecisionRecord:
    assignment = Assignment(layer=arm.layer, experiment=arm.experiment, arm=arm.arm)
    fields.setdefault("assignments", [assignment])
    return DecisionRecord(request_id=request, user_id=user, event_time_ms=at_ms, **fields)


def feedback(
    event: str, request: str, at_ms: int, kind: int = CLICK, user: str = "u"
) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=event, request_id=request, user_id=user, event_type=kind, event_time_ms=at_ms
    )


def fold(state: JoinState, messages: list[DecisionRecord | FeedbackEvent]) -> JoinState:
    for message in messages:
        if isinstance(message, DecisionRecord):
            state.on_decision(message)
        else:
            state.on_feedback(message)
    return state


DECISIONS = st.builds(
    lambda request, at, user, arm, degraded: decision(
        request, at, user, arm=arm, degradations=[UNRANKED] if degraded else []
    ),
    st.sampled_from("pqrs"),
    st.integers(4000, 8000),
    st.sampled_from(["u", "v"]),
    st.sampled_from([A, B]),
    st.booleans(),
)
EVENTS = st.builds(
    feedback,
    st.uuids().map(str),
    st.sampled_from(["p", "q", "r", "s", "unknown", ""]),
    st.integers(3500, 10_000),
    st.sampled_from([IMPRESSION, CLICK, LIKE]),
    st.sampled_from(["u", "v"]),
)
MESSAGES = st.tuples(
    st.lists(DECISIONS, unique_by=lambda d: d.request_id), st.lists(EVENTS, max_size=12)
).map(lambda both: [*both[0], *both[1]])


@given(MESSAGES, st.data())
def test_any_order_and_any_repetition_gives_the_same_state(
    messages: list[DecisionRecord | FeedbackEvent], data: st.DataObject
) -> None:
    repeated = data.draw(st.lists(st.sampled_from(messages)) if messages else st.just([]))
    shuffled = data.draw(st.permutations(messages + repeated))
    once, again = (
        fold(JoinState(WINDOW_MS, SKEW_MS), messages),
        fold(JoinState(WINDOW_MS, SKEW_MS), shuffled),
    )
    assert once == again
    for table in ("seen", "waiting"):
        assert once.memory.rows(table) == again.memory.rows(table)
    assert once.duplicates == 0
    assert again.duplicates == len(repeated)


@given(MESSAGES, st.data())
def test_forgetting_behind_a_true_watermark_changes_no_number_of_an_arm(
    messages: list[DecisionRecord | FeedbackEvent], data: st.DataObject
) -> None:
    messages = data.draw(st.permutations(messages))
    state = JoinState(WINDOW_MS, SKEW_MS)
    for i, message in enumerate(messages):
        fold(state, [message])
        if data.draw(st.booleans()) and messages[i + 1 :]:
            state.advance(min(m.event_time_ms for m in messages[i + 1 :]))
    state.advance(20_000)
    whole = fold(JoinState(WINDOW_MS, SKEW_MS), messages)
    whole.advance(20_000)
    assert state.arms == whole.arms
    assert state.late + state.unmatched == whole.late + whole.unmatched
    for table in ("decisions", "waiting", "seen"):
        assert state.memory.rows(table) == []


@given(MESSAGES)
def test_every_event_of_a_list_is_counted_once_or_said_to_be_unmatched_late_or_waiting(
    messages: list[DecisionRecord | FeedbackEvent],
) -> None:
    state = fold(JoinState(WINDOW_MS, SKEW_MS), messages)
    counted = sum(c.impressions + c.clicks + c.likes for c in state.arms.values())
    waiting = state.memory.waiting_events
    listed = sum(isinstance(m, FeedbackEvent) and bool(m.request_id) for m in messages)
    assert counted + state.late + state.unmatched + waiting == listed


@pytest.mark.parametrize(
    ("at_ms", "clicks", "late"),
    [(4799, 0, 1), (4800, 1, 0), (5000, 1, 0), (6000, 1, 0), (6001, 0, 1)],
)
def test_the_window_forgives_a_clock_behind_the_routers_and_includes_its_end(
    at_ms: int, clicks: int, late: int
) -> None:
    state = fold(JoinState(WINDOW_MS, SKEW_MS), [feedback("e", "p", at_ms), decision("p", 5000)])
    assert (state.arms[A].clicks, state.late) == (clicks, late)


def test_each_kind_of_event_moves_its_own_number() -> None:
    kinds = [IMPRESSION] * 3 + [CLICK] * 2 + [LIKE]
    events = [feedback(f"e{i}", "p", 5000, kind) for i, kind in enumerate(kinds)]
    state = fold(JoinState(WINDOW_MS, SKEW_MS), [decision("p", degradations=[UNRANKED]), *events])
    assert state.arms == {
        A: ArmCounts(requests=1, units=1, impressions=3, clicks=2, likes=1, degraded=1)
    }


def test_a_user_is_one_unit_however_many_requests_there_are() -> None:
    state = fold(
        JoinState(WINDOW_MS, SKEW_MS),
        [decision("p"), decision("q"), decision("r", user="someone else")],
    )
    assert state.arms[A].requests == 3
    assert state.arms[A].units == 2


def test_a_session_experiment_counts_sessions_and_a_user_experiment_users() -> None:
    assignments = [
        Assignment(layer="ranking", experiment="ranker", arm="a", unit="user"),
        Assignment(layer="page", experiment="look", arm="x", unit="session"),
    ]
    state = fold(
        JoinState(WINDOW_MS, SKEW_MS),
        [
            decision(request, session_id=session, assignments=assignments)
            for request, session in (("p", "s1"), ("q", "s2"), ("r", "s2"))
        ],
    )
    assert state.arms[A].units == 1
    assert state.arms[ArmKey("page", "look", "x")].units == 2


@pytest.mark.parametrize("flag", ["overridden", "unread"])
def test_an_assignment_that_is_no_exposure_counts_nowhere_and_its_feedback_is_not_unmatched(
    flag: str,
) -> None:
    flagged = Assignment(layer="ranking", experiment="ranker", arm="a", **{flag: True})
    other = Assignment(layer="retrieval", experiment="recall", arm="x")
    state = fold(
        JoinState(WINDOW_MS, SKEW_MS),
        [decision("p", assignments=[flagged, other]), feedback("e", "p", 5000)],
    )
    assert state.arms == {
        ArmKey("retrieval", "recall", "x"): ArmCounts(requests=1, units=1, clicks=1)
    }
    state.advance(10_000)
    assert (state.unmatched, state.late) == (0, 0)


def test_the_same_event_id_of_two_users_is_two_events() -> None:
    state = fold(
        JoinState(WINDOW_MS, SKEW_MS),
        [decision("p"), feedback("e", "p", 5000), feedback("e", "p", 5000, user="v")],
    )
    assert state.arms[A].clicks == 2
    assert state.duplicates == 0


def test_feedback_becomes_unmatched_when_no_decision_can_come_any_more() -> None:
    state = fold(JoinState(WINDOW_MS, SKEW_MS), [feedback("e", "nobody", 5000)])
    state.advance(5000 + SKEW_MS)
    assert state.unmatched == 0
    state.advance(5001 + SKEW_MS)
    assert state.unmatched == 1


def test_what_arrives_behind_the_watermark_is_late_and_the_watermark_never_goes_back() -> None:
    state = JoinState(WINDOW_MS, SKEW_MS)
    state.advance(6000)
    state.advance(1000)
    fold(state, [decision("p", 5999), feedback("e", "p", 5999)])
    assert state.late == 2
    assert state.arms == {}


def test_a_snapshot_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "joiner.json"
    for number in (1, 2):
        write_snapshot(file, {"arms": [], "number": number})
    assert json.loads(file.read_text())["number"] == 2
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_remembered_lies_in_a_file_without_a_name(tmp_path: Path) -> None:
    state = JoinState(WINDOW_MS, SKEW_MS, memory=JoinMemory(tmp_path))
    assert list(tmp_path.iterdir()) == []
    fold(state, [decision(f"r{i}", user=f"u{i}") for i in range(20_000)])
    state.memory.checkpoint()
    assert state.arms[A].units == 20_000
    assert state.memory.bytes_on_disk() > 500_000
    assert list(tmp_path.iterdir()) == []
    state.memory.close()


def test_a_waiting_event_that_comes_again_with_a_new_time_waits_once_with_that_time() -> None:
    state = JoinState(WINDOW_MS, SKEW_MS)
    fold(state, [feedback("e", "p", 5000)])
    state.advance(5050)  # forgets the id, not the waiting event
    fold(state, [feedback("e", "p", 5900), decision("p", 6000)])
    assert (state.arms[A].clicks, state.late, state.memory.waiting_events) == (1, 0, 0)


def test_forgetting_gives_the_space_back(tmp_path: Path) -> None:
    state = JoinState(WINDOW_MS, SKEW_MS, memory=JoinMemory(tmp_path))
    fold(state, [feedback(f"e{i}", f"p{i}", 5000) for i in range(20_000)])
    state.memory.checkpoint()
    full = state.memory.bytes_on_disk()
    state.advance(20_000)
    assert state.unmatched == 20_000
    assert state.memory.bytes_on_disk() < full / 10
    state.memory.close()


@pytest.mark.parametrize("outcome", [FAILED, ABANDONED])
def test_a_request_without_an_answer_is_no_decision(outcome):
    state = fold(JoinState(WINDOW_MS), [decision("p", outcome=outcome), decision("q")])
    assert state.arms == {A: ArmCounts(requests=1, units=1)}
    assert state.memory.decision(hash_of("p")) is None
    assert state.duplicates == 0


def test_units_are_counted_by_the_id_that_the_experiment_assigns():
    def by_household(request: str, user: str, household: str) -> DecisionRecord:
        assignment = Assignment(layer=A.layer, experiment=A.experiment, arm=A.arm, unit="household")
        ids = {"household": household}
        return decision(request, user=user, assignments=[assignment], unit_ids=ids)

    one_home = [by_household("p", "u", "h"), by_household("q", "v", "h")]
    assert fold(JoinState(WINDOW_MS), one_home).arms[A] == ArmCounts(requests=2, units=1)
    other_home = [*one_home, by_household("r", "u", "i")]
    assert fold(JoinState(WINDOW_MS), other_home).arms[A] == ArmCounts(requests=3, units=2)
