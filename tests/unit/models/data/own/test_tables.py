"""What trainings are handed: the tables as they fit the schema.yaml of now."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from models.data.errors import DataError
from models.data.own.facts import event_facts, number_of_rows
from models.data.own.store import path_of
from models.data.own.tables import tables
from models.schema import lock
from models.schema.read import parse
from tests.unit.models.data.own.domain import SCHEMA, T, folder_in, run

EVENTS = f"user_id,item_id,event,time,value\nu,a,click,{T},\nv,a,purchase,{T + 1},2\n"
ITEMS = "item_id,price,tags,place\na,1,x|y|z,1|2|3\nb,2,,\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    own = folder_in(tmp_path / "own")
    run(own, "events", EVENTS)
    run(own, "items", ITEMS)
    return own


def test_frames_and_the_schema_are_there(folder: Path) -> None:
    own = tables(folder)
    assert own.events.collect().height == own.items.collect().height == 2
    assert own.users.collect().height == 0
    assert own.users.collect_schema() == {
        "user_id": pl.String, "country": pl.String, "since": pl.Int64,
    }  # fmt: skip
    assert [field.name for field in own.schema.declaration.user_given] == ["country", "since"]
    run(folder, "users", "user_id,country\nu,DE\n")
    assert tables(folder).users.collect().rows() == [("u", "DE", None)]


@pytest.mark.parametrize("missing", ["events", "items"])
def test_no_events_or_no_items_is_told(folder: Path, missing: str) -> None:
    (folder / "data" / f"{missing}.parquet").unlink()
    with pytest.raises(DataError, match=f"has no {missing}: import some with `tandem import"):
        tables(folder)


def test_a_field_declared_since_is_null_and_one_taken_out_is_ignored(folder: Path) -> None:
    before = SCHEMA.replace("price: {type: number}", "weight: {type: number}")
    (folder / "schema.yaml").write_text(before)
    items = tables(folder).items.collect()
    assert items["weight"].to_list() == [None, None]
    assert "price" not in items.columns
    run(folder, "items", "item_id,weight\nb,5\n")
    assert tables(folder).items.select("item_id", "weight").collect().rows() == [
        ("a", None), ("b", 5.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "column"),
    [
        ("price: {type: number}", "price: {type: time}", "price"),
        ("tags: {type: bag, slots: 3, learned: 100}", "tags: {type: category, learned: 9}", "tags"),
        ("length: 3", "length: 4", "place"),
    ],
)
def test_a_changed_type_is_a_sentence(folder: Path, old: str, new: str, column: str) -> None:
    (folder / "schema.yaml").write_text(SCHEMA.replace(old, new))
    with pytest.raises(DataError, match=f"{column} was imported as .* move the file away"):
        tables(folder)
    with pytest.raises(DataError, match=f"{column} was imported as .* move the file away"):
        run(folder, "items", "item_id\nc\n")


def test_fewer_slots_and_events_than_were_imported(folder: Path) -> None:
    changed = SCHEMA.replace("slots: 3", "slots: 2").replace(
        "  purchase: {id: 3, history: true, value: {unit: EUR, max: 1000}}\n", ""
    )
    (folder / "schema.yaml").write_text(changed)
    own = tables(folder)
    assert own.items.collect()["tags"].to_list() == [["x", "y"], None]
    assert own.events.collect()["event"].to_list() == ["click"]


def test_what_cannot_be_read_is_a_data_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no schema\.yaml"):
        tables(tmp_path)
    known = lock.Lock().with_(parse(SCHEMA.encode(), ""))
    lock.write(folder / lock.NAME, known)
    tables(folder)
    (folder / "schema.yaml").write_text(SCHEMA.replace("in_stock", "at_hand"))
    with pytest.raises(DataError, match="run `tandem schema lock"):
        tables(folder)
    (folder / "schema.yaml").write_text("format: 2")
    with pytest.raises(DataError, match=r"schema\.yaml:1"):
        tables(folder)
    folder_in(folder)
    (folder / lock.NAME).unlink()
    path_of(folder, "items").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="move it away"):
        tables(folder)


def test_facts_of_the_tables(folder: Path) -> None:
    facts = event_facts(path_of(folder, "events"))
    assert facts.events == {"click": 1, "purchase": 1}
    assert (facts.users, facts.items) == (2, 1)
    assert (facts.first_ms, facts.last_ms) == (T * 1000, (T + 1) * 1000)
    assert number_of_rows(path_of(folder, "items")) == 2
