"""The owner's tables, for trainings: what `tandem import` has written, as schema.yaml has it now.

Nothing is read until a frame is collected; only the columns' types are looked at before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from models.data.errors import DataError
from models.data.own.store import SCHEMA, check_declared, path_of, scan
from models.data.own.wanted import TABLES, TableName, schema_of, wanted_of
from models.schema import compiled
from models.schema.compiled import Schema, SchemaUnfit
from models.schema.lock import LockError
from models.schema.read import SchemaError


@dataclass(frozen=True)
class OwnTables:
    """Lazily read frames, and the compiled schema that they fit; what was not imported has no rows.

    `events`: user_id, item_id, event (a declared name), time_ms since 1970, value (null without),
    sorted by time; of equal times in the order in which they were imported.
    `items`: item_id once, the declared fields (`models.data.own.wanted.DTYPES` has their types) and
    display texts. `users`: user_id once and the declared given fields. What is missing is null: the
    declared default holds where it is used.
    """

    schema: Schema
    events: pl.LazyFrame
    items: pl.LazyFrame
    users: pl.LazyFrame


def tables(folder: Path, needed: Collection[TableName] = ("events", "items")) -> OwnTables:
    """The tables of a folder. DataError where there is no schema.yaml or it cannot be used, one
    that is needed has no row, or a column is of another type than is declared now.

    A field that was declared after the import is null, one that is declared no more is left out,
    and so are events of a name that is declared no more.
    """
    check_declared(folder)
    try:
        schema = compiled.load(folder / SCHEMA)
    except OSError as error:
        raise DataError(f"{folder / SCHEMA}: cannot be read ({error.strerror})") from error
    except (SchemaError, LockError, SchemaUnfit) as error:
        raise DataError(str(error)) from error
    frames = {name: _frame(folder, name, schema, name in needed) for name in TABLES}
    return OwnTables(schema, **frames)


def _frame(folder: Path, table: TableName, schema: Schema, needed: bool) -> pl.LazyFrame:
    wanted, path = wanted_of(table, schema.declaration), path_of(folder, table)
    rows = scan(path, wanted) if path.exists() else pl.LazyFrame(schema=schema_of(wanted))
    if table == "events":
        rows = rows.filter(pl.col("event").is_in(list(schema.declaration.event)))
    if needed and rows.head(1).collect().is_empty():
        raise DataError(
            f"{path}: has no {table}: import some with `tandem import {table} FILE --folder"
            f" {folder}` (docs/own-data.md)"
        )
    return rows
