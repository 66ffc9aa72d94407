"""Where the owner's tables lie, how they are checked, and how one import at a time changes them.

FOLDER/schema.yaml             what the domain is (docs/schema.md)
FOLDER/data/events.parquet     the tables, each replaced whole
FOLDER/data/items.parquet
FOLDER/data/users.parquet
FOLDER/data/.import.lock       held by the import that runs
FOLDER/data/.import-*/         what it has read so far
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from models.data.errors import DataError
from models.data.own.wanted import LISTS, TableName, Wanted
from models.schema import read
from models.schema.declaration import Declaration

SCHEMA = "schema.yaml"
DATA = "data"
LOCK = ".import.lock"
SCRATCH = ".import-"
PART_BYTES = 1 << 26  # of rows in memory that become one part


def declaration_of(folder: Path) -> Declaration:
    """What the owner's schema.yaml declares. DataError where there is none, or a wrong one."""
    check_declared(folder)
    try:
        return read.load(folder / SCHEMA)
    except OSError as error:
        raise DataError(f"{folder / SCHEMA}: cannot be read ({error.strerror})") from error
    except read.SchemaError as error:
        raise DataError(str(error)) from error


def check_declared(folder: Path) -> None:
    """DataError for a folder without a schema.yaml."""
    if not (folder / SCHEMA).is_file():
        raise DataError(
            f"{folder}: has no {SCHEMA}: write one that says what your events, items and users are"
            " (docs/schema.md), or name its folder with --folder"
        )


def path_of(folder: Path, table: TableName) -> Path:
    """The file of a table."""
    return folder / DATA / f"{table}.parquet"


def scan(path: Path, wanted: Sequence[Wanted]) -> pl.LazyFrame:
    """The rows of a table that is there, with the columns that are wanted now.

    One that is declared since is null, one that is declared no more is left out, and of a bag the
    slots that are declared now are read. DataError for a file that is damaged, and for a column of
    another type or length than is declared now.
    """
    rows = pl.scan_parquet(path.resolve(), glob=False)
    try:
        found = rows.collect_schema()
        for each in wanted:
            if (dtype := found.get(each.column)) is not None:
                if dtype != each.dtype:
                    raise _changed(path, each, str(dtype))
                _check_length(path, each, rows)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}): move it away, and import its rows again"
        ) from error
    return rows.select(_column(each, each.column in found) for each in wanted)


def _column(wanted: Wanted, there: bool) -> pl.Expr:
    if not there:
        return pl.lit(None, dtype=wanted.dtype).alias(wanted.column)
    column = pl.col(wanted.column)
    if wanted.kind == "bag" and wanted.field:
        return column.list.head(wanted.field.slots)
    return column


def _check_length(path: Path, wanted: Wanted, rows: pl.LazyFrame) -> None:
    """All vectors of a column have one length: they were imported with it, or refused."""
    if wanted.kind not in LISTS or wanted.kind == "bag" or wanted.field is None:
        return
    first = rows.select(wanted.column).filter(pl.col(wanted.column).is_not_null()).head(1).collect()
    if len(first) and len(first.item()) != wanted.field.length:
        raise _changed(path, wanted, f"{len(first.item())} numbers")


def _changed(path: Path, wanted: Wanted, before: str) -> DataError:
    length = f" of {wanted.field.length}" if wanted.field and wanted.kind in LISTS else ""
    return DataError(
        f"{path}: {wanted.column} was imported as {before}, and is {wanted.dtype}{length} by"
        f" {SCHEMA} now: move the file away, and import its rows again"
    )


@contextmanager
def importing(folder: Path) -> Iterator[Path]:
    """A scratch folder for the one import that may run; what others left behind is deleted.
    DataError while another one runs."""
    data = folder / DATA
    data.mkdir(exist_ok=True)
    with (data / LOCK).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{data}: another import runs here: wait until it has ended") from None
        for left in data.glob(f"{SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=data) as scratch:
            yield Path(scratch)


class Parts:
    """Rows on disk, in order: files that are each small enough to be held in memory."""

    def __init__(self, scratch: Path, name: str) -> None:
        self.paths: list[Path] = []
        self._scratch, self._name = scratch, name
        self._held: list[pl.DataFrame] = []
        self._bytes = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Further rows."""
        if len(rows):
            self._held.append(rows)
            self._bytes += int(rows.estimated_size())
        if self._bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is still held in memory."""
        if self._held:
            path = self._scratch / f"{self._name}-{len(self.paths):06}.parquet"
            # It lives for minutes: lz4 costs less than it saves.
            pl.concat(self._held).write_parquet(path, compression="lz4")
            self.paths.append(path)
            self._held, self._bytes = [], 0

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """The parts one by one."""
        for path in self.paths:
            yield pl.read_parquet(path, glob=False)

    def scan(self) -> pl.LazyFrame:
        """All rows, in order; there must be some."""
        return pl.scan_parquet([path.resolve() for path in self.paths], glob=False)
