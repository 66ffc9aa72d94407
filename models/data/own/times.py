"""Times as owners write them, in milliseconds since 1970.

A number counts seconds if its amount is below 1e11 (until the year 5138), and milliseconds from
there on (since 1973), each value for itself. A text is ISO 8601, a date alone being its midnight;
without a zone or offset it is a local time, and only as good as the zone that the caller names.
"""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import available_timezones

import polars as pl

from models.data.errors import DataError
from models.data.own.cells import without
from models.nearest import nearest

MS_FROM = 1e11
DAY_MS = 86_400_000
EARLIEST_MS = DAY_MS  # of an event: an earlier time is a number of something else
# Of a field, whose instants may lie in any year: the years 1 to 2200.
FIELD_MS = tuple(int(datetime(y, 1, 1, tzinfo=UTC).timestamp()) * 1_000 for y in (1, 2200))

NO_TIME = (
    "is no time: expected seconds or milliseconds since 1970, or a text such as"
    " 2024-05-01T12:00:00Z"
)
NO_ZONE = "is a local time: name its zone with --timezone (Europe/Berlin, say)"
TOO_EARLY = "lies before 1970-01-02: expected seconds or milliseconds since 1970, or an ISO text"
TOO_LATE = "lies more than a day after now: expected seconds or milliseconds since 1970"
NEAR_ZERO = "lies within a day of 1970-01-01, as a year or an empty value does: expected a time"
NO_YEAR = "lies outside the years 1 to 2200: expected seconds or milliseconds since 1970"

A_DATE = "is a date written as a number: write it as 2024-05-01, or as seconds since 1970"

Fault = tuple[str, pl.Series]  # why a value is refused, and the mask of those that are

_ISO = (
    r"^(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[Tt ](?P<minute>[0-9]{2}:[0-9]{2})(?P<second>:[0-9]{2})?(?:[.,](?P<part>[0-9]{1,9}))?)?"
    r" ?(?P<zone>[Zz]|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?$"
)


def check_zone(zone: str) -> None:
    """DataError for what is no time zone of the IANA."""
    try:
        pl.Series([datetime(2024, 1, 1)]).dt.replace_time_zone(zone)
    except pl.exceptions.PolarsError:
        near = nearest(zone, available_timezones())
        raise DataError(
            f"--timezone {zone}: is no time zone{near}: write its name as the IANA does,"
            " Europe/Berlin say"
        ) from None


def instants(texts: pl.Series, zone: str | None) -> tuple[pl.Series, list[Fault]]:
    """int64 ms of each text, null where it is none or missing, and why."""
    texts = texts.str.strip_chars()
    number = texts.cast(pl.Float64, strict=False)
    seconds = number.abs() < MS_FROM
    ms = pl.select(
        pl.when(seconds).then(number * 1_000).otherwise(number).round().cast(pl.Int64, strict=False)
    ).to_series()
    faults: list[Fault] = []
    local = None
    if (texts.is_not_null() & number.is_null()).any():
        of_text, local, shifted = _iso(texts, zone)
        ms = ms.zip_with(number.is_not_null(), of_text)
        if zone is None:
            faults.append((NO_ZONE, local))
        else:
            why = (
                f"is a local time that the clocks of {zone} skip or show twice: write it with its"
                " offset (+01:00, say)"
            )
            faults.append((why, shifted))
    faults.append((A_DATE, dates := _dates(number)))
    ms = without(ms, dates)
    bad = texts.is_not_null() & ms.is_null()
    for _, mask in faults:
        bad &= ~mask
    return ms, [*faults, (NO_TIME, bad)]


def _iso(texts: pl.Series, zone: str | None) -> tuple[pl.Series, pl.Series, pl.Series]:
    """ms of ISO texts; masks of the local times, and of those of them that are no or two times."""
    parts = texts.str.extract_groups(_ISO).struct.unnest()
    text = pl.concat_str(
        pl.col("date"),
        pl.lit("T"),
        pl.col("minute").fill_null("00:00"),
        pl.col("second").fill_null(":00"),
        pl.lit("."),
        pl.col("part").fill_null("0"),
    )
    digits = pl.col("zone").str.replace_all(r"[^0-9]", "").str.pad_end(4, "0")
    minutes = digits.str.slice(0, 2).cast(pl.Int64, strict=False) * 60 + digits.str.slice(2).cast(
        pl.Int64, strict=False
    )
    east = pl.when(pl.col("zone").str.starts_with("-")).then(-minutes).otherwise(minutes)
    times = parts.select(
        at=text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False),
        east=east.fill_null(0),
        local=pl.col("zone").is_null(),
    )
    at = times["at"]
    utc = at.dt.epoch("us") - times["east"] * 60_000_000
    is_local = times["local"] & at.is_not_null()
    if zone is not None:
        there = at.dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
        in_zone = there.dt.epoch("us")
    else:
        in_zone = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(at))
    us = in_zone.zip_with(is_local, utc)
    return (us + 500) // 1_000, is_local, is_local & us.is_null()


def _dates(number: pl.Series) -> pl.Series:
    """Which are a month, a day or a minute written as YYYYMM, YYYYMMDD or YYYYMMDDhhmm: read as
    seconds or milliseconds, they would be times of 1970 or 1976."""
    whole = number.round().cast(pl.Int64, strict=False).fill_null(0)

    def day(of: pl.Series, first: int, last: int) -> pl.Series:
        year, month = of // 10_000, of // 100 % 100
        in_year = year.is_between(first, last) & month.is_between(1, 12)
        return in_year & (of % 100).is_between(1, 31)

    minute = day(whole // 10_000, 1900, 2099) & (whole // 100 % 100 < 24) & (whole % 100 < 60)
    found = day(whole, 1800, 2199) | day(whole * 100 + 1, 1800, 2199) | minute
    return (found & (number == whole)).fill_null(False)


def event_faults(ms: pl.Series, now_ms: int) -> list[Fault]:
    """Times at which no event can have been."""
    return [
        (TOO_EARLY, (ms < EARLIEST_MS).fill_null(False)),
        (TOO_LATE, (ms > now_ms + DAY_MS).fill_null(False)),
    ]


def field_faults(ms: pl.Series) -> list[Fault]:
    """Times that no field can mean. Fields may lie in the future: what is to be released."""
    first, last = FIELD_MS
    return [
        (NEAR_ZERO, (ms.abs() < DAY_MS).fill_null(False)),
        (NO_YEAR, ((ms < first) | (ms >= last)).fill_null(False)),
    ]
