"""What files are like in the wild: marks, quotes, line ends, ids of every kind, damage."""

from __future__ import annotations

import codecs
import gzip
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from models.data.errors import DataError
from tests.unit.models.data.own.domain import T, folder_in, held, reasons, run

HEADER = "user_id,item_id,event,time\n"
PLAIN = HEADER + f"007,9223372036854775808,click,{T}\n"
ROW = ("007", "9223372036854775808", "click", T * 1000, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_in(tmp_path / "own")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.csv", PLAIN.encode()),
        ("f.CSV", PLAIN.encode()),
        ("mark.csv", codecs.BOM_UTF8 + PLAIN.encode()),
        ("crlf.csv", PLAIN.replace("\n", "\r\n").encode()),
        ("cr.csv", PLAIN.replace("\n", "\r").encode()),
        ("blank-lines.csv", PLAIN.replace("\n", "\n\n").encode()),
        ("no-end.csv", PLAIN.strip().encode()),
        ("blanks.csv", PLAIN.replace("item_id", " item_id ").encode()),
        ("quoted.csv", f'"{PLAIN.strip()}"'.replace(",", '","').replace("\n", '"\n"').encode()),
        ("semicolons.csv", PLAIN.replace(",", ";").encode()),
        ("tabs.tsv", PLAIN.replace(",", "\t").encode()),
        ("f.csv.gz", gzip.compress(PLAIN.encode())),
        ("f.tsv.gz", gzip.compress(codecs.BOM_UTF8 + PLAIN.replace(",", "\t").encode())),
    ],
)  # fmt: skip
def test_a_table_of_text_is_read_however_it_was_saved(
    folder: Path, name: str, content: bytes
) -> None:
    (folder / name).write_bytes(content)
    run(folder, "events", folder / name)
    assert held(folder, "events").rows() == [ROW]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonl.gz"])
@pytest.mark.parametrize("user", ['"007"', '"\\u0030\\u00307"'])
def test_json_lines_are_read(folder: Path, suffix: str, user: str) -> None:
    line = f'{{"user_id": {user}, "item_id": {ROW[1]}, "event": "click", "time": {T}}}\r\n\n'
    content = codecs.BOM_UTF8 + line.encode()
    file = folder / f"f{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    run(folder, "events", file)
    assert held(folder, "events").rows() == [ROW]


def test_quotes_hold_commas_line_ends_and_quotes(folder: Path) -> None:
    text = HEADER + f'"a,b","c\r\nd",click,{T}\n"e ""f""",g"h,click,{T}\n'
    run(folder, "events", text)
    assert held(folder, "events").select("user_id", "item_id").rows() == [
        ("a,b", "c\r\nd"), ('e "f"', 'g"h'),
    ]  # fmt: skip


def test_a_quote_that_is_not_closed_costs_one_row(folder: Path) -> None:
    lines = [f"u{i},a,click,{T}" for i in range(9)]
    lines[3] = lines[3].replace("a,", '"a,')
    done = run(folder, "events", HEADER + "\n".join(lines) + "\n")
    assert done.accepted == 8
    assert "line 5: (row)" in reasons(done)["(row)"]


