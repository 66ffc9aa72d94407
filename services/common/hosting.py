"""Ray Serve as the host of replicas: it places, checks, restarts, scales and ends them.

Requests never pass through Ray. Its proxy keeps a twentieth of a bare gRPC server's throughput, so
each replica listens itself and what the proxy would have done is ours: queues and shedding
(batcher.py), draining (replica.py), balancing (balancer.py). This is the only module that knows
Ray; it must be imported before ray is, because Ray reads its environment when it is imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import structlog
import xxhash

from services.common.replica import HostedReplica
from services.common.settings import ReplicaSettings, Settings
from services.common.telemetry import version

log = structlog.get_logger()

RAY_ENVIRONMENT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # user code runs on the replica's own event loop
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # the flag above turns on listeners we do not use
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.1",
    "RAY_worker_niceness": "0",  # Ray's 15 starves replicas on a machine that does anything else
    "RAY_USAGE_STATS_ENABLED": "0",
}
os.environ.update(RAY_ENVIRONMENT)

# In run_dir: how a second process of this installation finds the cluster, and with which settings
# it was started (another terminal's environment must not change what runs).
CLUSTER_FILE = "ray.json"
LOCK_FILE = "ray.lock"  # locked as long as the cluster lives; the kernel lets go of it
HEALTH_PERIOD_S = 1.0
HEALTH_TIMEOUT_S = 10.0  # three in a row without an answer, and Serve replaces the replica
RAY_EXIT_S = 5.0
DRAIN_MARGIN_S = 5.0  # what Serve grants beyond our own drain before it kills a replica


class ClusterRunning(Exception):
    """The run_dir has a cluster already; the message says what to do."""


def _cluster_file(settings: Settings) -> Path:
    return settings.run_dir / CLUSTER_FILE


@contextlib.contextmanager
def cluster(settings: Settings) -> Iterator[None]:
    """A Ray cluster with Serve and without its proxies, for as long as the block runs.

    `ray.address` set: joins that cluster and leaves it running, with our replicas. (Who may join is
    said in Ray's own environment: RAY_AUTH_TOKEN and the like.) Otherwise starts one on this
    machine whose files live in a temporary folder (a run_dir may be too long for Ray's sockets)
    and which is gone, files and processes, when the block ends. Raises ClusterRunning, with nothing
    touched, when the run_dir has one already.
    """
    if settings.ray.address:
        with _connected(settings.ray.address):
            from ray import serve

            serve.start(proxy_location="Disabled")
            yield
        return
    with _locked(settings.run_dir):
        _remove_remains(_cluster_file(settings))
        with _own_cluster(settings):
            yield


@contextlib.contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterRunning(
                f"replicas already run in {run_dir}: end them or set TANDEM_RUN_DIR"
            ) from None
        yield


@contextlib.contextmanager
def _own_cluster(settings: Settings) -> Iterator[None]:
    token = secrets.token_hex(32)
    _authenticate(token)
    import ray
    from ray import serve

    file = _cluster_file(settings)
    temporary = tempfile.mkdtemp(prefix="tandem-ray-")
    try:
        ray.init(
            num_cpus=settings.ray.num_cpus or _logical_cpus(settings),
            object_store_memory=settings.ray.object_store_mb * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            namespace="tandem",
            _node_ip_address="127.0.0.1",
            _temp_dir=temporary,
        )
        entry = {
            "address": ray.get_runtime_context().gcs_address,
            "token": token,
            "folder": temporary,
            "settings": absolute_paths(settings).model_dump(mode="json"),
        }
        write_private(file, json.dumps(entry))
        serve.start(proxy_location="Disabled")
        yield
    finally:
        file.unlink(missing_ok=True)
        daemons = psutil.Process().children(recursive=True)
        with contextlib.suppress(Exception):  # the cluster may be half up or already gone
            serve.shutdown()
        ray.shutdown()
        # Ray does not wait for its daemons; while they live they write into the folder.
        _, alive = psutil.wait_procs(daemons, timeout=RAY_EXIT_S)
        for daemon in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                daemon.kill()
        psutil.wait_procs(alive, timeout=RAY_EXIT_S)
        shutil.rmtree(temporary, ignore_errors=True)


def _authenticate(token: str) -> None:
    """To our own cluster. Ray's ports listen on every interface: only we may use them. To be called
    before ray is imported."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def write_private(file: Path, text: str) -> None:
    """Replace the file whole; no other user may read it."""
    temporary = file.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)  # its mode would stay
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as output:
        output.write(text)
    temporary.replace(file)


def _remove_remains(file: Path) -> None:
    """The temporary folder of a predecessor that was killed. Its processes die with it."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        shutil.rmtree(json.loads(file.read_text())["folder"], ignore_errors=True)


@contextlib.contextmanager
def running_cluster(settings: Settings) -> Iterator[Settings]:
    """Connect to the cluster that this installation runs (for `tandem scale`).

    Gives the settings that the installation was started with, where it can know them.
    """
    if settings.ray.address:
        address = settings.ray.address
    else:
        try:
            entry = json.loads(_cluster_file(settings).read_text())
        except FileNotFoundError:
            raise SystemExit(
                f"no running replicas: {_cluster_file(settings)} is missing; start them with"
                " `tandem serve`"
            ) from None
        _authenticate(entry["token"])
        address = entry["address"]
        settings = Settings(**entry["settings"])
    with _connected(address):
        yield settings


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray
    from ray import serve  # noqa: F401  # sets up its logger, which tells us nothing new here

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        address=address, namespace="tandem", log_to_driver=False, logging_level=logging.WARNING
    )
    try:
        yield
    finally:
        ray.shutdown()


def _logical_cpus(settings: Settings) -> int:
    """Enough of Ray's bookkeeping CPUs for twice the replicas, so that scaling is not refused.

    They bound nothing: the threads setting says what a replica really uses.
    """
    sections = (settings.candidate_generation, settings.ranking)
    wanted = sum(2 * s.replicas * s.num_cpus for s in sections)
    return max(os.cpu_count() or 1, int(wanted) + 2)


class ServeReplica:
    """One Ray Serve replica; Ray places, checks, restarts and ends it, and carries no request.

    What it runs is `start_replica` of services/<kind>/deployment.py, imported in the replica only:
    whoever deploys needs no torch.
    """

    async def __init__(self, kind: str, settings: Settings) -> None:  # type: ignore[misc]
        # Ray awaits it.
        module = importlib.import_module(f"services.{kind}.deployment")
        self._hosted: HostedReplica = await module.start_replica(settings)

    async def check_health(self) -> None:
        self._hosted.check()

    async def __del__(self) -> None:
        await self._hosted.drain()


def deploy(kind: str, settings: Settings, replicas: int) -> None:
    """Run `replicas` replicas of a service; returns when they are up.

    With only the number changed, replicas are added or drained and the others stay as they are: the
    deployment's version is a hash of everything else.
    """
    from ray import serve

    settings = absolute_paths(settings)
    section: ReplicaSettings = getattr(settings, kind)
    identity = settings.model_dump_json(exclude={kind: {"replicas"}})
    deployment = serve.deployment(ServeReplica).options(  # type: ignore[attr-defined]
        name=kind,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": section.num_cpus, "num_gpus": section.num_gpus},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=section.drain_s + DRAIN_MARGIN_S,
        version=f"{version()}-{xxhash.xxh3_64_hexdigest(identity.encode())}",
        _internal=True,
    )
    serve.run(deployment.bind(kind, settings), name=kind, route_prefix=None)
    log.info("deployed", service=kind, replicas=replicas)


def absolute_paths(settings: Settings) -> Settings:
    """The settings with paths that mean the same in a worker's working directory."""

    def absolute(url: str) -> str:
        scheme, _, rest = url.partition("://")
        return f"{scheme}://{Path(rest).resolve()}" if scheme in {"lmdb", "log"} else url

    store = settings.feature_store
    events = settings.event_log
    changes: Mapping[str, Any] = {
        "run_dir": settings.run_dir.resolve(),
        "artifacts_dir": settings.artifacts_dir.resolve(),
        "feature_store": store.model_copy(update={"url": absolute(store.url)}),
        "event_log": events.model_copy(update={"url": absolute(events.url)}),
    }
    return settings.model_copy(update=changes)
