"""Schemas with a history: which layouts are read, which one is written, and what moves along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store import codec
from feature_store.reader import serve_raw
from models.schema import lock
from models.schema.compiled import Schema, SchemaUnfit, compiled, load
from models.schema.declaration import Declaration
from models.schema.groups import Feature, FeatureGroup
from models.schema.layout import layout_of
from models.schema.lock import Lock
from models.schema.migration import moved, same_kind
from tests.unit.models.schema.declarations import declarations
from tests.unit.models.schema.declared import SHOP, shop

GROWN = (
    ('"NO"]', '"NO", SE]'),
    ("values: [shoes, hats]", "values: [shoes, hats, coats]"),
    ("purchase: {}}\n  sums", "purchase: {}, impression: {}}\n  sums"),
    ("length: 40", "length: 60"),
    ("bought: {since: purchase}", "bought: {since: purchase}, clicked: {since: click}"),
)
BEFORE, AFTER = shop(), shop(*GROWN)
BOTH = Lock().with_(BEFORE).with_(AFTER)


def filled(group: FeatureGroup, seed: int) -> np.ndarray:
    """A record of values that every type holds."""
    draw = np.random.default_rng(seed)
    record = group.defaults()
    for feature in group.features:
        record[feature.name] = draw.integers(1, 100, feature.shape)
    if group.name == "history":
        record["length"] = draw.integers(0, len(record["item_keys"]) + 1)
    return record


def groups_of(declared: Declaration) -> tuple[FeatureGroup, ...]:
    return layout_of(declared).groups


@given(st.integers(0, 100))
def test_what_only_grew_moves_there_and_back_unchanged(seed: int) -> None:
    for before, after in zip(groups_of(BEFORE), groups_of(AFTER), strict=True):
        record = filled(before, seed)
        there = moved(record, before, after)
        assert moved(there, after, before).tobytes() == record.tobytes()
        new = {f.name for f in after.features} - {f.name for f in before.features}
        for name in new:
            assert (there[name] == after.defaults()[name]).all()


@given(declarations(), declarations(), st.integers(0, 100))
def test_a_value_moves_to_its_name_or_not_at_all(a: Declaration, b: Declaration, seed: int) -> None:
    for before, after in zip(groups_of(a), groups_of(b), strict=True):
        record = filled(before, seed)
        there = moved(record, before, after)
        names = {feature.name: feature for feature in before.features}
        for feature in after.features:
            found = names.get(feature.name)
            if found == feature and feature.name != "length":
                assert there[feature.name].tobytes() == record[feature.name].tobytes()
            elif found is None or not same_kind(found, feature):
                assert (there[feature.name] == after.defaults()[feature.name]).all()
        if after.name == "history":
            assert there["length"] == min(record["length"], len(there["item_keys"]))


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (Feature("x", "<u4"), Feature("x", "<u4"), True),
        (Feature("x", "<f2", (3,)), Feature("x", "<f4", (3,), whole=True), True),
        (Feature("x", "<u4"), Feature("x", "<f8"), False),
        (Feature("x", "<u2"), Feature("x", "<u8"), False),  # an id is no hash
        (Feature("x", "<u2"), Feature("x", "<u2", (3,)), False),
        (Feature("x", "<u2", (2,)), Feature("x", "<u2", (3,)), True),
        (Feature("x", "<f4", (2,)), Feature("x", "<f4", (3,), whole=True), False),
    ],
)
def test_values_stand_in_for_each_other_by_type_and_shape(
    before: Feature, now: Feature, same: bool
) -> None:
    assert same_kind(before, now) is same


def test_a_vector_of_another_length_is_another_vector() -> None:
    longer = shop(("text: {type: vector, length: 8,", "text: {type: vector, length: 9,"))
    before, after = layout_of(BEFORE).item, layout_of(longer).item
    there = moved(filled(before, 1), before, after)
    assert not there["text"].any()
    assert there["words"].any()


def test_rows_of_every_locked_layout_are_read() -> None:
    schema = compiled(AFTER, BOTH)
    assert schema.layout.profile.writes is None
    for before, now in zip(groups_of(BEFORE), schema.layout.groups, strict=True):
        record = filled(before, 3)
        row = codec.encode(before, record, 77, 5)
        found = codec.decode(now, row)
        assert found is not None
        assert found.record.tobytes() == moved(record, before, now).tobytes()
        assert found.event_time_ms == 77
        served = serve_raw(now, row, 78)
        assert codec.layout_hash(served.row) == now.hash
        assert codec.row_version(served.row) == 5
        assert codec.decode_many(now, [row, None]).records[0] == found.record


def test_an_older_layouts_row_of_a_wrong_length_is_corrupt_for_every_reader() -> None:
    before, now = layout_of(BEFORE).profile, compiled(AFTER, BOTH).layout.profile
    row = codec.packed(before, before.defaults().tobytes() + b"\0", 77, 5)
    with pytest.raises(codec.RowCorrupt, match="are not a row of group 'profile'"):
        codec.decode(now, row)
    assert codec.decode_many(now, [row]).status.tolist() == [codec.RowStatus.CORRUPT]
    assert serve_raw(now, row, 78).status == codec.RowStatus.CORRUPT


def test_a_layout_that_no_lock_knows_is_not_read() -> None:
    alone = compiled(AFTER).layout
    before = layout_of(BEFORE).profile
    row = codec.encode(before, before.defaults(), 77, 5)
    assert codec.decode(alone.profile, row) is None


def test_an_older_revision_is_written_until_a_row_has_the_newer_layout() -> None:
    """So whoever knows the older one alone goes on reading what is written."""
    waiting, newest = compiled(AFTER, BOTH, write=1), compiled(AFTER, BOTH)
    old, now = layout_of(BEFORE).profile, waiting.layout.profile
    record = filled(now, 4)
    row = codec.encode(now, record, 77, 5)
    assert codec.layout_hash(row) == old.hash
    read = codec.decode(old, row)
    assert read is not None
    assert read.record.tobytes() == moved(record, now, old).tobytes()
    assert codec.layout_hash(codec.encode(now, record, 77, 6, over=row)) == old.hash

    by_others = codec.encode(newest.layout.profile, record, 77, 6, over=row)
    assert codec.layout_hash(by_others) == now.hash
    again = codec.encode(now, record, 77, 7, over=by_others)
    assert codec.layout_hash(again) == now.hash
    kept = codec.decode(now, again)
    assert kept is not None
    assert kept.record.tobytes() == record.tobytes()


@pytest.mark.parametrize(
    ("declared", "known", "write", "sentence"),
    [
        (AFTER, BOTH, 3, "schema_write: 3 is no revision: schema.lock has 2"),
        (AFTER, None, 1, "schema_write: 1 is no revision: schema.lock has 0"),
    ],
)
def test_what_the_lock_does_not_have_is_refused(
    declared: Declaration, known: Lock | None, write: int | None, sentence: str
) -> None:
    with pytest.raises(SchemaUnfit, match=sentence):
        compiled(declared, known, write)


@pytest.mark.parametrize(
    ("text", "known"),
    [(SHOP.replace("length: 40", "length: 41"), Lock().with_(BEFORE)), (SHOP, BOTH)],
)
def test_a_file_that_the_lock_beside_it_lacks_is_refused(
    tmp_path: Path, text: str, known: Lock
) -> None:
    """Also one that was locked once, when another one followed: going back is a revision."""
    file = tmp_path / "schema.yaml"
    file.write_text(text)
    lock.write(tmp_path / lock.NAME, known)
    with pytest.raises(SchemaUnfit, match=f"run `tandem schema lock --file {file}`"):
        load(file)


LESS = shop(("click: {half_lives: [none, 30d]}, purchase: {}}", "click: {}, purchase: {}}"))


def test_what_a_newer_revision_takes_out_stays_in_older_rows() -> None:
    """So the older one's readers, and going back, lose nothing."""
    known = Lock().with_(BEFORE).with_(LESS)
    old, waiting = layout_of(BEFORE).profile, compiled(LESS, known, write=1).layout.profile
    record = filled(old, 6)
    stored = codec.encode(old, record, 77, 1)
    read = codec.decode(waiting, stored)
    assert read is not None
    read.record["count_2"] += 1
    row = codec.encode(waiting, read.record, 78, 2, over=stored)
    again = codec.decode(old, row)
    assert again is not None
    assert again.record["count_2"] == record["count_2"] + 1
    changed = {n for n in old.dtype.names or () if (again.record[n] != record[n]).any()}
    assert changed == {"count_2"}


