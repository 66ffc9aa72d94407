"""An announcement lives exactly as long as the process that made it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.common.discovery import (
    Announcement,
    Entry,
    announced,
    announced_addresses,
    discover,
    replica_folder,
    withdraw,
)

ANNOUNCE = """
import sys
from pathlib import Path
from services.common.discovery import Announcement
kept = Announcement(Path(sys.argv[1]), "127.0.0.1:7", metrics="127.0.0.1:8")
print("announced", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"announced\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_an_announced_replica_is_found_with_its_details(tmp_path, other_process):
    assert announced_addresses(tmp_path) == {"127.0.0.1:7"}
    (entry,) = announced(tmp_path)
    assert entry.metrics == "127.0.0.1:8"
    assert entry.pid == other_process.pid


def test_a_killed_replica_is_gone_at_once_and_its_file_with_it(tmp_path, other_process):
    other_process.kill()
    other_process.wait()
    assert announced_addresses(tmp_path) == frozenset()
    assert list(tmp_path.iterdir()) == []


def test_withdrawing_removes_only_the_own_entry_and_may_be_repeated(tmp_path, other_process):
    mine = Announcement(tmp_path, "127.0.0.1:9", metrics="127.0.0.1:10")
    assert announced_addresses(tmp_path) == {"127.0.0.1:7", "127.0.0.1:9"}
    mine.withdraw()
    mine.withdraw()
    assert announced_addresses(tmp_path) == {"127.0.0.1:7"}


def test_a_process_can_be_taken_from_the_list_by_another(tmp_path, other_process):
    mine = Announcement(tmp_path, "127.0.0.1:9", metrics="127.0.0.1:10")
    assert withdraw(tmp_path, {other_process.pid}) == 1
    assert announced_addresses(tmp_path) == {"127.0.0.1:9"}
    mine.withdraw()


def test_a_full_disk_has_room_for_an_announcement(tmp_path):
    """Not one byte can be written, as on a full disk; folders still have room for names."""
    full = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n    open(sys.argv[1] + '/probe', 'w', buffering=1).write('\\n')\n"
        "    sys.exit('a byte was written')\nexcept OSError:\n    pass\n"
    )
    script = ANNOUNCE.replace("from pathlib", f"{full}from pathlib", 1)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"announced\n"
        (entry,) = announced(tmp_path)
        assert entry == Entry(process.pid, "127.0.0.1:7", "127.0.0.1:8")
        process.stdin.close()


def test_a_folder_that_does_not_exist_holds_nobody(tmp_path):
    assert announced_addresses(tmp_path / "none") == frozenset()


def test_a_target_names_its_discovery(tmp_path):
    mine = Announcement(replica_folder(tmp_path, "ranking"), "127.0.0.1:9", metrics="127.0.0.1:10")
    assert discover("announced", tmp_path, "ranking")() == {"127.0.0.1:9"}
    mine.withdraw()
    static = discover("static:127.0.0.1:1,127.0.0.1:2", tmp_path, "ranking")
    assert static() == {"127.0.0.1:1", "127.0.0.1:2"}
    dns = discover("dns:///localhost:50", tmp_path, "ranking")
    assert dns()
    assert dns() <= {"127.0.0.1:50", "[::1]:50"}


@pytest.mark.parametrize("target", ["", "ranking:50052", "dns:///name", "dns:///:50", "http://x:1"])
def test_an_unknown_target_is_refused_with_the_forms_that_exist(target, tmp_path):
    with pytest.raises(ValueError, match=r"ranking\.target is .* use announced"):
        discover(target, tmp_path, "ranking")
