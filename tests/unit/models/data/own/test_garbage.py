"""Rows of anything at all: none is lost, and none ends an import."""

from __future__ import annotations

import json
import random
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from models.data.own.cells import of_parquet
from models.data.own.convert import Reading, convert
from models.data.own.imports import Summary
from models.data.own.tally import WHOLE_ROW
from models.data.own.wanted import TABLES, TableName, Wanted, wanted_of
from models.schema.read import parse
from tests.unit.models.data.own.domain import NOW_MS, SCHEMA, T, folder_in, run

ROWS = 10_000
BYTES = [
    b"",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xc3",
    "ü".encode(),
    b"[",
    b"|",
    b"1",
    b"e",
]
VALUES: list[Any] = [
    None, "", "a", "007", "|", "red", "shoes|boots", "[1,2,3]", "[", "1|2|3", "nan", "inf", "1e400",
    "2024-05-01T12:00:00", "2024-05-01T12:00:00Z", "click", "purchase", "\ud800", "\0", "\u202e",
    0, 1, -1, T, T * 1000, 2**63, 10**40, 1.5, float("nan"), float("inf"), 1e38, True, False,
    [], [1, 2, 3], [None], ["a", 1, 2.5], [[1]], {"a": 1}, {},
]  # fmt: skip
KEYS = ["user_id", "item_id", "event", "time", "value", "brand", "colour", "price", "kinds", "tags",
        "words", "place", "sizes", "released", "in_stock", "title", "junk"]  # fmt: skip


def _lines(rng: random.Random) -> bytes:
    """A header, and rows of which some are good and some are noise."""
    good = f"u{{}},i,click,{T},\n"
    rows = [b"user_id,item_id,event,time,value\n"]
    for at in range(ROWS):
        if rng.random() < 0.3:
            rows.append(good.format(at % 50).encode())
        else:
            rows.append(b"".join(rng.choices(BYTES, k=rng.randrange(12))) + b"\n")
    return b"".join(rows)


def assert_said(done: Summary, table: TableName) -> None:
    """That many rows are refused, each by its line and the column that is at fault."""
    tally = done.tally
    assert tally.refusals > ROWS / 10
    names = {each.name for each in wanted_of(table, parse(SCHEMA.encode(), ""))}
    for why, group in tally.refused.items():
        said = tally.sentence(why, group)
        assert said.startswith(f"line {group.place}")
        assert why.column == WHOLE_ROW or (why.column in names and why.column in said), said


@pytest.mark.parametrize("seed", range(2))
def test_csv_of_noise(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "f.csv"
    file.write_bytes(_lines(random.Random(seed)))
    done = run(folder_in(tmp_path / "own"), "events", file)
    assert done.accepted + done.merged.duplicates > ROWS / 10
    assert_said(done, "events")


@pytest.mark.parametrize("table", ["events", "items", "users"])
def test_json_of_any_values(tmp_path: Path, table: TableName) -> None:
    rng = random.Random(0)
    ids = {"user_id": "u", "item_id": "i", "event": "click", "time": T}
    rows = [
        {**(ids if rng.random() < 0.5 else {}), **{k: rng.choice(VALUES) for k in _some(rng)}}
        for _ in range(ROWS - 1)
    ]
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [ids, *rows]))
    done = run(folder_in(tmp_path / "own"), table, file)
    assert done.tally.read == ROWS
    assert done.accepted
    assert_said(done, table)


def _some(rng: random.Random) -> list[str]:
    return rng.sample(KEYS, rng.randrange(4))


TYPES: list[pl.Series] = [
    pl.Series(["a", None]), pl.Series([1, 2]), pl.Series([1.5, None]), pl.Series([True, None]),
    pl.Series([[1], None]), pl.Series([["a"], []]), pl.Series([[1.5], [None]]),
    pl.Series([{"a": 1}, None]), pl.Series([None, None]), pl.Series([b"\xff", None]),
    pl.Series([timedelta(1), None]), pl.Series([time(1), None]), pl.Series([date(2024, 1, 1)] * 2),
    pl.Series([[[1]], None]), pl.Series([[{"a": 1}], None]), pl.Series([Decimal("1.5"), None]),
]  # fmt: skip


@pytest.mark.parametrize("values", TYPES, ids=lambda values: str(values.dtype))
@pytest.mark.parametrize("wanted", [
    each for table in TABLES for each in wanted_of(table, parse(SCHEMA.encode(), ""))
], ids=lambda wanted: wanted.name)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_a_parquet_value_is_taken_refused_or_missing(wanted: Wanted, values: pl.Series) -> None:
    made = convert(wanted, of_parquet(values, wanted), Reading(NOW_MS, {}))
    assert made.values.dtype == wanted.dtype
    refused = [any(mask[at] for _, mask in made.faults) for at in range(2)]
    for at, value in enumerate(values.to_list()):
        taken = made.values[at] is not None and not refused[at]
        noted = any(note.mask[at] for note in made.notes)
        missing = value is None or value in ([], [None])
        assert taken or refused[at] or noted or (missing and not wanted.required)
