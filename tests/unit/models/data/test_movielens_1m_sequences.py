"""The reader of the MovieLens 1M leave-one-out file."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.data.errors import DataError
from models.data.readers import movielens_1m_sequences


@pytest.mark.parametrize("name", ["ml-1m.txt", "ml-1m_sasrec.txt"])
def test_the_file_is_found_packed_or_not(tmp_path: Path, name: str) -> None:
    import gzip

    if name == "ml-1m.txt":
        (tmp_path / name).write_text("1 5\n1 6\n2 6\n")
    else:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"1 5\n1 6\n2 6\n"))
    made = movielens_1m_sequences.read(tmp_path)
    assert (len(made), made.num_items, made.items.tolist()) == (2, 2, [2, 1, 1])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ml-1m\.txt"):
        movielens_1m_sequences.read(tmp_path)
