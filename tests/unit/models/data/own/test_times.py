"""Times: units by size, zones, and local times that the clocks skip or repeat."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.errors import DataError
from models.data.own.times import A_DATE, NO_TIME, NO_ZONE, check_zone, field_faults, instants

MAY = int(datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()) * 1000
BERLIN = "Europe/Berlin"


def read(text: str, zone: str | None = None) -> tuple[int | None, str]:
    """The instant of one text, and why there is none."""
    ms, faults = instants(pl.Series([text, None, "1e10"]), zone)
    assert ms[2] == 10**13
    assert ms[1] is None
    for _, mask in faults:
        assert mask.to_list()[1:] == [False, False]
    return ms[0], next((why for why, mask in faults if mask[0]), "")


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1714564800", MAY), ("1714564800000", MAY), ("1714564800.25", MAY + 250),
        (" 1714564800 ", MAY), ("1.7145648e9", MAY), ("99999999999", 99_999_999_999_000),
        ("100000000000", 100_000_000_000), ("0", 0), ("-86400", -86_400_000),
        ("2024-05-01T12:00:00Z", MAY), ("2024-05-01 12:00:00Z", MAY), ("2024-05-01T12:00z", MAY),
        ("2024-05-01T14:00:00+02:00", MAY), ("2024-05-01T14:00:00+0200", MAY),
        ("2024-05-01T14:00:00 +02", MAY), ("2024-05-01T06:30:00-05:30", MAY),
        ("2024-05-01T12:00:00.123456789Z", MAY + 123), ("2024-05-01T12:00:00,5Z", MAY + 500),
        ("2024-05-01 12:00:00 UTC", MAY), ("1969-12-31T23:59:59Z", -1000),
    ],
)  # fmt: skip
def test_what_is_a_time(text: str, ms: int) -> None:
    assert read(text) == (ms, "")
    assert read(text, BERLIN) == (ms, "")


@pytest.mark.parametrize(
    "text",
    ["soon", "nan", "inf", "1e300", "2024-13-01T00:00:00Z", "2024-02-30T00:00:00Z", "12:00", "-",
     "2024-05-01T24:00:00Z", "2024-05-01T12Z", "20240501T120000Z", "01.05.2024",
     "\u0662\u0660\u0662\u0664-05-01"],
)  # fmt: skip
@pytest.mark.parametrize("zone", [None, BERLIN])
def test_what_is_none(text: str, zone: str | None) -> None:
    assert read(text, zone) == (None, NO_TIME)


@pytest.mark.parametrize(
    "text",
    ["20240501", "19700101", " 20991231 ", "20240501.0", "+20240501", "18870228", "202405",
     "202405011200", "2.0240501e7"],
)  # fmt: skip
def test_a_date_that_is_written_as_a_number_is_no_time_of_1970(text: str) -> None:
    assert read(text) == (None, A_DATE)


@pytest.mark.parametrize(
    "number",
    [20_241_301, 20_240_532, 20_240_501.5, 2_024_050_112, 1_806_150_312, 202_413, 17_991_231],
)  # fmt: skip
def test_a_number_that_is_no_date_counts_seconds(number: float) -> None:
    assert read(str(number)) == (round(number * 1000), "")


def test_local_times_need_their_zone() -> None:
    assert read("2024-05-01T14:00:00") == (None, NO_ZONE)
    assert read("2024-05-01T14:00:00", BERLIN) == (MAY, "")
    assert read("2024-05-01") == (None, NO_ZONE)
    assert read("2024-05-01", BERLIN) == (MAY - 14 * 3_600_000, "")


@pytest.mark.parametrize("text", ["2024-03-31T02:30:00", "2024-10-27T02:30:00"])
def test_local_times_that_the_clocks_skip_or_repeat_are_refused(text: str) -> None:
    ms, why = read(text, BERLIN)
    assert ms is None
    assert "that the clocks of Europe/Berlin skip or show twice" in why
    assert read(text + "+01:00", BERLIN)[1] == ""


def test_the_minutes_around_a_change_of_clocks_are_an_hour_apart() -> None:
    before, after = (read(f"2024-03-31T0{t}", BERLIN)[0] for t in ("1:59:00", "3:00:00"))
    assert before is not None
    assert after == before + 60_000


def test_units_are_told_by_each_value_alone() -> None:
    ms, _ = instants(pl.Series(["1714564800", "1714564800001", "2024-05-01T12:00:00.002Z"]), None)
    assert ms.to_list() == [MAY, MAY + 1, MAY + 2]


@settings(max_examples=50, deadline=None)
@given(
    at=st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)),
    minutes=st.integers(-14 * 60, 14 * 60),
)
def test_iso_texts_with_offsets_are_their_instants(at: datetime, minutes: int) -> None:
    there = at.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=minutes)))
    assert read(there.isoformat())[0] == int(there.timestamp()) * 1000


def test_fields_may_lie_in_the_future_and_before_1970() -> None:
    texts = pl.Series(["2199-12-31T00:00:00Z", "1813-01-28T00:00:00Z", "1999", "1714564800000000"])
    ms, faults = instants(texts, None)
    assert not any(mask.any() for _, mask in faults)
    near, far = (mask.to_list() for _, mask in field_faults(ms))
    assert near == [False, False, True, False]
    assert far == [False, False, False, True]


def test_a_zone_is_one_of_the_iana() -> None:
    check_zone("Asia/Kolkata")
    with pytest.raises(
        DataError, match=r"Europe/Berln: is no time zone.*did you mean Europe/Berlin"
    ):
        check_zone("Europe/Berln")
