"""What the supervisor starts, it restarts and ends, however deep and however detached."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from services.common.supervisor import MARK, Supervisor, marked

# Ends on SIGTERM only after its grandchild in another session was started.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
print("ready", child.pid, flush=True)
time.sleep(600)
"""
SUPERVISED = """
import sys, signal
from pathlib import Path
from services.common.supervisor import Supervisor
from services.common.telemetry import configure_logging
configure_logging("error", "json")  # stdout is for the pid alone
subject = Supervisor({"a": ("-c", "import time; time.sleep(600)")}, Path(sys.argv[1]), {})
subject.start()
print(subject.pid("a"), flush=True)
signal.pause()
"""


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_stop_ends_children_and_detached_grandchildren(tmp_path: Path):
    subject = Supervisor({"a": ("-c", PARENT)}, tmp_path, {"X": "1"})
    subject.start()
    eventually(lambda: b"ready" in subject.log_file("a").read_bytes())
    grandchild = int(subject.log_file("a").read_text().split()[1])
    child = subject.pid("a")
    assert {p.pid for p in marked(subject.run_id)} == {child, grandchild}
    subject.stop()
    assert gone(child)
    assert gone(grandchild)
    subject.stop()  # idempotent


def test_a_child_that_dies_is_started_again(tmp_path: Path):
    subject = Supervisor({"a": ("-c", "import time; time.sleep(600)")}, tmp_path, {})
    subject.start()
    try:
        first = subject.pid("a")
        os.kill(first, signal.SIGKILL)
        eventually(lambda: subject.pid("a") != first)
        assert subject.restarts == 1
    finally:
        subject.stop()


def test_children_end_when_the_supervisor_is_killed(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if k != MARK},
    ) as supervisor:
        try:
            child = int(supervisor.stdout.readline())
        finally:
            supervisor.kill()
    eventually(lambda: gone(child))
