"""One installation on one machine: its roles, and whether all of them answer.

Used by `tandem serve` and by the demo. On Kubernetes each role is a Deployment of its own and
nothing here is needed.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from feature_store.interface import FeatureStoreUnavailable
from models.schema.inputs import Part
from services.common.channels import CHANNEL_OPTIONS, joined
from services.common.clock import epoch_ms
from services.common.discovery import Entry, announced, replica_folder
from services.common.processes.alone import AlreadyRuns
from services.common.processes.replica import KINDS
from services.common.processes.supervisor import Supervisor, last_line, log_file
from services.common.schema import SchemaRefused, schema_of
from services.common.settings import Settings, SettingsInvalid
from services.event_log.connect import connect as connect_log
from services.event_log.interface import LogUnavailable, LogWentBack
from services.experiments.declare import config_reader
from services.experiments.declare.config import ExperimentsConfig, ExperimentsError
from services.experiments.declare.domain import domain_of
from services.experiments.declare.served import served, undeclared, unserved
from services.feedback.store_log import StoreRefused, claim, open_store

# In the order in which they are stopped: nothing calls a part that is already gone.
ROLES = ("router", "replicas", "updater", "experiments", "catalogue")
ALL = "serve"  # what locks a run_dir as long as all roles run in it
GRPC_ROLES = ("router", "candidate_generation", "ranking", "catalogue")
WORKERS = ("updater", "experiments")
LOGS = "logs"  # in run_dir
END_MARGIN_S = 25.0  # for a role to end in, beyond what its calls in flight may take
MAX_LAST_WORDS = 500


class CannotStart(Exception):
    """The settings name what cannot be used: a port that another process has, a model without a
    published version, an experiments file with problems. The message says which, and what to do."""


class NotReady(Exception):
    """The installation did not become healthy in time; the message says which part, and why."""


# What a person can put right, told in one sentence.
EXPECTED = (
    AlreadyRuns,
    CannotStart,
    FeatureStoreUnavailable,
    LogWentBack,
    SchemaRefused,
    SettingsInvalid,
    StoreRefused,
)

PORTS = {
    "router": ("router.port", "router.metrics_port"),
    "updater": ("feedback.updater_metrics_port",),
    "experiments": ("experiments.metrics_port",),
    "catalogue": ("catalogue.port", "catalogue.metrics_port"),
}


def check_ports(settings: Settings, roles: Iterable[str] = ROLES) -> None:
    """Raise CannotStart naming the setting, before anything is started."""
    host = settings.router.host
    for key in (key for role in roles for key in PORTS.get(role, ())):
        section, _, name = key.partition(".")
        port = getattr(getattr(settings, section), name)
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            variable = "TANDEM_" + key.upper().replace(".", "__")
            raise CannotStart(
                f"{key}: {joined(host, port)} cannot be used ({error.strerror}); end the other"
                f" process or set {variable} to a free port"
            ) from None


def check_source(settings: Settings) -> None:
    """Raise StoreRefused, or SettingsInvalid for the log's URL, before the updater would refuse to
    begin. What cannot be reached now is not judged: the updater waits for it."""
    with contextlib.suppress(LogUnavailable, FeatureStoreUnavailable), contextlib.ExitStack() as on:
        event_log = on.enter_context(
            contextlib.closing(connect_log(settings.event_log, settings.installation))
        )
        store = on.enter_context(contextlib.closing(open_store(settings)))
        claim(store, event_log, settings, epoch_ms())


def models_of(settings: Settings) -> list[tuple[Part, str]]:
    """The models to serve, with their parts."""
    models: tuple[tuple[Part, Sequence[str]], ...] = (
        ("retrieval", settings.candidate_generation.models),
        ("ranking", settings.ranking.models),
    )
    return [(part, name) for part, names in models for name in names]


def check_models(settings: Settings) -> None:
    """Raise CannotStart, before processes are started that would die for it."""
    folder = settings.artifacts_dir
    for part, name in models_of(settings):
        if not (folder / name / "current.json").is_file():
            raise CannotStart(
                f"no version of {name} is published in {folder}: run"
                f" `tandem train {part} --model {name} --artifacts {folder}` first"
            )


def check_experiments(settings: Settings) -> ExperimentsConfig:
    """The experiments of the settings; CannotStart where the router would not start.

    Or where it would start and arms would go without answers, because their model is not served.
    """
    file = settings.router.experiments_file
    try:
        schema = schema_of(settings)
        config = config_reader.load(file, domain_of(schema.declaration))
        problems = unserved(config, served(settings))
        if problems := [*problems, *undeclared(config, schema.declaration)]:
            raise ExperimentsError(str(file), problems)
    except ExperimentsError as error:
        raise CannotStart(str(error)) from None
    except OSError as error:
        raise CannotStart(f"router.experiments_file: {error}") from None
    return config


def processes_of(settings: Settings, *, local: bool) -> dict[str, str]:
    """The role of each process of the installation, by its name, in the order of ROLES.

    `local`: instead of a role that has Ray host the replicas, a process for each of them.
    """
    found: dict[str, str] = {}
    for role in ROLES:
        if local and role == "replicas":
            counts = {kind: getattr(settings, kind).replicas for kind in KINDS}
            found |= {f"{k}-{n}": k for k, count in counts.items() for n in range(1, count + 1)}
        else:
            found[role] = role
    return found


def supervisor(
    settings: Settings, environment: Mapping[str, str], *, local: bool = False
) -> Supervisor:
    """The installation's processes, not yet started. `environment` is added to this one's; `local`
    is as in `processes_of`."""
    drains = (getattr(settings, role).drain_s for role in GRPC_ROLES)
    processes = processes_of(settings, local=local)
    return Supervisor(
        {name: ("-m", "services.cli", "serve", role) for name, role in processes.items()},
        settings.run_dir / LOGS,
        environment,
        patience_s=max(drains) + END_MARGIN_S,
    )


def entries(settings: Settings, role: str) -> list[Entry]:
    """What is announced of a role."""
    return announced(replica_folder(settings.run_dir, role))


def endpoints(settings: Settings) -> dict[str, list[str]]:
    """Where each gRPC role listens now."""
    return {role: [e.address for e in entries(settings, role)] for role in GRPC_ROLES}


def metrics_endpoints(settings: Settings) -> dict[str, list[str]]:
    """Where each role's Prometheus metrics are."""
    return {r: [e.metrics for e in entries(settings, r)] for r in (*GRPC_ROLES, *WORKERS)}


