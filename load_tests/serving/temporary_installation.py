"""A whole installation in a temporary folder, on free ports, with trained models and real users.

For benchmarks: `tandem serve` as it is, beside whatever else runs on the machine, and gone with the
block: processes, ports and files. Artifacts are those of the settings, trained once if missing.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from load_tests.demo.data import backfill, train_or_reuse
from models.data.backfill import initial_state, shift_to
from models.data.worlds.films import dataset as films
from models.figures import console
from services import installation
from services.common.processes.supervisor import Supervisor
from services.common.settings import Settings
from services.first_start import first_items

READY_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class TemporaryInstallation:
    """A healthy installation."""

    settings: Settings
    processes: Supervisor

    @property
    def router(self) -> str:
        """host:port of the front door."""
        return installation.endpoints(self.settings)["router"][0]


@contextmanager
def temporary_installation() -> Iterator[TemporaryInstallation]:
    """Train if need be, fill a feature store with the past, start every service, end all of it.

    From here on SIGTERM unwinds as Ctrl-C does, so that a killed benchmark leaves nothing either.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    dataset = films.load()
    given = Settings()
    train_or_reuse(given, dataset, False, console)
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as name:
        environment = overrides(given, Path(name))
        with patch.dict(os.environ, environment):  # what the services will read
            settings = Settings()
        state = initial_state(dataset, shift_to(dataset, time.time_ns() // 1_000_000))
        backfill(settings, dataset.items, state)
        first_items(settings, console.print)
        processes = installation.supervisor(settings, environment)
        try:
            processes.start()
            installation.wait_ready(settings, processes, READY_TIMEOUT_S)
            yield TemporaryInstallation(settings, processes)
        finally:
            processes.stop()


def overrides(given: Settings, folder: Path) -> dict[str, str]:
    """The environment that moves an installation into `folder` and onto free ports."""
    router, metrics, updater, experiments, catalogue, its_metrics = free_ports(6)
    return {
        "TANDEM_RUN_DIR": str(folder),
        "TANDEM_ARTIFACTS_DIR": str(given.artifacts_dir.resolve()),
        "TANDEM_FEATURE_STORE__URL": f"lmdb://{folder}/features",
        "TANDEM_EVENT_LOG__URL": f"log://{folder}/events",
        "TANDEM_ROUTER__PORT": str(router),
        "TANDEM_ROUTER__METRICS_PORT": str(metrics),
        "TANDEM_FEEDBACK__UPDATER_METRICS_PORT": str(updater),
        "TANDEM_EXPERIMENTS__METRICS_PORT": str(experiments),
        "TANDEM_CATALOGUE__PORT": str(catalogue),
        "TANDEM_CATALOGUE__METRICS_PORT": str(its_metrics),
    }


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]
