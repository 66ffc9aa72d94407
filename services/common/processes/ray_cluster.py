"""The Ray cluster under the replicas: started, watched and ended, with what its predecessors left.

Ray heals what dies inside a cluster. That the cluster itself is gone it notices late or never: a
killed raylet is a zombie whose workers go on as if nothing were. So the role that has started a
cluster looks after its daemons and ends with ClusterLost, and the next one starts another cluster.
Replicas outlive their cluster: they serve on until those of the next one are up, at most ALONE_S.

Everything of a cluster, files and processes, is found by its folder: the processes carry it in
their environment, and a link in run_dir names it before the first of them starts. Must be imported
before ray is, because Ray reads its environment when it is imported.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import structlog

from models.files import replace_whole
from services.common import discovery
from services.common.processes.replica import KINDS
from services.common.processes.supervisor import marked
from services.common.settings import Settings

log = structlog.get_logger()

ALONE_S = 300  # a replica without its cluster; longer than another one's start
START_S = 240  # for what Ray's daemons wait for while they start; 30 s is Ray's
OWN_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    # Its only effect on Linux: 127.0.0.1 is not replaced, and daemons listen nowhere else.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_raylet_death_check_interval_milliseconds": str(ALONE_S * 1000),
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(ALONE_S),
    "RAY_gcs_server_port_wait_time_s": str(START_S),
    "RAY_py_gcs_connect_timeout_s": str(START_S),
    "RAY_agent_register_timeout_ms": str(START_S * 1000),
    "RAY_worker_register_timeout_seconds": str(START_S),
}
FOLDER = "RAY_TMPDIR"  # Ray's own name for where its files go
TOKEN = "RAY_AUTH_TOKEN"

# In run_dir: how a second process of this installation finds the cluster, and with which settings
# it was started (another terminal's environment must not change what runs).
CLUSTER_FILE = "ray.json"
# In run_dir: links to the folders of clusters that have not ended in order. A full disk has room
# for links.
CLUSTERS = "clusters"
RAYLET_SOCKET = "ray/session_latest/sockets/raylet"
DAEMONS = ("gcs_server", "raylet")
EXIT_S = 5.0
ATTEMPTS = 5
ASK_EVERY_S = 5.0
ANSWER_S = 30.0  # a stopped or starved cluster may come back


class ClusterLost(Exception):
    """The cluster is gone or does not answer; the message says what was noticed."""


class Cluster:
    """What the role of the replicas needs of a cluster. `destroy` may be called by any thread.

    As written here nothing has to be done.
    """

    def start(self) -> None:
        """Have it run, and become its driver."""

    def settle(self) -> None:
        """All replicas are up: have those of earlier clusters end."""

    def check(self) -> None:
        """ClusterLost, when it is gone, as far as can be seen without asking it."""

    def abandon(self) -> None:
        """End what is left but the replicas, which serve on until a successor's are up."""

    def shut_down(self) -> None:
        """Drain the replicas and leave nothing."""

    def destroy(self) -> None:
        """Leave nothing, at once."""


