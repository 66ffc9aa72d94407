"""What a cluster leaves for other processes to read, and what is noticed of its end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from services.common import ray_cluster
from services.common.ray_cluster import ClusterLost, Heartbeat, end_processes, until_there
from services.common.settings import Settings

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def test_a_private_file_is_replaced_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "ray.json"
    (tmp_path / "ray.tmp").write_text("half of a predecessor's")
    for text in ("first", "second"):
        ray_cluster.write_private(file, text)
        assert file.read_text() == text
        assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_what_runs_for_a_cluster_is_ended_but_for_what_is_spared(tmp_path: Path) -> None:
    def start(folder: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {ray_cluster.FOLDER: str(tmp_path / folder)}
        process = subprocess.Popen(
            SLEEP, env=environment, stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    _, replica, _ = processes = [start("a"), start("a"), start("b")]
    try:
        end_processes([str(tmp_path / "a")], spare={replica.pid})
        assert [p.poll() is None for p in processes] == [False, True, True]
        end_processes([str(tmp_path / "a")], spare=())
        assert [p.poll() is None for p in processes] == [False, False, True]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_replicas_that_do_not_run_yet_cannot_be_scaled(tmp_path: Path) -> None:
    with (
        pytest.raises(SystemExit, match=r"start them with .* or wait"),
        ray_cluster.running_cluster(Settings(run_dir=tmp_path)),
    ):
        pass


def test_a_node_that_appears_late_is_waited_for_and_one_that_never_does_is_given_up() -> None:
    now = 0.0

    def get() -> str:
        if now < 100:
            raise RuntimeError("no such node yet")
        return "node"

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    assert until_there(get, 240, lambda: now, sleep) == "node"
    assert now >= 100
    now = 0.0
    with pytest.raises(RuntimeError, match="no such node"):
        until_there(get, 60, lambda: now, sleep)


def test_a_cluster_that_does_not_answer_for_long_is_lost_and_one_that_stutters_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_cluster, "ASK_EVERY_S", 0.0)
    now, dead, asked = 0.0, False, threading.Semaphore(0)

    def ask() -> None:
        asked.release()
        if dead:
            raise ConnectionError("GCS is gone")

    subject = Heartbeat(ask, lambda: now)

    def asked_twice() -> None:
        while asked.acquire(blocking=False):
            pass
        for _ in range(2):
            assert asked.acquire(timeout=120)

    asked_twice()
    now = 1000.0
    asked_twice()
    subject.check()
    dead = True
    asked_twice()
    subject.check()
    now += ray_cluster.ANSWER_S + 1
    with pytest.raises(ClusterLost, match="has not answered for 31 s: GCS is gone"):
        subject.check()
