"""Several router processes on one port: each serves, and one that is killed is not missed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import grpc
import psutil
import pytest

from load_tests.temporary_installation import free_ports
from protos.tandem.v1.recommender_pb2 import RecommendRequest, RecommendResponse
from protos.tandem.v1.recommender_pb2_grpc import RecommenderStub
from services import installation
from services.common.discovery import announced, replica_folder
from services.common.settings import Settings
from services.common.supervisor import Supervisor

PATIENCE_S = 60.0
SERVED = 'tandem_rpc_requests_total{method="Recommend",service="recommender",status="OK"}'


@pytest.fixture
def settings(small_settings: Settings) -> Settings:
    (port,) = free_ports(1)
    router = small_settings.router.model_copy(
        update={"port": port, "metrics_port": 0, "processes": 2, "drain_s": 0.5}
    )
    return small_settings.model_copy(update={"router": router})


@pytest.fixture
def routers(settings: Settings, tmp_path: Path) -> Iterator[Supervisor]:
    """Two routers and nothing behind them: answers are popular items."""
    settings_file = tmp_path / "tandem.yaml"
    settings_file.write_text(settings.model_dump_json())
    commands = {n: c for n, c in installation.commands(settings).items() if "router" in n}
    processes = Supervisor(commands, tmp_path / "logs", {"TANDEM_SETTINGS": str(settings_file)})
    processes.start()
    try:
        yield processes
    finally:
        processes.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def answer(settings: Settings) -> RecommendResponse:
    """Of a connection of its own."""
    with grpc.insecure_channel(
        f"127.0.0.1:{settings.router.port}", options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        request = RecommendRequest(user_id="u", surface="home", num_items=5)
        return RecommenderStub(channel).Recommend(request, timeout=10, wait_for_ready=True)


def served(metrics: str) -> float:
    with urlopen(f"http://{metrics}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(SERVED))


def test_both_serve_one_port_and_a_killed_one_is_replaced(
    settings: Settings, routers: Supervisor
) -> None:
    def found() -> list[str]:
        folder = replica_folder(settings.run_dir, "router")
        return [str(entry["metrics"]) for entry in announced(folder)]

    def both_have_served() -> bool:
        assert len(answer(settings).items) == 5
        return all(served(metrics) > 0 for metrics in found())

    wait_until(lambda: len(found()) == 2)
    wait_until(both_have_served)
    victim = routers.pid("router-2")
    psutil.Process(victim).kill()
    wait_until(lambda: len(found()) == 1)
    for _ in range(20):
        assert len(answer(settings).items) == 5
    wait_until(lambda: len(found()) == 2 and routers.pid("router-2") != victim)
    wait_until(both_have_served)
