"""What `tandem` says before it works."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from services import cli
from services.common.processes.alone import alone
from services.common.settings import RouterSettings, Settings
from services.experiments.act.snapshot import FRESH_S, SNAPSHOT, entry
from services.experiments.act.standing import Standing
from services.experiments.changes.state import AT_START
from services.experiments.declare import config_reader
from services.experiments.measure.results import ArmCounts, Measured
from tests.artifacts import publish_small
from tests.domains import FILMS


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """`serve` changes its process, which is the tests' here."""
    before = os.umask(0)
    os.umask(before)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    os.umask(before)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hour=noon", "hour is a number in schema.yaml, and 'noon' is neither"),
        ("hours=noon", "no hours here (did you mean hour?): declare it"),
        ("noon", "write 'noon' as NAME=VALUE"),
        ("[/b]=1", "--context [/b]: no model reads it"),
    ],
)
def test_what_cannot_come_with_a_request_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    monkeypatch.setenv("TANDEM_SCHEMA_FILE", "models/data/worlds/recipes/schema.yaml")
    refused = CliRunner().invoke(cli.app, ["recommend", "--user", "u", "--context", given])
    assert refused.exit_code in (1, 2)
    assert said in " ".join(refused.stderr.replace("│", " ").split())


@pytest.mark.parametrize("role", ["all", "router"])
def test_serve_tells_what_is_wrong_with_the_experiments_before_it_starts_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    file = tmp_path / "experiments.yaml"
    file.write_text("version: 2\nlayers: []\n")
    monkeypatch.setenv("TANDEM_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("TANDEM_ROUTER__EXPERIMENTS_FILE", str(file))
    result = CliRunner().invoke(cli.app, ["serve", role])
    assert result.exit_code == 1
    assert f"{file}:1: version: " in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("role", "part"),
    [("all", "serve"), ("experiments", "experiments"), ("replicas",) * 2],
)
def test_what_may_run_only_once_in_a_run_dir_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, part: str
) -> None:
    monkeypatch.setenv("TANDEM_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("TANDEM_EXPERIMENTS__METRICS_PORT", "0")
    with alone(tmp_path, part):
        result = CliRunner().invoke(cli.app, ["serve", role])
    assert result.exit_code == 1
    assert f"{part}: one already runs in {tmp_path}: end it" in result.stderr
    assert [f.name for f in tmp_path.iterdir()] == [f"{part}.lock"]


def test_one_role_is_never_local_and_the_roles_that_need_no_ray_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_RUN_DIR", str(tmp_path / "run"))
    result = CliRunner().invoke(cli.app, ["serve", "replicas", "--local"])
    assert result.exit_code == 1
    assert "tandem serve ranking" in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_role_whose_port_is_taken_says_so_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_RUN_DIR", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setenv("TANDEM_FEEDBACK__UPDATER_METRICS_PORT", str(port))
        result = CliRunner().invoke(cli.app, ["serve", "updater"])
    assert result.exit_code == 1
    assert f"127.0.0.1:{port} cannot be used" in result.stderr


def lines_of_a_failing_worker(*command: str, **settings: str) -> list[str]:
    """What an experiments worker that cannot run with these settings says."""
    environment = {"TANDEM_EXPERIMENTS__METRICS_PORT": "0", **settings}
    worker = subprocess.run(
        [sys.executable, *(command or ("-m", "services.cli", "serve", "experiments"))],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert worker.returncode == 1
    return worker.stderr.splitlines()


BREAKS = """
from services import cli
from services.common.settings import Settings
from services.experiments.act import worker

def breaks(settings, stop):
    raise ArithmeticError("nobody thought of this")

worker.run_worker = breaks
cli._serve_role("experiments", Settings.load())
"""


def test_the_log_of_a_role_that_fails_ends_with_the_cause(tmp_path: Path) -> None:
    *_, last = lines_of_a_failing_worker("-c", BREAKS, TANDEM_RUN_DIR=str(tmp_path))
    assert last == "error: experiments ended: ArithmeticError: nobody thought of this"


def test_an_event_log_that_is_none_is_told_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "error: event_log.url must be log://path or kafka://host:port[,host:port], not"
    mistake = {"TANDEM_RUN_DIR": str(tmp_path), "TANDEM_EVENT_LOG__URL": "redis://u:secret@h:1"}
    assert lines_of_a_failing_worker(**mistake) == [f"{sentence} redis://"]
    publish_small(tmp_path / "artifacts")
    (tmp_path / "experiments.yaml").write_text("version: 1\nlayers: []\n")
    ports = ("ROUTER__PORT", "ROUTER__METRICS_PORT", "FEEDBACK__UPDATER_METRICS_PORT",
             "EXPERIMENTS__METRICS_PORT", "CATALOGUE__PORT",
             "CATALOGUE__METRICS_PORT")  # fmt: skip
    given = mistake | {f"TANDEM_{port}": "0" for port in ports}
    given["TANDEM_ARTIFACTS_DIR"] = str(tmp_path / "artifacts")
    given["TANDEM_ROUTER__EXPERIMENTS_FILE"] = str(tmp_path / "experiments.yaml")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli.app, ["serve"])
    assert (result.exit_code, result.stderr) == (1, f"{sentence} redis://\n")


def test_a_mistake_in_the_settings_is_told_without_a_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TANDEM_RANKING__MODELS", "home,detail")
    result = CliRunner().invoke(cli.app, ["status"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: settings: ")
    assert """JSON: '["home"]'""" in result.stderr


def test_status_shows_what_the_worker_has_counted_of_every_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(run_dir=tmp_path)
    _, experiment = next(config_reader.load(settings.router.experiments_file, FILMS).experiments())
    arms = {"control": ArmCounts(units=1234, requests=5678), "treatment": ArmCounts(units=9)}
    standing = Standing(Measured({}, arms=arms), AT_START, (), None)
    snapshot = {
        "written_ms": time.time() * 1000,
        "fresh_s": FRESH_S,
        "caught_up": True,
        "lag_s": 0.0,
        "unmatched": 0,
        "undecodable": 0,
        "source": settings.event_log.url,
        "experiments": {experiment.name: entry(experiment, standing)},
    }
    (tmp_path / SNAPSHOT).write_text(json.dumps(snapshot))
    monkeypatch.setenv("TANDEM_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(cli, "console", Console(width=110))
    shown = CliRunner().invoke(cli.app, ["status"]).stdout
    (control,) = [line for line in shown.splitlines() if "control" in line]
    assert experiment.name in control
    assert [cell for cell in control.replace("│", " ").split() if "," in cell] == ["1,234", "5,678"]


def test_status_says_that_the_experiments_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "experiments.yaml"
    file.write_text("version: 2\nlayers: []\n")
    cli._print_arms(Settings(router=RouterSettings(experiments_file=file)))
    said = " ".join("".join(capsys.readouterr()).split())
    assert "experiments.yaml cannot be used: a router that runs keeps what it had" in said
