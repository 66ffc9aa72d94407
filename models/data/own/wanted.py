"""Which columns a table of the owner's data has, and where a file has them.

The tables are `events`, `items` and `users`. What they hold follows from the schema.yaml; a file's
columns are found by these names, or by those that `--map NAME=COLUMN` gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import polars as pl

from models.data.errors import DataError
from models.nearest import nearest
from models.schema.declaration import Declaration, Field, FieldType, Vocabulary

TableName: TypeAlias = Literal["events", "items", "users"]
Kind: TypeAlias = Literal["id", "event", "event time", "value", "position"] | FieldType

TABLES: tuple[TableName, ...] = get_args(TableName)
ID_OF: Mapping[str, str] = {"items": "item_id", "users": "user_id"}
SHOWN = 30  # columns of a file in a message

_VECTOR = pl.List(pl.Float32())
DTYPES: Mapping[Kind, pl.DataType] = {
    "id": pl.String(),
    "event": pl.String(),
    "event time": pl.Int64(),
    "value": pl.Float64(),
    "position": pl.Int32(),
    "category": pl.String(),
    "bag": pl.List(pl.String()),
    "number": pl.Float64(),
    "flag": pl.Boolean(),
    "time": pl.Int64(),
    "vector": _VECTOR,
    "numbers": _VECTOR,
    "text": pl.String(),
}
LISTS: tuple[Kind, ...] = ("bag", "vector", "numbers")


@dataclass(frozen=True)
class Wanted:
    """One column of a table: its name in files, what it holds, and whether each row needs it."""

    name: str
    kind: Kind
    field: Field | None = None  # what the schema.yaml says of it
    required: bool = False

    @property
    def column(self) -> str:
        """Its name in the table, which says the unit of a time that has one."""
        return "time_ms" if self.kind == "event time" else self.name

    @property
    def dtype(self) -> pl.DataType:
        """Its type in the table."""
        return DTYPES[self.kind]


EVENTS: tuple[Wanted, ...] = (
    Wanted("user_id", "id", required=True),
    Wanted("item_id", "id", required=True),
    Wanted("event", "event", required=True),
    Wanted("time", "event time", required=True),
    Wanted("value", "value"),
)


def wanted_of(table: TableName, declared: Declaration) -> tuple[Wanted, ...]:
    """The columns of a table, its ids first."""
    if table == "events":
        return (*EVENTS, *_of_requests(declared))
    key = ID_OF[table]
    fields = declared.item_fields if table == "items" else declared.user_given
    display = declared.display if table == "items" else ()
    return (
        Wanted(key, "id", required=True),
        *(Wanted(field.name, field.type, field) for field in fields),
        *(Wanted(name, "text") for name in display),
    )


def _of_requests(declared: Declaration) -> Iterable[Wanted]:
    """Where and in what circumstances the list was shown that an event came of."""
    own = []
    if declared.surfaces:
        names = tuple(surface.name for surface in declared.surfaces)
        values = Vocabulary(source="values", size=len(names), values=names)
        field = Field(name="surface", type="category", vocabulary=values)
        own.append(Wanted("surface", "category", field))
    if any(event.impression for event in declared.events):
        own.append(Wanted("position", "position"))
    own.extend(Wanted(field.name, field.type, field) for field in declared.context)
    return own


def schema_of(wanted: Iterable[Wanted]) -> dict[str, pl.DataType]:
    """Columns and types of a table."""
    return {each.column: each.dtype for each in wanted}


def columns_of(
    file: str,
    found: Sequence[str],
    wanted: Sequence[Wanted],
    mapping: Mapping[str, str],
    later: bool = False,
) -> dict[str, str]:
    """The file's column of each wanted name that it has.

    `later`: optional columns may appear further on in the file (JSON lines), so all of them are
    named. DataError for a mapping of what is not wanted or not there, a column that stands twice,
    and for a required column that is missing.
    """
    names = [each.name for each in wanted]
    for name, column in mapping.items():
        if name not in names:
            raise DataError(
                f"--map {name}={column}: {name!r} is nothing that is imported here"
                f"{nearest(name, names)}: map one of {', '.join(names)}"
            )
        if column not in found:
            raise DataError(
                f"--map {name}={column}: {file} has no column {column!r}{nearest(column, found)}."
                f" Its columns are {listed(found)}"
            )
    columns = {}
    for each in wanted:
        column = mapping.get(each.name, each.name)
        if column not in found:
            if each.required:
                near = nearest(each.name, [other for other in found if other not in names])
                raise DataError(
                    f"{file}: has no column {each.name!r}{near}: name the one that holds it,"
                    f" --map {each.name}=COLUMN. Its columns are {listed(found)}"
                )
            if not later:
                continue
        if found.count(column) > 1:
            raise DataError(
                f"{file}: has {found.count(column)} columns {column!r}: rename all but one of them"
            )
        columns[each.name] = column
    return columns


def listed(columns: Sequence[str]) -> str:
    """The names of columns, quoted, without the end of a long list."""
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    return ", ".join(map(repr, columns[:SHOWN])) + more if columns else "none"
