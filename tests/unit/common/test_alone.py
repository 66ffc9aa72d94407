"""One per run_dir, for as long as it lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.common.processes.alone import AlreadyRuns, alone

HOLD = """
import sys
from pathlib import Path
from services.common.processes.alone import alone
with alone(Path(sys.argv[1]), "experiments"):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_a_second_one_is_refused_at_once_until_the_first_has_died(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"holds\n"
        with (
            pytest.raises(AlreadyRuns, match=r"experiments: one already runs in .* TANDEM_RUN_DIR"),
            alone(tmp_path, "experiments"),
        ):
            pass
        with alone(tmp_path, "updater"), alone(tmp_path / "other", "experiments"):
            first.kill()
    with alone(tmp_path, "experiments"):
        pass


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_run_dir_that_cannot_be_one_is_told_in_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(AlreadyRuns, match=r"serve: run_dir cannot be used .* set TANDEM_RUN_DIR"),
        alone(tmp_path / name, "serve"),
    ):
        pass
