"""Reads the files of a data set's owner: found, whole, with the columns that are expected.

Everything that can be wrong with a file is caught here, at the edge, and told in a sentence that
names the file, the line and what to do: a missing file, a Git LFS pointer in place of data, a
truncated archive or table, an unknown or missing column, a value of another type, an id that two
spellings share, a key that stands twice, a time in another unit, a wrong checksum. What is only
suspicious (another number of rows than the owner's, rows that stand twice) is a `DataWarning`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import itertools
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from models.data.errors import DataError

Columns = Mapping[str, type[pl.DataType]]
Report = Callable[[str], None]  # told what a reader begins to do, for a progress line

LFS_POINTER = b"version https://git-lfs"
MAX_PACKED_BYTES = 1 << 29  # a larger gzip file is better unpacked than held in memory
TAIL_BYTES = 1 << 16
SHOWN = 60  # characters of a wrong value in a message
LATEST_S = 4_102_444_800  # the year 2100: a later number is no time in seconds
UNITS = {1_000: "milliseconds", 1_000_000: "microseconds", 1_000_000_000: "nanoseconds"}

csv.field_size_limit((1 << 31) - 1)  # no value is too long to be counted as one field


class DataWarning(UserWarning):
    """The data can be used, but something about it is not as its owner describes it."""


def quiet(stage: str) -> None:
    """A `Report` that says nothing."""


def locate(folder: Path, *names: str, required: bool = True) -> Path | None:
    """The first of `names` (or its .gz) in `folder` or in its subfolder `data`.

    DataError when none is there and it is `required`; else None.
    """
    for place in (folder, folder / "data"):
        for name in names:
            for path in (place / name, place / f"{name}.gz"):
                if path.is_file():
                    return path
    if not required:
        return None
    wanted = " or ".join(names)
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder: pass the one that holds {wanted}")
    raise DataError(f"{folder}: has no {wanted} (nor .gz): pass the folder that holds it")


def find(folder: Path, *names: str) -> Path:
    """`locate` for a file that must be there."""
    path = locate(folder, *names)
    assert path is not None
    return path


def check_file(path: Path) -> None:
    """DataError if the file cannot be read, is empty or is a Git LFS pointer."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise DataError(f"{path}: is empty: copy it anew")
    if start == LFS_POINTER:
        raise DataError(f"{path}: is a Git LFS pointer, not data: run `git lfs pull`")


def read_bytes(path: Path) -> bytes:
    """Contents of a file, unpacked if it is a .gz; DataError if it is damaged or truncated."""
    check_file(path)
    if path.suffix != ".gz":
        return path.read_bytes()
    if path.stat().st_size > MAX_PACKED_BYTES:
        raise DataError(f"{path}: is too large to unpack in memory: run `gunzip` on it first")
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: truncated or damaged gzip file ({error}): copy it anew"
        ) from error


def lines_of(path: Path, *encodings: str) -> list[str]:
    """Lines of a file in the first of `encodings` (UTF-8 if none is named) that it is valid in.

    Only a line feed ends a line: of the other line ends of Unicode some are letters elsewhere.
    """
    content = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    for encoding in ("utf-8", *encodings):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            continue
        return [one.removesuffix("\r") for one in text.removesuffix("\n").split("\n")]
    raise DataError(f"{path}: line {line}: is not UTF-8: save the file in that encoding")


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


def place_of(path: Path, row: int, header: bool | None = True) -> str:
    """File and line in which data row `row` (from 0) of a table begins.

    With a header values may be quoted, and quoted values may hold line ends. None: rows were left
    out when the file was read, so that their lines are not known.
    """
    if header is None:
        return f"{path}"
    return f"{path}: line {_line_of(path, row) if header else row + 1}"


def _line_of(path: Path, row: int) -> int:
    source = read_bytes(path) if path.suffix == ".gz" else path
    with _open_text(source) as file:
        first = file.readline()
        rows = csv.reader(_without_nul(file), delimiter="\t" if "\t" in first else ",")
        for _ in itertools.islice(rows, row):
            pass
        return rows.line_num + 2


