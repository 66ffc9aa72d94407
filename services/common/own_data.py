"""An owner's folder: where the settings' schema.yaml lies, and `tandem import` has put tables."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import xxhash

from models.data.errors import DataError
from models.data.own.store import SCHEMA, path_of
from models.data.own.tables import OwnTables, tables
from models.data.own.wanted import TableName
from services.common.schema import schema_of
from services.common.settings import Settings


def folder_of(settings: Settings) -> Path | None:
    """The folder of the settings' schema.yaml; None where that is the demo's."""
    file = settings.schema_file
    return file.parent if file is not None and file.name == SCHEMA else None


def own_tables(settings: Settings, folder: Path, needed: Collection[TableName] = ()) -> OwnTables:
    """The tables of a folder. DataError as `tables`, and where they are of another domain."""
    own, schema = tables(folder, needed), schema_of(settings)
    if own.schema.declaration != schema.declaration:
        raise DataError(
            f"{folder / SCHEMA} is not what these settings use: set schema_file to it"
            " (TANDEM_SCHEMA_FILE)"
        )
    return replace(own, schema=schema)


def digest_of(folder: Path, *names: TableName) -> int:
    """64 bits that differ when one of these tables does; 0 where none is there."""
    found = xxhash.xxh3_64()
    files = [path for name in names if (path := path_of(folder, name)).is_file()]
    for path in files:
        found.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
    return found.intdigest() if files else 0
