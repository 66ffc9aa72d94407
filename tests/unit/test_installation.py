"""When an installation counts as healthy, and what is checked before it starts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services import installation
from services.common.discovery import Announcement, announced, replica_folder
from services.common.processes.supervisor import Supervisor
from services.common.settings import RaySettings, Settings
from services.common.telemetry import serve_metrics
from tests.artifacts import publish_small

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


WORKER = """
import signal, sys
from pathlib import Path
from services.common.discovery import Announcement
from services.common.telemetry import serve_metrics
port, _ = serve_metrics("updater", "127.0.0.1", 0)
kept = Announcement(Path(sys.argv[1]), f"127.0.0.1:{port}", metrics=f"127.0.0.1:{port}")
signal.pause()
"""


@contextmanager
def grpc_role(run_dir: Path, role: str, status: int = SERVING) -> Iterator[None]:
    """A replica: its health service, announced."""
    servicer = health.HealthServicer()
    servicer.set("", status)
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    announcement = Announcement(replica_folder(run_dir, role), address, metrics=address)
    try:
        yield
    finally:
        announcement.withdraw()
        server.stop(None).wait()


@contextmanager
def worker(run_dir: Path, role: str) -> Iterator[str]:
    """A worker's metrics, on a free port, announced."""
    port, end = serve_metrics(role, "127.0.0.1", 0)
    address = f"127.0.0.1:{port}"
    announcement = Announcement(replica_folder(run_dir, role), address, metrics=address)
    try:
        yield address
    finally:
        announcement.withdraw()
        end()


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[ExitStack]:
    """Everything but ranking."""
    with ExitStack() as stack:
        for role in ("router", "candidate_generation", "catalogue"):
            stack.enter_context(grpc_role(tmp_path, role))
        for role in installation.WORKERS:
            stack.enter_context(worker(tmp_path, role))
        yield stack


def wanting(run_dir: Path, ranking: int) -> Settings:
    return Settings(run_dir=run_dir, ranking={"replicas": ranking})  # type: ignore[arg-type]


def test_nothing_announced_is_nothing_healthy(tmp_path: Path) -> None:
    assert installation.missing_parts(Settings(run_dir=tmp_path)) == [
        "router", "candidate_generation", "ranking", "catalogue", "updater", "experiments",
    ]  # fmt: skip


def test_fewer_replicas_than_the_settings_want_are_missing_only_at_the_start(
    tmp_path: Path, parts: ExitStack
) -> None:
    settings = wanting(tmp_path, ranking=2)
    processes = installation.supervisor(settings, {})
    assert installation.missing_parts(settings) == ["ranking"]
    parts.enter_context(grpc_role(tmp_path, "ranking"))
    assert installation.missing_parts(settings) == []  # scaled down
    # On somebody else's cluster whatever is announced counts.
    settings = settings.model_copy(update={"ray": RaySettings(address="elsewhere:1")})
    assert "ranking" in installation.missing_parts(settings, starting=processes)
    parts.enter_context(grpc_role(tmp_path, "ranking"))
    assert "ranking" not in installation.missing_parts(settings, starting=processes)


def test_what_another_installation_has_announced_makes_nothing_ready(tmp_path: Path) -> None:
    settings = Settings(run_dir=tmp_path)
    folder = replica_folder(tmp_path, "updater")
    processes = Supervisor({"updater": ("-c", WORKER, str(folder))}, tmp_path / "logs", {})
    with worker(tmp_path, "experiments"):
        processes.start()
        try:
            deadline = time.monotonic() + 120
            while not announced(folder):
                assert time.monotonic() < deadline
                os.sched_yield()
            missing = installation.missing_parts(settings, starting=processes)
            assert "experiments" in missing
            assert "updater" not in missing
            assert "experiments" not in installation.missing_parts(settings)
        finally:
            processes.stop()


def test_who_is_not_ready_is_told_with_the_last_line_of_its_log(
    tmp_path: Path, parts: ExitStack
) -> None:
    settings = wanting(tmp_path, ranking=1)
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "replicas.log").write_text("first\nerror: no space left\n\n")
    words = r"(?s)ranking.* not healthy .*\n  ranking: error: no space left"
    with pytest.raises(installation.NotReady, match=words):
        installation.wait_ready(settings, installation.supervisor(settings, {}), 0)
    assert installation.why_missing(settings, ["router"]) == "\n  router: its log says nothing"


