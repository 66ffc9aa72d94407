"""Imports one file of the owner's into one of the three tables.

Every row is read, checked and counted; those that pass go to disk, part by part, and are merged
with the table at the end. What stops an import leaves the table as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from models.data.errors import DataError
from models.data.own.batch import Batch, Source
from models.data.own.cells import Cells
from models.data.own.convert import Reading, convert, of_events
from models.data.own.merge import Merged, merge_events, merge_rows
from models.data.own.source import open_source
from models.data.own.store import Parts, declaration_of, importing, path_of, scan
from models.data.own.tally import RowRefused, Tally
from models.data.own.times import check_zone
from models.data.own.wanted import (
    ID_OF,
    TableName,
    Wanted,
    columns_of,
    schema_of,
    wanted_of,
)
from models.nearest import nearest
from models.schema.declaration import Declaration

Progress = Callable[[str, float], None]  # told what is done, and which share of it, 0 to 1


def quiet(stage: str, share: float) -> None:
    """A `Progress` that says nothing."""


@dataclass(frozen=True)
class Options:
    """How a file is read."""

    mapping: Mapping[str, str] = field(default_factory=dict)  # wanted name: the file's column
    timezone: str | None = None  # IANA name of local times
    separator: str = "|"  # of the values of a list in one text
    strict: bool = False  # the first refusal ends the import
    event: str | None = None  # of every row of a file of events that does not name them


@dataclass(frozen=True)
class Summary:
    """What an import did. `read` is `accepted`, `tally.refusals` and `merged.duplicates`
    together."""

    path: Path  # of the table
    tally: Tally
    merged: Merged
    ignored: Sequence[str]  # columns of the file

    @property
    def accepted(self) -> int:
        """Rows that the table has gained, or that updated it."""
        return self.merged.new + self.merged.updated

    @property
    def nothing(self) -> bool:
        """Whether no row could be taken, not even one that was there already."""
        return not self.accepted and not self.merged.duplicates


def import_file(
    table: TableName,
    file: Path,
    folder: Path,
    options: Options,
    now_ms: int,
    progress: Progress = quiet,
) -> Summary:
    """Read a file into a table of `folder`, whose schema.yaml says what it may hold.

    `now_ms`: no event may lie more than a day after it. DataError, and nothing is changed, where
    the folder, the file, its columns or the options do not fit, and with `strict` for the first
    row that is refused.
    """
    declared = declaration_of(folder)
    wanted = wanted_of(table, declared)
    path = path_of(folder, table)
    with importing(folder) as scratch:
        old = scan(path, wanted) if path.exists() else None
        try:
            read = read_file(table, file, declared, options, now_ms, scratch, progress)
        except RowRefused as error:
            raise RowRefused(f"{error}: nothing was imported") from None
        parts, merged = read.parts, Merged(0, 0, 0)
        if parts.paths:
            progress("writing", 0.0)
            if table == "events":
                merged = merge_events(path, old, parts, scratch)
            else:
                names = [each.column for each in wanted]
                merged = merge_rows(path, ID_OF[table], names, read.there, old, parts, scratch)
    return Summary(path, read.tally, merged, read.ignored)


@dataclass(frozen=True)
class ReadRows:
    """What a file holds of a table."""

    parts: Parts  # the rows that were not refused
    tally: Tally
    there: Collection[str]  # the names that the file has a column for
    ignored: Sequence[str]  # columns of the file


def read_file(
    table: TableName,
    file: Path,
    declared: Declaration,
    options: Options,
    now_ms: int,
    scratch: Path,
    progress: Progress = quiet,
) -> ReadRows:
    """Read and check all rows of a file, which go to `scratch`. DataError as `import_file`."""
    _check(options, declared)
    wanted = wanted_of(table, declared)
    reading = Reading(now_ms, declared.event, options.timezone, options.separator)
    with open_source(file) as source:
        columns = _columns(file, source, wanted, options)
        tally = Tally(str(file), source.place, options.strict)
        parts = Parts(scratch, "read")
        for batch in source.batches(columns, wanted, options.separator):
            parts.add(_accepted(batch, columns, wanted, reading, options, tally))
            progress("reading", batch.share)
        parts.flush()
        used = set(columns.values())
        ignored = [column for column in source.columns if column not in used]
        there = {name for name, column in columns.items() if column in source.columns}
    return ReadRows(parts, tally, there, ignored)


def _check(options: Options, declared: Declaration) -> None:
    """DataError for an option that nothing can be read with."""
    if options.timezone is not None:
        check_zone(options.timezone)
    if len(options.separator) != 1:
        raise DataError(f"--separator {options.separator!r}: give one character")
    if options.event is not None and options.event not in declared.event:
        raise DataError(
            f"--event {options.event}: is no event of schema.yaml"
            f"{nearest(options.event, declared.event)}: give one of {', '.join(declared.event)}"
        )


def _columns(
    file: Path, source: Source, wanted: Sequence[Wanted], options: Options
) -> dict[str, str]:
    """Where the file has each wanted name. DataError."""
    if options.event is None:
        return columns_of(str(file), source.columns, wanted, options.mapping, source.open_ended)
    column = options.mapping.get("event", "event")
    if column in source.columns or "event" in options.mapping:
        raise DataError(
            f"--event {options.event}: {file} has a column {column!r} that says so of each row:"
            " leave one of the two out"
        )
    others = [each for each in wanted if each.kind != "event"]
    return columns_of(str(file), source.columns, others, options.mapping, source.open_ended)


def _accepted(
    batch: Batch,
    columns: Mapping[str, str],
    wanted: Sequence[Wanted],
    reading: Reading,
    options: Options,
    tally: Tally,
) -> pl.DataFrame:
    """The rows of a batch that are not refused, as the table has them."""
    cells = dict(batch.cells)
    if options.event is not None:
        name = pl.Series([options.event], dtype=pl.String)
        cells["event"] = Cells(name.new_from_index(0, len(batch)))
    converted = {
        each.name: convert(each, cells[each.name], reading) for each in wanted if each.name in cells
    }
    if "value" in converted:
        converted["value"] = of_events(converted["value"], converted["event"].values, reading)
    good = tally.take(batch, converted, columns)
    rows = pl.DataFrame([column.values for column in converted.values()]).filter(good)
    # A column that the file does not have is null here, and merged as one that it does not have.
    return rows.select(
        pl.col(name) if name in rows.columns else pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in schema_of(wanted).items()
    )
