"""The file of items that nobody is shown: there at the start, and kept when it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.schema import item_key
from services.router.main import BlockedItems


def test_a_file_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="blocked"):
        BlockedItems(tmp_path / "blocked.txt")


def test_what_was_blocked_stays_blocked_while_the_file_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "blocked.txt"
    file.write_text("a\n\n b \n")
    blocked = BlockedItems(file)
    keys = sorted([item_key("a"), item_key("b")])
    assert blocked.keys.tolist() == keys
    for broken in (b"\xff\xfe\xff", None):
        if broken is None:
            file.unlink()
        else:
            file.write_bytes(broken)
        blocked.refresh()
        assert blocked.keys.tolist() == keys
    file.write_text("")
    blocked.refresh()
    assert blocked.keys.tolist() == []