def test_a_row_of_a_revision_after_the_one_that_is_written_keeps_its_layout() -> None:
    third = shop(*GROWN, ("sums: {purchase: {}}", "sums: {purchase: {half_lives: [9d]}}"))
    known = BOTH.with_(third)
    second = layout_of(AFTER).profile
    stored = codec.encode(second, filled(second, 7), 77, 1)
    for write, expected in ((1, second.hash), (2, second.hash), (3, layout_of(third).profile.hash)):
        group = compiled(third, known, write).layout.profile
        read = codec.decode(group, stored)
        assert read is not None
        row = codec.encode(group, read.record, 78, 2, over=stored)
        assert codec.layout_hash(row) == expected, write


def test_histories_are_not_cut_for_who_reads_longer_ones() -> None:
    shorter = shop(("length: 40", "length: 20"))
    with pytest.raises(SchemaUnfit, match="longer histories"):
        compiled(shorter, Lock().with_(BEFORE).with_(shorter), write=1)


def test_events_are_accepted_once_the_revision_that_has_them_is_written() -> None:
    click = "  click: {id: 2, history: true}"
    more = shop((click, f"{click}\n  save: {{id: 9}}"))
    known = Lock().with_(BEFORE).with_(more)
    assert compiled(more, known, write=1).accepted.keys() == {1, 2, 6}
    assert compiled(more, known).accepted.keys() == {1, 2, 6, 9}
    assert len(known.revisions) == 2


def test_going_back_is_a_revision_that_needs_no_new_layouts() -> None:
    back = BOTH.with_(BEFORE)
    assert (len(back.revisions), back.layouts) == (3, BOTH.layouts)
    schema = compiled(BEFORE, back)
    row = codec.encode(layout_of(AFTER).profile, filled(layout_of(AFTER).profile, 5), 77, 5)
    assert codec.decode(schema.layout.profile, row) is not None


def test_a_file_is_compiled_with_the_lock_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text(SHOP)
    assert load(file).layout.profile.older == ()
    lock.write(tmp_path / lock.NAME, Lock().with_(BEFORE))
    schema = load(file)
    assert isinstance(schema, Schema)
    assert {i: event.name for i, event in schema.accepted.items()} == {
        1: "impression", 2: "click", 6: "purchase",
    }  # fmt: skip
