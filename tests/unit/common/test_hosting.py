"""One cluster per run_dir, and what it leaves for other processes to read."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from services.common import hosting
from services.common.settings import Settings


def test_a_run_dir_that_has_a_cluster_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "of-the-running-cluster"
    folder.mkdir()
    entry = tmp_path / hosting.CLUSTER_FILE
    entry.write_text(json.dumps({"folder": str(folder)}))
    with (tmp_path / hosting.LOCK_FILE).open("w") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        with (
            pytest.raises(hosting.ClusterRunning, match=r"already run .* set TANDEM_RUN_DIR"),
            hosting.cluster(Settings(run_dir=tmp_path)),
        ):
            pass
    assert folder.is_dir()
    assert json.loads(entry.read_text()) == {"folder": str(folder)}


def test_a_private_file_is_replaced_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "ray.json"
    (tmp_path / "ray.tmp").write_text("half of a predecessor's")
    for text in ("first", "second"):
        hosting.write_private(file, text)
        assert file.read_text() == text
        assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
