"""A file that is replaced is the old one or the new one, whatever happens in between."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.files import replace_whole, replacing

KILLED = """
import os, signal, sys
from pathlib import Path
from models.files import replacing
with replacing(Path(sys.argv[1]), durable=True) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
# Not one byte can be written, as on a full disk; folders still have room for names.
FULL = """
import resource, signal, sys
from pathlib import Path
from models.files import replace_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    replace_whole(Path(sys.argv[1]), "new", durable=True)
except OSError:
    sys.exit(7)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file.json").write_text("old")
    return tmp_path / "file.json"


@pytest.fixture
def umask() -> Iterator[None]:
    """As `tandem serve` sets it."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("durable", [False, True])
def test_the_new_content_stands_alone_in_the_folder(file: Path, durable: bool) -> None:
    replace_whole(file, "né", durable=durable)
    assert file.read_bytes() == "né".encode()
    replace_whole(file, b"\xff", durable=durable)
    assert file.read_bytes() == b"\xff"
    assert list(file.parent.iterdir()) == [file]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_beside_it(file: Path) -> None:
    with pytest.raises(ArithmeticError), replacing(file, durable=True) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ArithmeticError
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_a_process_that_is_killed_in_the_middle_leaves_the_old_file(file: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(file)])
    assert killed.returncode == -signal.SIGKILL
    assert file.read_text() == "old"
    replace_whole(file, "new", durable=True)
    assert file.read_text() == "new"


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(file: Path) -> None:
    assert subprocess.run([sys.executable, "-c", FULL, str(file)]).returncode == 7
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_where_there_is_no_folder_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_whole(tmp_path / "none" / "file", "new", durable=False)


@pytest.mark.usefixtures("umask")
def test_permissions_are_what_the_umask_leaves_or_what_is_asked_for(file: Path) -> None:
    replace_whole(file, "new", durable=False)
    assert mode_of(file) == 0o600
    replace_whole(file, "new", durable=False, mode=0o644)  # others read it, as of artifacts
    assert mode_of(file) == 0o644
    os.umask(0o022)
    replace_whole(file, "new", durable=False)
    assert mode_of(file) == 0o644


def test_a_private_file_is_never_open_to_others(file: Path) -> None:
    with replacing(file, durable=False, mode=0o600) as temporary:
        assert mode_of(temporary) == 0o600
    assert mode_of(file) == 0o600


def test_what_is_durable_is_on_disk_before_it_has_the_name_and_the_name_before_it_returns(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = [], os.fsync

    def told(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().parent, file.read_text()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", told)
    replace_whole(file, "new", durable=True)
    assert synced == [(file.parent, "old"), (file.parent.parent, "new")]
    replace_whole(file, "newer", durable=False)
    assert len(synced) == 2


def test_of_many_that_replace_a_file_at_once_one_wins_whole(file: Path) -> None:
    contents = [letter * 100_000 for letter in "abcdefgh"]
    threads = [
        threading.Thread(target=replace_whole, args=(file, text), kwargs={"durable": False})
        for text in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in contents
    assert list(file.parent.iterdir()) == [file]
