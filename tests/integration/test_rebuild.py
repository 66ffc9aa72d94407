"""A store that is made from the log equals one that followed it; what is wrong is noticed."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog
from kafka import KafkaAdminClient
from typer.testing import CliRunner

from feature_store.interface import FeatureStore, RowKey
from load_tests.serving.feeding import feed
from models.data.worlds.films.schema import COUNTERS, GROUPS, SCHEMA
from models.schema.progress import ITEM_DELIVERY
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services import cli
from services.common.settings import Settings
from services.event_log.connect import connect
from services.event_log.interface import Consumer, EventLog, LogUnavailable, LogWentBack
from services.event_log.topics import FEEDBACK
from services.feedback.rebuild import Rebuilt, UpdaterRuns, rebuild
from services.feedback.rows import EntityRows
from services.feedback.store_log import GROUP, OtherLog, StoreRefused, claim, open_store, verify
from services.feedback.updater import VERIFY_EVERY_MS, FeatureUpdater, opened_updater
from tests.integration.updating import (
    DEADLINE_S,
    append,
    differences,
    item_table,
    traffic,
    wait_until,
)
from tests.servers.kafka import Broker, kafka_broker
from tests.servers.redis import redis_server

NOW_MS = time.time_ns() // 1_000_000


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with kafka_broker() as running:
        yield running


def settings_of(folder: Path, store: str = "", log: str = "") -> Settings:
    return Settings(
        run_dir=folder / "run",
        artifacts_dir=folder / "artifacts",
        feature_store={"url": store or f"lmdb://{folder}/features", "lmdb_map_size_mb": 64},  # type: ignore[arg-type]
        event_log={"url": log or f"log://{folder}/events", "partitions": 2},  # type: ignore[arg-type]
        feedback={"updater_metrics_port": 0, "poll_records": 50},  # type: ignore[arg-type]
    )


@pytest.fixture(params=["embedded", pytest.param("servers", marks=pytest.mark.kafka)])
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of an installation of its own: LMDB and the embedded log, or Redis and Kafka."""
    if request.param == "embedded":
        yield settings_of(tmp_path)
        return
    running: Broker = request.getfixturevalue("broker")
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=running.bootstrap)) as admin:
        if FEEDBACK in admin.list_topics():
            admin.delete_topics([FEEDBACK])
            wait_until(lambda: FEEDBACK not in admin.list_topics())
    with redis_server() as server:
        settings = settings_of(tmp_path, server.url, f"kafka://{running.bootstrap}")
        with contextlib.closing(connect(settings.event_log, None)) as log:
            wait_until(lambda: keeps_positions(log))
        yield settings


def keeps_positions(log: EventLog) -> bool:
    """Whether the broker is ready for groups: of a new one the first that is asked for waits."""
    try:
        log.positions(FEEDBACK, GROUP)
    except LogUnavailable:
        return False
    return True


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[tuple[FeatureStore, EventLog]]:
    with (
        contextlib.closing(open_store(settings)) as store,
        contextlib.closing(connect(settings.event_log, None)) as log,
    ):
        yield store, log


