"""From a real event log to the report: a known effect is found, and replays change nothing."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from protos.tandem.v1.records_pb2 import (
    CLICK,
    IMPRESSION,
    UNRANKED,
    DecisionRecord,
    EventType,
    FeedbackEvent,
    StageTimes,
)
from services.common.discovery import announced, replica_folder
from services.common.settings import EventLogSettings, Settings
from services.event_log.connect import connect
from services.event_log.interface import EventLog, Lag, Record
from services.event_log.topics import DECISIONS, FEEDBACK
from services.experiments.act.snapshot import FRESH_S, SNAPSHOT, fresh
from services.experiments.act.worker import FOLD, Worker, remembered, run_worker
from services.experiments.assign.assignment import Assigner
from services.experiments.changes.log import ChangeLog
from services.experiments.cli.experiments import app
from services.experiments.declare import config_reader
from services.experiments.declare.config import Experiment
from services.experiments.declare.metrics import Plan
from services.experiments.measure.log_reader import LogReader
from tests.domains import FILMS

EXPERIMENTS = """\
version: 1
metrics:
  - {name: clicked, kind: binary, of: click, better: higher, window_s: 60}
  - {name: click_rate, kind: ratio, of: click, per: impression, better: higher, window_s: 60}
  - {name: seen, kind: mean, of: impression, better: higher, window_s: 60}
  - {name: p50, kind: quantile, of: latency, quantile: 0.5, better: lower}
  - {name: degraded_share, kind: ratio, of: degraded, per: request, better: lower}
layers:
  - name: value
    parameters: [rerank.diversity]
    experiments:
      - name: mix
        arms:
          - {name: control, weight: 50}
          - {name: mixed, weight: 50, parameters: {rerank.diversity: 0.5}}
        primary: {metric: clicked, minimal_effect: 0.1}
        secondary:
          - {metric: click_rate, minimal_effect: 0.1}
          - {metric: seen, minimal_effect: 0.1}
        guardrails:
          - {metric: p50, allowed_harm: 0.2}
          - {metric: degraded_share, allowed_absolute_harm: 0.05}
        observe_s: 600
        planned_units: 600
        allow_list: {listed: mixed}
"""
USERS = 600
CLICKS = {"control": 0.1, "mixed": 0.3}  # chance that an answer is clicked
PATIENCE_S = 30.0
START_MS = int(time.time() * 1000) - 3 * 3_600_000


def traffic() -> tuple[list[DecisionRecord], list[FeedbackEvent]]:
    """Three answers to each user, assigned as the router does; the rest is the arm's chance."""
    rng = random.Random(20)
    assigner = Assigner(config_reader.parse(EXPERIMENTS.encode(), "e", FILMS))
    decisions, events = [], []
    for user in [f"u{i}" for i in range(USERS)] + ["listed"]:
        first = START_MS + rng.randrange(3_600_000)
        for n in range(3):
            at, request = first + n * 100_000, f"{user}-{n}"
            assigned = assigner.assign(user, now_ms=at)
            arm = assigned.assignments[0].arm
            decisions.append(
                DecisionRecord(
                    request_id=request,
                    user_id=user,
                    event_time_ms=at,
                    assignments=assigned.messages,
                    degradations=[UNRANKED] if rng.random() < 0.02 else [],
                    stage_ms=StageTimes(retrieve=5, rank=10 + 10 * rng.random()),
                )
            )
            kinds: list[EventType] = [IMPRESSION]
            kinds += [CLICK] if rng.random() < CLICKS[arm] else []
            events += [
                FeedbackEvent(
                    event_id=f"{request}-{kind}",
                    request_id=request,
                    user_id=user,
                    item_id="i",
                    event_type=kind,
                    event_time_ms=at + 1000,
                )
                for kind in kinds
            ]
    late = FeedbackEvent()
    late.CopyFrom(events[0])
    late.event_id, late.event_time_ms = "late", events[0].event_time_ms + 3_600_000
    return decisions, [*events, late]


def append(log: EventLog, topic: str, messages: Sequence[DecisionRecord | FeedbackEvent]) -> None:
    records = [Record(m.user_id.encode(), m.SerializeToString(), m.event_time_ms) for m in messages]
    log.append(topic, records).result()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "experiments.yaml").write_text(EXPERIMENTS)
    log = connect(EventLogSettings(url=f"log://{folder}/events"), None)
    decisions, events = traffic()
    append(log, FEEDBACK, events)  # first: the log promises no order between topics
    append(log, DECISIONS, decisions)
    log.append(FEEDBACK, [Record(b"u", b"\xff\xff", START_MS)]).result()
    log.close()
    return folder


def following(log: EventLog) -> contextlib.closing[ChangeLog]:
    return contextlib.closing(ChangeLog(log))


