"""The fold and what is measured of it: laws over random traffic, and numbers derived by hand."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.tandem.v1.records_pb2 import (
    CLICK,
    IMPRESSION,
    LIKE,
    UNRANKED,
    Assignment,
    DecisionRecord,
    FeedbackEvent,
    StageTimes,
)
from services.experiments.analysis.estimates import estimate
from services.experiments.analysis.moments import Moments, moments_of
from services.experiments.analysis.quantiles import GroupedHistogram
from services.experiments.config import Arm, Experiment
from services.experiments.fold import Fold
from services.experiments.cells import ArmDay, Cell, Measured
from services.experiments.measure import DAY_MS, measured
from services.experiments.metrics import Goal, Guardrail, Metric, Plan
from services.feedback import joiner
from services.feedback.join_memory import hash_of
from services.feedback.whole_log import SKEW_MS

T0 = 20_000 * DAY_MS  # midnight
LIKED = Metric("liked", "binary", "like", "higher", window_s=50)
CLICKS = Metric("clicks", "mean", "click", "higher", window_s=100)
CTR = Metric("ctr", "ratio", "click", "higher", per="impression", window_s=100)
DEGRADED = Metric("degraded", "ratio", "degraded", "lower", per="request")
LATENCY = Metric("latency", "ratio", "latency", "lower", per="request")
P50 = Metric("p50", "quantile", "latency", "lower", quantile=0.5)
PLAN = Plan(
    Goal(CTR, 0.02),
    (Goal(LIKED, 0.02), Goal(CLICKS, 0.02)),
    (Guardrail(DEGRADED, 0.01, absolute=True), Guardrail(LATENCY, 0.1), Guardrail(P50, 0.1)),
    observe_s=1000,
)
ARMS = (Arm("control", 0, 5000, 10_000, {}), Arm("treatment", 5000, 10_000, 10_000, {}))
EXPERIMENT = Experiment("e", "e", "user", (0, 10_000), ARMS, {}, True, plan=PLAN)
LATER = T0 + 10 * DAY_MS

Message = DecisionRecord | FeedbackEvent


def decision(
    request: str,
    at_s: float,
    user: str = "u",
    arm: str = "control",
    *,
    ms: float | None = None,
    degraded: bool = False,
    **assignment: object,
) -> DecisionRecord:
    return DecisionRecord(
        request_id=request,
        user_id=user,
        session_id=f"s-{user}",
        event_time_ms=T0 + round(at_s * 1000),
        assignments=[Assignment(layer="l", experiment="e", arm=arm, unit="user", **assignment)],  # type: ignore[arg-type]
        degradations=[UNRANKED] if degraded else [],
        stage_ms=None if ms is None else StageTimes(retrieve=ms / 4, rank=ms * 3 / 4),
    )


def event(request: str, at_s: float, kind: int, user: str = "u", n: int = 0) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=f"{request}-{kind}-{n}",
        request_id=request,
        user_id=user,
        item_id="i",
        event_type=kind,  # type: ignore[arg-type]
        event_time_ms=T0 + round(at_s * 1000),
    )


def folded(messages: Sequence[Message]) -> Fold:
    fold = Fold()
    for message in messages:
        if isinstance(message, DecisionRecord):
            fold.on_decision(message)
        else:
            fold.on_feedback(message)
    return fold


def measure(
    messages: Sequence[Message], as_of_ms: float = LATER, experiment: Experiment = EXPERIMENT
) -> Measured:
    return measured(folded(messages).settled(), experiment, as_of_ms)


def plain(result: Measured) -> object:
    """As values that `==` compares to the bit: histograms are compared by identity only."""

    def cell(c: Cell) -> object:
        both = (c.statistics, c.undegraded_statistics)
        texts = [{name: s.to_json() for name, s in statistics.items()} for statistics in both]
        return c.exposed, c.final, c.joined, c.undegraded, *texts

    return {k: cell(c) for k, c in result.cells.items()}, replace(result, cells={})


def columns(result: Measured, arm: str, metric: str) -> Moments:
    found = result.of_arm(arm).statistics[metric]
    assert isinstance(found, Moments)
    return found


# Laws over any traffic.


@dataclass(frozen=True)
class Traffic:
    messages: tuple[Message, ...]


@st.composite
def traffic(draw: st.DrawFn) -> Traffic:
    rng = random.Random(draw(st.integers(0, 10**9)))
    messages: list[Message] = []
    for i in range(draw(st.integers(0, 25))):
        user = f"u{rng.randrange(6)}"
        at = rng.choice([0.0, 1.0, 86_000.0]) + rng.randrange(1500)
        arm = "treatment" if rng.random() < 0.1 or int(user[1]) % 2 else "control"
        ms = rng.choice([None, rng.random() * 100])
        made = decision(
            f"r{i}", at, user, arm, ms=ms, degraded=rng.random() < 0.2, overridden=i % 9 == 8
        )
        if i % 7 == 6:
            del made.assignments[:]
        messages.append(made)
        for n in range(rng.randrange(4)):
            kind = rng.choice([IMPRESSION, CLICK, LIKE])
            quoted = f"r{i}" if rng.random() < 0.9 else f"lost{i}"
            when = at + rng.choice([-80.0, 1.0, 49.0, 50.0, 51.0, 100.0, 101.0])
            messages.append(event(quoted, when, kind, user, n))
    return Traffic(tuple(messages))


AS_OF = st.sampled_from([T0, T0 + 1_500_000, T0 + 2_000_000, LATER])


@settings(max_examples=60, deadline=None)
@given(traffic(), AS_OF, st.randoms(use_true_random=False), st.integers(0, 60))
def test_order_duplicates_restarts_and_replays_change_nothing(
    made: Traffic, as_of_ms: int, rng: random.Random, cut: int
) -> None:
    once = folded(made.messages)
    expected = plain(measured(once.settled(), EXPERIMENT, as_of_ms))
    again = [*made.messages, *made.messages[:cut]]
    rng.shuffle(again)
    before_restart = folded(again[:cut])
    restarted = Fold.from_bytes(before_restart.to_bytes())
    for message in again[cut // 2 :] + again:  # what was not committed, then all of the log
        if isinstance(message, DecisionRecord):
            restarted.on_decision(message)
        else:
            restarted.on_feedback(message)
    assert plain(measured(restarted.settled(), EXPERIMENT, as_of_ms)) == expected
    assert restarted.to_bytes() == once.to_bytes()
    assert restarted.settled().unmatched == once.settled().unmatched


@settings(max_examples=60, deadline=None)
@given(traffic(), AS_OF)
def test_statistics_survive_json_exactly(made: Traffic, as_of_ms: int) -> None:
    result = measure(made.messages, as_of_ms)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert plain(Measured.from_json(json.loads(text))) == plain(result)


@settings(max_examples=60, deadline=None)
@given(traffic(), AS_OF)
def test_two_shards_of_disjoint_users_merged_equal_one(made: Traffic, as_of_ms: int) -> None:
    whole = plain(measure(made.messages, as_of_ms))
    shards = [[m for m in made.messages if int(m.user_id[1]) % 3 == i] for i in range(3)]
    assert plain(sum((measure(s, as_of_ms) for s in shards), Measured({}))) == whole
    merged = folded(shards[0])
    for shard in shards[1:]:
        merged.merge(folded(shard))
    assert plain(measured(merged.settled(), EXPERIMENT, as_of_ms)) == whole


@settings(max_examples=60, deadline=None)
@given(traffic(), AS_OF)
def test_the_statistics_are_those_of_a_plain_count_by_unit(made: Traffic, as_of_ms: int) -> None:
    """The definition once more, one unit at a time, in dictionaries."""
    mine = [
        m
        for m in made.messages
        if isinstance(m, DecisionRecord) and m.assignments and not m.assignments[0].overridden
    ]
    rows: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    exposed: dict[tuple[str, int], int] = {}
    for user in {m.user_id for m in mine}:
        own = [m for m in mine if m.user_id == user]
        start = min(m.event_time_ms for m in own)
        arm = _arm_of_first(own)
        key = (arm, start // DAY_MS)
        exposed[key] = exposed.get(key, 0) + 1
        if start + 1_000_000 + 100_000 > as_of_ms:
            continue
        counted = [m for m in own if m.event_time_ms < start + 1_000_000]
        times = {m.request_id: m.event_time_ms for m in counted}
        after = [
            (e.event_type, e.event_time_ms - times[e.request_id])
            for e in made.messages
            if isinstance(e, FeedbackEvent) and e.request_id in times
        ]
        clicks = sum(k == CLICK and -SKEW_MS <= a <= 100_000 for k, a in after)
        seen = sum(k == IMPRESSION and -SKEW_MS <= a <= 100_000 for k, a in after)
        liked = any(k == LIKE and -SKEW_MS <= a <= 50_000 for k, a in after)
        degraded = sum(bool(m.degradations) for m in counted)
        rows.setdefault(key, []).append((clicks, seen, liked, degraded, len(counted)))
    result = measure(made.messages, as_of_ms)
    assert {k: c.exposed for k, c in result.cells.items()} == exposed
    for key, cell in result.cells.items():
        expected = np.array(rows.get(key, []), float).reshape(-1, 5).T
        assert cell.final == expected.shape[1]
        assert cell.undegraded == (expected[3] == 0).sum()
        none = np.zeros(expected.shape[1])  # the covariate: no profile is known
        assert cell.statistics["clicks"] == moments_of(expected[0], none)
        assert cell.statistics["ctr"] == moments_of(expected[0], expected[1], none)
        assert cell.statistics["liked"] == moments_of(expected[2], none)
        assert cell.statistics["degraded"] == moments_of(expected[3], expected[4])


def _arm_of_first(own: list[DecisionRecord]) -> str:
    """Of several in the first millisecond that of the least request hash."""
    first = min(own, key=lambda m: (m.event_time_ms, hash_of(m.request_id)))
    return first.assignments[0].arm


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
    assert list(result.cells) == [ArmDay("control", T0 // DAY_MS)]
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


def test_feedback_without_a_decision_is_unmatched_and_without_a_request_is_not_kept() -> None:
    listless = event("r", 1, CLICK)
    listless.request_id = ""
    settled = folded([decision("r", 0), event("gone", 1, CLICK), listless]).settled()
    assert settled.unmatched == 1
    assert len(settled.events) == 1


def test_of_one_id_with_two_contents_the_same_one_counts_in_any_order() -> None:
    one, two = decision("r", 0, ms=5), decision("r", 1, ms=50, degraded=True)
    assert folded([one, two]).to_bytes() == folded([two, one, two]).to_bytes()


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


def test_a_decision_takes_49_bytes_and_an_event_25_and_a_duplicate_none_in_the_end() -> None:
    decisions = [decision("r1", 0), decision("r2", 0), decision("r1", 0)]
    fold = folded([*decisions, event("r1", 1, CLICK)])
    assert fold.nbytes == 3 * 49 + 25
    fold.settled()
    assert fold.nbytes == 2 * 49 + 25


def test_forgetting_keeps_what_is_young_and_what_carries_an_experiment_in_use() -> None:
    none = decision("none", 0, "n")
    del none.assignments[:]
    other = decision("other", 0, "o")
    other.assignments[0].experiment = "other"
    mine = decision("mine", 0, "m")
    young = decision("young", 100, "y")
    young.assignments[0].experiment = "other"
    of = ("none", "other", "mine", "young", "lost")
    events = [event(request, 50, CLICK) for request in of]
    events.append(event("other", 120, CLICK, n=1))  # young, of a decision that goes
    fold = folded([none, other, mine, young, *events, event("lost", 150, LIKE)])
    expected = folded([mine, young, events[2], events[3], event("lost", 150, LIKE)])
    fold.forget(T0 + 100_000, {"e"})
    assert fold.settled().decisions.tolist() == expected.settled().decisions.tolist()
    assert fold.settled().events.tolist() == expected.settled().events.tolist()
    assert plain(measured(fold.settled(), EXPERIMENT, LATER)) == plain(measure([mine, events[2]]))


def test_bytes_that_are_no_fold_are_refused() -> None:
    good = folded([decision("r", 0)]).to_bytes()
    for data in (b"", b"nothing", good[: len(good) // 2]):
        with pytest.raises(ValueError, match="Read the event log anew"):
            Fold.from_bytes(data)
