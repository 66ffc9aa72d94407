"""What a cluster leaves for other processes to read, and what is noticed of its end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.common.discovery import replica_folder
from services.common.processes import ray_cluster
from services.common.processes.ray_cluster import (
    ClusterLost,
    Heartbeat,
    OwnCluster,
    end_processes,
    until_there,
)
from services.common.settings import Settings

REPLICA = """
import sys, time
from pathlib import Path
from services.common.discovery import Announcement
kept = Announcement(Path(sys.argv[1]), "127.0.0.1:7", metrics="127.0.0.1:8")
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def start() -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """Starts a process of a cluster with such a folder, which announces a ranking replica."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(folder: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", REPLICA, str(replica_folder(folder.parent, "ranking"))],
            env=os.environ | {ray_cluster.FOLDER: str(folder)},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


Start = Callable[[Path], subprocess.Popen[bytes]]


def test_what_runs_for_a_cluster_is_ended_but_for_what_is_spared(
    tmp_path: Path, start: Start
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    _, replica, _ = processes = [start(a), start(a), start(b)]
    end_processes([str(a)], spare={replica.pid})
    assert [p.poll() is None for p in processes] == [False, True, True]
    end_processes([str(a)], spare=())
    assert [p.poll() is None for p in processes] == [False, False, True]


def test_when_the_replicas_are_up_those_of_earlier_clusters_end_and_their_files_go(
    tmp_path: Path, start: Start
) -> None:
    sections = {kind: {"drain_s": 0} for kind in ray_cluster.KINDS}
    subject = OwnCluster(Settings(run_dir=tmp_path, **sections), 1)  # type: ignore[arg-type]
    links = tmp_path / ray_cluster.CLUSTERS
    links.mkdir()
    for name in ("earlier", "own"):
        (tmp_path / name).mkdir()
        (links / name).symlink_to(tmp_path / name)
        subject._folders.append(str(tmp_path / name))
    old, new = start(tmp_path / "earlier"), start(tmp_path / "own")
    assert subject._replicas() == {old.pid, new.pid}
    subject.settle()
    assert old.poll() is not None
    assert subject._replicas() == {new.pid}
    assert [link.name for link in links.iterdir()] == ["own"]
    assert not (tmp_path / "earlier").exists()
    subject.abandon()
    assert new.poll() is None
    subject.destroy()
    assert new.poll() is not None
    assert not (tmp_path / "own").exists()
    assert list(links.iterdir()) == []


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
