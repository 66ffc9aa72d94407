"""Packed rows: what was encoded comes back, and nothing else ever does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store import codec
from feature_store.codec import RowCorrupt, RowStatus
from models.data.worlds.films.schema import CLICKS, COUNTERS, GROUPS, ITEM_CLICKS, PROFILE
from models.schema.groups import Feature, FeatureGroup
from models.schema.progress import USER_DELIVERY

INT64 = st.integers(-(2**63), 2**63 - 1)
UINT64 = st.integers(0, 2**64 - 1)
groups = st.sampled_from(list(GROUPS.values()))


@st.composite
def grouped_records(draw: st.DrawFn) -> tuple[FeatureGroup, np.ndarray]:
    """A group and a record of arbitrary bits: the codec must not care what the values mean."""
    group = draw(groups)
    seed = draw(st.integers(0, 2**32 - 1))
    bits = np.random.default_rng(seed).bytes(group.dtype.itemsize)
    return group, np.frombuffer(bits, group.dtype).copy().reshape(())


@given(grouped_records(), INT64, UINT64)
def test_decode_returns_what_was_encoded(
    grouped: tuple[FeatureGroup, np.ndarray], event_time_ms: int, version: int
) -> None:
    group, record = grouped
    row = codec.encode(group, record, event_time_ms, version)
    decoded = codec.decode(group, row)
    assert decoded is not None
    assert decoded.record.tobytes() == record.tobytes()
    assert decoded.record.dtype == group.dtype
    assert decoded.event_time_ms == event_time_ms
    assert codec.row_version(row) == version
    assert codec.event_time_of(row) == event_time_ms


def test_a_decoded_record_can_be_changed_without_touching_the_row() -> None:
    row = codec.encode(PROFILE, PROFILE.defaults(), 1, 1)
    first = codec.decode(PROFILE, row)
    assert first is not None
    first.record[CLICKS] += 7
    second = codec.decode(PROFILE, row)
    assert second is not None
    assert (first.record[CLICKS], second.record[CLICKS]) == (7, 0)


@given(grouped_records(), st.data())
def test_one_flipped_bit_is_always_noticed(
    grouped: tuple[FeatureGroup, np.ndarray], data: st.DataObject
) -> None:
    group, record = grouped
    row = bytearray(codec.encode(group, record, 1_000, 1))
    row[data.draw(st.integers(0, len(row) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(RowCorrupt):
        codec.decode(group, bytes(row))


@given(grouped_records(), st.data())
def test_a_truncated_row_is_always_noticed(
    grouped: tuple[FeatureGroup, np.ndarray], data: st.DataObject
) -> None:
    group, record = grouped
    row = codec.encode(group, record, 1_000, 1)
    with pytest.raises(RowCorrupt):
        codec.decode(group, row[: data.draw(st.integers(0, len(row) - 1))])


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())
def test_a_row_of_another_schema_is_missing_not_misread(group: FeatureGroup) -> None:
    renamed = dataclasses.replace(
        group, features=(*group.features[:-1], dataclasses.replace(group.features[-1], name="new"))
    )
    assert renamed.dtype.itemsize == group.dtype.itemsize
    row = codec.encode(group, group.defaults(), 1_000, 1)
    assert codec.decode(renamed, row) is None


def test_encode_refuses_a_record_of_another_group() -> None:
    with pytest.raises(TypeError, match="profile"):
        codec.encode(PROFILE, COUNTERS.defaults(), 0, 1)


@given(st.lists(st.sampled_from(["row", "none", "empty", "corrupt", "other"]), max_size=20))
def test_decode_many_agrees_with_decode_on_every_row(kinds: list[str]) -> None:
    rows: list[bytes | None] = []
    for i, kind in enumerate(kinds):
        record = COUNTERS.defaults()
        record[ITEM_CLICKS] = i + 0.5
        row = codec.encode(COUNTERS, record, 1_000 + i, 1)
        rows.append(
            {
                "row": row,
                "none": None,
                "empty": b"",
                "corrupt": row[:-1],
                "other": codec.encode(PROFILE, PROFILE.defaults(), 5, 1),
            }[kind]
        )
    many = codec.decode_many(COUNTERS, rows)
    expected = {
        "row": RowStatus.FRESH,
        "none": RowStatus.MISSING,
        "empty": RowStatus.MISSING,
        "corrupt": RowStatus.CORRUPT,
        "other": RowStatus.SCHEMA_MISMATCH,
    }
    assert many.status.tolist() == [expected[kind] for kind in kinds]
    for i, kind in enumerate(kinds):
        assert many.event_times_ms[i] == (1_000 + i if kind == "row" else 0)
        assert many.records[ITEM_CLICKS][i] == (i + 0.5 if kind == "row" else 0)


def test_decode_many_fills_gaps_with_declared_defaults() -> None:
    group = FeatureGroup("g", "item", 1.0, (Feature("x", "<f4", default=2.5),))
    assert codec.decode_many(group, [None, None]).records["x"].tolist() == [2.5, 2.5]


@pytest.mark.parametrize(("stored", "next_version"), [(0, 1), (41, 42), (2**64 - 1, 1)])
def test_every_row_of_a_write_carries_the_next_version(stored: int, next_version: int) -> None:
    write = codec.guarded_write(
        "u",
        USER_DELIVERY,
        stored,
        {USER_DELIVERY: USER_DELIVERY.defaults(), PROFILE: PROFILE.defaults()},
        77,
    )
    assert {codec.row_version(row) for row in write.rows.values()} == {next_version}
    assert {codec.event_time_of(row) for row in write.rows.values()} == {77}
    assert write.expected_version == stored


@pytest.mark.parametrize("row", [None, b"", b"\xff" * 23])
def test_what_cannot_hold_a_version_has_version_zero(row: bytes | None) -> None:
    assert codec.row_version(row) == 0


def test_a_write_must_replace_its_guard_row() -> None:
    with pytest.raises(ValueError, match="user_delivery"):
        codec.guarded_write("u", USER_DELIVERY, 0, {PROFILE: PROFILE.defaults()}, 1)
