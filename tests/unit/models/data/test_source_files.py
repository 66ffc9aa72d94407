"""The edge at which a damaged file is caught: every message names the file and the line."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.data.errors import DataError
from models.data.source_files import (
    check_checksums,
    check_file,
    check_values,
    find,
    locate,
    read_bytes,
    read_lines,
    read_table,
)

COLUMNS = {"user": pl.Int32, "score": pl.Float64, "name": pl.String}
TEXT = "user,score,name\n1,0.5,a\n2,1.5,b\n3,2.5,c\n"
SENTENCE = {
    "user is 'x', expected Int32": "user,score,name\n1,0.5,a\nx,1.5,b\n3,2.5,c\n",
    "user is '5000000000', expected Int32": "user,score,name\n1,0.5,a\n5000000000,1.5,b\n",
    "score is NaN": "user,score,name\n1,0.5,a\n2,nan,b\n3,2.5,c\n",
    "score is missing": "user,score,name\n1,0.5,a\n2,,b\n3,2.5,c\n",
    "name is missing": "user,score,name\n1,0.5,a\n2,1.5\n3,2.5,c\n",
    "4 fields, expected 3": "user,score,name\n1,0.5,a\n2,1.5,b,9\n3,2.5,c\n",
}
anywhere = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def test_a_table_is_read_with_its_types_in_any_order_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("name,user ,score\na,1,0.5\nb,2,1.5\n")
    frame = read_table(path, COLUMNS)
    assert dict(frame.schema) == COLUMNS
    assert frame.rows() == [(1, 0.5, "a"), (2, 1.5, "b")]


def test_packed_and_plain_read_the_same(tmp_path: Path) -> None:
    plain, packed = tmp_path / "t.csv", tmp_path / "t.csv.gz"
    plain.write_text(TEXT)
    packed.write_bytes(gzip.compress(TEXT.encode()))
    assert read_table(plain, COLUMNS).equals(read_table(packed, COLUMNS))
    assert read_bytes(packed) == TEXT.encode()


def test_missing_values_pass_only_where_they_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user,score,name\n1,,\n2,1.5,b\n")
    assert read_table(path, COLUMNS, nullable=("score", "name"))["score"].to_list() == [None, 1.5]
    with pytest.raises(DataError, match=re.escape(f"{path}: line 2: name is missing")):
        read_table(path, COLUMNS, nullable=("score",))


@pytest.mark.parametrize("sentence", SENTENCE)
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_bad_value_is_told_with_file_and_line(tmp_path: Path, sentence: str, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    text = SENTENCE[sentence].encode()
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    with pytest.raises(DataError, match=re.escape(f"{path}: line 3: {sentence}")):
        read_table(path, COLUMNS)


def test_without_header_lines_count_from_the_first(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("1\t0.5\ta\ny\t1.5\tb\n")
    with pytest.raises(DataError, match="line 2: user is 'y'"):
        read_table(path, COLUMNS, separator="\t", header=False)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("user,name", "line 1: has no column 'score'"),
        ("user,score,name,extra", "line 1: has the unknown column 'extra'"),
        ("user,score,name,name", "line 1: a column is named twice"),
    ],
)
def test_missing_and_unknown_columns_are_named(tmp_path: Path, header: str, sentence: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n{','.join('1' for _ in header.split(','))}\n")
    with pytest.raises(DataError, match=sentence):
        read_table(path, COLUMNS)


@anywhere
@given(cut=st.integers(1, len(gzip.compress(TEXT.encode())) - 1))
def test_a_gzip_file_cut_anywhere_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(TEXT.encode())[:-cut])
    with pytest.raises(DataError, match=r"t\.csv\.gz"):
        read_table(path, COLUMNS)


@anywhere
@given(data=st.data())
def test_a_table_cut_before_its_last_field_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "t.csv"
    row = "33,2.5,ccc"
    cut = data.draw(st.integers(1, row.rindex(",")))
    path.write_text("user,score,name\n1,0.5,a\n" + row[:cut])
    with pytest.raises(DataError, match="truncated"):
        read_table(path, COLUMNS, nullable=("score", "name"))


def test_pointer_empty_and_absent_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    for read in (check_file, read_bytes, lambda p: read_table(p, COLUMNS)):
        with pytest.raises(DataError, match=r"t\.csv: is a Git LFS pointer.*git lfs pull"):
            read(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"t\.csv: is empty"):
        check_file(path)
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        check_file(tmp_path / "none.csv")
    path.write_text("user,score,name\n")
    with pytest.raises(DataError, match=r"t\.csv: has no rows"):
        read_table(path, COLUMNS)


def test_lines_with_another_number_of_fields_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes("1::Misérables, Les::Drama\n2::Heat\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"m\.dat: line 2: 2 fields, expected 3"):
        read_lines(path, "::", 3, "latin-1")
    with pytest.raises(DataError, match=r"m\.dat: byte 6 is not utf-8"):
        read_lines(path, "::", 3)


def test_files_are_found_packed_and_in_the_subfolder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").touch()
    (tmp_path / "b.csv.gz").touch()
    assert find(tmp_path, "a.csv") == tmp_path / "data" / "a.csv"
    assert find(tmp_path, "z.csv", "b.csv") == tmp_path / "b.csv.gz"
    assert locate(tmp_path, "z.csv", required=False) is None
    with pytest.raises(DataError, match=r"has no y\.csv or z\.csv"):
        find(tmp_path, "y.csv", "z.csv")


def test_values_outside_the_allowed_are_named(tmp_path: Path) -> None:
    labels = pl.Series("label", [0.0, 1.0, 0.5])
    with pytest.raises(DataError, match=r"line 4: label is 0\.5, expected 0 or 1"):
        check_values(tmp_path / "t.csv", labels, (0, 1))
    check_values(tmp_path / "t.csv", labels.head(2), (0, 1))


def test_checksums_are_compared_for_the_files_at_hand(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"hello\n"))
    good = {
        "a": f"md5:{hashlib.md5(b'abc').hexdigest()}",
        "b": "git:ce013625030ba8dba906f756967f9e9ca394464a",  # `echo hello | git hash-object`
        "absent": "md5:0",
    }
    assert check_checksums(tmp_path, good) == ["a", "b"]
    with pytest.raises(DataError, match=r"a: checksum is md5:9001.*the owner's is md5:0"):
        check_checksums(tmp_path, {"a": "md5:0"})
