"""Rows of a file of JSON lines: an object on each line, its keys the columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from models.data.own.batch import CHARACTERS, ROWS, Batch, Torn
from models.data.own.cells import of_json
from models.data.own.csv_source import NOT_UTF8, shown
from models.data.own.lines import LONGEST, TextLines, is_text
from models.data.own.wanted import Wanted

NO_OBJECT = "is no JSON object"


class _Rows:
    """The rows of a batch as they are read."""

    def __init__(self) -> None:
        self.places, self.rows, self.torn = list[int](), list[dict[str, Any]](), list[Torn]()
        self.characters = 0

    @property
    def full(self) -> bool:
        return len(self.rows) + len(self.torn) >= ROWS or self.characters >= CHARACTERS


class JsonSource(TextLines):
    """A `Source`. Its columns are the keys met so far; before the first batch is asked for, those
    of the first batch."""

    place = "line"
    open_ended = True

    def __init__(self, path: Path) -> None:
        super().__init__(path, "\n")
        self._keys: dict[str, None] = {}
        self._batches = self._read()
        self._first = next(self._batches)

    @property
    def columns(self) -> Sequence[str]:
        """The keys, in the order in which they were met."""
        return list(self._keys)

    def batches(
        self, columns: Mapping[str, str], wanted: Sequence[Wanted], separator: str
    ) -> Iterator[Batch]:
        """All rows; see `Source`."""
        kinds = {each.name: each for each in wanted}
        rows: _Rows | None = self._first
        while rows is not None:
            cells = {
                name: of_json([row.get(column) for row in rows.rows], kinds[name], separator)
                for name, column in columns.items()
            }
            places = pl.Series(rows.places, dtype=pl.Int64)
            yield Batch(places, cells, rows.torn, self.share)
            rows = next(self._batches, None)

    def _read(self) -> Iterator[_Rows]:
        found = _Rows()
        for number, line in enumerate(self, 1):
            found.characters += len(line)
            if not line.isspace():
                row = _parsed(line)
                if isinstance(row, str):
                    found.torn.append(Torn(number, row, shown(line).strip()))
                else:
                    self._keys.update(dict.fromkeys(row))
                    found.places.append(number)
                    found.rows.append(row)
            if found.full:
                yield found
                found = _Rows()
        yield found


def _parsed(line: str) -> dict[str, Any] | str:
    """The object on a line, or why there is none."""
    if len(line) >= LONGEST:
        return f"has more than {LONGEST:,} characters"
    if not is_text(line):
        return NOT_UTF8
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # also a number of thousands of digits
        return NO_OBJECT
    if type(row) is not dict:
        return NO_OBJECT
    if "\\ud" in line.lower():  # half of a character is none, and no table takes it
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "holds half of a surrogate pair, which is no character"
    return row
