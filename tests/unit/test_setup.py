"""scripts/setup touches nothing that is not this checkout's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def setup(folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "scripts").mkdir(exist_ok=True)
    for name in ("scripts/setup", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    command = [str(folder / "scripts/setup"), "demo"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("stamp", [None, "/another/checkout\n0123\n"])
def test_the_target_of_a_linked_environment_is_left_as_it_is(
    tmp_path: Path, stamp: str | None
) -> None:
    other, mine = tmp_path / "other", tmp_path / "mine"
    other.mkdir()
    mine.mkdir()
    (other / "somebody's").write_text("packages")
    if stamp is not None:
        (other / ".tandem-setup").write_text(stamp)
    (mine / ".venv").symlink_to(other)
    done = setup(mine)
    assert done.returncode == 1
    assert done.stderr.startswith("setup: .venv is a link to ")
    assert "remove the link" in done.stderr
    assert (other / "somebody's").read_text() == "packages"


def test_a_link_to_nowhere_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(tmp_path / "gone")
    done = setup(tmp_path)
    assert done.returncode == 1
    assert "which is no folder: remove the link" in done.stderr
