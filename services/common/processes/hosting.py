"""Ray Serve as the host of replicas: it places, checks, restarts, scales and ends them.

Requests never pass through Ray. Its proxy keeps a twentieth of a bare gRPC server's throughput, so
each replica listens itself and what the proxy would have done is ours: queues and shedding
(batcher.py), draining (listener.py), balancing (balancer.py). Only this module and ray_cluster.py
know Ray; it must be imported before ray is, because Ray reads its environment when it is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import structlog
import xxhash

from services.common.processes.alone import alone
from services.common.processes.ray_cluster import (
    Cluster,
    Heartbeat,
    JoinedCluster,
    OwnCluster,
    application,
    ask_ray,
)
from services.common.processes.replica import KINDS, start_replica
from services.common.processes.stopping import on_signals, silence
from services.common.processes.supervisor import SUPERVISOR, bound_size, log_file
from services.common.schema import schema_of
from services.common.settings import ReplicaSettings, Settings
from services.common.telemetry import configure_logging, version

log = structlog.get_logger()

RAY_ENVIRONMENT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # user code runs on the replica's own event loop
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # the flag above turns on listeners we do not use
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.1",
    "RAY_worker_niceness": "0",  # Ray's 15 starves replicas on a machine that does anything else
    "RAY_USAGE_STATS_ENABLED": "0",
}
os.environ.update(RAY_ENVIRONMENT)

ROLE = "replicas"
HEALTH_PERIOD_S = 1.0
HEALTH_TIMEOUT_S = 10.0  # three in a row without an answer, and Serve replaces the replica
DRAIN_MARGIN_S = 5.0  # what Serve grants beyond our own drain before it kills a replica
END_MARGIN_S = 10.0  # what the role grants Serve and itself beyond that
LOOK_EVERY_S = 1.0
ENDING = {signal.SIGTERM, signal.SIGINT}


def run_replicas(settings: Settings) -> None:
    """Run the replicas of both services until SIGTERM or SIGINT, which also end this process.

    Call it on the main thread of its own process. `ray.address` set: on that cluster, which keeps
    running, with our replicas. (Who may join is said in Ray's own environment: RAY_AUTH_TOKEN and
    the like.) Otherwise on one that is started here and gone in the end. Raises AlreadyRuns, with
    nothing touched, when the run_dir has one already; ClusterLost; and what Ray raises.
    """
    settings = absolute_paths(settings)
    address = settings.ray.address
    with alone(settings.run_dir, ROLE):
        own = OwnCluster(settings, _logical_cpus(settings))
        _run(settings, JoinedCluster(address) if address else own)


def _run(settings: Settings, cluster: Cluster) -> None:
    serving, stop, ended = threading.Event(), threading.Event(), threading.Event()
    drain_s = max(getattr(settings, kind).drain_s for kind in KINDS)

    def end() -> None:
        stop.set()
        # Nothing interrupts Ray while it starts.
        if not serving.is_set() or not ended.wait(drain_s + DRAIN_MARGIN_S + END_MARGIN_S):
            cluster.destroy()
        sys.stdout.flush()
        os._exit(0)  # what Ray does at exit may hang

    ending = on_signals(ENDING, end)
    try:
        cluster.start()
        silence(ENDING)  # ray.init has installed handlers of its own
        _deploy_all(settings, cluster)
        serving.set()
        cluster.settle()
        heartbeat = Heartbeat(partial(ask_ray, settings))
        while not stop.wait(LOOK_EVERY_S):
            cluster.check()
            heartbeat.check()
            if SUPERVISOR not in os.environ:  # which does it otherwise
                bound_size(_replicas_log(settings))
    except Exception:
        if stop.is_set():
            ending.join()  # it has destroyed what failed here, and ends this process
        cluster.abandon()
        raise
    cluster.shut_down()
    ended.set()
    ending.join()


def _deploy_all(settings: Settings, cluster: Cluster) -> None:
    """Returns when all replicas are up; whatever happens to the cluster meanwhile is noticed."""

    def deploy_all() -> None:
        for kind in KINDS:
            deploy(kind, settings, getattr(settings, kind).replicas)

    deploying = futures.ThreadPoolExecutor(1).submit(deploy_all)
    while not futures.wait([deploying], LOOK_EVERY_S).done:
        cluster.check()
    deploying.result()


def _logical_cpus(settings: Settings) -> int:
    """Ray's bookkeeping CPUs: enough for twice the replicas, so that scaling is not refused.

    They bound nothing: the threads setting says what a replica really uses.
    """
    if settings.ray.num_cpus:
        return settings.ray.num_cpus
    sections = (settings.candidate_generation, settings.ranking)
    wanted = sum(2 * s.replicas * s.num_cpus for s in sections)
    return max(os.cpu_count() or 1, int(wanted) + 2)


def _replicas_log(settings: Settings) -> Path:
    return log_file(settings.run_dir / "logs", ROLE)


def _log_stream(settings: Settings) -> TextIO:
    """Where a replica logs: to the role's log, or on somebody else's cluster into Ray's own files.

    Never to sys.stderr: Serve buffers that, into a file that is deleted with the cluster.
    """
    file = _replicas_log(settings)
    if settings.ray.address:
        assert sys.__stderr__ is not None
        return sys.__stderr__
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("a", buffering=1)  # appended line by line: several processes share it


class ServeReplica:
    """One Ray Serve replica; Ray places, checks, restarts and ends it, and carries no request."""

    async def __init__(self, kind: str, settings: Settings) -> None:  # type: ignore[misc]
        # Ray awaits it.
        telemetry = settings.telemetry
        configure_logging(telemetry.log_level, telemetry.log_format, _log_stream(settings))
        self._replica = await start_replica(kind, settings)

    async def check_health(self) -> None:
        self._replica.check()

    async def __del__(self) -> None:
        await self._replica.drain()


def deploy(kind: str, settings: Settings, replicas: int) -> None:
    """Run `replicas` replicas of a service; returns when they are up.

    With only the number changed, replicas are added or drained and the others stay as they are: the
    deployment's version is a hash of everything else.
    """
    from ray import serve

    settings = absolute_paths(settings)
    section: ReplicaSettings = getattr(settings, kind)
    identity = settings.model_dump_json(exclude={kind: {"replicas"}})
    identity += f"{schema_of(settings).digest:016x}"  # of what the file says
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
    name = application(kind, settings)
    serve.run(deployment.bind(kind, settings), name=name, route_prefix=None)
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
        "schema_file": settings.schema_file.resolve() if settings.schema_file else None,
        "feature_store": store.model_copy(update={"url": absolute(store.url)}),
        "event_log": events.model_copy(update={"url": absolute(events.url)}),
    }
    return settings.model_copy(update=changes)