class OwnCluster(Cluster):
    """A cluster on this machine, with Serve and without its proxies, gone with the role."""

    def __init__(self, settings: Settings, logical_cpus: int) -> None:
        self._settings = settings
        self._logical_cpus = logical_cpus
        self._file = settings.run_dir / CLUSTER_FILE
        self._links = settings.run_dir / CLUSTERS
        self._folders: list[str] = []  # the last is that of this cluster
        self._daemons: dict[str, psutil.Process] = {}

    def start(self) -> None:
        self._file.unlink(missing_ok=True)  # tells of a predecessor
        self._links.mkdir(parents=True, exist_ok=True)
        noted = [str(link.readlink()) for link in self._links.iterdir()]
        end_processes(noted, spare=self._replicas())
        self._folders = [folder for folder in noted if marked(folder, FOLDER)]
        self._remove(set(noted) - set(self._folders))
        # Not in run_dir: its path may be too long for Ray's sockets, and its disk is the one that
        # features and events fill. Nobody else can enter it, whatever Ray makes below.
        folder = tempfile.mkdtemp(prefix="tandem-ray-")
        self._folders.append(folder)
        (self._links / Path(folder).name).symlink_to(folder)
        token = secrets.token_hex(32)
        enter(token)
        os.environ[FOLDER] = folder
        import ray
        from ray import serve

        with _patience():
            ray.init(
                num_cpus=self._logical_cpus,
                object_store_memory=self._settings.ray.object_store_mb * 2**20,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                namespace="tandem",
                _node_ip_address="127.0.0.1",
            )
        self._daemons = daemons()
        entry = {
            "address": ray.get_runtime_context().gcs_address,
            "token": token,
            "settings": self._settings.model_dump(mode="json"),
        }
        try:
            replace_whole(self._file, json.dumps(entry), durable=False, mode=0o600)
        except OSError as error:  # the disk is full: nobody can scale, but requests are answered
            log.error("cluster_not_noted", file=str(self._file), cause=str(error))
        serve.start(proxy_location="Disabled")

    def settle(self) -> None:
        *earlier, own = self._folders
        old = {process.pid for folder in earlier for process in marked(folder, FOLDER)}
        folders = [discovery.replica_folder(self._settings.run_dir, kind) for kind in KINDS]
        if sum(discovery.withdraw(folder, old) for folder in folders):
            drain_s = max(getattr(self._settings, kind).drain_s for kind in KINDS)
            time.sleep(drain_s)  # for the calls in flight; routers have seen it long before
        end_processes(earlier, spare=())
        self._remove(earlier)
        self._folders = [own]

    def check(self) -> None:
        if dead := dead_daemons(self._daemons):
            raise ClusterLost(f"Ray's {' and '.join(dead)} died")
        if not Path(self._folders[-1], RAYLET_SOCKET).is_socket():
            raise ClusterLost(f"Ray's sockets in {self._folders[-1]} were removed")

    def abandon(self) -> None:
        end_processes(self._folders, spare=self._replicas())

    def shut_down(self) -> None:
        import ray
        from ray import serve

        try:
            self.check()
            serve.shutdown()
            ray.shutdown()
        except Exception as error:  # what it would have ended is ended all the same
            log.warning("ray_not_shut_down", cause=str(error))
        self.destroy()

    def destroy(self) -> None:
        end_processes(self._folders, spare=())
        self._remove(self._folders)
        self._file.unlink(missing_ok=True)

    def _replicas(self) -> frozenset[int]:
        folders = [discovery.replica_folder(self._settings.run_dir, kind) for kind in KINDS]
        return frozenset(e.pid for folder in folders for e in discovery.announced(folder))

    def _remove(self, folders: Collection[str]) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            (self._links / Path(folder).name).unlink(missing_ok=True)


class JoinedCluster(Cluster):
    """A cluster that somebody else keeps: it and our replicas run on when the role ends.

    Serve replaces the replicas of earlier ones, and of its daemons only its answers tell.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def start(self) -> None:
        connect(self._address)
        from ray import serve

        serve.start(proxy_location="Disabled")

    def shut_down(self) -> None:
        import ray

        ray.shutdown()


class Heartbeat:
    """Whether a cluster answers: asked on a thread of its own, as a dead one lets calls hang."""

    def __init__(
        self, ask: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`ask` raises whatever it likes when the answer is not the right one."""
        self._ask = ask
        self._clock = clock
        self._answered_at = clock()
        self._problem = "no answer"
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def check(self) -> None:
        """ClusterLost when the last right answer is too old."""
        silent_s = self._clock() - self._answered_at
        if silent_s > ANSWER_S:
            raise ClusterLost(f"Ray has not answered for {silent_s:.0f} s: {self._problem}")

    def _run(self) -> None:
        while True:
            asked_at = self._clock()
            try:
                self._ask()
            except Exception as error:  # of Ray or of what lies under it
                self._problem = str(error)
            else:
                self._answered_at = asked_at
            time.sleep(ASK_EVERY_S)