def missing_parts(settings: Settings, starting: Supervisor | None = None) -> list[str]:
    """Roles of which nothing is announced, or something announced does not answer.

    `starting`: counts what this supervisor has started alone (on a cluster of Ray that is not ours
    nobody knows that), and has those missing, too, of which fewer serve than the settings want;
    later `tandem scale` may have changed the number.
    """
    missing = []
    for role in (*GRPC_ROLES, *WORKERS):
        found, wanted = entries(settings, role), 1
        if starting and not (settings.ray.address and role in KINDS):
            found = [entry for entry in found if starting.owns(entry.pid)]
        if starting and role in KINDS:
            wanted = getattr(settings, role).replicas
        answers = _serving if role in GRPC_ROLES else _listening
        if len(found) < wanted or not all(answers(entry.address) for entry in found):
            missing.append(role)
    return missing


def last_words(settings: Settings, part: str) -> str:
    """The last line in the log of a part (of the supervised role that runs it, and of several
    replicas the one that spoke last)."""
    logs = settings.run_dir / LOGS
    files = [log_file(logs, part)]
    if part in KINDS:
        files = [log_file(logs, "replicas"), *logs.glob(f"{part}-*.log")]
    there = [file for file in files if file.is_file()]
    last = max(there, key=lambda file: file.stat().st_mtime_ns, default=files[0])
    return last_line(last)[:MAX_LAST_WORDS]


def why_missing(settings: Settings, missing: Iterable[str]) -> str:
    """A line per missing part with the last one of its log, to be shown to a person."""
    return "".join(
        f"\n  {part}: {last_words(settings, part) or 'its log says nothing'}" for part in missing
    )


def wait_ready(
    settings: Settings,
    processes: Supervisor,
    timeout_s: float,
    on_wait: Callable[[list[str]], None] = lambda missing: None,
) -> None:
    """Block until every role of `processes` answers, with as many replicas as the settings want.

    NotReady after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while missing := missing_parts(settings, starting=processes):
        if time.monotonic() > deadline:
            raise NotReady(
                f"{', '.join(missing)} not healthy after {timeout_s:.0f} s; the last lines of the"
                f" logs in {settings.run_dir / LOGS}:{why_missing(settings, missing)}"
            )
        on_wait(missing)
        time.sleep(0.2)


def _serving(address: str) -> bool:
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=1.0
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1.0):
            return True
    except OSError:
        return False