@contextlib.contextmanager
def worker_of(
    settings: Settings,
    store: FeatureStore,
    log: EventLog,
    clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> Iterator[tuple[FeatureUpdater, Consumer]]:
    claim(store, log, settings, NOW_MS)
    with contextlib.closing(log.consumer(FEEDBACK, GROUP)) as consumer:
        yield (
            FeatureUpdater(
                SCHEMA,
                store,
                log,
                consumer,
                item_table,
                clock_ms=clock_ms,
                poll_records=50,
                verify=lambda: verify(store, log, settings),
            ),
            consumer,
        )


def caught_up(worker: FeatureUpdater, consumer: Consumer) -> bool:
    """Go a step, as `FeatureUpdater.run` does; whether nothing is left of both partitions.

    A broker may deal the partitions anew at any time, and refuses a commit meanwhile.
    """
    with contextlib.suppress(LogUnavailable):
        # Nothing is left of what is not assigned, either.
        return not worker.step(0.1) and len(consumer.assigned()) == 2 and not consumer.lag().events
    return False


def work_until_it_ends(worker: FeatureUpdater, consumer: Consumer) -> None:
    """Raises what the worker ends with."""
    wait_until(lambda: caught_up(worker, consumer) and False)


def follow(settings: Settings, sent: list[FeedbackEvent]) -> None:
    """What a worker does that follows the log live: here in two sittings."""
    with opened(settings) as (store, log):
        for part in (sent[: len(sent) // 3], sent[len(sent) // 3 :]):
            append(log, part)
            with worker_of(settings, store, log) as (worker, consumer):
                wait_until(lambda: caught_up(worker, consumer))


def rows(store: FeatureStore, sent: list[FeedbackEvent]) -> dict[RowKey, bytes]:
    """Every user's and item's rows without checksum and version, which count writes."""
    users, items = {e.user_id for e in sent}, {e.item_id for e in sent}
    keys = [RowKey(g.name, u) for g in EntityRows(SCHEMA).of_user for u in sorted(users)]
    keys += [RowKey(g.name, i) for g in (COUNTERS, ITEM_DELIVERY) for i in sorted(items)]
    found = store.read(keys)
    return {k: row[8:24] + row[32:] for k, row in zip(keys, found, strict=True) if row}


def made_anew(settings: Settings, **options: object) -> Rebuilt:
    with opened(settings) as (store, log):
        return rebuild(
            settings,
            store,
            log,
            item_table(),
            clock_ms=lambda: time.time_ns() // 1_000_000,
            **options,  # type: ignore[arg-type]
        )


def test_a_store_made_from_the_log_equals_one_that_followed_it(installed: Settings) -> None:
    sent = traffic(users=12, events=300, seed=4, now_ms=NOW_MS)
    follow(installed, sent)
    with opened(installed) as (store, _):
        before = rows(store, sent)
        store.clear(GROUPS)  # as FLUSHALL
    with opened(installed) as (store, log), pytest.raises(OtherLog, match="features rebuild"):
        claim(store, log, installed, NOW_MS)
    said: list[tuple[int, int]] = []
    done = made_anew(installed, on_progress=lambda *told: said.append(told))
    distinct = len({(e.user_id, e.event_id) for e in sent})
    outcomes = {"applied": distinct, "duplicate": len(sent) - distinct, "invalid": 0}
    assert done == Rebuilt(0, 0, len(sent), outcomes)
    assert said[-1] == (len(sent), 0)
    with opened(installed) as (store, log):
        after = rows(store, sent)
        assert before.keys() == after.keys()
        for key, row in before.items():
            if key.group != COUNTERS.name:
                assert row == after[key]
            else:  # partitions are read in another order
                one, other = (np.frombuffer(r[16:], COUNTERS.dtype) for r in (row, after[key]))
                for name in COUNTERS.dtype.names or ():
                    assert np.isclose(one[name], other[name], rtol=1e-12)
        assert differences(store, sent, NOW_MS) == []
    follow(installed, traffic(users=3, events=9, seed=5, now_ms=NOW_MS))  # updaters go on with it
    assert made_anew(installed).deleted >= len(after)


def test_a_store_put_back_from_a_backup_gets_exactly_what_it_lacks(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    sent = traffic(users=5, events=120, seed=12, now_ms=NOW_MS)
    follow(settings, sent[:50])
    shutil.copytree(tmp_path / "features", tmp_path / "backup")
    follow(settings, sent[50:])
    shutil.rmtree(tmp_path / "features")
    shutil.copytree(tmp_path / "backup", tmp_path / "features")
    follow(settings, [])
    with opened(settings) as (store, _):
        assert differences(store, sent, NOW_MS) == []


def test_nothing_is_deleted_while_an_updater_runs(installed: Settings) -> None:
    sent = traffic(users=3, events=30, seed=6, now_ms=NOW_MS)
    follow(installed, sent)
    with opened(installed) as (store, log), worker_of(installed, store, log) as (worker, consumer):
        wait_until(lambda: caught_up(worker, consumer))
        before = rows(store, sent)
        stop, polling = threading.Event(), threading.Thread()

        def poll() -> None:
            while not stop.is_set():
                caught_up(worker, consumer)

        polling = threading.Thread(target=poll)
        polling.start()
        try:
            with pytest.raises(UpdaterRuns, match="stop them"):
                made_anew(installed, leave_s=1.0)
        finally:
            stop.set()
            polling.join(DEADLINE_S)
        assert rows(store, sent) == before


def test_the_command_says_what_it_does_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path)
    for name, value in {
        "ARTIFACTS_DIR": str(settings.artifacts_dir),
        "FEATURE_STORE__URL": settings.feature_store.url,
        "FEATURE_STORE__LMDB_MAP_SIZE_MB": "64",
        "EVENT_LOG__URL": settings.event_log.url,
    }.items():
        monkeypatch.setenv(f"TANDEM_{name}", value)
    nothing = CliRunner().invoke(cli.app, ["features", "rebuild", "--yes"])
    assert nothing.exit_code == 1
    assert nothing.stderr.startswith("error: ")
    assert "Traceback" not in nothing.stderr
    fed(settings)
    sent = traffic(users=3, events=30, seed=7, now_ms=NOW_MS)
    follow(settings, sent)
    refused = CliRunner().invoke(cli.app, ["features", "rebuild"], input="n\n")
    assert refused.exit_code == 1
    done = CliRunner().invoke(cli.app, ["features", "rebuild", "--yes"])
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "keeps it for 7 days. What is older" in said
    assert "30 records read: 29 applied, 1 duplicate, 0 invalid" in said
    with opened(settings) as (store, _):
        assert differences(store, sent, NOW_MS) == []


def test_a_store_that_is_emptied_under_a_running_worker_stops_it(installed: Settings) -> None:
    sent = traffic(users=3, events=30, seed=13, now_ms=NOW_MS)
    follow(installed, sent)
    now = [NOW_MS + 1_000]
    with (
        opened(installed) as (store, log),
        worker_of(installed, store, log, lambda: now[0]) as (worker, consumer),
    ):
        wait_until(lambda: caught_up(worker, consumer))
        store.clear(GROUPS)
        now[0] += VERIFY_EVERY_MS
        with pytest.raises(OtherLog, match=r"does not name its event log any more.*rebuild"):
            work_until_it_ends(worker, consumer)
    assert made_anew(installed).outcomes["applied"] == len({e.event_id for e in sent})


def test_a_topic_made_anew_under_a_running_worker_stops_it_before_anything_is_taken_for_old(
    installed: Settings,
) -> None:
    sent = traffic(users=3, events=60, seed=8, now_ms=NOW_MS)
    follow(installed, sent)
    with opened(installed) as (store, log), worker_of(installed, store, log) as (worker, consumer):
        wait_until(lambda: caught_up(worker, consumer))
        before = rows(store, sent)
        delete_topic(installed)
        with opened(installed) as (_, anew):
            append(anew, traffic(users=3, events=20, seed=9, now_ms=NOW_MS))
        with pytest.raises((StoreRefused, LogWentBack), match="features rebuild"):
            work_until_it_ends(worker, consumer)
        assert worker.outcomes["duplicate"] == worker.outcomes["applied"] == 0
        assert rows(store, sent) == before
    with opened(installed) as (store, log), pytest.raises(OtherLog, match="features rebuild"):
        claim(store, log, installed, NOW_MS)
    assert made_anew(installed).records == 20


def delete_topic(settings: Settings) -> None:
    scheme, _, address = settings.event_log.url.partition("://")
    if scheme == "log":
        (Path(address) / FEEDBACK).rename(Path(address) / uuid.uuid4().hex)
        return
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=address)) as admin:
        admin.delete_topics([FEEDBACK])
        wait_until(lambda: FEEDBACK not in admin.list_topics())


@pytest.mark.redis
def test_a_worker_waits_for_a_store_that_is_down_when_it_starts_and_says_why(
    tmp_path: Path,
) -> None:
    with redis_server() as server, structlog.testing.capture_logs() as said:
        settings = settings_of(tmp_path, server.url)
        fed(settings)
        sent = traffic(users=3, events=30, seed=10, now_ms=NOW_MS)
        with contextlib.closing(connect(settings.event_log, None)) as log:
            append(log, sent)
        server.stop()
        read: list[int] = []

        def work() -> None:
            with opened_updater(settings, threading.Event()) as worker:
                while sum(read) < len(sent):
                    read.append(worker.step(0.1))

        worker = threading.Thread(target=work)
        worker.start()
        wait_until(lambda: any(line["event"] == "start_waits" for line in said))
        server.start()
        worker.join(DEADLINE_S)
        assert sum(read) == len(sent)
        assert any("Redis at" in line.get("cause", "") for line in said)
        with opened(settings) as (store, _):
            assert differences(store, sent, NOW_MS) == []


def fed(settings: Settings) -> None:
    feed(settings, item_table())
