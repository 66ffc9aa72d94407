"""Replicas on a Ray cluster that somebody else has started and keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.common.discovery import announced, replica_folder
from tests.artifacts import publish_small
from tests.e2e.running import PATIENCE_S, ROOT, free_ports, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

KINDS = ("candidate_generation", "ranking")


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a plain `ray start --head`."""
    port, *others = free_ports(5)
    # Short: Ray's sockets lie in it.
    folder = tmp_path_factory.mktemp("ray")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder)}
    environment["RAY_AUTH_MODE"] = "disabled"  # else a token in the user's home turns it on
    address = f"127.0.0.1:{port}"
    names = ("node-manager-port", "object-manager-port", "ray-client-server-port",
             "metrics-export-port")  # fmt: skip
    head = subprocess.Popen(
        [
            Path(sys.executable).parent / "ray", "start", "--head", "--block",
            "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=8",
            "--include-dashboard=false", f"--object-store-memory={80 * 2**20}",
            *(f"--{name}={other}" for name, other in zip(names, others, strict=True)),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    yield address
    family = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    head.wait(60)
    _, alive = psutil.wait_procs(family, timeout=20)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=20)


def test_replicas_join_a_running_cluster_and_leave_it_running(cluster: str, tmp_path: Path) -> None:
    publish_small(tmp_path / "artifacts")
    run_dir = tmp_path / "run"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "TANDEM_RUN_DIR": str(run_dir),
        "TANDEM_ARTIFACTS_DIR": str(tmp_path / "artifacts"),
        "TANDEM_FEATURE_STORE__URL": f"lmdb://{tmp_path}/features",
        "TANDEM_EVENT_LOG__URL": f"log://{tmp_path}/events",
        "TANDEM_RAY__ADDRESS": cluster,
        "PYTHONPATH": str(ROOT),
    }
    tandem = [sys.executable, "-m", "services.cli"]

    def replicas(kind: str) -> int:
        return len(announced(replica_folder(run_dir, kind)))

    output = tmp_path / "serve.txt"
    with output.open("wb") as out:
        role = subprocess.Popen(
            [*tandem, "serve", "replicas"], cwd=ROOT, env=environment, stdout=out, stderr=out
        )
    try:

        def serving() -> bool:
            assert role.poll() is None, output.read_text()
            return all(replicas(kind) == 1 for kind in KINDS)

        wait_until(serving, "one replica of each kind")
        scaled = subprocess.run(
            [*tandem, "scale", "ranking", "2"], cwd=ROOT, env=environment, timeout=PATIENCE_S
        )
        assert scaled.returncode == 0
        wait_until(lambda: replicas("ranking") == 2, "a second replica")
    finally:
        role.terminate()
        role.wait(60)
    assert [replicas(kind) for kind in KINDS] == [1, 2]
