"""What dies while the disk is full starts again, on a small disk that is full."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from load_tests.serving.feeding import feed
from services.common.discovery import announced, replica_folder
from services.common.settings import EventLogSettings, Settings
from tests.artifacts import small_items

ROLES = ("router", "updater", "experiments")  # who builds the catalogue waits for the disk
PORTS = ("ROUTER__PORT", "ROUTER__METRICS_PORT", "FEEDBACK__UPDATER_METRICS_PORT",
         "EXPERIMENTS__METRICS_PORT", "CATALOGUE__PORT", "CATALOGUE__METRICS_PORT")  # fmt: skip


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)  # between two looks


def test_roles_that_died_start_again_while_the_disk_is_full(
    small_disk: Path, small_artifacts: Path, tmp_path: Path
) -> None:
    (tmp_path / "experiments.yaml").write_text("version: 1\nlayers: []\n")
    log = EventLogSettings(url=f"log://{small_disk}/events")
    feed(Settings(run_dir=small_disk, event_log=log), small_items())
    environment = os.environ | {
        "TANDEM_RUN_DIR": str(small_disk),
        "TANDEM_ARTIFACTS_DIR": str(small_artifacts),
        "TANDEM_FEATURE_STORE__URL": f"lmdb://{small_disk}/features",
        "TANDEM_EVENT_LOG__URL": f"log://{small_disk}/events",
        "TANDEM_ROUTER__EXPERIMENTS_FILE": str(tmp_path / "experiments.yaml"),
        **{f"TANDEM_{port}": "0" for port in PORTS},
    }
    output = {role: tmp_path / f"{role}.txt" for role in ROLES}

    def announced_pids(role: str) -> set[int]:
        return {entry.pid for entry in announced(replica_folder(small_disk, role))}

    def start(role: str) -> subprocess.Popen[bytes]:
        with output[role].open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "services.cli", "serve", role],
                env=environment,
                stdout=file,
                stderr=file,
            )

    def start_all_and_kill() -> None:
        processes = {role: start(role) for role in ROLES}
        try:
            for role, process in processes.items():
                until(
                    lambda r=role, p=process: p.pid in announced_pids(r),  # type: ignore[misc]
                    output[role].read_text,
                )
        finally:
            for process in processes.values():
                process.kill()
                process.wait()

    start_all_and_kill()
    with (
        (small_disk / "filler").open("wb", buffering=0) as filler,
        pytest.raises(OSError, match="No space left"),
    ):
        fill(filler)
    start_all_and_kill()


def fill(file: io.FileIO) -> NoReturn:
    while True:
        file.write(bytes(4096))
