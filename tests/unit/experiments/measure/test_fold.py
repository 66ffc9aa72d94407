"""The fold is a set: laws over random traffic, and what is kept of a message."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.tandem.v1.records_pb2 import CLICK, FAILED, LIKE, Before, DecisionRecord
from services.common.ids import hash_of
from services.experiments.measure import fold as module
from services.experiments.measure.fold import (
    BEFORE,
    DECISION,
    EVENT,
    OVERRIDDEN,
    PLACE,
    UNIT,
    UNKNOWN_LATENCY,
    UNKNOWN_VALUE,
    Fold,
    RecordedExposure,
)
from services.experiments.statistics.moments import SCALE
from tests.unit.experiments.messages import (
    T0,
    Traffic,
    decision,
    dropped,
    event,
    folded,
    interleaving,
    kept,
    traffic,
)


@settings(max_examples=60)
@given(traffic(), st.randoms(use_true_random=False), st.integers(0, 60))
def test_order_duplicates_and_restarts_change_no_byte(
    made: Traffic, rng: random.Random, cut: int
) -> None:
    once = folded(made.messages).to_bytes()
    again = [*made.messages, *made.messages[:cut]]
    rng.shuffle(again)
    restarted = Fold.from_bytes(folded(again[:cut]).to_bytes())
    folded([*again[cut // 2 :], *again], restarted)  # what was not committed, then all of the log
    assert restarted.to_bytes() == once


@settings(max_examples=30)
@given(traffic())
def test_nothing_is_left_of_what_is_forgotten(made: Traffic) -> None:
    fold = folded(made.messages)
    fold.forget(T0 + 10**9, ())
    assert fold.nbytes == 0


def test_the_memory_that_is_documented_is_that_of_the_rows() -> None:
    said = " ".join((module.__doc__ or "").split())
    for rows, text in (
        (DECISION, "bytes per decision,"),
        (EVENT, "bytes per event,"),
        (BEFORE, "bytes per number that was kept"),
        (UNIT, "bytes per decision and unit"),
        (PLACE, "bytes per item of an interleaved list"),
    ):
        assert f"{rows.itemsize} {text}" in said
    assert f"take {DECISION.itemsize + 3 * EVENT.itemsize} MB" in said
    assert f"{10 * PLACE.itemsize} MB more" in said


def test_duplicates_take_no_memory_in_the_end() -> None:
    fold = folded([decision("r1", 0), decision("r2", 0), decision("r1", 0), event("r1", 1, CLICK)])
    assert fold.nbytes == 3 * DECISION.itemsize + EVENT.itemsize
    fold.settled()
    assert fold.nbytes == 2 * DECISION.itemsize + EVENT.itemsize


def only(record: DecisionRecord) -> np.void:
    (row,) = folded([record]).settled().decisions
    return row


def test_an_unanswered_decision_has_no_latency_no_degradation_and_no_list() -> None:
    record = decision("r", 0, ms=5, degraded=True, outcome=FAILED)
    record.item_ids.append("i")
    record.interleaving.CopyFrom(interleaving("team_draft", [1]))
    row = only(record)
    assert (row["unanswered"], row["degraded"], row["drafted"]) == (True, False, False)
    assert row["latency"] == UNKNOWN_LATENCY
    assert len(folded([record]).settled().places) == 0


def test_unread_assignments_are_no_exposures_and_overridden_ones_are_kept_under_no_arm() -> None:
    record = decision("r", 0, unread=True)
    record.assignments.add(experiment="f", arm="a", overridden=True)
    record.assignments.add(experiment="h", arm="a", overridden=True, unread=True)
    record.assignments.add(experiment="g", arm="b")
    settled = folded([record]).settled()
    kept = RecordedExposure("f", OVERRIDDEN), RecordedExposure("g", "b")
    assert settled.combinations == {int(only(record)["arms"]): kept}


def test_the_split_is_kept_and_what_is_none_is_as_good_as_an_older_record() -> None:
    kept = only(decision("r", 0, split="1:10"))["arms"]
    settled = folded([decision("r", 0, split="1:10")]).settled()
    assert settled.combinations == {int(kept): (RecordedExposure("e", "control", "", "1:10"),)}
    older = only(decision("r", 0))["arms"]
    assert older != kept
    for text in ("x", "1:", ":1", "1:-1", "1:1.5", "1:\u0661", "9" * 10, "1:1 "):
        assert only(decision("r", 0, split=text))["arms"] == older


def test_rows_that_were_saved_before_there_was_a_split_are_still_known() -> None:
    """Their combination's hash is in the rows, and the names beside them have three parts."""
    assert only(decision("r", 0, salt="s"))["arms"] == hash_of("e", "control", "s")


def test_rows_that_were_saved_before_there_was_a_fingerprint_are_still_known() -> None:
    kept = only(decision("r", 0, salt="s", split="1:1"))["arms"]
    assert kept == hash_of("e", "control", "s", "1:1")
    assert only(decision("r", 0, salt="s", split="1:1", fingerprint="0" * 16))["arms"] != kept


