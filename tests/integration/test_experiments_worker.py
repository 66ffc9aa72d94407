"""The experiments worker on the real embedded log: it starts, waits, begins anew, and tells."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from services.experiments.act.worker import SNAPSHOT, Worker, follow, run_worker
from services.experiments.changes.log import ChangeLog
from services.experiments.measure.log_reader import READER, LogReader
from tests.contract.event_log_process import log_process
from tests.domains import FILMS
from tests.servers.redis import free_port

NOW_MS = int(time.time() * 1000) - 60_000
PATIENCE_S = 30.0
EXPERIMENTS = """\
version: 1
metrics: [{name: clicked, kind: binary, of: click, better: higher}]
layers:
  - name: l
    parameters: [ranking.model]
    experiments:
      - name: e
        arms: [{name: a, weight: 50}, {name: b, weight: 50}]
        primary: {metric: clicked, minimal_effect: 0.1}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "experiments.yaml").write_text(EXPERIMENTS)
    return Settings(
        run_dir=tmp_path / "run",
        event_log={"url": f"log://{tmp_path}/events"},  # type: ignore[arg-type]
        router={"experiments_file": tmp_path / "experiments.yaml"},  # type: ignore[arg-type]
        experiments={"metrics_port": 0, "report_every_s": 0.05},  # type: ignore[arg-type]
    )


@pytest.fixture
def event_log(settings: Settings) -> Iterator[EventLog]:
    with contextlib.closing(connect(settings.event_log, None)) as log:
        yield log


def traffic(log: EventLog, first: int, count: int) -> None:
    """Requests of two arms in turn; everyone sees an item, every third clicks, one is repeated."""
    decisions, events = [], []
    for i in range(first, first + count):
        user = f"u{i % 7}-{i % 2}"
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


def run_until(settings: Settings, script: Callable[[threading.Event], None]) -> None:
    """The worker of these settings, beside a script that ends it when it has ended itself."""
    stop, before, failures = threading.Event(), signal.getsignal(signal.SIGTERM), []

    def scripted() -> None:
        try:
            script(stop)
        except BaseException as error:
            failures.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=scripted)
    thread.start()
    try:
        run_worker(settings, stop)
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
    assert failures == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def arms_told(settings: Settings) -> dict[str, dict[str, Any]]:
    """What the snapshot says of the experiment's arms, once all of the log was read."""
    file = settings.run_dir / SNAPSHOT
    found = json.loads(file.read_text()) if file.exists() else {"caught_up": False}
    arms: dict[str, dict[str, Any]] = {}
    if found["caught_up"]:
        arms = found["experiments"]["e"]["measured"]["arms"]
    return arms


def test_the_numbers_of_each_arm_are_in_the_snapshot_and_on_the_page_of_metrics(
    settings: Settings, event_log: EventLog
) -> None:
    traffic(event_log, 0, 30)
    lost = FeedbackEvent(event_id="x", request_id="lost", user_id="u", item_id="i",
                         event_type=CLICK, event_time_ms=NOW_MS)  # fmt: skip
    strange = [Record(b"u", value, NOW_MS) for value in (lost.SerializeToString(), b"\xff\xff")]
    event_log.append(FEEDBACK, strange).result()
    folder, pages = replica_folder(settings.run_dir, "experiments"), []

    def scrape(stop: threading.Event) -> None:
        wait_until(
            lambda: arms_told(settings).get("a", {}).get("events", {}).get("impression") == 15
        )
        (found,) = announced(folder)
        assert found.address == found.metrics
        with urllib.request.urlopen(f"http://{found.metrics}/metrics") as answer:
            pages.append(answer.read().decode())

    run_until(settings, scrape)
    assert list(folder.iterdir()) == []
    events = {"impression": 15, "click": 5, "like": 0}
    counts = {"units": 7, "requests": 15, "degraded": 0, "events": events}
    assert arms_told(settings) == {"a": counts, "b": counts}
    for line in (
        'tandem_exposures{arm="a",experiment="e"} 15.0',
        'tandem_exposed_units{arm="b",experiment="e"} 7.0',
        'tandem_arm_events{arm="a",event="impression",experiment="e"} 15.0',
        'tandem_arm_events{arm="a",event="click",experiment="e"} 5.0',
        'tandem_arm_events{arm="a",event="like",experiment="e"} 0.0',
        'tandem_arm_degraded_requests{arm="a",experiment="e"} 0.0',
        "tandem_experiments_unmatched_events 1.0",
        "tandem_experiments_undecodable_records 1.0",
    ):
        assert line in pages[0]