def test_a_row_has_at_most_so_many_characters(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("lines", "csv_source", "json_source"):
        monkeypatch.setattr(f"models.data.own.{module}.LONGEST", 100)
    good = f"u,a,click,{T}\n"
    text = (
        HEADER + good + f'"v,a,click,{T}\n' + good * 9 + f"{'x' * 301},a,click,{T}\nu,b,click,{T}\n"
    )
    done = run(folder, "events", text)
    assert done.tally.refusals == 2
    assert done.tally.read == 13
    assert held(folder, "events")["item_id"].to_list() == ["a", "b"]
    rows = [{"user_id": "u" * n, "item_id": "a", "event": "click", "time": T} for n in (1, 301, 2)]
    (folder / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(folder, "events", folder / "f.jsonl")
    assert (done.tally.refusals, done.accepted, done.merged.duplicates) == (1, 1, 1)


def test_what_is_not_utf8_is_refused_by_row(folder: Path) -> None:
    file = folder / "f.csv"
    file.write_bytes((HEADER + f"ü,a,click,{T}\n").encode() + f"ü,b,click,{T}\n".encode("latin-1"))
    done = run(folder, "events", file)
    assert held(folder, "events")["user_id"].to_list() == ["ü"]
    assert "line 3: (row)" in reasons(done)["(row)"]
    assert "is not UTF-8" in reasons(done)["(row)"]
    file.write_text(PLAIN, "utf-16")
    with pytest.raises(DataError, match="is UTF-16: save the file in the encoding UTF-8"):
        run(folder, "events", file)


@pytest.mark.parametrize(
    ("line", "column", "why"),
    [
        ('{"user_id": 7.0, "item_id": "a", "event": "click", "time": 1.7e9}', "user_id",
         "'7.0' is a number with a decimal point"),
        ('{"user_id": "u", "item_id": true, "event": "click", "time": 1.7e9}', "item_id",
         "'true' is true or false"),
        ('{"user_id": "u", "item_id": [1], "event": "click", "time": 1.7e9}', "item_id",
         "'[1]' is a list"),
        ('{"user_id": "u", "item_id": "a", "event": {}, "time": 1.7e9}', "event", "is no event"),
        ('{"user_id": "u", "item_id": "a", "event": "click", "time": [1]}', "time", "is no time"),
        ('{"user_id": "u", "item_id": "a", "event": "click"}', "time", "time is missing"),
        ('{"user_id": "u", "item_id": "a", "event": "click", "time": NaN}', "time", "is no time"),
        ('["u"]', "(row)", "is no JSON object"),
        ("{", "(row)", "is no JSON object"),
        ("[" * 9999, "(row)", "is no JSON object"),
        ('{"user_id": ' + "9" * 5000 + "}", "(row)", "is no JSON object"),
        ('{"user_id": "\\ud800"}', "(row)", "half of a surrogate pair"),
    ],
)  # fmt: skip
def test_json_that_is_no_row_is_refused_alone(
    folder: Path, line: str, column: str, why: str
) -> None:
    good = json.dumps({"user_id": "u", "item_id": "a", "event": "click", "time": T})
    file = folder / "f.jsonl"
    file.write_text(f"{good}\n{line}\n")
    done = run(folder, "events", file)
    assert done.accepted == 1
    assert reasons(done)[column].startswith(f"line 2: {column}")
    assert why in reasons(done)[column]


@pytest.mark.parametrize(
    "ids",
    [
        pl.Series(["007", "8"]), pl.Series(["007", "8"], dtype=pl.Categorical),
        pl.Series([7, 8], dtype=pl.UInt64), pl.Series([2**63, 8], dtype=pl.UInt64),
        pl.Series([-(2**63), 8], dtype=pl.Int64), pl.Series([b"007", b"8"]),
        pl.Series([Decimal(7), Decimal(8)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "times",
    [
        pl.Series([T, T]), pl.Series([T * 1000.0] * 2), pl.Series([str(T)] * 2),
        pl.Series([datetime.fromtimestamp(T, UTC)] * 2),
        pl.Series([datetime.fromtimestamp(T, UTC)] * 2).dt.convert_time_zone("Asia/Tokyo"),
        pl.Series([T * 10**9] * 2).cast(pl.Datetime("ns")),
    ],
)  # fmt: skip
def test_parquet_types_of_ids_and_times(folder: Path, ids: pl.Series, times: pl.Series) -> None:
    frame = pl.DataFrame({"user_id": ids, "item_id": "a", "event": "click", "time": times})
    frame.write_parquet(folder / "f.parquet")
    run(folder, "events", folder / "f.parquet", timezone="UTC")
    wanted = [value.decode() if isinstance(value, bytes) else str(value) for value in ids]
    assert held(folder, "events").select("user_id", "time_ms").rows() == [
        (each, T * 1000) for each in wanted
    ]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("user_id", pl.Series([7.0, 8.0])), ("user_id", pl.Series([True, False])),
        ("user_id", pl.Series([b"\xff", b"\xfe"])), ("user_id", pl.Series([[1], [2]])),
        ("user_id", pl.Series([{"a": 1}, {"a": 2}])), ("time", pl.Series([date(2024, 1, 1)] * 2)),
        ("user_id", pl.Series([None, None])),
    ],
)  # fmt: skip
def test_parquet_values_that_do_not_fit_are_refused_with_their_row(
    folder: Path, column: str, values: pl.Series
) -> None:
    columns: dict[str, Any] = {"user_id": "u", "item_id": "a", "event": "click", "time": [T, T]}
    pl.DataFrame(columns | {column: values}).write_parquet(folder / "f.parquet")
    done = run(folder, "events", folder / "f.parquet")
    assert (done.tally.refusals, done.nothing) == (2, True)
    assert reasons(done)[column].startswith(f"row 1: {column}")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("f.csv", b"", "is empty"),
        ("f.txt", b"x", "save it as one of .parquet, .csv"),
        ("f.json", b"[]", "save it as one of"),
        ("f.csv.gz", gzip.compress(PLAIN.encode())[:-9], "truncated or damaged gzip file"),
        ("f.jsonl.gz", b"no gzip", "truncated or damaged gzip file"),
        ("f.parquet", b"PAR1 no", "no Parquet file, or a damaged one"),
        ("f.csv", b"version https://git-lfs", "is a Git LFS pointer"),
        ("f.csv", b'"user_id\n', "line 1, which should name the columns, is no row"),
        ("f.csv", b"\xff,item_id\n", "line 1, which should name the columns, is not UTF-8"),
        ("f.csv", b"\n\n", "Its columns are none"),
        ("f.jsonl", b"\n", "Its columns are none"),
    ],
)
def test_files_that_cannot_be_read_say_why(
    folder: Path, name: str, content: bytes, why: str
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=why):
        run(folder, "events", folder / name)


def test_a_missing_file_says_so(folder: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        run(folder, "events", folder / "none.csv")


def test_a_key_that_comes_late_is_read_and_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.data.own.json_source.ROWS", 1)
    row = {"user_id": "u", "item_id": "a", "event": "purchase", "time": T}
    late = {**row, "value": 2, "shop": 1}
    (folder / "f.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (row, late)))
    done = run(folder, "events", folder / "f.jsonl")
    assert held(folder, "events")["value"].to_list() == [None, 2.0]
    assert done.ignored == ["shop"]


def test_folders_may_have_names_like_patterns(tmp_path: Path) -> None:
    folder = folder_in(tmp_path / "a[1]*?")
    row = {"user_id": "u", "item_id": "a", "event": "click", "time": T}
    pl.DataFrame([row]).write_parquet(folder / "f[1].parquet")
    run(folder, "events", folder / "f[1].parquet")
    run(folder, "events", folder / "f[1].parquet")
    assert len(held(folder, "events")) == 1
