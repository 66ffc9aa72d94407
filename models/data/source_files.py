"""Finds the files of a data set's owner, and checks that they are whole and what they hold.

Everything that can be wrong with a file is caught here and in `delimited.py`, at the edge, and told
in a sentence that names the file, the line and what to do: a missing file, a Git LFS pointer in
place of data, a truncated archive or table, an unknown or missing column, a value of another type,
an id that two spellings share, a key that stands twice, a time in another unit, a wrong checksum.
What is only suspicious (another number of rows than the owner's, rows that stand twice) is a
`DataWarning`.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from models.data.errors import DataError

Report = Callable[[str], None]  # told what a reader begins to do, for a progress line

LFS_POINTER = b"version https://git-lfs"
MAX_PACKED_BYTES = 1 << 29  # a larger gzip file is better unpacked than held in memory
LATEST_S = 4_102_444_800  # the year 2100: a later number is no time in seconds
UNITS = {1_000: "milliseconds", 1_000_000: "microseconds", 1_000_000_000: "nanoseconds"}

csv.field_size_limit((1 << 31) - 1)  # no value is too long to be counted as one field


class DataWarning(UserWarning):
    """The data can be used, but something about it is not as its owner describes it."""


def suspect(text: str) -> None:
    """Warn of what is only suspicious."""
    warnings.warn(DataWarning(text), stacklevel=3)


def quiet(stage: str) -> None:
    """A `Report` that says nothing."""


def locate(folder: Path, *names: str) -> Path | None:
    """The first of `names` (or its .gz) in `folder` or in its subfolder `data`; None without."""
    for place in (folder, folder / "data"):
        for name in names:
            for path in (place / name, place / f"{name}.gz"):
                if path.is_file():
                    return path
    return None


def find(folder: Path, *names: str) -> Path:
    """`locate` for a file that must be there: DataError."""
    if (path := locate(folder, *names)) is not None:
        return path
    wanted = " or ".join(names)
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder: pass the one that holds {wanted}")
    raise DataError(f"{folder}: has no {wanted} (nor .gz): pass the folder that holds it")


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
    with open_text(source) as file:
        first = file.readline()
        rows = csv.reader(without_nul(file), delimiter="\t" if "\t" in first else ",")
        for _ in itertools.islice(rows, row):
            pass
        return rows.line_num + 2


def open_text(source: Path | bytes) -> io.TextIOBase:
    """The text of a file, or of the contents of one; what is not UTF-8 is replaced."""
    if isinstance(source, bytes):
        return io.TextIOWrapper(io.BytesIO(source), encoding="utf-8", errors="replace")
    return source.open(encoding="utf-8", errors="replace")


def without_nul(file: io.TextIOBase) -> Iterator[str]:
    """The lines, without the bytes that no csv reader takes."""
    return (line.replace("\0", "") for line in file)


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
    meant = next((name for by, name in UNITS.items() if 0 < values[at] < by * LATEST_S), "")
    looks = f" (it looks like {meant})" if meant else ""
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
        suspect(f"{path}: {len(rows) - len(unique)} rows stand twice and count once")
    return unique


def check_checksums(folder: Path, expected: Mapping[str, str]) -> None:
    """Compare those files of `expected` (name -> "md5:…" or "git:…") that are in `folder`.

    DataError at the first that differs.
    """
    for name, checksum in expected.items():
        if (path := locate(folder, name)) is None:
            continue
        check_file(path)
        kind = checksum.partition(":")[0]
        found = f"{kind}:{_digest(path, kind, unpack=path.name != name)}"
        if found != checksum:
            raise DataError(
                f"{path}: checksum is {found}, the owner's is {checksum}: copy it anew, or pass "
                "--skip-checksums if it differs on purpose"
            )


def _digest(path: Path, kind: str, unpack: bool) -> str:
    """Hex digest of the (unpacked) contents: md5, or sha1 as Git names a blob."""
    if kind == "md5" and not unpack:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    content = read_bytes(path) if unpack else path.read_bytes()
    if kind == "md5":
        return hashlib.md5(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