def test_what_was_kept_of_the_user_is_known_by_its_source_and_in_old_records_by_its_name() -> None:
    def known(before: Before | None, **assignment: object) -> dict[int, list[float]]:
        settled = folded([decision("r", 0, before=before, **assignment)]).settled()
        return {source: rows["number"].tolist() for source, rows in settled.before.items()}

    assert known(kept({6: 3, -6: 59.5, 200: 0})) == {6: [3], -6: [59.5]}
    assert known(Before(impressions=7, clicks=2**32 - 1)) == {1: [7], 2: [2**32 - 1]}
    assert known(kept({6: 3}), unread=True) == known(None) == known(Before()) == {}
    for sources, numbers in ((b"\6", b""), (b"\6\0", b"\0" * 7), (b"\0\0", b"\1" * 8)):
        assert known(Before(sources=sources, numbers=numbers)) == {}
    assert known(kept({6: math.nan, -6: math.inf, 256: 1, -300: 1, 7: 1})) == {7: [1]}


def test_a_value_is_kept_in_grid_steps_and_one_beyond_what_a_metric_holds_is_cut() -> None:
    values = [59.9, -1e-7, 1e300, -1e13]
    events = [event("r", 1, 6, n=n, value=value) for n, value in enumerate(values)]
    found = {n: folded([e]).settled().events["value"][0] for n, e in enumerate(events)}
    assert list(found.values()) == [59_900_000, 0, 10**18, -(10**18)]
    before = dropped("feedback", "value")
    assert not Fold().on_feedback(event("r", 1, 6, value=math.nan))
    assert not Fold().on_feedback(event("r", 1, 6, value=-math.inf))
    assert dropped("feedback", "value") == before + 2


