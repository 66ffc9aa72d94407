"""The processes of one installation on one machine: started, watched, restarted, ended.

`tandem serve` and the demo run every role as a child process of this one. A child that dies is
started again; ending goes front to back, so that nothing calls a part that is already gone. Every
process started here, and whatever those start (Ray's daemons detach themselves), carries a mark
in its environment; the last step of `stop` ends by pid what still carries it, so nothing is left.
When this process is killed no step is taken: each role has asked the kernel to be ended then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import structlog

log = structlog.get_logger()

MARK = "TANDEM_RUN_ID"
SUPERVISOR = "TANDEM_SUPERVISOR_PID"
_PR_SET_PDEATHSIG = 1


def end_with_supervisor() -> None:
    """In a role, first of all: SIGTERM for this process when its supervisor dies, however it dies.

    Does nothing in a process that no supervisor started. The role arranges it and not the fork:
    between fork and exec of a process with threads no Python may run. The kernel binds it to the
    thread that forked, so a supervisor's forking threads live until its children have ended.
    """
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(supervisor):  # it died before this was arranged
        raise SystemExit(1)


class Supervisor:
    """Children by role; `roles` are in the order in which they are to be stopped."""

    def __init__(
        self, roles: Mapping[str, Sequence[str]], log_dir: Path, environment: Mapping[str, str]
    ) -> None:
        """`roles`: role -> arguments of `python`; each child's output goes to log_dir/role.log.

        What the arguments run begins with `end_with_supervisor()`.
        """
        self._roles = dict(roles)
        self._log_dir = log_dir
        self.run_id = uuid.uuid4().hex
        self._environment = {
            **os.environ,
            **environment,
            MARK: self.run_id,
            SUPERVISOR: str(os.getpid()),
        }
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self.restarts = 0

    def start(self) -> None:
        """Start every role. Call it on a thread that lives until `stop` has returned."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        with self._lock:
            for role in reversed(self._roles):
                self._spawn(role)
        self._watcher.start()

    def pid(self, role: str) -> int:
        return self._children[role].pid

    def log_file(self, role: str) -> Path:
        return self._log_dir / f"{role}.log"

    def _spawn(self, role: str) -> None:
        with self.log_file(role).open("ab") as output:
            self._children[role] = subprocess.Popen(
                [sys.executable, *self._roles[role]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor only
            )
        log.info("role_started", role=role, pid=self._children[role].pid)

    def _watch(self) -> None:
        """Start dead children again, at most once a second each."""
        while not self._stopping.wait(1.0):
            with self._lock:
                if self._stopping.is_set():
                    break
                for role, child in self._children.items():
                    if (code := child.poll()) is not None:
                        log.warning("role_died", role=role, pid=child.pid, exit_code=code)
                        self._restart(role)
        self._ended.wait()  # this thread's end would end, out of order, what it has forked

    def _restart(self, role: str) -> None:
        try:
            self._spawn(role)
        except OSError as error:  # no process or no disk to be had: the next look tries again
            log.error("role_not_started", role=role, cause=str(error))
        else:
            self.restarts += 1

    def stop(self, patience_s: float = 30.0) -> None:
        """End every child in order, then whatever they left. Idempotent."""
        self._stopping.set()
        try:
            self._end_children(patience_s)
            end_marked(self.run_id)
        finally:
            self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()

    def _end_children(self, patience_s: float) -> None:
        with self._lock:
            children = [self._children.pop(r) for r in self._roles if r in self._children]
        deadline = time.monotonic() + patience_s
        for child in children:
            child.terminate()
            try:
                child.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                log.warning("role_killed", pid=child.pid)
                child.kill()
                child.wait()


def marked(run_id: str) -> list[psutil.Process]:
    """Processes (other than this one) that carry the run's mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == run_id:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def end_marked(run_id: str, patience_s: float = 5.0) -> None:
    """SIGTERM, then SIGKILL, every process that carries the run's mark."""
    left = marked(run_id)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(left, timeout=patience_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=patience_s)
