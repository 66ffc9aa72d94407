"""Items and users: every type of field, what is left out of values, and rows of one id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.data.errors import DataError
from models.data.own import store
from tests.unit.models.data.own.domain import (
    WRITERS,
    T,
    folder_in,
    held,
    reasons,
    run,
    write_csv,
    write_jsonl,
    write_parquet,
)

many = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Without `|`, and not empty, so that CSV can say it.
plain = st.text(st.characters(codec="utf-8", exclude_characters="|"), min_size=1, max_size=6)
word = plain.map(str.strip).filter(bool)
number = st.floats(-1e6, 1e6, width=32).map(lambda value: value + 0.0)
half = st.floats(-1000, 1000, width=16)
item = st.fixed_dictionaries(
    {
        "item_id": st.sampled_from(["007", "7", "ü", "a b", "9" * 30]),
        "brand": st.none() | word,
        "colour": st.none() | st.sampled_from(["red", "green"]),
        "price": st.none() | number,
        "kinds": st.none() | st.lists(st.sampled_from(["shoes", "hats"]), min_size=1, max_size=2),
        "tags": st.none() | st.lists(word, min_size=1, max_size=3),
        "words": st.none() | plain,
        "place": st.none() | st.lists(half, min_size=3, max_size=3),
        "sizes": st.none() | st.lists(number, min_size=2, max_size=2),
        "released": st.none() | st.integers(T * 1000, T * 2000),
        "in_stock": st.none() | st.booleans(),
        "title": st.none() | plain,
    }
)
items_of = st.lists(item, min_size=1, max_size=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_in(tmp_path / "own")


def one(folder: Path, **values: Any) -> dict[str, Any]:
    """The row of an item imported as JSON, without what is null."""
    file = folder / "one.jsonl"
    file.write_text(json.dumps({"item_id": "i", **values}) + "\n")
    run(folder, "items", file)
    row = held(folder, "items").filter(pl.col("item_id") == "i").row(0, named=True)
    return {name: value for name, value in row.items() if value is not None and name != "item_id"}


@many
@given(rows=items_of)
@pytest.mark.parametrize("suffix", list(WRITERS))
def test_rows_of_all_types_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[dict[str, Any]]
) -> None:
    own = folder_in(tmp_path_factory.mktemp("own"))
    done = run(own, "items", WRITERS[suffix](own / f"f.{suffix}", rows))
    last = {row["item_id"]: row for row in rows}
    order = [row["item_id"] for i, row in enumerate(rows) if last[row["item_id"]] is rows[i]]
    assert done.merged == (len(last), 0, len(rows) - len(last))
    assert held(own, "items").to_dicts() == [last[each] for each in order]


@many
@given(rows=items_of, at=st.integers(0, 8), part_bytes=st.sampled_from([1, store.PART_BYTES]))
def test_any_split_into_two_imports_equals_one_import(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], at: int, part_bytes: int
) -> None:
    whole, halves = (folder_in(tmp_path_factory.mktemp(name)) for name in ("w", "h"))
    run(whole, "items", write_jsonl(whole / "all.jsonl", rows))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "PART_BYTES", part_bytes)
        for part in filter(None, (rows[:at], rows[at:], rows[at:])):
            # Every key stands in both: one that a file does not have keeps what was there.
            run(halves, "items", write_jsonl(halves / "part.jsonl", part))
    assert held(whole, "items").equals(held(halves, "items"))


def test_users_are_imported_with_their_given_fields(folder: Path) -> None:
    run(folder, "users", f"user_id,country,since\n007,DE,{T}\n8,,\n")
    assert held(folder, "users").rows() == [("007", "DE", T * 1000), ("8", None, None)]


def test_a_second_import_updates_rows_and_keeps_the_others(folder: Path) -> None:
    run(folder, "items", "item_id,price,title\na,1,A\nb,2,B\nc,3,C\n")
    done = run(folder, "items", "item_id,price\nb,5\nd,6\n")
    assert done.merged == (1, 1, 0)
    rows = held(folder, "items").select("item_id", "price", "title").rows()
    assert rows == [("a", 1.0, "A"), ("c", 3.0, "C"), ("b", 5.0, "B"), ("d", 6.0, None)]


def test_a_key_that_no_row_has_keeps_what_the_table_has(folder: Path) -> None:
    run(folder, "items", "item_id,price,title\na,1,A\n")
    write_jsonl(folder / "f.jsonl", [{"item_id": "a", "price": 2}])
    run(folder, "items", folder / "f.jsonl")
    assert held(folder, "items").select("price", "title").rows() == [(2.0, "A")]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"in_stock": "Yes"}, {"in_stock": True}),
        ({"in_stock": 0}, {"in_stock": False}),
        ({"in_stock": " TRUE "}, {"in_stock": True}),
        ({"brand": " Acme "}, {"brand": "Acme"}),
        ({"brand": 7}, {"brand": "7"}),
        ({"words": " two  words"}, {"words": " two  words"}),
        ({"title": 1.5}, {"title": "1.5"}),
        ({"price": "-0.0"}, {"price": 0.0}),
        ({"price": "1e3"}, {"price": 1000.0}),
        ({"kinds": "hats| shoes |"}, {"kinds": ["hats", "shoes"]}),
        ({"kinds": "coats"}, {"kinds": ["coats"]}),
        ({"tags": [1, None, "", " b "]}, {"tags": ["1", "b"]}),
        ({"tags": []}, {}),
        ({"tags": 5}, {"tags": ["5"]}),
        ({"place": "1|2|3"}, {"place": [1.0, 2.0, 3.0]}),
        ({"place": "[1, 2.5, -3e0]"}, {"place": [1.0, 2.5, -3.0]}),
        ({"place": " "}, {}),
        ({"released": "1813-01-28T00:00:00Z"}, {"released": -4952102400000}),
        ({"brand": "", "price": "", "in_stock": " ", "words": "", "released": ""}, {}),
    ],
)
def test_what_values_become(folder: Path, values: dict[str, Any], kept: dict[str, Any]) -> None:
    assert one(folder, **values) == kept


def test_csv_says_lists_as_json_does(folder: Path) -> None:
    text = "item_id;place;kinds\na;[1, 2, 3];hats/coats\nb;1/2/3;\n"
    run(folder, "items", text, separator="/")
    assert held(folder, "items").select("place", "kinds").rows() == [
        ([1.0, 2.0, 3.0], ["hats", "coats"]), ([1.0, 2.0, 3.0], None),
    ]  # fmt: skip


def test_values_that_are_not_declared_and_slots_are_counted_not_refused(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"item_id": "a", "colour": "red", "kinds": ["hats", "boots", "shoes", "coats"]},
        {"item_id": "b", "colour": "blue", "kinds": ["boots"]},
        {"item_id": "c", "colour": "blue", "price": "x"},  # refused: not counted
    ]
    done = run(folder, "items", write_jsonl(folder / "f.jsonl", rows))
    found = {(w.column, w.reason[:12]): (g.rows, g.place, g.value)
             for w, g in done.tally.noted.items()}  # fmt: skip
    assert found == {
        ("colour", "not declared"): (1, 2, "blue"),
        ("kinds", "values that "): (2, 1, "boots"),
        ("kinds", "more values "): (1, 1, "coats"),
    }
    assert held(folder, "items").select("colour", "kinds").rows() == [
        ("red", ["hats", "shoes"]), (None, None),
    ]  # fmt: skip


REFUSED: list[tuple[str, Any, str]] = [
    ("item_id", None, "is missing"),
    ("item_id", 7.0, "with a decimal point"),
    ("brand", 7.5, "with a decimal point"),
    ("brand", {"a": 1}, "is a list or an object"),
    ("price", "cheap", "'cheap' is no finite number"),
    ("price", float("inf"), "is no finite number"),
    ("price", 1e38, "is no finite number"),
    ("price", True, "is no finite number"),
    ("tags", {"a": 1}, "is a list or an object"),
    ("tags", [["a"]], "is a list or an object"),
    ("tags", [1.5], "with a decimal point"),
    ("words", ["a"], "is a list or an object"),
    ("place", [1, 2], "has not the 3 numbers declared"),
    ("place", [], "has not the 3 numbers declared"),
    ("place", "1|2", "has not the 3 numbers declared"),
    ("place", [1, 2, None], "is no list of 3 numbers"),
    ("place", "1|x|2", "is no list of 3 numbers"),
    ("place", [1, 2, 65_505], "holds something that is no finite number"),
    ("place", [1, 2, float("nan")], "holds something that is no finite number"),
    ("place", 7, "has not the 3 numbers declared"),
    ("sizes", [1, 1e39], "holds something that is no finite number"),
    ("sizes", [10**400, 1], "is no list of 2 numbers"),
    ("released", "1999", "lies within a day of 1970-01-01"),
    ("released", "2024-05-01", "name its zone with --timezone"),
    ("in_stock", "maybe", "'maybe' is no flag"),
    ("in_stock", 2, "'2' is no flag"),
    ("title", [1], "is a list or an object"),
]


@pytest.mark.parametrize(("column", "value", "why"), REFUSED)
def test_a_refusal_names_its_column(folder: Path, column: str, value: Any, why: str) -> None:
    rows = [{"item_id": "good"}, {"item_id": "bad", column: value}]
    done = run(folder, "items", write_jsonl(folder / "f.jsonl", rows))
    assert done.accepted == 1
    assert reasons(done)[column].startswith(f"line 2: {column}")
    assert why in reasons(done)[column]


@pytest.mark.parametrize(
    ("column", "value"), [(column, value) for column, value, _ in REFUSED if type(value) is str]
)
def test_csv_refuses_the_same_texts(folder: Path, column: str, value: str) -> None:
    done = run(folder, "items", write_csv(folder / "f.csv", [{"item_id": "bad", column: value}]))
    assert done.nothing
    assert list(reasons(done)) == [column]


@pytest.mark.parametrize(
    ("column", "values", "kept"),
    [
        ("place", pl.Series([[1, 2, 3]], dtype=pl.Array(pl.Int32, 3)), [1.0, 2.0, 3.0]),
        ("place", pl.Series([[1, 2, 3]], dtype=pl.List(pl.Float32)), [1.0, 2.0, 3.0]),
        ("place", pl.Series([["1", "2", "3"]]), [1.0, 2.0, 3.0]),
        ("place", pl.Series([["1", "2", "x"]]), None),
        ("place", pl.Series([[1.0, 2.0, None]]), None),
        ("place", pl.Series([[[1.0]]]), None),
        ("tags", pl.Series([["a", None, "b"]], dtype=pl.List(pl.Categorical)), ["a", "b"]),
        ("tags", pl.Series([[1, 2]]), ["1", "2"]),
        ("tags", pl.Series([[1.0]]), None),
        ("tags", pl.Series(["a|b"]), ["a", "b"]),
        ("brand", pl.Series([["a"]]), None),
    ],
)
def test_parquet_lists(folder: Path, column: str, values: pl.Series, kept: Any) -> None:
    pl.DataFrame({"item_id": ["i"], column: values}).write_parquet(folder / "f.parquet")
    done = run(folder, "items", folder / "f.parquet")
    if kept is None:
        assert list(reasons(done)) == [column]
    else:
        assert held(folder, "items")[column].to_list() == [kept]


def test_wide_parquet_files_are_read_in_slices(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.data.own.parquet_source.BYTES", 1)
    rows = [{"item_id": str(i), "price": float(i)} for i in range(2_500)]
    rows[2_100]["price"] = float("nan")
    done = run(folder, "items", write_parquet(folder / "f.parquet", rows))
    assert (done.tally.read, done.accepted) == (2_500, 2_499)
    assert reasons(done)["price"].startswith("row 2101: price")


@pytest.mark.parametrize("separator", ["", "||"])
def test_a_separator_is_one_character(folder: Path, separator: str) -> None:
    with pytest.raises(DataError, match="give one character"):
        run(folder, "items", "item_id\na\n", separator=separator)
