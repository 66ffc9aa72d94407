"""A replica's process without Ray: when it serves, and what ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from services.common.discovery import announced, replica_folder
from services.common.listener import Listener
from services.common.processes import replica
from services.common.settings import Settings

HUNG = """
import asyncio, sys, threading
from pathlib import Path
from services.common.listener import Listener
from services.common.processes import replica
from services.common.settings import Settings

replica.HUNG_S = 0.2

def hang():
    print("hangs", flush=True)
    threading.Event().wait()

class Hanging(Listener):
    def check(self):
        asyncio.get_running_loop().call_soon(hang)

async def start_replica(kind, settings):
    started = Hanging(kind, [], "127.0.0.1", settings.run_dir, 0.0)
    await started.start()
    return started

replica.start_replica = start_replica
asyncio.run(replica.run_replica("ranking", Settings(run_dir=Path(sys.argv[1]))))
"""


def listening(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path, background: Coroutine[object, object, None]
) -> None:
    """Let the replica be a listener of no service with this in its background."""

    async def start(kind: str, settings: Settings) -> Listener:
        started = Listener(kind, [], "127.0.0.1", run_dir, 0.0)
        await started.start(background)
        return started

    monkeypatch.setattr(replica, "start_replica", start)


async def until(condition: Callable[[], object], running: asyncio.Task[None]) -> None:
    """Wait for a condition that holds at some time while the replica runs."""
    while not condition():
        assert not running.done()
        await asyncio.sleep(0)


async def test_a_replica_without_a_model_yet_ends_when_it_is_told_to(tmp_path: Path) -> None:
    settings = Settings(run_dir=tmp_path, artifacts_dir=tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    running = asyncio.create_task(replica.run_replica("candidate_generation", settings))
    await until(lambda: signal.getsignal(signal.SIGTERM) is not before, running)
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert announced(replica_folder(tmp_path, "candidate_generation")) == []


async def test_a_replica_serves_until_it_is_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening(monkeypatch, tmp_path, asyncio.Event().wait())  # type: ignore[arg-type]
    running = asyncio.create_task(replica.run_replica("ranking", Settings(run_dir=tmp_path)))
    folder = replica_folder(tmp_path, "ranking")
    await until(lambda: announced(folder), running)
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert list(folder.iterdir()) == []


async def test_a_replica_ends_with_what_has_died_in_it_and_drains_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die() -> None:
        raise OSError("no such model")

    monkeypatch.setattr(replica, "HEALTH_PERIOD_S", 0.01)
    listening(monkeypatch, tmp_path, die())
    with pytest.raises(OSError, match="no such model"):
        await replica.run_replica("ranking", Settings(run_dir=tmp_path))
    assert list(replica_folder(tmp_path, "ranking").iterdir()) == []


def test_a_replica_whose_event_loop_has_stopped_ends_and_says_where(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HUNG, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert ended.stdout.endswith("hangs\n")
    assert "in hang" in ended.stderr
    assert announced(replica_folder(tmp_path, "ranking")) == []
