"""Whatever stands in the log: what cannot be meant changes nothing else and stops nobody."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog
from hypothesis import given, settings

from protos.tandem.v1.records_pb2 import (
    CLICK,
    DecisionRecord,
    ExperimentChange,
    FeedbackEvent,
)
from services.common.ids import hash_of
from services.common.settings import EventLogSettings
from services.event_log.connect import connect
from services.event_log.interface import EventLog, Record
from services.event_log.topics import DECISIONS, EXPERIMENTS, FEEDBACK
from services.experiments.act.deciding import decide
from services.experiments.act.standing import KnownLog, judge, measure, standing
from services.experiments.act.worker import Worker
from services.experiments.changes import actions, poison
from services.experiments.changes.log import ChangeLog
from services.experiments.changes.poison import EARLIEST_MS, MAX_AHEAD_MS
from services.experiments.changes.state import AT_START, Changes
from services.experiments.cli.acting import _change_json
from services.experiments.declare.config import Arm, Experiment
from services.experiments.declare.metrics import Goal, Metric, Plan
from services.experiments.measure.fold import Fold, Settled
from services.experiments.measure.log_reader import LogReader
from services.experiments.measure.measure import measured
from services.experiments.report.findings import Coverage
from tests.domains import FILMS
from tests.unit.experiments.messages import (
    T0,
    decision,
    dropped,
    event,
    folded,
    interleaving,
    poisoned,
)

LATER = T0 + 10**9
PLAN = Plan(
    Goal(Metric("clicks", "mean", "click", "higher", window_s=60), 0.1),
    (Goal(Metric("p50", "quantile", "latency", "lower"), 0.1),),
    observe_s=600,
)


def experiment(name: str = "e", unit: str = "user") -> Experiment:
    arms = (Arm("control", 0, 5000, 10_000, {}), Arm("b", 5000, 10_000, 10_000, {}))
    return Experiment(name, "s", unit, (0, 10_000), arms, {}, True, plan=PLAN)


MIX = Experiment(
    "mix", "", "user", (0, 10_000),
    (Arm("old", 0, 0, 10_000, {}), Arm("new", 0, 0, 10_000, {})), {}, True,
    interleave="team_draft",
)  # fmt: skip
MEASURED = [experiment(), experiment("dev", "device"), MIX]


def good(request: str, user: str, at_s: float = 0) -> DecisionRecord:
    record = decision(
        request, at_s, user, "b" if int(user[1:]) % 2 else "control", ms=5, salt="s", split="1:1",
        fingerprint="0123456789abcdef", segments=["new"],
    )  # fmt: skip
    record.assignments.add(experiment="dev", arm="b", unit="device", salt="s")
    record.assignments.add(experiment="mix", arm="interleaved", unit="user")
    record.unit_ids["device"] = f"d-{user}"
    record.item_ids.extend(["i", "j"])
    record.interleaving.CopyFrom(interleaving("team_draft", [0, 1]))
    record.before.clicks = 3
    return record


GOOD = [good(f"r{n}", f"u{n % 4}", n) for n in range(8)]
EVENTS = [event(f"r{n}", n + 1, CLICK, f"u{n % 4}") for n in range(8)]
SOUND = folded([*GOOD, *EVENTS]).settled()


def without(settled: Settled, requests: set[int], events: set[int]) -> list[object]:
    """All that is known but for some requests and events."""
    d, e, p = settled.decisions, settled.events, settled.places
    units = {
        kind: rows[~np.isin(rows["request"], list(requests))].tolist()
        for kind, rows in settled.units.items()
    }
    known = set(d["arms"].tolist())
    return [
        d[~np.isin(d["request"], list(requests))].tolist(),
        e[~np.isin(e["event"], list(events))].tolist(),
        p[~np.isin(p["request"], list(requests))].tolist(),
        {kind: rows for kind, rows in units.items() if rows},
        {key: settled.combinations[key] for key in known & SOUND.combinations.keys()},
        {key: settled.segments[key] for key in SOUND.segments},
    ]


@settings(max_examples=300)
@given(poisoned(GOOD[0]))
def test_no_decision_raises_anything_or_changes_another(record: DecisionRecord | None) -> None:
    if record is None:
        return
    fold = folded([*GOOD, *EVENTS])
    if not fold.on_decision(record):
        assert fold.to_bytes() == folded([*GOOD, *EVENTS]).to_bytes()
    settled = fold.settled()
    own = {hash_of(record.request_id), hash_of("r0")}
    assert without(settled, own, set()) == without(SOUND, own, set())
    for each in MEASURED:
        measured(settled, each, LATER)
    assert Fold.from_bytes(fold.to_bytes()).to_bytes() == fold.to_bytes()
    fold.forget(LATER, ())
    assert fold.nbytes == 0 or record.event_time_ms > LATER


@settings(max_examples=150)
@given(poisoned(EVENTS[0]))
def test_no_event_raises_anything_or_changes_another(sent: FeedbackEvent | None) -> None:
    if sent is None:
        return
    fold = folded([*GOOD, *EVENTS])
    fold.on_feedback(sent)
    settled = fold.settled()
    own = {hash_of(sent.user_id, sent.event_id), hash_of("u0", EVENTS[0].event_id)}
    assert without(settled, set(), own) == without(SOUND, set(), own)
    for each in MEASURED:
        measured(settled, each, LATER)


def change(salt: str = "s") -> ExperimentChange:
    mine = experiment() if salt == "s" else experiment(salt)
    made = actions.stop(mine, AT_START, "b", actions.By("ann", "a test", T0))
    made.salt = salt
    made.state.pauses.add(arm="b", from_ms=T0 - 10, to_ms=T0 - 5)
    return made


@settings(max_examples=200)
@given(poisoned(change()))
def test_no_change_raises_anything_or_changes_another_experiment(
    sent: ExperimentChange | None,
) -> None:
    known = Changes([change("other")])
    before = known.states()
    if sent is None:
        return
    try:
        known.add(sent)
    except ValueError:
        assert known.states() == before
        return
    if sent.salt != "other":
        assert known.states()["other"] == before["other"]
    for made in known.all():
        json.dumps(_change_json(made))
    state = known.state("s")
    at = KnownLog(SOUND, Coverage(), LATER)
    _, recent = measure(at, experiment(), state)
    judged = judge(at, "l", experiment(), state, recent)
    decide(experiment(), state, judged, LATER, 0)
    standing(at, "l", experiment(), known).to_json()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda r: setattr(r, "outcome", 7), "outcome"),
        (lambda r: r.degradations.append(0), "degradation"),
        (lambda r: r.degradations.append(-3), "degradation"),
        (lambda r: setattr(r, "request_id", ""), "id"),
        (lambda r: setattr(r, "event_time_ms", -(2**63)), "past"),
        (lambda r: setattr(r.assignments[0], "experiment", "e\0x"), "name"),
        (lambda r: setattr(r.assignments[0], "arm", ""), "name"),
        (lambda r: setattr(r.assignments[0], "salt", "a b"), "name"),
        (lambda r: r.segments.append("new\0old"), "name"),
        (lambda r: r.assignments.add(experiment="e", arm="control", salt="s"), "two_arms"),
    ],
)
def test_a_decision_that_cannot_be_meant_is_dropped_and_counted(
    spoil: Callable[[DecisionRecord], object], reason: str
) -> None:
    record = good("p", "u9")
    spoil(record)
    before = dropped(DECISIONS, reason)
    assert not Fold().on_decision(record)
    assert dropped(DECISIONS, reason) == before + 1


def test_a_degradation_that_is_not_known_yet_is_one() -> None:
    record = good("p", "u9")
    record.degradations.append(99)  # type: ignore[arg-type]
    assert folded([record]).settled().decisions["degraded"].tolist() == [True]


@pytest.mark.parametrize("kind", [0, 256, -1, 2**31 - 1])
def test_an_event_of_a_type_that_no_schema_can_have_is_dropped_and_counted(kind: int) -> None:
    before = dropped(FEEDBACK, "type")
    fold = Fold()
    assert not fold.on_feedback(event("r0", 1, kind))
    assert len(fold.settled().events) == 0
    assert dropped(FEEDBACK, "type") == before + 1


def test_names_that_are_joined_by_the_hash_take_nobody_elses_place() -> None:
    """Hashed together, `e` and `control` are what one name with a NUL in it would be."""
    one = decision("r", 0, salt="s", split="1:1")
    other = decision("q", 0)
    del other.assignments[:]
    other.assignments.add(experiment="e\0control", arm="s", salt="1:1")
    assert list(folded([one, other]).settled().combinations.values()) == list(
        folded([one]).settled().combinations.values()
    )


# The whole of it, in a real log.

FILE = """\
version: 1
metrics: [{name: clicks, kind: mean, of: click, better: higher, window_s: 60}]
layers:
  - name: l
    parameters: [rerank.diversity]
    experiments:
      - name: e
        salt: s
        arms: [{name: control, weight: 50}, {name: b, weight: 50}]
        primary: {metric: clicks, minimal_effect: 0.02}
        observe_s: 600
