"""The values of one column of a file, as far as its format says what they are.

CSV has texts alone. JSON and Parquet also have whole numbers, which become their digits, and what
cannot be told from a text once it is one: fractions (is 7.0 the id 7?), true and false, lists. Of
those `kind` remembers that they were none. What a column should hold is checked afterwards
(`convert.py`), of all formats alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from models.data.own.wanted import LISTS, Wanted

TEXT, FRACTION, SWITCH, NESTED = range(4)
LIST_SHOWN = 200  # characters of a list where a single value is expected

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NUMBERS = {int, float}
_ISO = "%Y-%m-%dT%H:%M:%S%.f"


@dataclass(frozen=True)
class Cells:
    """`values`: String, or for columns of lists List(String) or List(Float64); null is missing.
    `kind`: uint8 per value, TEXT also for whole numbers; None: all are TEXT."""

    values: pl.Series
    kind: pl.Series | None = None

    def are(self, *kinds: int) -> pl.Series | None:
        """A mask of the values of these kinds; None where there cannot be any."""
        return None if self.kind is None else self.kind.is_in(list(kinds))


def of_texts(texts: Sequence[str]) -> Cells:
    """The values of a column of a CSV file. UnicodeEncodeError for what was no UTF-8."""
    return Cells(_without_empty(pl.Series(texts, dtype=pl.String)))


def of_json(values: Sequence[Any], wanted: Wanted, separator: str) -> Cells:
    """The values of a key of JSON objects; texts are split at `separator` where lists are wanted.
    UnicodeEncodeError for what cannot be UTF-8."""
    if wanted.kind == "bag":
        pairs: list[tuple[Any, int]] = [_bag(value, separator) for value in values]
        dtype: pl.DataType = pl.List(pl.String())
    elif wanted.kind in LISTS:
        pairs = [_vector(value, separator) for value in values]
        dtype = pl.List(pl.Float64())
    else:
        pairs = [_scalar(value) for value in values]
        dtype = pl.String()
    kinds = pl.Series([kind for _, kind in pairs], dtype=pl.UInt8)
    found = pl.Series([value for value, _ in pairs], dtype=dtype)
    return Cells(found, kinds)


def _scalar(value: Any) -> tuple[str | None, int]:
    if value is None:
        return None, TEXT
    of = type(value)
    if of is str:
        return value or None, TEXT
    if of is int:
        return str(value), TEXT
    if of is float:
        return repr(value), FRACTION
    if of is bool:
        return ("true" if value else "false"), SWITCH
    return json.dumps(value, ensure_ascii=False)[:LIST_SHOWN], NESTED


def _bag(value: Any, separator: str) -> tuple[list[str] | None, int]:
    if type(value) is str:
        return value.split(separator), TEXT
    if value is None or isinstance(value, dict):
        return (None, TEXT) if value is None else ([_scalar(value)[0] or ""], NESTED)
    pairs = [_scalar(each) for each in (value if type(value) is list else [value])]
    kind = max((kind for _, kind in pairs if kind != SWITCH), default=TEXT)
    return [text for text, _ in pairs if text is not None], kind


def _vector(value: Any, separator: str) -> tuple[list[float] | None, int]:
    if value is None:
        return None, TEXT
    if type(value) is str:
        text = value.strip()
        if not text:
            return None, TEXT
        cut = text.strip("[]").split("," if text.startswith("[") else separator)
        parts = [part.strip() for part in cut]
        if not all(map(_NUMBER.fullmatch, parts)):
            return [], NESTED
        return list(map(float, parts)), TEXT
    many = value if type(value) is list else [value]
    if not set(map(type, many)) <= _NUMBERS:
        return [], NESTED
    try:
        return list(map(float, many)), TEXT
    except OverflowError:
        return [], NESTED


def of_parquet(column: pl.Series, wanted: Wanted) -> Cells:
    """The values of a column of a Parquet file."""
    dtype = column.dtype
    if isinstance(dtype, pl.Array):
        column = column.arr.to_list()
        dtype = column.dtype
    if isinstance(dtype, pl.List):
        return _of_lists(column, dtype.inner, wanted)
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is not None:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        zone = "" if dtype.time_zone is None else "Z"
        return Cells(column.dt.cast_time_unit("us").dt.to_string(_ISO + zone))
    if dtype == pl.Boolean:
        return Cells(column.cast(pl.String), _all(SWITCH, column))
    if dtype == pl.Binary:  # some writers do not say that it is text
        try:
            return Cells(_without_empty(column.cast(pl.String)))
        except pl.exceptions.PolarsError:
            return _unfit(column)
    if dtype.is_float() or (isinstance(dtype, pl.Decimal) and dtype.scale):
        return Cells(column.cast(pl.String), _all(FRACTION, column))
    if dtype.is_nested() or dtype in (pl.Object, pl.Duration, pl.Time):
        return _unfit(column)
    return Cells(_without_empty(column.cast(pl.String)))


def _of_lists(column: pl.Series, inner: Any, wanted: Wanted) -> Cells:
    if wanted.kind not in LISTS or inner.is_nested():
        return _unfit(column)
    if wanted.kind != "bag":
        if inner.is_numeric():
            return Cells(column.cast(pl.List(pl.Float64)))
        return Cells(column.cast(pl.List(pl.String)).cast(pl.List(pl.Float64), strict=False))
    if inner.is_float():
        return Cells(column.cast(pl.List(pl.String)), _all(FRACTION, column))
    return Cells(column.cast(pl.List(pl.String)))


def _unfit(column: pl.Series) -> Cells:
    """Values that no column can hold, shown by their type."""
    shown = pl.Series([str(column.dtype)[:LIST_SHOWN]], dtype=pl.String)
    shown = shown.new_from_index(0, len(column))
    return Cells(
        shown.zip_with(column.is_not_null(), shown.clear(len(shown))), _all(NESTED, column)
    )


def _all(kind: int, column: pl.Series) -> pl.Series:
    return column.is_not_null().cast(pl.UInt8) * kind


def _without_empty(texts: pl.Series) -> pl.Series:
    """An empty text is a missing value: CSV has no other."""
    return without(texts, texts == "")


def without(values: pl.Series, mask: pl.Series) -> pl.Series:
    """Null where the mask holds."""
    return values.zip_with(~mask.fill_null(False), values.clear(len(values)))
