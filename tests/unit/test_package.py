"""An installed Tandem has the files that its code reads."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
BESIDE_THE_CODE = {".py", ".pyc"}


def test_every_file_that_is_no_code_is_in_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = project["tool"]["setuptools"]["package-data"]
    shipped = {
        file for room, patterns in data.items() for p in patterns for file in (ROOT / room).glob(p)
    }
    rooms = [
        name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]
    ]
    there = {
        file
        for room in rooms
        for file in (ROOT / room).rglob("*")
        if file.is_file()
        and file.suffix not in BESIDE_THE_CODE
        and "results" not in file.parts  # what benchmarks have saved
    }
    assert there - shipped == set()