"""
NOW_MS = LATER


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    opened = connect(EventLogSettings(url=f"log://{tmp_path}/events"), None)
    yield opened
    opened.close()


def append(log: EventLog, topic: str, *values: bytes) -> None:
    log.append(topic, [Record(b"k", value, T0) for value in values]).result()


def round_of(log: EventLog, folder: Path) -> tuple[dict[str, object], int]:
    """What a worker says of the log, and how many records it could not read."""
    file = folder / "e.yaml"
    file.write_text(FILE)
    clock = lambda: NOW_MS / 1000  # noqa: E731
    with (
        contextlib.closing(LogReader(log, clock=clock)) as reader,
        contextlib.closing(ChangeLog(log, clock=clock)) as changes,
    ):
        reader.read_all()
        said = Worker(reader, changes, file, FILMS, "log").round(NOW_MS)
        return said["experiments"], reader.undecodable


def test_a_worker_says_the_same_of_a_log_with_every_kind_of_poison(
    log: EventLog, tmp_path: Path
) -> None:
    append(log, DECISIONS, *(r.SerializeToString() for r in GOOD))
    append(log, FEEDBACK, *(e.SerializeToString() for e in EVENTS))
    append(log, EXPERIMENTS, change().SerializeToString())
    expected, undecodable = round_of(log, tmp_path)
    assert undecodable == 0
    ahead = good("ahead", "u9")
    ahead.event_time_ms = int(NOW_MS) + MAX_AHEAD_MS + 1
    year_9999 = good("later", "u9")
    year_9999.event_time_ms = 253_402_300_799_999
    seconds = good("seconds", "u9")
    seconds.event_time_ms = EARLIEST_MS - 1
    none = good("none", "u9")
    none.outcome = 9  # type: ignore[assignment]
    late = event("r0", 1, CLICK, n=7)
    late.event_time_ms = 2**63 - 1
    typed = event("r0", 1, 300, n=8)
    stopped = change()
    stopped.change_id, stopped.state.pauses[0].from_ms = "x", 253_402_300_799_999
    ramped = change()
    ramped.change_id, ramped.state.ramp_step = "y", 2**32 - 1
    poison._told.clear()
    with structlog.testing.capture_logs() as told:
        for _ in range(3):
            append(
                log, DECISIONS, *(r.SerializeToString() for r in (ahead, year_9999, seconds, none))
            )
            append(log, DECISIONS, b"\xff\xff", b"\x0a\x02\xff\xfe")
            append(log, FEEDBACK, late.SerializeToString(), typed.SerializeToString(), b"\x08")
            append(log, EXPERIMENTS, *(c.SerializeToString() for c in (stopped, ramped)), b"\1")
        assert round_of(log, tmp_path) == (expected, 3 * 9)
    said = [e for e in told if e["event"] == "experiment_record_dropped"]
    assert sorted((e["topic"], e["reason"]) for e in said) == [
        (DECISIONS, "future"),
        (DECISIONS, "outcome"),
        (DECISIONS, "past"),
        (EXPERIMENTS, "future"),
        (EXPERIMENTS, "state"),
        (FEEDBACK, "future"),
        (FEEDBACK, "type"),
    ]


def test_a_change_whose_record_is_dated_ahead_is_repeated_in_time_all_the_same(
    log: EventLog,
) -> None:
    log.append(EXPERIMENTS, [Record(b"s", change().SerializeToString(), 2**62)]).result()
    with contextlib.closing(ChangeLog(log, clock=lambda: NOW_MS / 1000)) as changes:
        changes.read_all(10.0)
        assert changes.repeat({"s"}, NOW_MS, after_ms=1000) == 0
        assert changes.repeat({"s"}, NOW_MS + 1001, after_ms=1000) == 1
