"""The joiner on the real embedded log: it reads what was written, and a restart finds it again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protos.tandem.v1.records_pb2 import (
    CLICK,
    IMPRESSION,
    Assignment,
    DecisionRecord,
    FeedbackEvent,
)
from services.common.settings import EventLogSettings
from services.event_log.connect import connect
from services.event_log.interface import EventLog, Record
from services.feedback.joiner import DECISIONS, FEEDBACK, Joiner, fold_until_stopped

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
    assert restarted.undecodable == continuous.undecodable == 1
    assert restarted.state.duplicates == continuous.state.duplicates == 2
    for key, clicks in zip(sorted(restarted.state.arms), (10, 10), strict=True):
        numbers = restarted.state.arms[key].numbers()
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
        "undecodable": 0,
        "waiting": 0,
    }
    assert written["newest_ms"] == NOW_MS + 11 + 5
