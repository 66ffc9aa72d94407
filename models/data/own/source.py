"""Opens a file of the owner's by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from models.data.errors import DataError
from models.data.own.batch import Source
from models.data.own.csv_source import CsvSource
from models.data.own.json_source import JsonSource
from models.data.own.parquet_source import ParquetSource

FORMATS: Mapping[str, Callable[[Path], Source]] = {
    ".parquet": ParquetSource,
    ".csv": CsvSource,
    ".csv.gz": CsvSource,
    ".tsv": CsvSource,
    ".tsv.gz": CsvSource,
    ".jsonl": JsonSource,
    ".jsonl.gz": JsonSource,
    ".ndjson": JsonSource,
    ".ndjson.gz": JsonSource,
}


def open_source(path: Path) -> Source:
    """The rows of a file. DataError where there is none, or one of a format that is not read."""
    name = path.name.lower()
    for suffix, opened in FORMATS.items():
        if name.endswith(suffix):
            return opened(path)
    raise DataError(
        f"{path}: is read by the end of its name, which says no format here: save it as one of"
        f" {', '.join(FORMATS)}"
    )
