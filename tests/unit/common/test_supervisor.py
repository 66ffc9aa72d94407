"""What the supervisor starts, it restarts and ends, however deep and however detached."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from services.common.processes import supervisor
from services.common.processes.supervisor import (
    LAST_BACKOFF_S,
    LONG_LIFE_S,
    MARK,
    SUPERVISOR,
    Supervisor,
    bound_size,
    last_line,
    marked,
    next_backoff_s,
)
from services.common.telemetry import RESTARTS_SO_FAR

# Ends on SIGTERM only after its grandchild in another session was started.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
print("ready", child.pid, flush=True)
time.sleep(600)
"""
SLEEP = "import time; time.sleep(600)"
# A role as `tandem serve ROLE` is one.
ROLE = """
import signal
from services.common.processes.supervisor import end_with_supervisor
end_with_supervisor()
print("armed", flush=True)
while True:
    signal.pause()
"""
# Tells when SIGTERM comes and ends only when told to: by the file next to its log.
SLOW = """
import os, signal, sys, time
from pathlib import Path
from services.common.processes.supervisor import end_with_supervisor
signal.signal(signal.SIGTERM, lambda *_: print("terminated", flush=True))
end_with_supervisor()
print("armed", os.getpid(), flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
"""
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("armed", flush=True)
time.sleep(600)
"""
DRAINS = """
import signal, sys, time
def drain(*_):
    time.sleep(0.5)
    print("drained", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
print("armed", flush=True)
time.sleep(600)
"""
TELLS = f"import os; print(os.environ[{RESTARTS_SO_FAR!r}], flush=True)"
SUPERVISED = """
import sys, signal
from pathlib import Path
from services.common.processes.supervisor import Supervisor
from services.common.telemetry import configure_logging
configure_logging("error", "json")  # stdout is for the pid alone
subject = Supervisor({"a": ("-c", sys.argv[2])}, Path(sys.argv[1]), {})
subject.start()
print(subject.pid("a"), flush=True)
signal.pause()
"""


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
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
    eventually(lambda: subject.log_file("a").read_text().endswith("\n"))
    grandchild = int(subject.log_file("a").read_text().split()[1])
    child = subject.pid("a")
    assert {p.pid for p in marked(subject.run_id)} == {child, grandchild}
    subject.stop()
    assert gone(child)
    assert gone(grandchild)
    subject.stop()  # idempotent


def test_a_child_that_dies_is_started_again(tmp_path: Path):
    subject = Supervisor({"a": ("-c", SLEEP)}, tmp_path, {})
    subject.start()
    try:
        first = subject.pid("a")
        os.kill(first, signal.SIGKILL)
        eventually(lambda: subject.pid("a") != first)
        eventually(lambda: subject.restarts == 1)
    finally:
        subject.stop()


def test_a_role_that_cannot_be_started_is_tried_again_and_holds_up_no_other(tmp_path: Path):
    subject = Supervisor({"b": ("-c", SLEEP), "a": ("-c", SLEEP)}, tmp_path, {})
    subject.start()  # and looked after in this order: a, b
    try:
        first_a, first_b = subject.pid("a"), subject.pid("b")
        subject.log_file("a").unlink()
        subject.log_file("a").mkdir()  # cannot be opened for writing
        os.kill(first_a, signal.SIGKILL)
        eventually(lambda: gone(first_a))
        os.kill(first_b, signal.SIGKILL)
        eventually(lambda: subject.pid("b") != first_b)
        assert subject.pid("a") == first_a
        eventually(lambda: subject.restarts == 1)
        subject.log_file("a").rmdir()
        eventually(lambda: subject.pid("a") != first_a)
    finally:
        subject.stop()


def test_a_role_that_was_restarted_ends_in_its_turn(tmp_path: Path):
    """The thread that forked it ends last: until then nothing but `stop` ends it."""
    done = tmp_path / "done"
    subject = Supervisor({"front": ("-c", SLOW, str(done)), "back": ("-c", ROLE)}, tmp_path, {})
    subject.start()
    stopping = threading.Thread(target=subject.stop)
    try:
        first = subject.pid("back")
        os.kill(first, signal.SIGKILL)
        eventually(lambda: subject.pid("back") != first)
        back = subject.pid("back")
        eventually(lambda: subject.log_file("back").read_text().endswith("armed\n"))
        eventually(lambda: "armed" in subject.log_file("front").read_text())
        stopping.start()
        eventually(lambda: "terminated" in subject.log_file("front").read_text())
        (watcher,) = (t for t in threading.enumerate() if t.name == "supervisor")
        watcher.join(1.5)  # longer than it takes to look again
        assert watcher.is_alive()
        assert not gone(back)
    finally:
        done.touch()
        if stopping.ident is None:
            subject.stop()
        else:
            stopping.join()
    assert gone(back)
    assert not watcher.is_alive()


def test_each_role_has_the_whole_patience_to_end_in(tmp_path: Path):
    subject = Supervisor({"front": ("-c", DEAF), "back": ("-c", DRAINS)}, tmp_path, {}, 5.0)
    subject.start()
    for role in ("front", "back"):
        eventually(lambda role=role: b"armed" in subject.log_file(role).read_bytes())
    subject.stop()  # of the five seconds the front takes all
    assert subject.log_file("back").read_text() == "armed\ndrained\n"


def test_orphans_of_a_dead_role_are_reaped_when_they_end(tmp_path: Path):
    subject = Supervisor({"a": ("-c", PARENT)}, tmp_path, {})
    subject.start()
    try:
        eventually(lambda: subject.log_file("a").read_text().endswith("\n"))
        orphan = int(subject.log_file("a").read_text().split()[1])
        os.kill(subject.pid("a"), signal.SIGKILL)
        eventually(lambda: psutil.Process(orphan).ppid() == os.getpid())
        os.kill(orphan, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(orphan))
    finally:
        subject.stop()


def test_a_role_that_dies_at_once_takes_few_starts_and_one_that_lived_long_is_back_at_once():
    starts, now, backoff = 0, 0.0, 0.0
    while now < 60:
        starts += 1
        backoff = next_backoff_s(backoff, lived_s=0.1)
        now += 0.1 + backoff
    assert starts <= 6
    assert backoff == next_backoff_s(backoff, lived_s=0.1) == LAST_BACKOFF_S
    assert next_backoff_s(backoff, lived_s=LONG_LIFE_S) == 0


def test_a_role_is_told_how_often_it_was_started_again(tmp_path: Path):
    subject = Supervisor({"a": ("-c", TELLS)}, tmp_path, {})
    subject.start()
    try:
        eventually(lambda: subject.log_file("a").read_text().startswith("0\n1\n"))
        assert last_line(subject.log_file("a")).isdigit()
    finally:
        subject.stop()


def test_a_log_that_is_full_is_put_aside_while_its_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "MAX_LOG_BYTES", 10)
    file = tmp_path / "a.log"
    bound_size(file)  # before there is one
    with file.open("a", buffering=1) as writer:
        writer.write("short\n")
        bound_size(file)
        assert file.read_text() == "short\n"
        writer.write("long enough\n")
        bound_size(file)
        writer.write("new\n")
    assert file.read_text() == "new\n"
    assert (tmp_path / "a.log.1").read_text() == "short\nlong enough\n"


def test_children_end_when_the_supervisor_is_killed(tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if k not in (MARK, SUPERVISOR)}
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(tmp_path), ROLE],
        stdout=subprocess.PIPE,
        env=environment,
    ) as supervisor:
        try:
            child = int(supervisor.stdout.readline())
            eventually(lambda: "armed" in (tmp_path / "a.log").read_text())
        finally:
            supervisor.kill()
    eventually(lambda: gone(child))


def test_a_role_whose_supervisor_is_gone_does_not_begin():
    nobody = subprocess.run(
        [sys.executable, "-c", ROLE],
        env={**os.environ, SUPERVISOR: "1"},
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert nobody.returncode == 1
    assert nobody.stdout == b""