def run(folder: Path, *options: str) -> str:
    result = CliRunner().invoke(
        app,
        ["report", "mix", str(folder / "experiments.yaml"), *options],
        env={
            "TANDEM_EVENT_LOG__URL": f"log://{folder}/events",
            "TANDEM_RUN_DIR": str(folder),
            "COLUMNS": "150",
        },
    )
    assert result.exit_code == 0, result.output
    return result.output


def as_json(folder: Path, *options: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(run(folder, "--json", *options))
    return parsed


def test_the_command_finds_the_known_effect_and_counts_everybody_once(folder: Path) -> None:
    found = as_json(folder)
    assert sum(arm["exposed"] for arm in found["arms"]) == USERS
    assert all(arm["final"] == arm["exposed"] == arm["joined"] for arm in found["arms"])
    assert found["decisions"] == 3 * USERS
    assert not found["sample_ratio"]["broken"]
    clicked, click_rate, seen = found["goals"]
    truth = {arm: 1 - (1 - p) ** 3 for arm, p in CLICKS.items()}
    assert clicked["metric"]["name"] == "clicked"
    assert clicked["verdict"] == click_rate["verdict"] == "better"
    effect = clicked["all_units"]
    assert (
        effect["sequence"]["low"] < truth["mixed"] - truth["control"] < effect["sequence"]["high"]
    )
    assert effect["sequence"]["low"] > 0
    assert abs(effect["control_value"] - truth["control"]) < 0.1
    assert seen["all_units"]["control_value"] == seen["all_units"]["value"] == 3
    assert seen["verdict"] == "no difference that matters"  # all units are alike
    assert clicked["undegraded"]["units"] < clicked["all_units"]["units"]
    p50, degraded = found["guardrails"]
    assert p50["effect"]["control_value"] == pytest.approx(20, abs=1)
    assert (p50["safety"], degraded["safety"]) == ("holds", "holds")
    said = " ".join(found["warnings"])
    assert "Feedback events after every window, which were not added: 1." in said
    assert "Records that could not be read (a broken writer): 1." in said
    assert found["coverage"]["unmatched"] == 0


def test_replaying_the_log_twice_changes_nothing(folder: Path) -> None:
    at = ("--at", "2999-01-01T00:00:00Z")
    before = as_json(folder, *at)
    log = connect(EventLogSettings(url=f"log://{folder}/events"), None)
    reader = LogReader(log, poll_records=100)
    reader.read_all()
    once = reader.fold.to_bytes()
    reader.close()
    again = LogReader(log, reader.fold, poll_records=37)  # a restart reads it all once more
    again.read_all()
    assert again.fold.to_bytes() == once
    again.close()
    decisions, events = traffic()
    append(log, DECISIONS, decisions)
    append(log, FEEDBACK, events)
    log.close()
    assert as_json(folder, *at) == before


def test_the_command_leaves_no_group_behind(folder: Path) -> None:
    run(folder)
    for topic in (DECISIONS, FEEDBACK):
        assert list((folder / "events" / topic / "groups").iterdir()) == []


def test_the_table_reads_as_sentences(folder: Path) -> None:
    output = run(folder)
    for text in (
        "mix (running)",
        f"{USERS} users were exposed by",
        "clicked: mixed is better than control.",
        "p50: holds for mixed.",
        "served undegraded",
        "as the weights say",
        "always valid",
    ):
        assert text in output


def test_before_outcomes_are_final_the_report_says_so(folder: Path) -> None:
    at_s = START_MS // 1000 + 655  # the first outcome takes 660 s
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))
    output = " ".join(run(folder, "--at", at).split())  # lines wrap
    came = {record.user_id for record in traffic()[0] if record.event_time_ms <= at_s * 1000}
    assert 50 < len(came) < 200
    assert f"The outcome of 0 is final; {len(came)} are still being observed." in output
    assert "clicked: nothing can be said of mixed yet." in output


def test_an_unknown_experiment_is_one_sentence(folder: Path) -> None:
    result = CliRunner().invoke(app, ["report", "mxi", str(folder / "experiments.yaml")])
    assert result.exit_code == 1
    assert result.output == "there is no experiment 'mxi'. Use one of mix.\n"


