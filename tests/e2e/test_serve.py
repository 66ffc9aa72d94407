"""`tandem serve`: ended while it starts, and degraded where a part does not come up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.artifacts import publish_small
from tests.e2e.running import OWN, ROOT, free_ports, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

PORTS = ("ROUTER__PORT", "ROUTER__METRICS_PORT", "FEEDBACK__UPDATER_METRICS_PORT",
         "EXPERIMENTS__METRICS_PORT")  # fmt: skip
# As `tandem serve` is, but impatient to say what is missing.
SERVE = "from services import cli; cli.READY_S = 0.5; cli.app(['serve'])"


class Serve:
    """`tandem serve` in a folder of its own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        publish_small(folder / "artifacts")
        (folder / "experiments.yaml").write_text("version: 1\nlayers: []\n")
        self.run_dir = folder / "run"
        environment = os.environ | {
            OWN: str(self.run_dir),
            "TANDEM_ARTIFACTS_DIR": str(folder / "artifacts"),
            "TANDEM_FEATURE_STORE__URL": f"lmdb://{folder}/features",
            "TANDEM_EVENT_LOG__URL": f"log://{folder}/events",
            "TANDEM_ROUTER__EXPERIMENTS_FILE": str(folder / "experiments.yaml"),
            "TMPDIR": str(folder),
            **{f"TANDEM_{k}": str(v) for k, v in zip(PORTS, free_ports(len(PORTS)), strict=True)},
            **settings,
        }
        self.output = folder / "serve.txt"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE], cwd=ROOT, env=environment, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(OWN) == str(self.run_dir):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def clean_up(self) -> None:
        for process in self.processes():
            process.kill()
        self.process.wait()


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path: Ray's sockets lie below."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_a_sigterm_while_ray_starts_ends_every_role_in_order_and_leaves_nothing(
    folder: Path,
) -> None:
    serve = Serve(folder)
    try:
        wait_until(lambda: [p for p in serve.processes() if p.name() == "raylet"], "a raylet")
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(240) == 0
        assert serve.processes() == []
        assert "role_killed" not in serve.output.read_text()
        assert [*folder.glob("tandem-ray-*"), *serve.run_dir.glob("clusters/*")] == []
    finally:
        serve.clean_up()


def test_what_does_not_come_up_is_said_and_the_rest_serves(folder: Path) -> None:
    (nobody,) = free_ports(1)
    serve = Serve(folder, TANDEM_RAY__ADDRESS=f"127.0.0.1:{nobody}")
    try:
        said = "degraded: candidate_generation, ranking not healthy"  # and all others are
        wait_until(lambda: said in serve.output.read_text(), said)
        assert serve.process.poll() is None
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(240) == 0
        assert serve.processes() == []
    finally:
        serve.clean_up()
