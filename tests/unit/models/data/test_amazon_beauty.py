"""The Amazon Beauty reader on tiny files of the owners' format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from models.data.errors import DataError
from models.data.readers import amazon_beauty


def folder(tmp_path: Path, lines: str, attributes: object) -> Path:
    (tmp_path / "Beauty.txt.gz").write_bytes(gzip.compress(lines.encode()))
    text = attributes if isinstance(attributes, str) else json.dumps(attributes)
    (tmp_path / "Beauty_item2attributes.json.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_lines_are_users_and_attributes_belong_to_their_items(tmp_path: Path) -> None:
    made = amazon_beauty.read(
        folder(tmp_path, "1 10 20 30\n2 20 10\n3 20\n", {"10": [1, 2], "30": [3]})
    )
    assert made.offsets.tolist() == [0, 3, 5, 6]
    assert made.item_ids == ("20", "10", "30")
    assert made.items.tolist() == [2, 1, 3, 1, 2, 1]
    assert made.item_attributes == ((), (1, 2), (3,))


@pytest.mark.parametrize(
    ("lines", "attributes", "message"),
    [
        ("1 10\n2 x\n", {}, "line 2: expected a user and items as whole numbers.* found '2 x'"),
        ("1 10\n2 010\n", {}, "line 2: expected .* found '2 010'"),
        (f"1 10\n2 {2**64}\n", {}, f"line 2: expected .* found '2 {2**64}'"),
        ("1 10\n\n", {}, "line 2: expected .* found ''"),
        ("1\n", {}, "line 1: user 1 has no items"),
        ("1 10\n", "{", "is not JSON"),
        ("1 10\n", "[" * 100_000, "is not JSON"),
        ("1 10\n", [1], "expected an object"),
        ("1 10\n", {"10": 3}, "item 10: expected a list of integers"),
    ],
)
def test_bad_content_is_named(tmp_path: Path, lines: str, attributes: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        amazon_beauty.read(folder(tmp_path, lines, attributes))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Beauty\.txt"):
        amazon_beauty.read(tmp_path)
