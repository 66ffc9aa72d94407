"""What is built to be installed: all that the code reads, no data of others, and it works alone."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_OTHERS = "models/data/worlds/films/ml_latest_small"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = [name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"

PORTS = ("ROUTER__PORT", "ROUTER__METRICS_PORT", "FEEDBACK__UPDATER_METRICS_PORT",
         "EXPERIMENTS__METRICS_PORT", "CATALOGUE__PORT", "CATALOGUE__METRICS_PORT")  # fmt: skip
FREE_PORTS = {f"TANDEM_{name}": "0" for name in PORTS}
# What docs/own-data.md begins with, in one process.
BEGIN = """
import os
from services import cli
print(cli.__file__)
for line in ("init shop", "schema check", "import events events.csv", "import items items.csv",
             "import users users.csv", "experiments validate"):
    try:
        cli.app(line.split())
    except SystemExit as end:
        assert not end.code, line
    if line == "init shop":
        os.chdir("shop")
"""


class Built:
    """A wheel and an sdist, and the wheel as it lies where it was installed."""

    def __init__(self, folder: Path) -> None:
        source, out = folder / "source", folder / "dist"
        left_out = shutil.ignore_patterns("__pycache__", "results")  # what benchmarks have saved
        for room in ROOMS:
            shutil.copytree(ROOT / room, source / room, ignore=left_out)
        for file in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, source)
        self.source = {str(f.relative_to(source)) for f in source.rglob("*") if f.is_file()}
        # As a checkout has it in which an earlier version was built, with whatever that took along.
        (source / "tandem.egg-info").mkdir()
        (source / "tandem.egg-info" / "SOURCES.txt").write_text("\n".join(sorted(self.source)))
        out.mkdir()
        for kind in ("wheel", "sdist"):
            built = subprocess.run(
                [sys.executable, "-c", BUILD.format(kind), str(out)],
                cwd=source, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert built.returncode == 0, built.stderr
        (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
        with zipfile.ZipFile(wheel) as archive:
            self.wheel = set(archive.namelist())
            archive.extractall(folder / "installed")
        with tarfile.open(sdist) as archive:
            self.sdist = {name.partition("/")[2] for name in archive.getnames()}
        (info,) = (folder / "installed").glob("*.dist-info")
        self.info = info

    def run(self, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Python, with the wheel before whatever Tandem this environment has."""
        environment = os.environ | {"PYTHONPATH": str(self.info.parent)} | FREE_PORTS
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("package"))


def test_the_wheel_has_every_file_of_the_code_and_no_data_of_others(built: Built) -> None:
    in_rooms = {name for name in built.source if name.partition("/")[0] in ROOMS}
    of_others = {name for name in in_rooms if name.startswith(OF_OTHERS)}
    assert of_others
    installed = {name for name in built.wheel if not name.startswith(built.info.name)}
    assert installed == in_rooms - of_others


def test_the_sdist_has_no_data_of_others(built: Built) -> None:
    assert "services/cli.py" in built.sdist
    assert not [name for name in built.sdist if name.startswith(OF_OTHERS)]


def test_the_package_says_under_which_licence_it_is_and_brings_it(built: Built) -> None:
    said = email.message_from_string((built.info / "METADATA").read_text())
    assert (said["License-Expression"], said["License-File"]) == ("Apache-2.0", "LICENSE")
    assert said["Author"] == "Tandem developers"
    assert (built.info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert "tandem = services.cli:app" in (built.info / "entry_points.txt").read_text()


def test_a_domain_is_begun_from_the_wheel_alone(built: Built, tmp_path: Path) -> None:
    done = built.run(tmp_path, "-c", BEGIN)
    assert done.returncode == 0, done.stdout + done.stderr
    where, *_ = done.stdout.splitlines()
    assert where == str(built.info.parent / "services" / "cli.py")
    assert len(list((tmp_path / "shop" / "data").glob("*.parquet"))) == 3
    assert "experiments.yaml: valid" in done.stdout


def test_the_demo_says_where_the_data_is_that_it_needs(built: Built, tmp_path: Path) -> None:
    done = built.run(tmp_path, "-m", "load_tests.demo", "--exit")
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1
    assert "run this in a checkout of the repository (`make demo`)" in said
    assert "Traceback" not in said
