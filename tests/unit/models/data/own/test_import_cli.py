"""`tandem import` as it is called: what it prints, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.data import import_cli
from services.cli import app
from tests.unit.models.data.own.domain import T, folder_in, held

HEADER = "user_id,item_id,event,time,value\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(import_cli.console, "width", 200)
    return folder_in(tmp_path)


def call(folder: Path, table: str, text: str, *options: str) -> tuple[int, str]:
    file = folder / f"{table}.csv"
    file.write_text(text)
    command = ["import", table, str(file), "--folder", str(folder), *options]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    return done.exit_code, done.output


def test_a_summary_tells_of_every_row(folder: Path) -> None:
    text = HEADER + f"u,a,click,{T},\nu,a,click,{T},\nv,b,purchase,{T + 60},2\n"
    code, said = call(folder, "events", text + "v,b,clik\x1b,1,\n")
    assert code == 0
    assert "4 rows read: 2 accepted, 1 duplicates, 1 refused" in said
    assert "2 events (click 1, purchase 1) of 2 users and 2 items" in said
    assert "2023-11-14 22:13 to 2023-11-14 22:14 UTC" in said
    assert "'clik\\x1b'" in said
    assert "\x1b" not in said


def test_a_file_twice_is_no_failure_and_nothing_accepted_is_one(folder: Path) -> None:
    for _ in range(2):
        assert call(folder, "events", HEADER + f"u,a,click,{T},\n")[0] == 0
    code, said = call(folder, "events", HEADER + "u,a,click,1,\n")
    assert code == 1
    assert "no row could be imported" in said
    assert call(folder, "events", HEADER)[0] == 1
    assert len(held(folder, "events")) == 1


def test_strict_ends_at_the_first_refusal(folder: Path) -> None:
    code, said = call(folder, "events", HEADER + f"u,a,click,{T},\nu,a,click,1,\n", "--strict")
    assert code == 1
    assert "line 3: time '1' lies before 1970-01-02" in said
    assert not (folder / "data" / "events.parquet").exists()


def test_options_reach_the_import(folder: Path) -> None:
    text = "No,item_id,time,shop\nu,a,2024-05-01T14:00:00,x\n"
    options = ("--map", "user_id=No", "--event", "click", "--timezone", "Europe/Berlin")
    code, said = call(folder, "events", text, *options)
    assert code == 0
    assert "no columns of events, ignored: 'shop' (properties of events are not imported)" in said
    assert "2024-05-01 12:00" in said
    code, said = call(folder, "items", "item_id,tags,colour\na,x;y,blue\n", "--separator", ";")
    assert code == 0
    assert "taken in part" in said
    assert "1 items: 1 new, 0 updated" in said
    assert held(folder, "items")["tags"].to_list() == [["x", "y"]]
    assert call(folder, "users", "user_id,country\nu,DE\n")[0] == 0


@pytest.mark.parametrize("mapping", [("user_id",), ("=a",), ("user_id=a", "user_id=b")])
def test_a_mapping_is_name_and_column(folder: Path, mapping: tuple[str, ...]) -> None:
    options = [word for each in mapping for word in ("--map", each)]
    code, said = call(folder, "events", HEADER, *options)
    assert code == 1
    assert f"--map {mapping[-1]}: " in said


def test_a_disk_that_fails_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.files.sync", full)
    code, said = call(folder, "events", HEADER + f"u,a,click,{T},\n")
    assert code == 1
    assert "No space left on device: nothing was imported" in said


def test_help_loads_neither_polars_nor_torch() -> None:
    asked = "import sys, services.cli; sys.exit(len({'polars', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0
