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

from models.data.delimited import read_lines, read_table
from models.data.errors import DataError
from models.data.source_files import (
    DataWarning,
    check_checksums,
    check_file,
    check_times,
    check_unique,
    check_values,
    find,
    locate,
    once,
    read_bytes,
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
anywhere = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


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
    columns = {"item": pl.Int64, "title": pl.String, "genre": pl.String}
    with pytest.raises(DataError, match=r"m\.dat: line 2: 2 fields, expected 3"):
        read_lines(path, "::", columns, "latin-1")
    with pytest.raises(DataError, match=r"m\.dat: line 1: is not UTF-8"):
        read_lines(path, "::", columns)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
def test_only_a_line_feed_ends_a_line_whichever_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "m.dat"  # in UTF-8 the second byte of Å is a line end of latin-1
    path.write_bytes("1::Misérables\r\n2::\u00c5sa\n".encode(encoding))
    frame = read_lines(path, "::", {"item": pl.Int64, "title": pl.String}, "latin-1")
    assert frame.rows() == [(1, "Misérables"), (2, "\u00c5sa")]


def test_files_are_found_packed_and_in_the_subfolder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").touch()
    (tmp_path / "b.csv.gz").touch()
    assert find(tmp_path, "a.csv") == tmp_path / "data" / "a.csv"
    assert find(tmp_path, "z.csv", "b.csv") == tmp_path / "b.csv.gz"
    assert locate(tmp_path, "z.csv") is None
    with pytest.raises(DataError, match=r"has no y\.csv or z\.csv"):
        find(tmp_path, "y.csv", "z.csv")


def test_values_outside_the_allowed_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label\n0\n1\n0.5\n")
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
    check_checksums(tmp_path, good)
    with pytest.raises(DataError, match=r"a: checksum is md5:9001.*the owner's is md5:0"):
        check_checksums(tmp_path, {"a": "md5:0"})
    with pytest.raises(DataError, match=r"b\.gz: checksum is git:ce01.*the owner's is git:0"):
        check_checksums(tmp_path, {"b": "git:0"})


@pytest.mark.parametrize("odd", ["007", "+7", "-07", " 007"])
@pytest.mark.parametrize("header", [True, False])
def test_an_id_that_two_spellings_would_share_is_refused(
    tmp_path: Path, odd: str, header: bool
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(("userId,score\n" if header else "") + f"1,0.5\n{odd},0\n7,0.25\n")
    columns = {"userId": pl.Int64, "score": pl.Float64}
    with pytest.raises(DataError, match=re.escape(f"line {2 + header}: userId is '")):
        read_table(path, columns, header=header)
    path.write_text(path.read_text().replace(f"{odd},", "0,"))
    assert read_table(path, columns, header=header)["userId"].to_list() == [1, 0, 7]


def test_numbers_that_are_no_ids_may_have_zeros_in_front(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("hourmin\n0830\n")
    assert read_table(path, {"hourmin": pl.Int32})["hourmin"].to_list() == [830]


def test_the_line_named_is_the_one_in_which_the_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('user,name\n1,"two\nlines"\n2,"three\n\nlines"\nx,b\n')
    with pytest.raises(DataError, match="line 7: user is 'x'"):
        read_table(path, {"user": pl.Int32, "name": pl.String})
    path.write_text(path.read_text() + "\n".join(["3,c,d"]) + "\n")
    with pytest.raises(DataError, match="line 8: 3 fields, expected 2"):
        read_table(path, {"user": pl.Int32, "name": pl.String})


@pytest.mark.parametrize("packed", [True, False])
def test_the_line_that_is_not_utf_8_is_named(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    content = b"user,name\n1,a\n2,\xff\n"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match="line 3: is not UTF-8"):
        read_table(path, {"user": pl.Int32, "name": pl.String})


@pytest.mark.parametrize(
    ("factor", "looks"),
    [(1, None), (1_000, "milliseconds"), (1_000_000, "microseconds"), (1_000_000_000, "nano")],
)
def test_times_in_another_unit_are_refused_with_the_unit_they_look_like(
    tmp_path: Path, factor: int, looks: str | None
) -> None:
    (tmp_path / "t.csv").write_text("time\n0\n0\n")
    times = pl.Series("time", [0, 1_600_000_090 * factor])
    if looks is None:
        check_times(tmp_path / "t.csv", times)
        check_times(tmp_path / "t.csv", 1_000 * times, unit="milliseconds")
        return
    with pytest.raises(DataError, match=f"line 3: time .* expected seconds.*looks like {looks}"):
        check_times(tmp_path / "t.csv", times)


@pytest.mark.parametrize("value", [-1, 2**63 - 1, -(2**63)])
def test_what_is_no_time_in_any_unit_is_refused(tmp_path: Path, value: int) -> None:
    (tmp_path / "t.csv").write_text("time\n0\n")
    with pytest.raises(DataError, match=r"line 2: time is .* expected seconds since 1970"):
        check_times(tmp_path / "t.csv", pl.Series("time", [value]))


def test_a_key_that_stands_twice_in_a_side_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item\n3\n4\n3\n")
    with pytest.raises(DataError, match="line 4: item 3 stands there a second time"):
        check_unique(tmp_path / "t.csv", pl.Series("item", [3, 4, 3]))
    check_unique(tmp_path / "t.csv", pl.Series("item", [3, 4]))


def test_equal_rows_count_once_and_how_many_is_said(tmp_path: Path) -> None:
    rows = pl.DataFrame({"user": [1, 2, 1, 1], "time": [5, 5, 5, 6]})
    with pytest.warns(DataWarning, match="1 rows stand twice and count once"):
        assert once(tmp_path / "t.csv", rows).rows() == [(1, 5), (2, 5), (1, 6)]
