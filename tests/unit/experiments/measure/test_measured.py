"""What is measured of a fold: laws over random traffic, and numbers derived by hand."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.tandem.v1.records_pb2 import (
    ABANDONED,
    ANSWERED,
    CLICK,
    FAILED,
    IMPRESSION,
    LIKE,
    Before,
    DecisionRecord,
    FeedbackEvent,
)
from services.event_log.whole_log import SKEW_MS
from services.experiments.changes.actions import Epoch
from services.experiments.declare.config import INTERLEAVED, Arm, Experiment
from services.experiments.declare.metrics import Goal, Guardrail, Metric, Plan
from services.experiments.lists import interleaving as rules
from services.experiments.measure.exposures import Exposed
from services.experiments.measure.fold import Fold
from services.experiments.measure.measure import measured
from services.experiments.measure.results import DAY_MS, ArmDay, Measured
from services.experiments.statistics.estimates import estimate
from services.experiments.statistics.moments import Moments, moments_of
from services.experiments.statistics.quantiles import GroupedHistogram
from services.feedback import joiner
from services.feedback.join_memory import hash_of
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
CLICKS = Metric("clicks", "mean", "click", "higher", window_s=100)
CTR = Metric("ctr", "ratio", "click", "higher", per="impression", window_s=100)
DEGRADED = Metric("degraded", "ratio", "degraded", "lower", per="request")
LATENCY = Metric("latency", "ratio", "latency", "lower", per="request")
P50 = Metric("p50", "quantile", "latency", "lower", quantile=0.5)
PLAN = Plan(
    Goal(CTR, 0.02),
    (Goal(LIKED, 0.02), Goal(CLICKS, 0.02)),
    (  # observed as long as the goals
        Guardrail(DEGRADED, 0.01, absolute=True, observe_s=1000),
        Guardrail(LATENCY, 0.1, observe_s=1000),
        Guardrail(P50, 0.1, observe_s=1000),
    ),
    observe_s=1000,
)
ARMS = (Arm("control", 0, 5000, 10_000, {}), Arm("treatment", 5000, 10_000, 10_000, {}))
EXPERIMENT = Experiment("e", "e", "user", (0, 10_000), ARMS, {}, True, plan=PLAN)
LATER = T0 + 10 * DAY_MS


def measure(
    messages: Sequence[Message],
    as_of_ms: float = LATER,
    experiment: Experiment = EXPERIMENT,
    epochs: Sequence[Epoch] = (),
) -> Measured:
    return measured(folded(messages).settled(), experiment, as_of_ms, epochs)


def columns(result: Measured, arm: str, metric: str) -> Moments:
    found = result.of_arm(arm).statistics[metric]
    assert isinstance(found, Moments)
    return found


# Laws over any traffic.

ERRORS = Metric("errors", "mean", "error", "lower")
SEEN = Metric("seen", "ratio", "impression", "higher", per="request", window_s=70)
WATCHED = replace(
    EXPERIMENT,
    plan=replace(PLAN, guardrails=(
        *PLAN.guardrails, Guardrail(ERRORS, 0.1, True, 60), Guardrail(SEEN, 0.1, observe_s=400)
    )),
)  # fmt: skip
BY_DEVICE = replace(EXPERIMENT, name="dev", unit="device")
MIXED_ARMS = (Arm("old", 0, 0, 10_000, {}), Arm("new", 0, 0, 10_000, {}))
MIXED = replace(
    EXPERIMENT,
    name="mix",
    arms=MIXED_ARMS,
    interleave="team_draft",
    plan=Plan(observe_s=1000, preference_window_s=100),
)
STOPS = (
    Epoch(-math.inf),
    Epoch(T0 + 500_000.0, frozenset({"treatment"})),
    Epoch(T0 + 1_200_000.0),
    Epoch(T0 + 86_500_000.0, frozenset({"treatment"})),
)
AS_OF = st.sampled_from([T0, T0 + 700_000, T0 + 1_500_000, T0 + 2_000_000, LATER])
OWN = st.sampled_from([WATCHED, BY_DEVICE, MIXED])
EPOCHS = st.sampled_from([(), STOPS, STOPS[1:]])


def plain(result: Measured) -> str:
    """All of it, exactly: histograms themselves are compared by identity only."""
    return json.dumps(result.to_json(), allow_nan=False, sort_keys=True)


@settings(max_examples=100)
@given(traffic(), OWN, AS_OF, EPOCHS, st.randoms(use_true_random=False), st.integers(0, 60))
def test_order_duplicates_restarts_and_replays_change_nothing(
    made: Traffic,
    own: Experiment,
    as_of_ms: int,
    epochs: Sequence[Epoch],
    rng: random.Random,
    cut: int,
) -> None:
    expected = plain(measure(made.messages, as_of_ms, own, epochs))
    again = [*made.messages, *made.messages[:cut]]
    rng.shuffle(again)
    restarted = Fold.from_bytes(folded(again[:cut]).to_bytes())
    restarted.merge(folded([*again[cut // 2 :], *again]))
    assert plain(measured(restarted.settled(), own, as_of_ms, epochs)) == expected


@settings(max_examples=60)
@given(traffic(), OWN, AS_OF, EPOCHS)
def test_statistics_survive_json_exactly(
    made: Traffic, own: Experiment, as_of_ms: int, epochs: Sequence[Epoch]
) -> None:
    result = measure(made.messages, as_of_ms, own, epochs)
    read = Measured.from_json(json.loads(plain(result)))
    assert plain(read) == plain(result)
    assert read.epochs == result.epochs


@settings(max_examples=100)
@given(traffic(), OWN, AS_OF, EPOCHS)
def test_shards_of_disjoint_users_merged_equal_one(
    made: Traffic, own: Experiment, as_of_ms: int, epochs: Sequence[Epoch]
) -> None:
    whole = plain(measure(made.messages, as_of_ms, own, epochs))
    shards = [[m for m in made.messages if int(m.user_id[1]) % 3 == i] for i in range(3)]
    turns = Exposed.of(folded(made.messages).settled(), own, as_of_ms).turns
    parts = (measured(folded(shard).settled(), own, as_of_ms, epochs, turns) for shard in shards)
    assert plain(sum(parts, Measured({}))) == whole
    merged = folded(shards[0])
    for shard in shards[1:]:
        merged.merge(folded(shard))
    assert plain(measured(merged.settled(), own, as_of_ms, epochs)) == whole


def test_statistics_of_different_epochs_do_not_add_up() -> None:
    one = measure([decision("r", 0)], epochs=STOPS)
    with pytest.raises(ValueError, match="the same epochs"):
        one + measure([decision("r", 0)])


def counted_plainly(
    messages: Sequence[Message], as_of_ms: int, observe_ms: int, window_ms: int
) -> dict[ArmDay, dict[str, Any]]:
    """The definition once more for WATCHED and STOPS, one unit at a time, in dictionaries."""
    carrying = [
        m
        for m in messages
        if isinstance(m, DecisionRecord)
        and m.assignments[0].experiment == "e"
        and not m.assignments[0].unread
        and m.event_time_ms <= as_of_ms
    ]
    mine = [m for m in carrying if not m.assignments[0].overridden]
    overridden = [m for m in carrying if m.assignments[0].overridden]

    def split_of(m: DecisionRecord) -> str:
        return "1:10" if m.assignments[0].split in ("1:10", "2:20") else "1:1"

    starts: list[int] = []  # of the stretches of one split
    turn_of: dict[str, int] = {}  # of each request
    last = ""
    for m in sorted(carrying, key=lambda m: (m.event_time_ms, split_of(m))):
        if split_of(m) != last:
            starts.append(m.event_time_ms)
        last = split_of(m)
        turn_of[m.request_id] = len(starts) - 1
    cells: dict[ArmDay, dict[str, Any]] = {}
    for user in sorted({m.user_id for m in mine}):
        own = [m for m in mine if m.user_id == user]
        first = min(own, key=lambda m: (m.event_time_ms, hash_of(m.request_id)))
        start = first.event_time_ms
        if any(m.user_id == user and m.event_time_ms <= start for m in overridden):
            continue
        turn = turn_of[first.request_id]
        came = [
            m.event_time_ms
            for m in messages
            if isinstance(m, DecisionRecord) and m.user_id == user and m.event_time_ms >= starts[0]
        ]
        if turn and min(came) < starts[turn]:
            continue
        cut = any(at < start + observe_ms for at in starts[turn + 1 :])
        epoch, until = (
            sum(at >= e.start_ms for e in STOPS) - 1 for at in (start, start + observe_ms - 1)
        )
        arm = first.assignments[0].arm
        key = ArmDay(arm, start // DAY_MS, epoch, until, split_of(first), cut)
        cell = cells.setdefault(key, {"exposed": 0, "rows": []})
        cell["exposed"] += 1
        if start + observe_ms + window_ms > as_of_ms:
            continue
        counted = [m for m in own if m.event_time_ms < start + observe_ms]
        answered = [m for m in counted if m.outcome == ANSWERED]
        times = {m.request_id: m.event_time_ms for m in answered}
        after = [
            (e.event_type, e.event_time_ms - times[e.request_id])
            for e in messages
            if isinstance(e, FeedbackEvent) and e.request_id in times
        ]

        def events(kind: int, window_s: int, after: Sequence[tuple[int, int]] = after) -> int:
            return sum(k == kind and -SKEW_MS <= a <= window_s * 1000 for k, a in after)

        degraded = sum(bool(m.degradations) for m in answered)
        errors = len(counted) - len(answered)
        before = (first.before.impressions, first.before.clicks, first.before.likes)
        cell["rows"].append(
            {
                "ctr": (events(CLICK, 100), events(IMPRESSION, 100), math.log1p(before[1])),
                "clicks": (events(CLICK, 100), math.log1p(before[1])),
                "liked": (events(LIKE, 50) > 0, math.log1p(before[2])),
                "seen": (events(IMPRESSION, 70), len(counted), math.log1p(before[0])),
                "degraded": (degraded, len(counted)),
                "errors": (errors,),
                "segments": set(first.segments),
                "served": len(answered) > 0,
                "undegraded": not (degraded or errors),
                "joined": any(-SKEW_MS <= a <= window_ms for _, a in after),
            }
        )
    return cells


@settings(max_examples=150)
@given(traffic(), AS_OF)
def test_the_statistics_are_those_of_a_plain_count_by_unit(made: Traffic, as_of_ms: int) -> None:
    result = measure(made.messages, as_of_ms, WATCHED, STOPS)
    goals = ("ctr", "clicks", "liked", "degraded")
    for cells, observe_ms, window_ms, metrics in (
        (result.cells, 1_000_000, 100_000, goals),
        (result.watched.get(60_000, {}), 60_000, 0, ("errors",)),
        (result.watched.get(400_000, {}), 400_000, 70_000, ("seen",)),
    ):
        expected = counted_plainly(made.messages, as_of_ms, observe_ms, window_ms)
        assert {k: c.exposed for k, c in cells.items()} == {
            k: c["exposed"] for k, c in expected.items()
        }
        for key, cell in cells.items():
            rows = expected[key]["rows"]
            assert cell.final == len(rows)
            for name in ("served", "undegraded", "joined"):
                assert getattr(cell, name) == sum(row[name] for row in rows)
            clean = [row for row in rows if row["undegraded"]]
            for name in metrics:
                assert cell.statistics[name] == of_rows(rows, name, cell.statistics[name])
                found = cell.undegraded_statistics[name]
                assert found == of_rows(clean, name, found)
            in_segments = {
                name: [row for row in rows if name in row["segments"]] for name in ("mobile", "new")
            }
            assert {name: part.units for name, part in cell.segments.items()} == {
                name: len(members)
                for name, members in in_segments.items()
                if members and observe_ms == 1_000_000
            }
            for name, part in cell.segments.items():
                assert part.statistic == of_rows(in_segments[name], "ctr", part.statistic)


def of_rows(rows: Sequence[dict[str, Any]], name: str, like: object) -> Moments:
    assert isinstance(like, Moments)
    values = np.array([row[name] for row in rows], float).reshape(-1, like.columns)
    return moments_of(*values.T)


@settings(max_examples=100)
@given(traffic(), AS_OF)
def test_preferences_are_those_of_the_rules_on_whole_lists(made: Traffic, as_of_ms: int) -> None:
    window_ms = 100_000
    by_user: dict[str, list[float]] = {}
    starts: dict[str, int] = {}
    decisions = [m for m in made.messages if isinstance(m, DecisionRecord)]
    own = [m for m in decisions if any(a.experiment == "mix" for a in m.assignments)]
    for m in own:
        starts[m.user_id] = min(starts.get(m.user_id, m.event_time_ms), m.event_time_ms)
    for m in own:
        late = m.event_time_ms >= starts[m.user_id] + 1_000_000
        early = starts[m.user_id] + 1_000_000 + window_ms > as_of_ms
        if late or early or m.outcome != ANSWERED:
            continue
        clicked = {
            e.item_id
            for e in made.messages
            if isinstance(e, FeedbackEvent)
            and (e.request_id, e.event_type) == (m.request_id, CLICK)
            and -SKEW_MS <= e.event_time_ms - m.event_time_ms <= window_ms
        }
        by_user.setdefault(m.user_id, []).append(preference_by_hand(m, clicked))
    result = measure(made.messages, as_of_ms, MIXED).of_arm(INTERLEAVED)
    values = [float(np.mean(each)) for each in by_user.values()]
    assert (result.preference.n, result.lists) == (
        len(values), sum(len(each) for each in by_user.values())
    )  # fmt: skip
    assert result.preference.sums[0] / 10**6 == pytest.approx(sum(values), abs=1e-5)


def preference_by_hand(record: DecisionRecord, clicked: set[str]) -> float:
    if not clicked & set(record.item_ids):
        return 0.0
    sent = record.interleaving
    clicks = np.array([item in clicked for item in record.item_ids])
    match sent.method:
        case "team_draft":
            found = rules.team_preference(np.frombuffer(sent.teams, np.uint8), clicks)
        case "probabilistic":
            chances = np.frombuffer(sent.b_probabilities, "<f4")
            found = rules.probabilistic_preference(chances, clicks)
        case _:
            a, b = (np.frombuffer(r, "<u2").astype(int) for r in (sent.a_ranks, sent.b_ranks))
            found = rules.balanced_preference(a, b, clicks)
    return float(found)


# Single rules, by hand.


def test_the_skew_is_the_joiners() -> None:
    assert SKEW_MS == joiner.SKEW_MS


def test_values_of_a_hand_made_log() -> None:
    messages: list[Message] = [
        decision("a1", 0, "a", ms=8),
        event("a1", 1, IMPRESSION, "a"),
        event("a1", 1, IMPRESSION, "a", n=1),
        event("a1", 2, CLICK, "a"),
        event("a1", 50, LIKE, "a"),
        decision("a2", 999, "a", ms=24, degraded=True),
        event("a2", 1000, IMPRESSION, "a"),
        decision("b1", 10, "b", ms=16),
        decision("c1", 10, "c", "treatment"),
        event("c1", 20, IMPRESSION, "c"),
        event("c1", 61, LIKE, "c"),  # 51 s after: beyond liked's window, within the longest
    ]
    result = measure(messages)
    assert columns(result, "control", "ctr") == moments_of([1, 0], [3, 0], [0, 0])
    assert columns(result, "control", "liked") == moments_of([1, 0], [0, 0])
    assert columns(result, "control", "degraded") == moments_of([1, 0], [2, 1])
    assert columns(result, "control", "latency") == moments_of([32, 16], [2, 1])
    assert estimate(columns(result, "control", "latency"), "ratio").value == 16
    assert columns(result, "treatment", "liked") == moments_of([0], [0])
    assert columns(result, "treatment", "latency") == moments_of([0], [0])  # not known: no answer
    histogram = result.of_arm("control").statistics["p50"]
    assert isinstance(histogram, GroupedHistogram)
    assert histogram.observations == 3
    assert histogram.quantile(0.5, 2).value == pytest.approx(16, rel=0.01)
    cell = result.of_arm("control")
    assert (cell.exposed, cell.final, cell.joined, cell.undegraded) == (2, 2, 1, 1)
    assert cell.undegraded_statistics["ctr"] == moments_of([0], [0], [0])
    assert (result.decisions, result.late, result.crossed, result.outside) == (4, 0, 0, 0)


@pytest.mark.parametrize(
    ("after_s", "counted"),
    [(-60.001, 0), (-60, 1), (0, 1), (100, 1), (100.001, 0)],
)
def test_feedback_counts_from_the_skew_before_to_the_window_after_and_else_is_late(
    after_s: float, counted: int
) -> None:
    result = measure([decision("r", 500), event("r", 500 + after_s, CLICK)])
    assert columns(result, "control", "clicks").sums == (counted * 10**6, 0)
    assert result.late == 1 - counted
    assert result.of_arm("control").joined == counted


def test_feedback_that_comes_before_its_decision_in_the_log_counts() -> None:
    messages: list[Message] = [event("r", 5, CLICK), decision("r", 0)]
    assert plain(measure(messages)) == plain(measure(messages[::-1]))
    assert columns(measure(messages), "control", "clicks").sums == (10**6, 0)


def test_a_unit_counts_when_its_outcome_is_final_and_not_before() -> None:
    messages: list[Message] = [decision("r", 0), event("r", 1, CLICK)]
    final_ms = T0 + 1_000_000 + 100_000
    for as_of_ms, counted in ((final_ms - 1, 0), (final_ms, 1)):
        cell = measure(messages, as_of_ms).of_arm("control")
        assert (cell.exposed, cell.final) == (1, counted)
        moments = cell.statistics["clicks"]
        assert isinstance(moments, Moments)
        assert moments.n == counted


def test_what_a_unit_does_after_its_observation_is_said_and_not_counted() -> None:
    messages: list[Message] = [decision("r1", 0), decision("r2", 1000), event("r2", 1001, CLICK)]
    result = measure(messages)
    assert columns(result, "control", "clicks").sums == (0, 0)
    assert (result.outside, result.late, result.decisions) == (1, 0, 2)


def test_a_unit_that_met_two_arms_belongs_to_the_first_and_is_counted_as_crossed() -> None:
    messages: list[Message] = [
        decision("r2", 5, arm="treatment"),
        event("r2", 6, CLICK),
        decision("r1", 0, arm="control"),
    ]
    result = measure(messages)
    assert list(result.cells) == [ArmDay("control", T0 // DAY_MS, split="1:1")]
    assert columns(result, "control", "clicks").sums == (10**6, 0)
    assert result.crossed == 1


def test_the_day_is_that_of_the_first_exposure() -> None:
    messages = [decision("r1", 86_399.9, "a"), decision("r2", 86_400, "a"), decision("r3", 86_400)]
    first = T0 // DAY_MS
    assert {k.day: c.exposed for k, c in measure(messages).cells.items()} == {
        first: 1,
        first + 1: 1,
    }


def test_overridden_units_and_other_experiments_are_left_out() -> None:
    other = decision("r2", 0, "b")
    other.assignments[0].experiment = "other"
    result = measure([decision("r1", 0, overridden=True), other, event("r1", 1, CLICK)])
    assert result == Measured({})


def test_a_unit_is_left_out_that_met_the_experiment_overridden_before_it_was_exposed() -> None:
    messages = [
        decision("r1", 0, "left out", overridden=True),
        decision("r2", 1, "left out"),
        decision("r3", 1, "same moment"),
        decision("r4", 1, "same moment", overridden=True),
        decision("r5", 1, "counts"),
        decision("r6", 2, "counts", overridden=True),
        decision("r7", 3, "counts"),
        decision("r8", 0, "only unread before", overridden=True, unread=True),
        decision("r9", 1, "only unread before"),
    ]
    result = measure(messages)
    assert (result.of_arm("control").exposed, result.decisions, result.overridden) == (2, 3, 2)
    # Who is in an interleaving experiment is compared to nobody.
    alone = measure(messages, experiment=replace(EXPERIMENT, interleave="team_draft"))
    assert (alone.of_arm("control").exposed, alone.decisions, alone.overridden) == (4, 5, 0)


def test_what_happened_after_the_instant_is_not_known_at_it() -> None:
    messages = [decision("r1", 0, "a"), decision("r2", 2, "b")]
    messages.append(decision("r3", 3, "a", "treatment"))
    then = measure(messages, T0 + 1000)
    assert (then.of_arm("control").exposed, then.decisions, then.crossed) == (1, 1, 0)
    assert plain(then) == plain(measure(messages[:1], T0 + 1000))
    assert measure(messages, T0 + 3000).crossed == 1


def test_decisions_outside_start_and_stop_are_not_the_experiments() -> None:
    bounded = replace(EXPERIMENT, start_ms=T0 + 1000.0, stop_ms=T0 + 2000.0)
    times = (0.999, 1.0, 1.999, 2.0)
    messages = [decision(f"r{t}", t, f"u{t}") for t in times]
    assert measure(messages, experiment=bounded).of_arm("control").exposed == 2


def test_sessions_are_the_units_where_the_experiment_assigns_them() -> None:
    messages = [decision("r1", 0), decision("r2", 1), decision("r3", 2)]
    messages[1].session_id = "another"
    messages[2].session_id = ""  # no unit
    by_session = replace(EXPERIMENT, unit="session")
    assert measure(messages, experiment=by_session).of_arm("control").exposed == 2
    assert measure(messages).of_arm("control").exposed == 1


@pytest.mark.parametrize("ms", [math.nan, math.inf, -1.0])
def test_an_impossible_latency_is_unknown_and_the_decision_counts(ms: float) -> None:
    result = measure([decision("r", 0, ms=ms)])
    assert columns(result, "control", "latency") == moments_of([0], [0])
    assert columns(result, "control", "degraded") == moments_of([0], [1])


def test_many_messages_pass_through_flushes_and_compaction() -> None:
    fold = Fold()
    for i in range(9000):
        fold.on_decision(decision(f"r{i % 6000}", i % 6000 // 10, f"u{i % 6000}"))
    assert measured(fold.settled(), EXPERIMENT, LATER).of_arm("control").exposed == 6000


def test_json_that_is_no_statistics_is_refused() -> None:
    for content in ({}, {"span_ms": None, "cells": 5}):
        with pytest.raises(ValueError, match="Measure anew"):
            Measured.from_json(content)


def test_a_guardrail_is_final_after_its_own_time_and_goals_after_theirs() -> None:
    messages: list[Message] = [
        decision("r1", 0, outcome=FAILED),
        decision("r2", 30),
        decision("r3", 60, outcome=FAILED),  # the 61st second
    ]
    for as_of_ms, final in ((T0 + 59_999, 0), (T0 + 60_000, 1)):
        result = measure(messages, as_of_ms, WATCHED)
        assert result.of_arm("control").final == 0
        watched = result.of_arm("control", observe_ms=60_000)
        assert (watched.exposed, watched.final) == (1, final)
        assert watched.statistics["errors"] == moments_of([1.0][:final])
        assert "clicks" not in watched.statistics
    assert measure(messages, LATER, WATCHED).of_arm("control").final == 1


def test_a_new_salt_begins_afresh_and_older_routers_records_count() -> None:
    messages: list[Message] = [
        decision("r1", 0, "a", "treatment", salt="before"),
        decision("r2", 500, "a", "control", salt="e"),
        decision("r3", 0, "b", "treatment"),
        decision("r4", 0, "c", "treatment", salt="before"),
    ]
    result = measure(messages)
    assert {key.arm: cell.exposed for key, cell in result.cells.items()} == {
        "control": 1,
        "treatment": 1,
    }
    assert result.crossed == 0


def test_a_unit_that_was_only_assigned_without_effect_is_not_exposed() -> None:
    messages: list[Message] = [decision("r1", 0, "a", unread=True), event("r1", 1, CLICK, "a")]
    assert measure(messages) == Measured({})
    messages += [decision("r2", 50, "a"), event("r2", 51, CLICK, "a", n=1)]
    cell = measure(messages).of_arm("control")
    assert cell.exposed == 1
    assert columns(measure(messages), "control", "clicks").sums == (10**6, 0)


@pytest.mark.parametrize("outcome", [FAILED, ABANDONED])
def test_a_request_without_an_answer_exposes_and_is_an_error_and_nothing_else(outcome: int) -> None:
    messages: list[Message] = [
        decision("r1", 0, ms=9, degraded=True, outcome=outcome),
        event("r1", 1, CLICK),
    ]
    cell = measure(messages, experiment=WATCHED).of_arm("control")
    assert (cell.exposed, cell.served, cell.joined, cell.undegraded) == (1, 0, 0, 0)
    assert cell.statistics["clicks"] == moments_of([0], [0])
    assert cell.statistics["degraded"] == moments_of([0], [1])
    assert cell.statistics["latency"] == moments_of([0], [0])
    watched = measure(messages, experiment=WATCHED).of_arm("control", observe_ms=60_000)
    assert watched.statistics["errors"] == moments_of([1])


def test_the_covariate_is_what_was_known_at_the_first_exposure() -> None:
    messages = [
        decision("r2", 5, before=Before(clicks=100)),
        decision("r1", 0, before=Before(clicks=7, likes=1)),
        decision("q1", 0, "v"),  # no profile
    ]
    result = measure(messages)
    assert columns(result, "control", "clicks") == moments_of([0, 0], [math.log(8), 0])
    assert columns(result, "control", "liked") == moments_of([0, 0], [math.log(2), 0])


def test_units_of_a_declared_kind_are_counted_by_their_ids() -> None:
    messages = [decision(f"r{i}", i, f"u{i}", experiment="dev", unit="device") for i in range(4)]
    for message, device in zip(messages, ("a", "a", "b", ""), strict=True):
        message.unit_ids["device"] = device
    assert measure(messages, experiment=BY_DEVICE).of_arm("control").exposed == 2


def test_cells_are_kept_apart_by_the_epochs_of_exposure_and_of_the_end() -> None:
    times = {"before": 0.0, "cut": 400.0, "after": 500.0, "resumed": 1300.0}
    messages = [
        decision(f"r-{arm}-{name}", at, f"{arm}-{name}", arm)
        for name, at in times.items()
        for arm in ("control", "treatment")
    ]
    short = replace(EXPERIMENT, plan=replace(PLAN, observe_s=200))
    result = measure(messages, experiment=short, epochs=STOPS)
    assert {(key.epoch, key.until) for key in result.cells} == {(0, 0), (0, 1), (1, 1), (2, 2)}
    assert result.of_arm("treatment").exposed == 4
    for arm in ("control", "treatment"):  # both for a comparison of treatment
        assert result.of_arm(arm, ("treatment",)).exposed == 2
    assert result.of_arm("control", ("control",)).exposed == 4