def test_decisions_that_were_read_count_although_the_feedback_is_damaged(
    settings: Settings, event_log: EventLog, tmp_path: Path
) -> None:
    traffic(event_log, 0, 30)
    for segment in (tmp_path / "events" / FEEDBACK).glob(f"*/{segment_name(0)}"):
        data = bytearray(segment.read_bytes())
        data[30] ^= 1  # of the first record
        segment.write_bytes(data)
    with contextlib.closing(LogReader(event_log)) as reader:

        def read() -> bool:
            with contextlib.suppress(LogCorrupt):
                reader.step(0.0)
            return len(reader.fold.settled().decisions) == 30

        wait_until(read)
        with pytest.raises(LogCorrupt):
            reader.step(0.0)


def test_a_snapshot_that_cannot_be_written_does_not_end_the_worker(
    settings: Settings, event_log: EventLog
) -> None:
    stop = threading.Event()
    stop.set()
    with (
        contextlib.closing(LogReader(event_log)) as reader,
        contextlib.closing(ChangeLog(event_log)) as changes,
    ):
        worker = Worker(reader, changes, settings.router.experiments_file, FILMS, "log")
        follow(worker, reader, settings.run_dir, 1.0, stop)
        assert not settings.run_dir.exists()
        settings.run_dir.mkdir()
        follow(worker, reader, settings.run_dir, 1.0, stop)
    assert json.loads((settings.run_dir / SNAPSHOT).read_text())["experiments"].keys() == {"e"}


def test_a_reader_forgets_its_groups_and_those_of_killed_ones(
    event_log: EventLog, tmp_path: Path
) -> None:
    killed = f"{READER}-killed"
    with log_process("member", f"log://{tmp_path}/events", FEEDBACK, killed) as member:
        member.stdout.readline()
    first = LogReader(event_log)
    LogReader(event_log).close()
    first.read_all()
    groups = [tmp_path / "events" / topic / "groups" for topic in (DECISIONS, FEEDBACK)]
    assert [len(list(folder.iterdir())) for folder in groups] == [1, 1]
    first.close()
    assert [len(list(folder.iterdir())) for folder in groups] == [0, 0]


def test_a_worker_whose_log_was_made_anew_reads_it_anew_and_keeps_what_it_knows(
    settings: Settings, tmp_path: Path
) -> None:
    def script(stop: threading.Event) -> None:
        for first, count in ((0, 30), (30, 4)):
            with contextlib.closing(connect(settings.event_log, None)) as log:
                traffic(log, first, count)
            wait_until(
                lambda n=first + count: (  # type: ignore[misc]
                    sum(arm["requests"] for arm in arms_told(settings).values()) == n
                )
            )
            for topic in (DECISIONS, FEEDBACK):
                shutil.rmtree(tmp_path / "events" / topic)

    run_until(settings, script)


def test_a_worker_waits_for_a_log_that_is_down_when_it_starts_and_says_why(
    settings: Settings,
) -> None:
    address = f"127.0.0.1:{free_port()}"
    down = EventLogSettings(url=f"kafka://{address}")

    def waits(_: threading.Event) -> None:
        wait_until(lambda: any(line["event"] == "start_waits" for line in said))

    with structlog.testing.capture_logs() as said:
        run_until(settings.model_copy(update={"event_log": down}), waits)
    (waited, *_) = (line for line in said if line["event"] == "start_waits")
    assert (waited["what"], address in waited["cause"]) == ("the event log", True)
