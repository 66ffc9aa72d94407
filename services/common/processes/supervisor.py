"""The processes of one installation on one machine: started, watched, restarted, ended.

`tandem serve` and the demo run every role as a child process of this one. A child that dies is
started again, the later the sooner it died; ending goes front to back, so that nothing calls a part
that is already gone. Every process started here, and whatever those start (Ray's daemons detach
themselves), carries a mark in its environment; the last step of `stop` ends by pid what still
carries it, so nothing is left. What a dead role leaves running becomes a child of this process,
which may be process 1 of a container, and is reaped here when it ends. When this process is killed
no step is taken: each role has asked the kernel to be ended then.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from services.common.telemetry import RESTARTS_SO_FAR

log = structlog.get_logger()

MARK = "TANDEM_RUN_ID"
SUPERVISOR = "TANDEM_SUPERVISOR_PID"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

LOOK_EVERY_S = 1.0
LONG_LIFE_S = 30.0  # who dies after that is started again at the next look
LAST_BACKOFF_S = 30.0
LAST_BYTES = 8192
MAX_LOG_BYTES = 64 * 2**20  # of one role; the last that was full is kept beside it as .1


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


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    started_at: float  # on the monotonic clock
    restarts: int = 0
    backoff_s: float = 0.0  # between its last death and its start
    due_at: float | None = None  # since it has died: when it is started again


class Supervisor:
    """Children by role; `roles` are in the order in which they are to be stopped."""

    def __init__(
        self,
        roles: Mapping[str, Sequence[str]],
        log_dir: Path,
        environment: Mapping[str, str],
        patience_s: float = 30.0,
    ) -> None:
        """`roles`: role -> arguments of `python`; each child's output goes to log_dir/role.log.

        Each may take `patience_s` to end. What they run begins with `end_with_supervisor()`.
        """
        self._roles = dict(roles)
        self._log_dir = log_dir
        self._patience_s = patience_s
        self.run_id = uuid.uuid4().hex
        self._environment = {
            **os.environ,
            **environment,
            MARK: self.run_id,
            SUPERVISOR: str(os.getpid()),
        }
        self._children: dict[str, _Child] = {}
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self.restarts = 0

    def start(self) -> None:
        """Start every role. Call it on a thread that lives until `stop` has returned."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        with self._lock:
            for role in reversed(self._roles):
                process = self._spawn(role, restarts=0)
                self._children[role] = _Child(process, time.monotonic())
        self._watcher.start()

    def pid(self, role: str) -> int:
        return self._children[role].process.pid

    def owns(self, pid: int) -> bool:
        """Whether a process was started here, or by what was started here."""
        try:
            return _carries(psutil.Process(pid), MARK, self.run_id)
        except psutil.NoSuchProcess:
            return False

    def log_file(self, role: str) -> Path:
        return log_file(self._log_dir, role)

    def _spawn(self, role: str, restarts: int) -> subprocess.Popen[bytes]:
        with self.log_file(role).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *self._roles[role]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self._environment, RESTARTS_SO_FAR: str(restarts)},
                start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor only
            )
        log.info("role_started", role=role, pid=process.pid)
        return process

    def _watch(self) -> None:
        """Start dead children again, reap orphans, keep the logs within bounds."""
        while not self._stopping.wait(LOOK_EVERY_S):
            with self._lock:
                if self._stopping.is_set():
                    break
                for role, child in self._children.items():
                    self._look_after(role, child)
                self._reap_orphans()
            for role in self._roles:
                bound_size(self.log_file(role))
        self._ended.wait()  # this thread's end would end, out of order, what it has forked

    def _look_after(self, role: str, child: _Child) -> None:
        now = time.monotonic()
        code = child.process.poll()
        if code is None:
            return
        if child.due_at is None:
            child.backoff_s = next_backoff_s(child.backoff_s, now - child.started_at)
            child.due_at = now + child.backoff_s
            log.warning(
                "role_died",
                role=role,
                pid=child.process.pid,
                exit_code=code,
                again_in_s=child.backoff_s,
                cause=last_line(self.log_file(role)),
            )
        if now < child.due_at:
            return
        try:
            child.process = self._spawn(role, child.restarts + 1)
        except OSError as error:  # no process or no disk to be had: the next look tries again
            log.error("role_not_started", role=role, cause=str(error))
            return
        child.started_at, child.due_at = now, None
        child.restarts += 1
        self.restarts += 1

    def _reap_orphans(self) -> None:
        """Wait for the dead that are nobody's but ours since their parents died.

        They are told by their session from what other parts of this process have started, and wait
        for themselves: roles, and what they start, have sessions of their own.
        """
        roles = {child.process.pid for child in self._children.values()}
        options = os.WEXITED | os.WNOHANG
        # There are no children at all, or the dead one was just waited for.
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            while dead := os.waitid(os.P_ALL, 0, options | os.WNOWAIT):
                if dead.si_pid in roles or os.getsid(dead.si_pid) == os.getsid(0):
                    break  # whoever waits for it will do so; the others at the next look
                os.waitpid(dead.si_pid, 0)

    def stop(self) -> None:
        """End every child in order, then what they left. Idempotent."""
        self._stopping.set()
        try:
            self._end_children()
            end_marked(self.run_id)
        finally:
            self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()

    def _end_children(self) -> None:
        with self._lock:
            children = {r: self._children.pop(r) for r in self._roles if r in self._children}
        for role, child in children.items():
            child.process.terminate()
            try:
                child.process.wait(self._patience_s)
            except subprocess.TimeoutExpired:
                log.warning("role_killed", role=role, pid=child.process.pid)
                child.process.kill()
                child.process.wait()


def next_backoff_s(last_s: float, lived_s: float) -> float:
    """How long a role stays dead that lived so long after it had stayed dead for `last_s`."""
    if lived_s >= LONG_LIFE_S:
        return 0.0
    return min(max(2 * last_s, LOOK_EVERY_S), LAST_BACKOFF_S)


def log_file(log_dir: Path, role: str) -> Path:
    return log_dir / f"{role}.log"


def last_line(file: Path) -> str:
    """The last line of a log that says something; "" where there is none."""
    try:
        with file.open("rb") as log_of_role:
            log_of_role.seek(max(0, file.stat().st_size - LAST_BYTES))
            lines = log_of_role.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def bound_size(file: Path) -> None:
    """Put a log that has grown too large aside and begin it anew.

    Copied and cut, not renamed: whoever writes to it (always at its end) goes on doing so.
    """
    try:
        if file.is_file() and file.stat().st_size > MAX_LOG_BYTES:
            shutil.copyfile(file, file.with_suffix(file.suffix + ".1"))
            os.truncate(file, 0)
    except OSError as error:
        log.warning("log_not_bounded", file=str(file), cause=str(error))


def marked(value: str, name: str = MARK) -> list[psutil.Process]:
    """Processes (other than this one) that carry a mark in their environment: by default a run's.

    Zombies carry none.
    """
    others = (process for process in psutil.process_iter() if process.pid != os.getpid())
    return [process for process in others if _carries(process, name, value)]


def _carries(process: psutil.Process, name: str, value: str) -> bool:
    try:
        return process.environ().get(name) == value
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False


def end_marked(run_id: str, patience_s: float = 5.0) -> None:
    """SIGTERM, then SIGKILL, every process that carries the run's mark."""
    left = marked(run_id)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, left = psutil.wait_procs(left, timeout=patience_s)