def test_properties_are_kept_by_event_and_what_nobody_can_mean_is_left_out() -> None:
    sent = event("r", 0, CLICK)
    sent.properties.update({"coupon": 1, "size": 2.5, "bad": math.nan, "far": 1e300, "a b": 1})
    sent.properties_text.update({"channel": "app", "": "x", "x" * 65: "y"})
    fold = folded([decision("r", 0), sent, event("r", 0, CLICK, n=1)])
    again = Fold.from_bytes(fold.to_bytes())
    own = hash_of("u", "r-2-0")
    for known in (fold.settled().properties, again.settled().properties):
        assert {key: rows.tolist() for key, rows in known.items()} == {
            "2.coupon": [(own, SCALE)],
            "2.size": [(own, 5 * SCALE // 2)],
            "2.channel": [(own, hash_of("app"))],
        }
    assert again.to_bytes() == fold.to_bytes()


def test_further_units_are_kept_where_an_experiment_assigns_them() -> None:
    record = decision("r", 0, unit="device")
    record.assignments.add(experiment="f", arm="a", unit="shop", unread=True)
    record.unit_ids.update({"device": "d", "shop": "s", "household": "h"})
    units = folded([record, decision("q", 0, unit="device")]).settled().units
    assert {kind: rows.tolist() for kind, rows in units.items()} == {
        "device": [(hash_of("r"), hash_of("d"))]
    }


def test_a_place_of_an_interleaved_list_is_found_by_the_events_hash() -> None:
    record = decision("r", 0)
    record.item_ids.extend(["x", "y"])
    record.interleaving.CopyFrom(interleaving("team_draft", [0, 1]))
    settled = folded([record, event("r", 1, CLICK, item="y")]).settled()
    assert settled.decisions["drafted"][0]
    (clicked,) = settled.places[settled.places["place"] == settled.events["place"][0]]
    assert clicked.tolist()[1:] == (hash_of("r"), 1)


@pytest.mark.parametrize(
    ("method", "teams"),
    [
        ("unheard_of", b"\0"),
        ("balanced", b"\0"),  # of the first version, as the next one
        ("probabilistic", b"\0"),
        ("team_draft", b"\0\1"),
        ("team_draft", b"\2"),
    ],
)
def test_a_list_that_nobody_can_be_credited_by_is_none_and_the_decision_counts(
    method: str, teams: bytes
) -> None:
    record = decision("r", 0)
    record.item_ids.append("x")
    record.interleaving.method, record.interleaving.teams = method, teams
    before = dropped("decisions", "interleaving")
    assert not only(record)["drafted"]
    assert len(folded([record]).settled().places) == 0
    assert dropped("decisions", "interleaving") == before + 2


def test_feedback_without_a_decision_is_unmatched_and_without_a_request_is_not_kept() -> None:
    listless = event("r", 1, CLICK)
    listless.request_id = ""
    settled = folded([decision("r", 0), event("gone", 1, CLICK), listless]).settled()
    assert settled.unmatched == 1
    assert len(settled.events) == 1


def test_of_one_id_with_two_contents_the_same_one_counts_in_any_order() -> None:
    one, two = decision("r", 0, ms=5), decision("r", 1, ms=50, degraded=True)
    assert folded([one, two]).to_bytes() == folded([two, one, two]).to_bytes()


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
    for each in events:
        each.properties["coupon"] = 1
    fold = folded([none, other, mine, young, *events, event("lost", 150, LIKE)])
    expected = folded([mine, young, events[2], events[3], event("lost", 150, LIKE)])
    fold.forget(T0 + 100_000, {"e"})
    assert fold.settled().decisions.tolist() == expected.settled().decisions.tolist()
    assert fold.settled().events.tolist() == expected.settled().events.tolist()
    kept, known = fold.settled().properties, expected.settled().properties
    assert kept["2.coupon"].tolist() == known["2.coupon"].tolist()
    assert len(kept["2.coupon"]) == 2


def test_bytes_that_are_no_fold_are_refused() -> None:
    good = folded([decision("r", 0)]).to_bytes()
    for data in (b"", b"nothing", good[: len(good) // 2]):
        with pytest.raises(ValueError, match="Read the event log anew"):
            Fold.from_bytes(data)


def to_three_events(saved: dict[str, Any], records: Sequence[DecisionRecord]) -> None:
    """Arrays of `to_bytes` as they were when events had no values and three of them were counted,
    in the rows of decisions; what is last in those stays the last."""
    names = json.loads(saved["names"].tobytes())
    for i in range(len(names.pop("before"))):
        del saved[f"before{i}"]
    saved["names"] = np.frombuffer(json.dumps(names).encode(), np.uint8)
    counts = ("impressions", "clicks", "likes")
    now = saved["decisions"]
    older = np.zeros(
        len(now), [*now.dtype.descr[:7], *((name, "<i4") for name in counts), *now.dtype.descr[7:]]
    )
    for name in now.dtype.names:
        older[name] = now[name]
    known = {hash_of(record.request_id): record for record in records}
    for row in older:
        record = known[int(row["request"])]
        for name in counts:
            row[name] = getattr(record.before, name) if record.HasField("before") else -1
    saved["decisions"] = older
    without = [field for field in EVENT.descr[:-1] if field[0] != "value"]
    saved["events"] = saved["events"][[*(name for name, _ in without), "type"]].astype(
        [*without, ("type", "i1")]
    )


def test_what_the_first_version_saved_is_what_the_log_says_now() -> None:
    records = [decision(f"r{i}", i, before=Before(clicks=i)) for i in range(3)]
    for record, method in zip(records, ("team_draft", "balanced"), strict=False):
        record.item_ids.extend(["x", "y"])
        record.interleaving.CopyFrom(interleaving(method, [0, 1]))
    now = folded(records).to_bytes()
    with np.load(io.BytesIO(now)) as arrays:
        saved = dict(arrays)
    numbers = {hash_of("r0"): 1, hash_of("r1"): 2, hash_of("r2"): 0}
    dtype = [*DECISION.descr[:-1], ("method", "u1")]
    saved["decisions"] = saved["decisions"].astype(dtype)
    saved["decisions"]["method"] = [numbers[n] for n in saved["decisions"]["request"].tolist()]
    to_three_events(saved, records)
    places = [
        (hash_of(request, item), hash_of(request), position, position, 0.0, position + 1, 65_535)
        for request in ("r0", "r1")
        for position, item in enumerate(["x", "y"])
    ]
    saved["places"] = np.array(
        sorted(places),
        [("place", "<i8"), ("request", "<i8"), ("position", "<u2"), ("team", "u1"),
         ("b_probability", "<f4"), ("a_rank", "<u2"), ("b_rank", "<u2")],
    )  # fmt: skip
    file = io.BytesIO()
    np.savez(file, **saved)
    assert Fold.from_bytes(file.getvalue()).to_bytes() == now


def test_a_fold_of_other_columns_is_refused_so_that_the_log_is_read_anew() -> None:
    with np.load(io.BytesIO(folded([decision("r", 0)]).to_bytes())) as arrays:
        parts = dict(arrays)
    for name in ("decisions", "events", "places"):
        names = parts[name].dtype.names
        assert names is not None
        file = io.BytesIO()
        np.savez(file, **parts | {name: parts[name][list(names[:-1])]})
        with pytest.raises(ValueError, match="Read the event log anew"):
            Fold.from_bytes(file.getvalue())


def test_what_was_saved_before_there_were_values_is_completed_by_the_log() -> None:
    """A worker reads all that the log retains at every start; what it no longer has stays."""
    before = [Before(impressions=7, likes=2), None, Before(clicks=3)]
    records = [decision(f"r{i}", i, before=known) for i, known in enumerate(before)]
    gone, retained = event("r0", 1, LIKE, value=7), event("r1", 1, LIKE, n=1, value=59.5)
    loss = event("r2", 1, CLICK, value=-3)
    with np.load(io.BytesIO(folded([*records, gone, retained, loss]).to_bytes())) as arrays:
        saved = dict(arrays)
    to_three_events(saved, records)
    file = io.BytesIO()
    np.savez(file, **saved)
    older = Fold.from_bytes(file.getvalue())
    assert older.settled().events["value"].tolist() == [UNKNOWN_VALUE] * 3
    read = folded([retained, loss, *records], older)
    assert sorted(read.settled().events["value"].tolist()) == [
        -3 * SCALE, 119 * SCALE // 2, UNKNOWN_VALUE
    ]  # fmt: skip
    whole = folded([*records, gone, retained, loss]).to_bytes()
    assert folded([gone], read).to_bytes() == whole
