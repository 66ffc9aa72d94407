"""A domain with a field of every type, and its rows written as files of every format."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from models.data.own.imports import Options, Summary, import_file
from models.data.own.store import path_of
from models.data.own.wanted import TableName

NOW_MS = 1_760_000_000_000
T = 1_700_000_000  # a time of an event, in seconds
SCHEMA = """
format: 1
events:
  impression: {id: 1, role: impression}
  click: {id: 2, history: true}
  purchase: {id: 3, history: true, value: {unit: EUR, max: 1000}}
user:
  given:
    country: {type: category, values: [DE, FR, "NO"]}
    since: {type: time}
item:
  display: [title]
  fields:
    brand: {type: category, learned: 100}
    colour: {type: category, values: [red, green]}
    price: {type: number}
    kinds: {type: bag, slots: 2, values: [shoes, hats, coats]}
    tags: {type: bag, slots: 3, learned: 100}
    words: {type: text, slots: 4, buckets: 100}
    place: {type: vector, length: 3, dtype: float16}
    sizes: {type: numbers, length: 2}
    released: {type: time}
    in_stock: {type: flag}
tasks:
  click: {event: click}
value: {formula: click}
surfaces: {home: {}}
"""

Row = Mapping[str, Any]


def folder_in(path: Path, schema: str = SCHEMA) -> Path:
    """A new folder of the domain."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "schema.yaml").write_text(schema)
    return path


def run(
    folder: Path, table: TableName, file: Path | str, *, now_ms: int = NOW_MS, **options: Any
) -> Summary:
    """Import a file, or a CSV of this text."""
    if isinstance(file, str):
        text, file = file, folder / f"{table}.csv"
        file.write_text(text, newline="")
    done = import_file(table, file, folder, Options(**options), now_ms)
    tally = done.tally
    assert tally.read == done.accepted + tally.refusals + done.merged.duplicates
    return done


def held(folder: Path, table: TableName) -> pl.DataFrame:
    """The table as it lies there, without what nothing is said of: of no event where it was."""
    found = pl.read_parquet(path_of(folder, table), glob=False)
    unsaid = [c for c in ("surface", "position") if c in found and found[c].is_null().all()]
    return found.drop(unsaid)


def reasons(done: Summary) -> dict[str, str]:
    """The first example of each reason, as a sentence by its column."""
    tally = done.tally
    return {why.column: tally.sentence(why, group) for why, group in tally.refused.items()}


def write_csv(path: Path, rows: Sequence[Row], **how: Any) -> Path:
    """All values as text, lists with `|` between their values."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), **how)
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)
    return path


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "|".join(map(str, value))
    return str(value)


def write_jsonl(path: Path, rows: Sequence[Row], **how: Any) -> Path:
    """An object on each line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[Row], **how: Any) -> Path:
    """Types as polars finds them."""
    pl.DataFrame(list(rows), infer_schema_length=None).write_parquet(path)
    return path


WRITERS: Mapping[str, Callable[..., Path]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}
