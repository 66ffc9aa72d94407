"""Where the replicas of a service listen.

`announced` (one machine): each replica makes an empty file in `run_dir/replicas/<service>` and
holds a lock on it; the kernel drops the lock however the replica dies, so a file that can be locked
is a dead replica's. What is announced stands in the file's name: a full disk has room for that.
`dns:///name:port` (Kubernetes headless Service) and `static:host:port,...` serve where something
else keeps the list. `services/common/balancer.py` asks again and again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from services.common import telemetry
from services.common.channels import joined

# Gives host:port of every replica. May do I/O; an exception means "ask again".
Discovery = Callable[[], frozenset[str]]


@dataclass(frozen=True)
class Entry:
    """One live announcement."""

    pid: int
    address: str
    metrics: str  # host:port of the Prometheus metrics

    @property
    def file_name(self) -> str:
        return f"{self.pid} {self.address} {self.metrics}"

    @staticmethod
    def of(file_name: str) -> Entry:
        pid, address, metrics = file_name.split(" ")
        return Entry(int(pid), address, metrics)


class Announcement:
    """This process's entry in the list; `withdraw` (or the process's death) removes it."""

    def __init__(self, folder: Path, address: str, metrics: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = Entry(os.getpid(), address, metrics).file_name
        self._path = folder / name
        temporary = folder / f".{name}"
        self._file = temporary.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)  # locked before it becomes visible
        temporary.rename(self._path)

    def withdraw(self) -> None:
        """Leave the list; idempotent."""
        self._path.unlink(missing_ok=True)
        self._file.close()


@contextlib.contextmanager
def metrics_announced(
    run_dir: Path, role: str, host: str, port: int, service: str = ""
) -> Iterator[int]:
    """/metrics of a worker, on `host`:`port` (0: a free port), and `role` announced there; gives
    the port. `service` names it on that page where it is not the role."""
    port, end = telemetry.serve_metrics(service or role, host, port)
    with contextlib.ExitStack() as opened:
        opened.callback(end)
        address = joined(host, port)
        folder = replica_folder(run_dir, role)
        opened.callback(Announcement(folder, address, metrics=address).withdraw)
        yield port


def announced(folder: Path) -> list[Entry]:
    """The live announcements in a folder; what dead processes left is removed."""
    entries = []
    for path in sorted(folder.glob("[!.]*")):
        try:
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    entries.append(Entry.of(path.name))
                else:
                    path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue  # withdrawn between the listing and the look
    return entries


def withdraw(folder: Path, pids: Container[int]) -> int:
    """Take the entries of other processes from the list; how many there were."""
    entries = [entry for entry in announced(folder) if entry.pid in pids]
    for entry in entries:
        (folder / entry.file_name).unlink(missing_ok=True)
    return len(entries)


def announced_addresses(folder: Path) -> frozenset[str]:
    """Where those listen that announced themselves in a folder of this machine."""
    return frozenset(entry.address for entry in announced(folder))


def dns_addresses(host: str, port: int) -> frozenset[str]:
    """Every address that a name resolves to: a Kubernetes headless Service."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return frozenset(joined(str(address[0]), port) for *_, address in found)


def replica_folder(run_dir: Path, service: str) -> Path:
    return run_dir / "replicas" / service


def discover(target: str, run_dir: Path, service: str) -> Discovery:
    """The discovery that a `target` setting names; ValueError for another form."""
    if target == "announced":
        return partial(announced_addresses, replica_folder(run_dir, service))
    if target.startswith("static:"):
        addresses = frozenset(target.removeprefix("static:").split(","))
        return lambda: addresses
    if target.startswith("dns:///"):
        host, _, port = target.removeprefix("dns:///").rpartition(":")
        if host and port.isdigit():
            return partial(dns_addresses, host, int(port))
    raise ValueError(
        f"{service}.target is {target!r}; use announced, dns:///host:port or static:host:port,..."
    )
