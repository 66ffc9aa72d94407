"""Replicas on a Ray cluster that somebody else has started and keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from load_tests.serving.feeding import feed
from services.common.discovery import announced, replica_folder
from services.common.settings import EventLogSettings, Settings
from tests.artifacts import publish_small, small_items
from tests.e2e.running import PATIENCE_S, ROOT, free_ports, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

KINDS = ("candidate_generation", "ranking")
TANDEM = (sys.executable, "-m", "services.cli")


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


class Installation:
    """The role of the replicas of an installation that has joined the cluster."""

    def __init__(self, folder: Path, artifacts: Path, cluster: str, **settings: str) -> None:
        folder.mkdir()
        self._run_dir = folder / "run"
        log = EventLogSettings(url=f"log://{folder}/events")
        feed(Settings(run_dir=self._run_dir, event_log=log), small_items())
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            "TANDEM_RUN_DIR": str(self._run_dir),
            "TANDEM_ARTIFACTS_DIR": str(artifacts),
            "TANDEM_FEATURE_STORE__URL": f"lmdb://{folder}/features",
            "TANDEM_EVENT_LOG__URL": f"log://{folder}/events",
            "TANDEM_RAY__ADDRESS": cluster,
            "PYTHONPATH": str(ROOT),
            **settings,
        }
        self._output = folder / "serve.txt"
        with self._output.open("wb") as out:
            self.role = subprocess.Popen(
                [*TANDEM, "serve", "replicas"],
                cwd=ROOT,
                env=self._environment,
                stdout=out,
                stderr=out,
            )

    def replicas(self, kind: str) -> set[int]:
        return {entry.pid for entry in announced(replica_folder(self._run_dir, kind))}

    def serving(self) -> bool:
        assert self.role.poll() is None, self._output.read_text()
        return all(len(self.replicas(kind)) == 1 for kind in KINDS)

    def scale(self, kind: str, count: int) -> None:
        command = [*TANDEM, "scale", kind, str(count)]
        done = subprocess.run(command, cwd=ROOT, env=self._environment, timeout=PATIENCE_S)
        assert done.returncode == 0


def test_installations_join_a_running_cluster_without_meeting_and_leave_it_running(
    cluster: str, tmp_path: Path
) -> None:
    publish_small(tmp_path / "artifacts")
    roles = []
    try:
        for name, settings in (("unnamed", {}), ("named", {"TANDEM_INSTALLATION": "shop"})):
            one = Installation(tmp_path / name, tmp_path / "artifacts", cluster, **settings)
            roles.append(one)
            wait_until(one.serving, f"one replica of each kind of {name}")
        first, named = roles
        before = [first.replicas(kind) for kind in KINDS]
        named.scale("ranking", 2)
        wait_until(lambda: len(named.replicas("ranking")) == 2, "a second replica")
        assert [first.replicas(kind) for kind in KINDS] == before
        assert all(map(len, before))
    finally:
        for one in roles:
            one.role.terminate()
            one.role.wait(60)
    assert [len(named.replicas(kind)) for kind in KINDS] == [1, 2]
    assert [first.replicas(kind) for kind in KINDS] == before
