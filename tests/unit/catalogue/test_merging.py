"""What changes make of an item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1.records_pb2 import FieldValue, ItemRecord
from services.catalogue.merging import Change, Kind, changed
from services.catalogue.values import plain
from tests.items_domain import FIELDS, T0, changes

ONE = "item 0"


def of(values: dict[str, Any], at: int, kind: Kind = Kind.UPSERT) -> Change:
    given = {
        name: FieldValue() if v is None else FieldValue(number=v) for name, v in values.items()
    }
    return Change(kind, ONE, at, given)


def after(*made: Change) -> ItemRecord | None:
    record = None
    for change in made:
        record = changed(record, change)
    return record


def seen(record: ItemRecord | None) -> Any:
    """What is told of an item: its values, and whether it is there."""
    if record is None:
        return None
    held = {n: plain(f.value) for n, f in record.fields.items()}
    return {n: v for n, v in held.items() if v is not None}, record.removed


@given(FIELDS, st.lists(changes(), max_size=8, unique_by=lambda c: c.updated_ms), st.randoms())
def test_changes_of_different_times_make_the_same_item_in_any_order(
    fields: dict[str, FieldValue], later: Sequence[Change], random: Any
) -> None:
    first = Change(Kind.UPSERT, ONE, T0 - 1, fields)
    later = [change._replace(item_id=ONE) for change in later]
    in_order = after(first, *sorted(later, key=lambda change: change.updated_ms))
    random.shuffle(later)
    assert after(first, *later) == in_order


@given(st.lists(changes(), min_size=1, max_size=6))
def test_a_change_that_comes_twice_changes_nothing(made: Sequence[Change]) -> None:
    record = None
    for change in (change._replace(item_id=ONE) for change in made):
        record = changed(record, change)
        assert changed(record, change) is record


@given(st.lists(changes(), min_size=1, max_size=6))
def test_an_item_that_was_never_there_is_made_by_an_upsert_alone(made: Sequence[Change]) -> None:
    record = None
    for change in (change._replace(item_id=ONE) for change in made):
        there = record is not None or change.kind is Kind.UPSERT
        record = changed(record, change)
        assert (record is not None) == there


def test_an_upsert_is_the_whole_item_and_a_patch_some_of_it() -> None:
    whole = of({"price": 1, "size": 2}, T0)
    patched = after(whole, of({"price": 3}, T0 + 1, Kind.PATCH))
    assert seen(patched) == ({"price": 3, "size": 2}, False)
    assert seen(after(whole, of({"price": 3}, T0 + 1))) == ({"price": 3}, False)


def test_what_a_patch_says_after_an_upsert_that_comes_later_stays() -> None:
    patched = after(of({"price": 1}, T0), of({"price": 3}, T0 + 9, Kind.PATCH))
    assert patched is not None
    assert seen(changed(patched, of({"price": 2, "size": 7}, T0 + 5))) == (
        {"price": 3, "size": 7},
        False,
    )
    assert seen(changed(patched, of({"price": 2}, T0 + 10))) == ({"price": 2}, False)


def test_a_value_taken_back_is_gone_and_older_news_does_not_bring_it_back() -> None:
    taken = after(of({"price": 1}, T0), of({"price": None}, T0 + 5, Kind.PATCH))
    assert seen(taken) == ({}, False)
    assert seen(changed(taken, of({"price": 2}, T0 + 3))) == ({}, False)
    assert seen(changed(taken, of({"price": 2}, T0 + 6, Kind.PATCH))) == ({"price": 2}, False)


def test_a_removed_item_comes_back_by_a_later_upsert_and_no_other_change() -> None:
    removed = after(of({"price": 1}, T0), of({}, T0 + 5, Kind.REMOVE))
    assert seen(removed) == ({"price": 1}, True)
    assert seen(changed(removed, of({"price": 2}, T0 + 9, Kind.PATCH))) == ({"price": 2}, True)
    assert seen(changed(removed, of({"price": 2}, T0 + 4))) == ({"price": 2}, True)
    assert seen(changed(removed, of({"price": 2}, T0 + 6))) == ({"price": 2}, False)
    assert changed(after(of({}, T0 + 9)), of({}, T0 + 5, Kind.REMOVE)) == after(of({}, T0 + 9))
