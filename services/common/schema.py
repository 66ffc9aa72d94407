"""The compiled schema of the settings: every process loads it once, when it starts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from models.data.worlds.films import schema as films
from models.schema import compiled
from models.schema.compiled import Schema, SchemaUnfit
from models.schema.lock import LockError
from models.schema.read import SchemaError
from services.common.settings import Settings

DEFAULT = films.SCHEMA  # where the settings name none


class SchemaRefused(ValueError):
    """The settings' schema cannot be used; the message says where and why."""


def schema_of(settings: Settings) -> Schema:
    """The schema that settings name. Raises SchemaRefused."""
    if settings.schema_file is None and settings.schema_write is None:
        return DEFAULT
    return _loaded(settings.schema_file or films.FILE, settings.schema_write)


@lru_cache  # a process has one schema, whatever becomes of the files
def _loaded(file: Path, write: int | None) -> Schema:
    try:
        return compiled.load(file, write)
    except OSError as error:
        raise SchemaRefused(
            f"schema_file {file} cannot be read ({error.strerror}): name the schema.yaml of this"
            " installation"
        ) from error
    except (SchemaError, LockError) as error:
        raise SchemaRefused(str(error)) from error
    except SchemaUnfit as error:
        raise SchemaRefused(f"{file}: {error}") from error
