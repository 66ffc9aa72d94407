"""Feature updaters as processes and threads: several at once, killed, and told to end."""

from __future__ import annotations

import multiprocessing
import threading
import time
import urllib.request
from pathlib import Path

import services.event_log.connect
from feature_store import reader
from feature_store.interface import FeatureStore, RowKey
from load_tests.serving.feeding import feed
from models.data.worlds.films.schema import COUNTS, PROFILE, SCHEMA
from services.common.settings import (
    EventLogSettings,
    FeatureStoreSettings,
    FeedbackSettings,
    RouterSettings,
    Settings,
)
from services.event_log.embedded import EmbeddedEventLog
from services.event_log.interface import EventLog
from services.event_log.topics import FEEDBACK
from services.feedback.store_log import GROUP
from services.feedback.updater import FeatureUpdater, run_updater
from tests.integration.updating import (
    DEADLINE_S,
    NOW_MS,
    append,
    differences,
    event_log,
    item_table,
    open_store,
    store,
    traffic,
    wait_until,
)
from tests.servers.redis import free_port

__all__ = ["event_log", "store"]  # fixtures

KILLS = 3

spawn = multiprocessing.get_context("spawn")


def work(folder: Path, poll_records: int, stop: threading.Event) -> None:
    """One worker on the log and the store in `folder`."""
    store, log = open_store(folder), EmbeddedEventLog(folder / "events", partitions=2)
    consumer = log.consumer(FEEDBACK, GROUP)
    FeatureUpdater(
        SCHEMA,
        store,
        log,
        consumer,
        item_table,
        clock_ms=lambda: NOW_MS,
        poll_records=poll_records,
    ).run(stop)
    consumer.close()
    store.close()
    log.close()


def work_until_killed(folder: Path, poll_records: int) -> None:
    work(folder, poll_records, threading.Event())


def test_two_workers_share_items_and_count_every_event_once(
    tmp_path: Path, store: FeatureStore, event_log: EventLog
) -> None:
    sent = traffic(users=20, events=400, seed=1)
    append(event_log, sent)
    stop = threading.Event()
    workers = [threading.Thread(target=work, args=(tmp_path, 10, stop)) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        wait_until(lambda: differences(store, sent) == [])
    finally:
        stop.set()
        for worker in workers:
            worker.join(DEADLINE_S)
    assert not any(worker.is_alive() for worker in workers)


def test_killing_the_worker_loses_no_event_and_applies_none_twice(
    tmp_path: Path, store: FeatureStore, event_log: EventLog
) -> None:
    sent = traffic(users=40, events=1_000, seed=2)
    append(event_log, sent)
    users = sorted({e.user_id for e in sent})

    def applied() -> int:
        rows = store.read([RowKey("profile", user) for user in users])
        profiles = reader.serve_many(PROFILE, rows, NOW_MS).records
        return sum(int(profiles[name].sum()) for name in COUNTS)

    distinct = len({(e.user_id, e.event_id) for e in sent})
    for kill in range(KILLS + 1):
        worker = spawn.Process(target=work_until_killed, args=(tmp_path, 20))
        worker.start()
        try:
            goal = distinct * (kill + 1) // 5 if kill < KILLS else distinct
            wait_until(lambda goal=goal: applied() >= goal)
        finally:
            worker.kill()
            worker.join(DEADLINE_S)
        if kill == 0:
            assert applied() < distinct  # it was killed midway, not after the fact
    assert applied() == distinct
    assert differences(store, sent) == []


def run_as_configured(configured: Settings) -> None:
    run_updater(configured, threading.Event())


def test_sigterm_finishes_the_batch_and_leaves_nothing_to_replay(tmp_path: Path) -> None:
    configured = Settings(
        run_dir=tmp_path / "run",
        artifacts_dir=tmp_path / "artifacts",
        router=RouterSettings(host="127.0.0.1"),
        feature_store=FeatureStoreSettings(url=f"lmdb://{tmp_path}/features", lmdb_map_size_mb=64),
        event_log=EventLogSettings(url=f"log://{tmp_path}/events", partitions=2),
        feedback=FeedbackSettings(updater_metrics_port=free_port(), poll_records=50),
    )
    feed(configured, item_table())
    log = services.event_log.connect.connect(configured.event_log, None)
    now_ms = time.time_ns() // 1_000_000  # the real worker's clock, by which it sweeps
    sent = traffic(users=10, events=200, seed=3, now_ms=now_ms)
    append(log, sent)
    store = open_store(tmp_path)
    worker = spawn.Process(target=run_as_configured, args=(configured,))
    worker.start()
    try:
        wait_until(lambda: differences(store, sent, now_ms) == [])
        address = f"http://127.0.0.1:{configured.feedback.updater_metrics_port}/metrics"
        with urllib.request.urlopen(address) as answer:
            metrics = answer.read().decode()
        worker.terminate()
        worker.join(DEADLINE_S)
        assert worker.exitcode == 0
    finally:
        worker.kill()
        worker.join(DEADLINE_S)
    assert 'tandem_updater_events_total{outcome="applied"}' in metrics
    consumer = log.consumer(FEEDBACK, GROUP)
    assert consumer.poll(100, 0.0) == []
    assert consumer.lag().events == 0
    consumer.close()
    store.close()
    log.close()
