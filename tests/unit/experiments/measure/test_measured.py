"""What is measured of a fold: single rules, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from models.schema.declaration import Event
from protos.tandem.v1.records_pb2 import (
    ABANDONED,
    CLICK,
    FAILED,
    IMPRESSION,
    LIKE,
    Before,
)
from services.experiments.declare.metrics import Events, Goal, Metric
from services.experiments.measure.fold import Fold
from services.experiments.measure.measure import measured
from services.experiments.measure.results import DAY_MS, ArmDay, Measured
from services.experiments.statistics.estimates import estimate
from services.experiments.statistics.moments import Moments, moments_of
from services.experiments.statistics.quantiles import GroupedHistogram
from tests.unit.experiments.measure.measuring import (
    BY_DEVICE,
    EXPERIMENT,
    LATER,
    PLAN,
    STOPS,
    WATCHED,
    columns,
    measure,
    plain,
)
from tests.unit.experiments.messages import (
    T0,
    Message,
    decision,
    event,
)


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
    assert histogram.counts.sum() == 3
    assert histogram.quantile(0.5, 2).value == pytest.approx(16, rel=0.01)
    cell = result.of_arm("control")
    assert (cell.exposed, cell.final, cell.joined, cell.undegraded) == (2, 2, 1, 1)
    assert cell.undegraded_statistics["ctr"] == moments_of([0], [0], [0])
    assert (result.decisions, result.late, result.crossed, result.outside) == (4, 0, 0, 0)


@pytest.mark.parametrize("kind", [4, 127, 128, 255])
def test_a_metric_counts_the_event_of_the_domain_that_it_names(kind: int) -> None:
    events = Events((Event(name="click", id=2), Event(name="share", id=kind)), ())
    shared = Metric("shared", "mean", "share", "higher", window_s=100, events=events)
    per_click = Metric(
        "per_click", "ratio", "share", "higher", "click", window_s=100, events=events
    )
    plan = replace(PLAN, primary=Goal(shared, 0.02), secondary=(Goal(per_click, 0.02),))
    messages: list[Message] = [
        decision("a1", 0, "a"),
        event("a1", 1, kind, "a"),
        event("a1", 2, kind, "a", n=1),
        event("a1", 3, CLICK, "a"),
        event("a1", 4, LIKE, "a"),
    ]
    result = measure(messages, experiment=replace(EXPERIMENT, plan=plan))
    assert columns(result, "control", "shared") == moments_of([2])
    assert columns(result, "control", "per_click") == moments_of([2], [1])


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
        ((watched,),) = result.of_splits(("control",), (), 60_000)
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
    ((watched,),) = measure(messages, experiment=WATCHED).of_splits(("control",), (), 60_000)
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