def test_without_ray_each_replica_is_a_process_and_of_their_logs_the_latest_speaks(
    tmp_path: Path,
) -> None:
    settings = wanting(tmp_path, ranking=2)
    roles = installation.processes_of(settings, local=True)
    assert list(roles.values()) == ["router", "candidate_generation", *["ranking"] * 2, "updater",
                                    "experiments", "catalogue"]  # fmt: skip
    assert [name for name, role in roles.items() if role == "ranking"] == ["ranking-1", "ranking-2"]
    logs = tmp_path / "logs"
    logs.mkdir()
    for second, name in enumerate(["ranking-1", "replicas", "ranking-2", "candidate_generation-1"]):
        (logs / f"{name}.log").write_text(f"of {name}\n")
        os.utime(logs / f"{name}.log", (second, second))
    assert installation.last_words(settings, "ranking") == "of ranking-2"
    assert installation.last_words(settings, "candidate_generation") == "of candidate_generation-1"
    os.utime(logs / "replicas.log")
    assert installation.last_words(settings, "ranking") == "of replicas"


def test_one_replica_that_does_not_serve_makes_its_role_unhealthy(
    tmp_path: Path, parts: ExitStack
) -> None:
    parts.enter_context(grpc_role(tmp_path, "ranking"))
    parts.enter_context(grpc_role(tmp_path, "ranking", NOT_SERVING))
    assert installation.missing_parts(wanting(tmp_path, ranking=1)) == ["ranking"]


def test_a_worker_is_found_on_whatever_port_it_took(tmp_path: Path) -> None:
    settings = Settings(run_dir=tmp_path, feedback={"updater_metrics_port": 0})  # type: ignore[arg-type]
    with worker(tmp_path, "updater") as address:
        assert installation.metrics_endpoints(settings)["updater"] == [address]
        assert "updater" not in installation.missing_parts(settings)
    assert "updater" in installation.missing_parts(settings)


@pytest.mark.parametrize(
    ("key", "section"),
    [
        ("router.port", "router"),
        ("router.metrics_port", "router"),
        ("feedback.updater_metrics_port", "feedback"),
        ("experiments.metrics_port", "experiments"),
    ],
)
def test_a_taken_port_is_named(key: str, section: str) -> None:
    free = {
        "router": {"port": 0, "metrics_port": 0},
        "feedback": {"updater_metrics_port": 0},
        "experiments": {"metrics_port": 0},
    }
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free[section][key.partition(".")[2]] = taken.getsockname()[1]
        settings = Settings(**free)  # type: ignore[arg-type]
        with pytest.raises(installation.CannotStart, match=f"^{key}: "):
            installation.check_ports(settings)
        (role,) = (role for role, keys in installation.PORTS.items() if key in keys)
        installation.check_ports(settings, set(installation.ROLES) - {role})


def test_a_port_is_taken_on_the_host_of_the_settings_only() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        port = taken.getsockname()[1]
        router = {"host": "::1", "port": port, "metrics_port": 0}
        with pytest.raises(installation.CannotStart, match="in use"):
            installation.check_ports(Settings(router=router), ["router"])  # type: ignore[arg-type]
        free = router | {"port": 0}
        installation.check_ports(Settings(router=free), ["router"])  # type: ignore[arg-type]


def test_a_wrong_experiments_file_is_told_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "experiments.yaml"
    settings = Settings(router={"experiments_file": file})  # type: ignore[arg-type]
    with pytest.raises(installation.CannotStart, match=r"router\.experiments_file"):
        installation.check_experiments(settings)
    file.write_text("version: 2\nlayers: []\nlayer: []\n")
    with pytest.raises(installation.CannotStart) as caught:
        installation.check_experiments(settings)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "3"]


def test_an_arm_whose_model_is_not_served_is_told_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "experiments.yaml"
    file.write_text(
        "version: 1\nlayers:\n  - name: models\n    parameters: [ranking.model]\n    experiments:\n"
        "      - name: ranker\n        arms:\n"
        "          - {name: all, weight: 100, parameters: {ranking.model: infnet}}\n"
    )
    router = {"experiments_file": file}
    with pytest.raises(installation.CannotStart) as caught:
        installation.check_experiments(Settings(router=router))  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{file}:8: layer models, experiment ranker, arm all: ")
    settings = Settings(router=router, ranking={"models": ["infnet"]})  # type: ignore[arg-type]
    assert installation.check_experiments(settings).layers


def test_a_model_that_is_not_published_is_told_with_the_command_that_publishes_it(
    tmp_path: Path,
) -> None:
    settings = Settings(artifacts_dir=tmp_path, ranking={"models": ["masknet", "infnet"]})  # type: ignore[arg-type]
    for name, part in (
        ("ssl_two_tower", "retrieval"),
        ("masknet", "ranking"),
        ("infnet", "ranking"),
    ):
        command = f"`tandem train {part} --model {name} --artifacts {tmp_path}`"
        with pytest.raises(installation.CannotStart, match=command):
            installation.check_models(settings)
        publish_small(tmp_path, [name])
    installation.check_models(settings)