def _open_text(source: Path | bytes) -> io.TextIOBase:
    if isinstance(source, bytes):
        return io.TextIOWrapper(io.BytesIO(source), encoding="utf-8", errors="replace")
    return source.open(encoding="utf-8", errors="replace")


def _header(path: Path, source: Path | bytes, columns: Columns, separator: str) -> list[str]:
    """Names in the order of the file, stripped of blanks, equal as a set to `columns`."""
    with _open_text(source) as file:
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
    with _open_text(source) as file:
        rows = csv.reader(_without_nul(file), delimiter=separator)
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


def _without_nul(file: io.TextIOBase) -> Iterator[str]:
    return (line.replace("\0", "") for line in file)


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
) -> tuple[pl.DataFrame, list[int]]:
    """Several tables of one form below each other, and the rows of each; `label` must be 0 or 1."""
    frames = []
    for name in names:
        report(f"reading {name}")
        path = find(folder, name)
        frames.append(read_table(path, columns, nullable, transform=transform))
        check_values(path, frames[-1][label], (0, 1))
    return pl.concat(frames), [len(f) for f in frames]


def check_values(
    path: Path, values: pl.Series, allowed: Sequence[int | float], header: bool | None = True
) -> None:
    """DataError naming the line of the first value that is none of `allowed`."""
    bad = ~values.is_in(pl.Series(allowed, dtype=values.dtype).implode())
    if bad.any():
        at = int(bad.arg_max() or 0)
        raise DataError(
            f"{place_of(path, at, header)}: {values.name} is {values[at]}, expected "
            f"{' or '.join(map(str, allowed))}: remove the row or copy the file anew"
        )


def check_times(
    path: Path, values: pl.Series, header: bool | None = True, unit: str = "seconds"
) -> None:
    """DataError for the first value that is no time of 1970 to 2100, in seconds or milliseconds.

    In another unit every decay, split and window would be wrong, without a word.
    """
    latest = LATEST_S * (1_000 if unit == "milliseconds" else 1)
    bad = (values < 0) | (values >= latest)
    if not bad.any():
        return
    at = int(bad.arg_max() or 0)
    like = next((name for by, name in UNITS.items() if 0 < values[at] < by * LATEST_S), "")
    looks = f" (it looks like {like})" if like else ""
    raise DataError(
        f"{place_of(path, at, header)}: {values.name} is {values[at]}, expected"
        f" {unit} since 1970{looks}: convert the column to {unit}"
    )


def check_unique(path: Path, keys: pl.Series, header: bool | None = True) -> None:
    """DataError for a side table in which two rows describe the same thing."""
    again = ~keys.is_first_distinct()
    if again.any():
        at = int(again.arg_max() or 0)
        raise DataError(
            f"{place_of(path, at, header)}: {keys.name} {keys[at]} stands there a second time:"
            " keep one of the rows"
        )


def once(path: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that are equal in all columns once, as an event counts once however often it is sent."""
    unique = rows.unique(maintain_order=True)
    if len(unique) < len(rows):
        warnings.warn(
            DataWarning(f"{path}: {len(rows) - len(unique)} rows stand twice and count once"),
            stacklevel=2,
        )
    return unique


def check_checksums(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """Compare those files of `expected` (name -> "md5:…" or "git:…") that are in `folder`.

    Returns the names that were compared; DataError at the first that differs.
    """
    compared = []
    for name, checksum in expected.items():
        path = next((p for p in (folder / name, folder / "data" / name) if p.is_file()), None)
        if path is None and (packed := folder / f"{name}.gz").is_file():
            path = packed
        if path is None:
            continue
        check_file(path)
        kind = checksum.partition(":")[0]
        found = f"{kind}:{_digest(path, kind, unpack=path.name != name)}"
        if found != checksum:
            raise DataError(
                f"{path}: checksum is {found}, the owner's is {checksum}: copy it anew, or pass "
                "--skip-checksums if it differs on purpose"
            )
        compared.append(name)
    return compared


def _digest(path: Path, kind: str, unpack: bool) -> str:
    """Hex digest of the (unpacked) contents: md5, or sha1 as Git names a blob."""
    if kind == "md5" and not unpack:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    content = read_bytes(path) if unpack else path.read_bytes()
    if kind == "md5":
        return hashlib.md5(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
