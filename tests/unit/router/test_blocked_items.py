"""The file of items that nobody is shown: there at the start, and kept when it goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from models.catalogue import ItemTable, item_key
from services.router.blocked_items import BlockedItems


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


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf356\r\n296\r\n",
        b'"356"\n"296"\n',
        b"356,\n296,,\n",
        b"356;\r296;",
        b"356\t\n 296 \n",
        b'\xef\xbb\xbf"356",\r\n"296",\r\n',
        "356\r\n296\r\n".encode("utf-16"),
        "\ufeff356\n296".encode("utf-16-be"),
    ],
)
def test_a_list_blocks_what_it_names_whichever_program_has_saved_it(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "blocked.txt"
    file.write_bytes(content)
    keys = BlockedItems(file).keys
    assert {item_key("356"), item_key("296")} <= set(keys.tolist())
    assert keys.tolist() == sorted(keys.tolist())


def test_an_id_with_quotes_or_commas_of_its_own_is_blocked_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "blocked.txt"
    file.write_text('"the best", they said,\n')
    assert item_key('"the best", they said,') in BlockedItems(file).keys.tolist()


def test_a_list_that_matches_nothing_says_so(tmp_path: Path, items: ItemTable) -> None:
    file = tmp_path / "blocked.txt"
    file.write_text('"m1"\nm2,\nno-such-item\n')
    with capture_logs() as logs:
        blocked = BlockedItems(file, lambda: items)
        blocked.refresh()  # nothing new: nothing is said
    (unknown,) = (line for line in logs if line["log_level"] == "warning")
    assert (unknown["event"], unknown["ids"]) == ("blocked_items_unknown", 1)
    assert unknown["first"] == ["no-such-item"]
