"""`make bench-models`: what is run, where it is written, and that nothing old is shown as new."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import typer

from models.research import bench_models
from models.research.ranking_tables import BENCHMARKS
from models.research.retrieval_tables import TABLES


def words_of(data: Path | None, full: bool) -> list[list[str]]:
    """Every command of a run, timings too."""
    return [c for lane in bench_models.lanes(data, full) for c in lane] + [bench_models.alone(full)]


def test_with_data_every_table_is_made_once_and_without_only_simulated_ones(tmp_path: Path) -> None:
    words = [word for command in words_of(tmp_path, full=False) for word in command]
    tables = [word for word in words if word in {**TABLES, **BENCHMARKS}]
    assert sorted(tables) == sorted({**TABLES, **BENCHMARKS})
    for command in words_of(None, full=True):
        assert "--data-dir" not in command
        tables = [word for word in command if word in {**TABLES, **BENCHMARKS}]
        assert tables
        assert all(t.startswith(("simulator", "ssl-epoch")) for t in tables)


def test_small_and_full_share_no_folder(tmp_path: Path) -> None:
    small, full = bench_models.SMALL, bench_models.FULL
    assert small not in full.parents
    assert full not in small.parents
    assert small != full
    for full_run, folder in ((False, small), (True, full)):
        for command in words_of(tmp_path, full_run):
            option = "--results" if "--results" in command else "--output"
            assert folder in Path(command[command.index(option) + 1]).parents


def python(code: str) -> list[str]:
    return ["-c", code]


def test_the_commands_of_a_lane_run_in_turn(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    one = python(f"open({str(first)!r}, 'w')")
    two = python(f"import os; os.path.exists({str(first)!r}) and open({str(second)!r}, 'w')")
    bench_models.run([[one, two], [python("")]])
    assert second.exists()


def test_a_failure_ends_every_lane(tmp_path: Path) -> None:
    never = tmp_path / "never"
    endless = python("import time; time.sleep(600)")
    with pytest.raises(typer.Exit):
        bench_models.run([[python("raise SystemExit(3)"), python(f"open({str(never)!r}, 'w')")],
                          [endless]])  # fmt: skip
    assert not never.exists()


@pytest.mark.parametrize(("full", "again", "kept"), [
    (False, False, False), (True, False, True), (True, True, False),
])  # fmt: skip
def test_a_small_run_starts_from_nothing_and_a_full_one_completes_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool, again: bool, kept: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    old = (
        (bench_models.FULL if full else bench_models.SMALL) / bench_models.RESULTS / "t" / "x.json"
    )
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    other = (bench_models.SMALL if full else bench_models.FULL) / bench_models.RESULTS / "y.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    seen: list[bool] = []

    class Process:
        def __init__(self, command: list[str]) -> None:
            seen.append(old.is_file())

        returncode = 0

        def poll(self) -> int:
            return 0

        def wait(self) -> int:
            return 0

        def terminate(self) -> None:
            pass

    rendered: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(subprocess, "run", lambda command, check: rendered.append(command))
    bench_models.main(None, full, again)
    assert seen
    assert set(seen) == {kept}
    assert other.is_file()
    home = bench_models.FULL if full else bench_models.SMALL
    for command in rendered:
        assert command[command.index("--docs") + 1] == str(home / "docs")


@pytest.mark.parametrize(("full", "data", "told"), [
    (False, True, True), (False, False, False), (True, True, False),
])  # fmt: skip
def test_only_a_whole_small_run_is_judged_by_its_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool, data: bool, told: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    rendered: list[list[str]] = []
    monkeypatch.setattr(bench_models, "run", lambda lanes: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: rendered.append(command))
    bench_models.main(tmp_path if data else None, full)
    assert ["--minutes" in command for command in rendered] == [False, told]
