"""What is served for a row: data while fresh, declared defaults (and why) otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store import codec, reader
from feature_store.codec import RowStatus
from models.data.worlds.films.schema import COUNTERS, PROFILE
from models.schema.groups import Feature, FeatureGroup
from tests.served import serve_one

GROUP = FeatureGroup("g", "item", 60.0, (Feature("x", "<f8", default=-3.0),))
NOW_MS = 1_700_000_000_000


def _row(x: float, event_time_ms: int) -> bytes:
    record = GROUP.defaults()
    record["x"] = x
    return codec.encode(GROUP, record, event_time_ms, 1)


def test_a_fresh_row_is_served_with_its_age() -> None:
    served = serve_one(GROUP, _row(1.5, NOW_MS - 2_500), NOW_MS)
    assert (float(served.record["x"]), served.age_s, served.status) == (1.5, 2.5, RowStatus.FRESH)


def test_a_row_is_served_up_to_its_ttl_and_not_a_millisecond_longer() -> None:
    at, past = NOW_MS - 60_000, NOW_MS - 60_001
    assert serve_one(GROUP, _row(1.5, at), NOW_MS).status is RowStatus.FRESH
    served = serve_one(GROUP, _row(1.5, past), NOW_MS)
    assert served == (GROUP.defaults(), -1.0, RowStatus.EXPIRED)


def test_an_event_from_the_future_has_age_zero() -> None:
    served = serve_one(GROUP, _row(1.5, NOW_MS + 9_000), NOW_MS)
    assert (float(served.record["x"]), served.age_s, served.status) == (1.5, 0.0, RowStatus.FRESH)


@pytest.mark.parametrize(
    ("row", "status"),
    [
        (None, RowStatus.MISSING),
        (b"", RowStatus.MISSING),
        (_row(1.5, NOW_MS)[:-1], RowStatus.CORRUPT),
        (b"x", RowStatus.CORRUPT),
        (_row(1.5, NOW_MS)[:-1] + b"\xff", RowStatus.CORRUPT),
        (codec.encode(PROFILE, PROFILE.defaults(), NOW_MS, 1), RowStatus.SCHEMA_MISMATCH),
    ],
)
def test_what_is_not_a_whole_row_of_this_schema_is_served_as_the_default(
    row: bytes | None, status: RowStatus
) -> None:
    served = serve_one(GROUP, row, NOW_MS)
    assert (float(served.record["x"]), served.age_s, served.status) == (-3.0, -1.0, status)


def test_a_raw_row_is_passed_on_untouched_only_while_fresh() -> None:
    fresh, old = _row(1.5, NOW_MS - 1_000), _row(1.5, 0)
    assert reader.serve_raw(GROUP, fresh, NOW_MS) == (fresh, 1.0, RowStatus.FRESH)
    assert reader.serve_raw(GROUP, old, NOW_MS) == (b"", -1.0, RowStatus.EXPIRED)


rows = st.one_of(
    st.none(),
    st.just(b""),
    st.binary(max_size=60),
    st.builds(_row, st.floats(0, 10), st.integers(NOW_MS - 90_000, NOW_MS + 30_000)),
)


@given(st.lists(rows, max_size=30))
def test_many_rows_are_judged_as_each_alone(many: list[bytes | None]) -> None:
    served = reader.serve_many(GROUP, many, NOW_MS)
    for i, row in enumerate(many):
        alone = serve_one(GROUP, row, NOW_MS)
        assert served.records["x"][i] == alone.record["x"]
        assert served.ages_s[i] == alone.age_s
        assert served.status[i] == alone.status
        raw = reader.serve_raw(GROUP, row, NOW_MS)
        assert (raw.age_s, raw.status) == (alone.age_s, alone.status)


def test_five_hundred_missing_counters_are_five_hundred_defaults() -> None:
    served = reader.serve_many(COUNTERS, [None] * 500, NOW_MS)
    np.testing.assert_array_equal(served.records, np.full(500, COUNTERS.defaults()))
    assert (served.status == RowStatus.MISSING).all()
