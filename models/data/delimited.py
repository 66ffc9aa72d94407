"""Reads delimited files as frames with exactly the columns and types that are expected.

What cannot be read is told in a sentence that names the file, the line and what to do.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from models.data.errors import DataError
from models.data.source_files import (
    Report,
    check_file,
    check_values,
    find,
    lines_of,
    open_text,
    place_of,
    quiet,
    read_bytes,
    without_nul,
)

Columns = Mapping[str, type[pl.DataType]]
TAIL_BYTES = 1 << 16
SHOWN = 60  # characters of a wrong value in a message


def read_lines(path: Path, separator: str, columns: Columns, *encodings: str) -> pl.DataFrame:
    """Rows of a small file without header, with every value of its column's type."""
    rows = []
    for number, line in enumerate(lines_of(path, *encodings), 1):
        row = line.split(separator)
        if len(row) != len(columns):
            raise DataError(
                f"{path}: line {number}: {len(row)} fields, expected {len(columns)} separated by "
                f"{separator!r}: the file is truncated or damaged, copy it anew"
            )
        rows.append(row)
    text = pl.DataFrame(rows, schema=list(columns), orient="row")
    return text.select(
        whole_numbers(path, text[name]) if dtype.is_integer() else text[name].cast(dtype)
        for name, dtype in columns.items()
    )


def whole_numbers(path: Path, text: pl.Series) -> pl.Series:
    """int64 of one value per line; DataError for what is none, or is written as no number is."""
    numbers = text.cast(pl.Int64, strict=False)
    bad = numbers.is_null() | (numbers.cast(pl.String) != text)
    if bad.any():
        at = int(bad.arg_max() or 0)
        place = place_of(path, at, header=False)
        _check_spelling(place, text.name, text[at])
        raise DataError(f"{place}: {text.name} is {text[at][:SHOWN]!r}, expected a whole number")
    return numbers


def _check_spelling(place: str, name: str, value: str) -> None:
    """DataError for a number that would be taken for the same as another spelling of it."""
    digits = value.strip().lstrip("+-")
    if digits.isdecimal() and value.strip() != str(int(digits)):
        raise DataError(
            f"{place}: {name} is {value!r}: ids are whole numbers here, so it would be taken for"
            f" {int(value)}: write ids without leading zeros and signs, or number them anew"
        )


def read_table(
    path: Path,
    columns: Columns,
    nullable: Collection[str] = (),
    separator: str = ",",
    header: bool = True,
    transform: Callable[[pl.LazyFrame], pl.LazyFrame] | None = None,
) -> pl.DataFrame:
    """A delimited file as a frame with exactly these columns (any order in the file) and types.

    Values may be missing only in `nullable` columns, floats may not be NaN. `transform` is applied
    while the file streams, so that wide text need not be held; it must keep the row order. Without
    `header` the columns come in the order of `columns`.
    """
    check_file(path)
    packed = path.suffix == ".gz"
    source: Path | bytes = read_bytes(path) if packed else path
    if packed and not source:
        raise DataError(f"{path}: is empty: copy it anew")
    names = _header(path, source, columns, separator) if header else list(columns)
    _check_last_line(path, source, len(names), separator)

    def scan(types: Columns) -> pl.LazyFrame:
        frame = pl.scan_csv(
            source,
            has_header=False,
            skip_lines=int(header),  # its names may carry blanks
            separator=separator,
            schema={n: types[n] for n in names},
            quote_char='"' if header else None,
            raise_if_empty=False,
        )
        return frame.select(list(columns))

    lazy = scan(columns) if transform is None else transform(scan(columns))
    try:
        frame = lazy.collect(engine="streaming")
        _check_ids(path, columns, scan, header)
    except pl.exceptions.PolarsError as error:
        text = scan(dict.fromkeys(columns, pl.String))
        _explain(path, source, text, columns, names, separator, header)
        raise DataError(f"{path}: not a table of {len(names)} columns ({error})") from error
    if frame.is_empty():
        raise DataError(f"{path}: has no rows: copy it anew")
    _check_present(path, frame, nullable, header)
    return frame


def _check_ids(
    path: Path, columns: Columns, scan: Callable[[Columns], pl.LazyFrame], header: bool
) -> None:
    """DataError for an id that is read as a number and written as no other number is."""
    ids = [n for n, dtype in columns.items() if dtype.is_integer() and _names_ids(n)]
    if not ids:
        return
    odd = pl.col(ids).str.strip_chars().str.contains(r"^(\+|-?0\d|-0$)")
    rows = scan({**columns, **dict.fromkeys(ids, pl.String)}).select(ids).with_row_index()
    found = rows.filter(pl.any_horizontal(odd)).head(1).collect(engine="streaming")
    for name in ids if len(found) else ():
        _check_spelling(place_of(path, found["index"][0], header), name, found[name][0])