def test_the_worker_measures_what_the_command_reads_of_the_log(folder: Path) -> None:
    from_log = as_json(folder, "--from-log")
    settings = Settings(
        run_dir=folder,
        event_log={"url": f"log://{folder}/events"},
        router={"experiments_file": folder / "experiments.yaml"},
        experiments={"metrics_port": 0, "report_every_s": 0.05},
    )
    file, stop, pages = folder / SNAPSHOT, threading.Event(), []

    def watch() -> None:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not (file.exists() and json.loads(file.read_text())["caught_up"]):
                assert time.monotonic() < deadline
                threading.Event().wait(0.02)
            (found,) = announced(replica_folder(folder, "experiments"))
            with urllib.request.urlopen(f"http://{found.metrics}/metrics") as answer:
                pages.append(answer.read().decode())
        finally:
            stop.set()

    before = signal.getsignal(signal.SIGTERM)
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        run_worker(settings, stop)
    finally:
        watching.join()
        signal.signal(signal.SIGTERM, before)
    written_ms = json.loads(file.read_text())["written_ms"]
    from_worker = as_json(folder)
    assert from_worker["as_of_ms"] == written_ms  # and not the moment of the command
    assert from_worker | {"as_of_ms": from_log["as_of_ms"]} == from_log
    saved = remembered(folder / FOLD).settled()
    assert saved.unmatched == 0
    assert len(saved.decisions) == 3 * (USERS + 1)
    for line in (
        'tandem_experiments_guardrail_breached{arm="mixed",experiment="mix",metric="p50"} 0.0',
        'tandem_experiments_sample_ratio_broken{experiment="mix"} 0.0',
        'tandem_experiments_lag_events{topic="feedback"} 0.0',
    ):
        assert line in pages[0]
    file.unlink()


def test_the_worker_follows_the_file_and_keeps_the_last_good_one(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "experiments.yaml"
    file.write_text(EXPERIMENTS)
    log = connect(EventLogSettings(url=f"log://{folder}/events"), None)
    with contextlib.closing(LogReader(log)) as reader, following(log) as changes:
        reader.read_all()
        worker = Worker(reader, changes, file, FILMS, "log")
        first = worker.round(1000.0)
        file.write_text("layers: []")
        assert worker.round(1000.0) == first
        file.write_text(EXPERIMENTS.replace("name: mix\n", "name: other\n"))
        assert worker.round(1000.0)["experiments"].keys() == {"other"}
    log.close()


def test_a_restarted_worker_knows_what_the_log_has_dropped(folder: Path, tmp_path: Path) -> None:
    log = connect(EventLogSettings(url=f"log://{folder}/events"), None)
    with contextlib.closing(LogReader(log)) as reader, following(log) as changes:
        reader.read_all()
        worker = Worker(reader, changes, folder / "experiments.yaml", FILMS, "log")
        before = worker.round(2e12)["experiments"]
        worker.save(tmp_path / FOLD, START_MS + 10 * 86_400_000)  # all of it is past retention
    log.close()
    empty = connect(EventLogSettings(url=f"log://{tmp_path}/events"), None)
    saved = remembered(tmp_path / FOLD)
    with contextlib.closing(LogReader(empty, saved)) as reader, following(empty) as changes:
        reader.read_all()
        worker = Worker(reader, changes, folder / "experiments.yaml", FILMS, "log")
        after = worker.round(2e12)["experiments"]
    empty.close()
    assert after == before


def test_a_saved_fold_that_cannot_be_read_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / FOLD).write_bytes(b"half")
    assert remembered(tmp_path / FOLD).nbytes == remembered(tmp_path / "none").nbytes == 0


def test_a_stale_foreign_or_broken_snapshot_is_not_used(folder: Path, tmp_path: Path) -> None:
    url, file = f"log://{folder}/events", tmp_path / SNAPSHOT
    (_, experiment), *_ = config_reader.parse(EXPERIMENTS.encode(), "e", FILMS).experiments()
    log = connect(EventLogSettings(url=url), None)
    with contextlib.closing(LogReader(log)) as reader, following(log) as changes:
        worker = Worker(reader, changes, folder / "experiments.yaml", FILMS, url)
        unread = worker.round(1000.0)
        reader.read_all()
        good = worker.round(1000.0)
        reader.lags = lambda: {FEEDBACK: Lag(9, FRESH_S + 1)}  # type: ignore[method-assign]
        behind = worker.round(1000.0)
    log.close()

    def usable(content: object, now_ms: float = 1000.0, of: Experiment = experiment) -> bool:
        file.write_text(json.dumps(content))
        return fresh(file, of, url, now_ms) is not None

    assert usable(good)
    assert usable(good, 1000.0 + FRESH_S * 1000)
    assert not usable(good, 1001.0 + FRESH_S * 1000)
    assert not usable(good, 999.0)
    assert not usable(unread)
    assert behind["caught_up"]
    assert not usable(behind)
    assert not usable(good | {"source": "log://elsewhere"})
    assert not usable(good, of=replace(experiment, unit="session"))
    assert not usable(good, of=replace(experiment, name="another"))
    assert not usable(good, of=replace(experiment, plan=Plan()))
    broken: object
    for broken in ([], {}, good | {"experiments": {"mix": {"declared": ""}}}, "x"):
        assert not usable(broken)
    file.write_text("[" * 100_000)
    assert fresh(file, experiment, url, 1000.0) is None
    file.unlink()
    assert fresh(file, experiment, url, 1000.0) is None
