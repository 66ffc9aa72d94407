"""Reading a schema.yaml: every error of the file, each with its line and the way to repair it."""

from __future__ import annotations

from pathlib import Path

from models.schema.declaration import Declaration
from models.schema.reader.file import FileBlock
from models.schema.reader.file import json_schema as json_schema
from models.schema.reader.words import SchemaReading
from models.yaml_reader.problems import YamlError


class SchemaError(YamlError):
    """A schema.yaml cannot be used; `problems` lists everything that is wrong with it."""


def load(path: Path) -> Declaration:
    """Read a file; SchemaError with all problems, OSError when it cannot be read."""
    return parse(path.read_bytes(), str(path), path.parent)


def parse(data: bytes, file: str, folder: Path | None = None) -> Declaration:
    """Read a file's bytes; `file` is its name in errors, and `folder` holds the files that it
    names. Raises SchemaError."""
    reading = SchemaReading(folder)
    root = reading.compose(data, "")
    declaration = None
    if root:
        declaration = FileBlock.model_validate(root, context=reading).declaration()
    if declaration is None or reading.problems:
        raise SchemaError(file, reading.problems)
    return declaration