def _names_ids(column: str) -> bool:
    return column in ("user", "item") or column.lower().endswith("id")


def _header(path: Path, source: Path | bytes, columns: Columns, separator: str) -> list[str]:
    """Names in the order of the file, stripped of blanks, equal as a set to `columns`."""
    with open_text(source) as file:
        first = file.readline()
    names = [n.strip().lstrip("\ufeff") for n in next(csv.reader([first], delimiter=separator), [])]
    missing = [c for c in columns if c not in names]
    unknown = [n for n in names if n not in columns]
    for what, which in (("has no column", missing), ("has the unknown column", unknown)):
        if which:
            raise DataError(
                f"{path}: line 1: {what} {which[0]!r}; expected {', '.join(columns)}: "
                "check that this is the owner's file, unchanged"
            )
    if len(set(names)) < len(names):
        raise DataError(f"{path}: line 1: a column is named twice: {', '.join(names)}")
    return names


def _check_last_line(path: Path, source: Path | bytes, fields: int, separator: str) -> None:
    """A file cut within a line ends in a line with too few fields."""
    if isinstance(source, bytes):
        tail = source[-TAIL_BYTES:]
    else:
        with source.open("rb") as file:
            file.seek(max(0, source.stat().st_size - TAIL_BYTES))
            tail = file.read()
    lines = tail.decode("utf-8", errors="replace").rstrip("\r\n").split("\n")
    if len(lines) == 1 and len(tail) == TAIL_BYTES:
        return  # one line longer than the tail: its beginning is not known
    try:
        found = len(next(csv.reader([lines[-1]], delimiter=separator), []))
    except csv.Error as error:
        raise DataError(
            f"{path}: the last line holds carriage returns ({error}): save the file with line feeds"
            " as line ends"
        ) from error
    if found < fields:
        raise DataError(
            f"{path}: the last line has {found} of {fields} fields: the file is truncated, "
            "copy it anew"
        )


def _explain(
    path: Path,
    source: Path | bytes,
    text: pl.LazyFrame,
    columns: Columns,
    names: Sequence[str],
    separator: str,
    header: bool,
) -> None:
    """Raise a DataError for the first line that cannot be read as `columns`, if one is found."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as raw:
        for number, line in enumerate(raw, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                raise DataError(
                    f"{path}: line {number}: is not UTF-8: save the file in that encoding"
                ) from None
    short = ""
    with open_text(source) as file:
        rows = csv.reader(without_nul(file), delimiter=separator)
        begins = 1
        for row in rows:
            if len(row) != len(names):
                wrong = f"{path}: line {begins}: {len(row)} fields, expected {len(names)}"
                if len(row) > len(names):
                    raise DataError(wrong)
                short = short or wrong
            begins = rows.line_num + 1
    try:
        _explain_types(path, text, columns, header)
    except pl.exceptions.PolarsError:  # not even a table of text
        if short:
            raise DataError(f"{short}: a row is cut, or a quote is not closed") from None
        raise


def _explain_types(path: Path, text: pl.LazyFrame, columns: Columns, header: bool) -> None:
    for name, dtype in columns.items():
        bad = (
            text.select(name)
            .with_row_index()
            .filter(pl.col(name).is_not_null() & pl.col(name).cast(dtype, strict=False).is_null())
            .head(1)
            .collect(engine="streaming")
        )
        if len(bad):
            place, value = place_of(path, bad["index"][0], header), bad[name][0][:SHOWN]
            raise DataError(f"{place}: {name} is {value!r}, expected {dtype.__name__}")


def _check_present(
    path: Path, frame: pl.DataFrame, nullable: Collection[str], header: bool
) -> None:
    for name in frame.columns:
        values = frame[name]
        bad = None
        if name not in nullable and values.null_count():
            bad, what = values.is_null(), "missing"
        elif values.dtype.is_float() and values.is_nan().any():
            bad, what = values.is_nan().fill_null(False), "NaN"
        if bad is not None:
            place = place_of(path, int(bad.arg_max() or 0), header)
            raise DataError(f"{place}: {name} is {what}: check that this is the owner's file")


def read_parts(
    folder: Path,
    names: Sequence[str],
    columns: Columns,
    label: str,
    nullable: Collection[str] = (),
    transform: Callable[[pl.LazyFrame], pl.LazyFrame] | None = None,
    report: Report = quiet,
) -> tuple[pl.DataFrame, np.ndarray]:
    """Several tables of one form below each other, and int8[N]: the place in `names` of the table
    that a row comes from; `label` must be 0 or 1."""
    frames = []
    for name in names:
        report(f"reading {name}")
        path = find(folder, name)
        frames.append(read_table(path, columns, nullable, transform=transform))
        check_values(path, frames[-1][label], (0, 1))
    part = np.repeat(np.arange(len(frames), dtype=np.int8), [len(f) for f in frames])
    return pl.concat(frames), part
