"""The joiner on the real embedded log: it reads what was written, and a restart finds it again."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from protos.tandem.v1.records_pb2 import (
    CLICK,
    IMPRESSION,
    Assignment,
    DecisionRecord,
    FeedbackEvent,
)
from services.common.discovery import announced, replica_folder
from services.common.settings import EventLogSettings, Settings
from services.event_log.connect import connect
from services.event_log.interface import EventLog, Record
from services.event_log.segment import LogCorrupt, segment_name
from services.event_log.topics import DECISIONS, FEEDBACK
from services.feedback.joiner import Joiner, fold_until_stopped, run_joiner
from tests.contract.event_log_process import log_process
from tests.servers.redis import free_port

NOW_MS = int(time.time() * 1000)
PATIENCE_S = 30.0


@pytest.fixture
def event_log(tmp_path: Path) -> Iterator[EventLog]:
    log = connect(EventLogSettings(url=f"log://{tmp_path}/events"))
    yield log
    log.close()


def traffic(log: EventLog, first: int, count: int) -> None:
    """Requests of two arms in turn; everyone sees an item, every third clicks, one is repeated."""
    decisions, events = [], []
    for i in range(first, first + count):
        user = f"u{i % 7}"
        arm = Assignment(layer="l", experiment="e", arm="ab"[i % 2])
        decision = DecisionRecord(
            request_id=f"r{i}", user_id=user, event_time_ms=NOW_MS + i, assignments=[arm]
        )
        decisions.append(Record(user.encode(), decision.SerializeToString(), NOW_MS + i))
        for kind in (IMPRESSION, CLICK) if i % 3 == 0 else (IMPRESSION,):
            event = FeedbackEvent(
                event_id=f"{i}-{kind}",
                request_id=f"r{i}",
                user_id=user,
                item_id="item",
                event_type=kind,
                event_time_ms=NOW_MS + i + 5,
            )
            events.append(Record(user.encode(), event.SerializeToString(), NOW_MS + i + 5))
    # Feedback first: the log promises no order between topics.
    log.append(FEEDBACK, [*events, events[0]]).result()
    log.append(DECISIONS, decisions).result()


def remembered(joiner: Joiner) -> list[object]:
    """Arms and their combinations are numbered as they come: those numbers are left out."""
    memory = joiner.state.memory
    return [
        [row[:2] for row in memory.rows("decisions")],
        memory.rows("seen"),
        memory.rows("waiting"),
        sorted(unit for _, unit in memory.rows("units")),
    ]


def catch_up(joiner: Joiner) -> None:
    deadline = time.monotonic() + PATIENCE_S
    joiner.step(0.01)
    joiner.report()
    while not joiner.caught_up:
        assert time.monotonic() < deadline
        joiner.step(0.01)
        joiner.report()


def test_a_restart_folds_the_log_to_the_state_of_a_run_without_a_break(
    event_log: EventLog,
) -> None:
    continuous = Joiner(event_log, window_s=1800, poll_records=7)
    traffic(event_log, 0, 30)
    catch_up(continuous)
    traffic(event_log, 30, 30)
    event_log.append(FEEDBACK, [Record(b"u", b"\xff\xff", NOW_MS)]).result()
    catch_up(continuous)
    restarted = Joiner(event_log, window_s=1800, poll_records=100)
    catch_up(restarted)
    assert restarted.state == continuous.state
    assert remembered(restarted) == remembered(continuous)
    assert restarted.undecodable == continuous.undecodable == 1
    assert restarted.state.duplicates == continuous.state.duplicates == 2
    for key, clicks in zip(sorted(restarted.state.arms), (10, 10), strict=True):
        numbers = vars(restarted.state.arms[key])
        assert numbers == {
            "requests": 30,
            "units": 7,
            "impressions": 30,
            "clicks": clicks,
            "likes": 0,
            "degraded": 0,
        }
    continuous.close()
    restarted.close()


def test_the_snapshot_says_what_the_log_holds(event_log: EventLog, tmp_path: Path) -> None:
    traffic(event_log, 0, 12)
    joiner = Joiner(event_log, window_s=1800, poll_records=100)
    file, stop = tmp_path / "joiner.json", threading.Event()
    worker = threading.Thread(target=fold_until_stopped, args=(joiner, file, stop))
    worker.start()
    deadline = time.monotonic() + PATIENCE_S
    while not (file.exists() and json.loads(file.read_text())["caught_up"]):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    stop.set()
    worker.join()
    joiner.close()
    written = json.loads(file.read_text())
    assert [(a["arm"], a["requests"], a["clicks"]) for a in written["arms"]] == [
        ("a", 6, 2),
        ("b", 6, 2),
    ]
    assert written["totals"] == {
        "unmatched": 0,
        "late": 0,
        "duplicates": 1,
        "ahead": 0,
        "undecodable": 0,
        "waiting": 0,
    }
    assert written["newest_ms"] == NOW_MS + 11 + 5


def test_decisions_that_were_read_count_although_the_feedback_is_damaged(
    event_log: EventLog, tmp_path: Path
) -> None:
    traffic(event_log, 0, 30)
    for segment in (tmp_path / "events" / FEEDBACK).glob(f"*/{segment_name(0)}"):
        data = bytearray(segment.read_bytes())
        data[30] ^= 1  # of the first record
        segment.write_bytes(data)
    joiner = Joiner(event_log, window_s=1800, poll_records=1000)
    deadline = time.monotonic() + PATIENCE_S
    while sum(counts.requests for counts in joiner.state.arms.values()) < 30:
        assert time.monotonic() < deadline
        with contextlib.suppress(LogCorrupt):
            joiner.step(0.0)
    with pytest.raises(LogCorrupt):
        joiner.step(0.0)
    joiner.close()


def test_a_snapshot_that_cannot_be_written_does_not_end_the_joiner(
    event_log: EventLog, tmp_path: Path
) -> None:
    joiner = Joiner(event_log, window_s=1800, poll_records=100)
    stop = threading.Event()
    stop.set()
    file = tmp_path / "not there yet" / "joiner.json"
    fold_until_stopped(joiner, file, stop)
    file.parent.mkdir()
    fold_until_stopped(joiner, file, stop)
    assert json.loads(file.read_text())["arms"] == []
    joiner.close()


def test_a_joiner_forgets_its_groups_and_those_of_killed_ones(
    event_log: EventLog, tmp_path: Path
) -> None:
    with log_process("member", f"log://{tmp_path}/events", FEEDBACK, "joiner-killed") as member:
        member.stdout.readline()
    first = Joiner(event_log, window_s=1800, poll_records=100)
    Joiner(event_log, window_s=1800, poll_records=100).close()
    catch_up(first)
    groups = [tmp_path / "events" / topic / "groups" for topic in (DECISIONS, FEEDBACK)]
    assert [len(list(folder.iterdir())) for folder in groups] == [1, 1]
    first.close()
    assert [len(list(folder.iterdir())) for folder in groups] == [0, 0]


def test_a_running_joiner_is_announced_where_its_metrics_are(tmp_path: Path) -> None:
    settings = Settings(
        run_dir=tmp_path,
        event_log={"url": f"log://{tmp_path}/events"},
        feedback={"joiner_metrics_port": 0},
    )
    folder, stop, pages = replica_folder(tmp_path, "joiner"), threading.Event(), []

    def scrape() -> None:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not (found := announced(folder)) and time.monotonic() < deadline:
                threading.Event().wait(0.01)
            assert found[0].address == found[0].metrics
            with urllib.request.urlopen(f"http://{found[0].metrics}/metrics") as answer:
                pages.append(answer.read().decode())
        finally:
            stop.set()

    before = signal.getsignal(signal.SIGTERM)
    scraping = threading.Thread(target=scrape)
    scraping.start()
    try:
        run_joiner(settings, stop)
    finally:
        scraping.join()
        signal.signal(signal.SIGTERM, before)
    assert "tandem_joiner_lag_events" in pages[0]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("ahead_ms", [3_600_000, 400 * 86_400_000, 2**62])
def test_a_decision_ahead_of_the_clock_makes_no_other_late_before_or_after_a_restart(
    event_log: EventLog, ahead_ms: int
) -> None:
    wrong = DecisionRecord(
        request_id="wrong",
        user_id="u",
        event_time_ms=NOW_MS + ahead_ms,
        assignments=[Assignment(layer="l", experiment="e", arm="a")],
    )
    event_log.append(DECISIONS, [Record(b"u", wrong.SerializeToString(), NOW_MS)]).result()
    for restart in range(2):
        joiner = Joiner(event_log, window_s=60, poll_records=100)
        catch_up(joiner)
        traffic(event_log, 30 * restart, 30)
        catch_up(joiner)
        assert sum(c.requests for c in joiner.state.arms.values()) == 30 * (restart + 1) + 1
        assert (joiner.state.late, joiner.state.ahead) == (0, 1)
        joiner.close()


def test_a_joiner_whose_log_was_made_anew_begins_anew(tmp_path: Path) -> None:
    settings = Settings(
        run_dir=tmp_path / "run",
        event_log={"url": f"log://{tmp_path}/events"},
        feedback={"joiner_metrics_port": 0},
    )
    stop, snapshot_file = threading.Event(), tmp_path / "run" / "joiner.json"

    def requests() -> int:
        if not snapshot_file.exists():
            return -1
        found = json.loads(snapshot_file.read_text())
        return sum(arm["requests"] for arm in found["arms"]) if found["caught_up"] else -1

    def wait_for(wanted: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while requests() != wanted:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)

    failures = []

    def script() -> None:
        try:
            for count in (30, 4):
                with contextlib.closing(connect(settings.event_log)) as log:
                    traffic(log, 0, count)
                wait_for(count)
                shutil.rmtree(tmp_path / "events")
        except AssertionError as error:
            failures.append(error)
        finally:
            stop.set()

    before = signal.getsignal(signal.SIGTERM)
    scripted = threading.Thread(target=script)
    scripted.start()
    try:
        run_joiner(settings, stop)
    finally:
        scripted.join()
        signal.signal(signal.SIGTERM, before)
    assert failures == []


def test_a_joiner_waits_for_a_log_that_is_down_when_it_starts_and_says_why(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    settings = Settings(run_dir=tmp_path, event_log={"url": f"kafka://{address}"})
    stop, before = threading.Event(), signal.getsignal(signal.SIGTERM)

    def stop_once_it_waits() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not any(line["event"] == "start_waits" for line in said):
            if time.monotonic() > deadline:
                break
            stop.wait(0.01)
        stop.set()

    with structlog.testing.capture_logs() as said:
        watching = threading.Thread(target=stop_once_it_waits)
        watching.start()
        try:
            run_joiner(settings, stop)
        finally:
            watching.join()
            signal.signal(signal.SIGTERM, before)
    (waited, *_) = (line for line in said if line["event"] == "start_waits")
    assert (waited["what"], address in waited["cause"]) == ("the event log", True)
