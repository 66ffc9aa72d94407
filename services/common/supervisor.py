"""The processes of one installation on one machine: started, watched, restarted, ended.

`tandem serve` and the demo run every role as a child process of this one. A child that dies is
started again; ending goes front to back, so that nothing calls a part that is already gone. Every
process started here, and whatever those start (Ray's daemons detach themselves), carries a mark
in its environment; the last step of `stop` ends by pid what still carries it, so nothing is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
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
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def _end_with_parent(parent: int) -> None:
    """In the child: SIGTERM when the supervisor dies, however it dies.

    The kernel binds this to the thread that forks: `start` must be called on a thread that lives
    as long as the supervisor (the main one); the watcher does.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before this was arranged
        os._exit(1)


class Supervisor:
    """Children by role; `roles` are in the order in which they are to be stopped."""

    def __init__(
        self, roles: Mapping[str, Sequence[str]], log_dir: Path, environment: Mapping[str, str]
    ) -> None:
        """`roles`: role -> arguments of `python`; each child's output goes to log_dir/role.log."""
        self._roles = dict(roles)
        self._log_dir = log_dir
        self.run_id = uuid.uuid4().hex
        self._environment = {**os.environ, **environment, MARK: self.run_id}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self.restarts = 0

    def start(self) -> None:
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
                preexec_fn=functools.partial(_end_with_parent, os.getpid()),
            )
        log.info("role_started", role=role, pid=self._children[role].pid)

    def _watch(self) -> None:
        """Start dead children again, at most once a second each."""
        while not self._stopping.wait(1.0):
            with self._lock:
                if self._stopping.is_set():
                    return
                for role, child in self._children.items():
                    if (code := child.poll()) is not None:
                        log.warning("role_died", role=role, pid=child.pid, exit_code=code)
                        self.restarts += 1
                        self._spawn(role)

    def stop(self, patience_s: float = 30.0) -> None:
        """End every child in order, then whatever they left. Idempotent."""
        self._stopping.set()
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
        end_marked(self.run_id)


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