def application(kind: str, settings: Settings) -> str:
    """What Serve knows a service by: installations that have joined one cluster have theirs."""
    return f"{settings.installation}-{kind}" if settings.installation else kind


def ask_ray(settings: Settings) -> None:
    """Raise unless this node is one of the cluster's and Serve runs our services."""
    import ray
    from ray import serve

    node = ray.get_runtime_context().get_node_id()
    if not any(n["NodeID"] == node and n["Alive"] for n in ray.nodes()):
        raise ClusterLost("this machine's node has left the cluster")
    wanted = [application(kind, settings) for kind in KINDS]
    if missing := sorted(set(wanted) - set(serve.status().applications)):
        raise ClusterLost(f"it does not run {' and '.join(missing)}")


def enter(token: str) -> None:
    """Only who has the token may use our own cluster. To be called before ray is imported."""
    os.environ |= OWN_ENVIRONMENT | {TOKEN: token}


def connect(address: str) -> None:
    """Become a driver of a running cluster."""
    import ray
    from ray import serve  # noqa: F401  # sets up its logger, which tells us nothing new here

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        address=address, namespace="tandem", log_to_driver=False, logging_level=logging.WARNING
    )


@contextlib.contextmanager
def running_cluster(settings: Settings) -> Iterator[Settings]:
    """Connect to the cluster that this installation runs (for `tandem scale`).

    Gives the settings that the installation was started with, where it can know them.
    """
    address = settings.ray.address
    if not address:
        file = settings.run_dir / CLUSTER_FILE
        try:
            entry = json.loads(file.read_text())
            address, settings = entry["address"], Settings(**entry["settings"])
        except FileNotFoundError:
            raise SystemExit(
                f"no replicas that Ray hosts: {file} is missing; start them with `tandem serve`, or"
                " wait until they are up (with --local their number is `replicas` in the settings)"
            ) from None
        enter(entry["token"])
    import ray

    connect(address)
    try:
        yield settings
    finally:
        ray.shutdown()


def daemons() -> dict[str, psutil.Process]:
    """This process's children that make up a cluster's head."""
    children = psutil.Process().children()
    return {p.name(): p for p in children if _alive(p) and p.name() in DAEMONS}


def dead_daemons(head: Mapping[str, psutil.Process]) -> list[str]:
    return [name for name, process in head.items() if not _alive(process)]


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Within it `ray.init` waits START_S for the node to appear, and not 30 s, which no setting of
    Ray's changes: on a busy machine the imports of its daemons alone take longer."""
    from ray._private import services

    get_node = services.get_node
    head: dict[str, psutil.Process] = {}

    def get_node_patiently(address: str, node: str) -> Any:
        def get() -> Any:
            head.update(daemons())
            if dead := dead_daemons(head):
                raise ClusterLost(f"Ray's {' and '.join(dead)} died while it started")
            return get_node(address, node)

        return until_there(get, START_S)

    services.get_node = get_node_patiently
    try:
        yield
    finally:
        services.get_node = get_node


def until_there(
    get: Callable[[], Any],
    patience_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Any:
    """What `get` returns once it raises RuntimeError no more; its last one after `patience_s`."""
    deadline = clock() + patience_s
    while True:
        try:
            return get()
        except RuntimeError:
            if clock() > deadline:
                raise
        sleep(0.1)


def end_processes(folders: Collection[str], spare: Collection[int]) -> None:
    """SIGKILL whatever runs for clusters in these folders, also what appears meanwhile."""
    for _ in range(ATTEMPTS):
        running = [p for folder in folders for p in marked(folder, FOLDER) if p.pid not in spare]
        if not running:
            return
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(running, timeout=EXIT_S)
