"""`tandem serve`: ended while it starts, and degraded where a part does not come up."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import Serve, free_ports, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.ray]


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
