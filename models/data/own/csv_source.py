"""Rows of a CSV or TSV file, all values as text.

Values may stand in quotes, and then hold separators, line ends and quotes (doubled). A row that
breaks these rules is refused alone: reading goes on with the line after its first, so that one
quote that is never closed does not take the rest of the file with it.
"""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from models.data.errors import DataError
from models.data.own.batch import CHARACTERS, ROWS, Batch, Torn
from models.data.own.cells import of_texts
from models.data.own.lines import LONGEST, TextLines, is_text
from models.data.own.wanted import Wanted

SHOWN = 60  # characters of a row that is refused
NOT_UTF8 = "is not UTF-8: save the file in that encoding"

csv.field_size_limit((1 << 31) - 1)  # a row has its own limit


class _TooLong(Exception):
    """A row has more characters than LONGEST."""


class _Feed:
    """Lines for a csv reader, kept until their row is whole."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.number = 0  # of the line that was handed out last
        self.characters = 0  # handed out
        self._lines, self._again = lines, deque[str]()
        self._row: list[str] = []
        self._row_begins = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self._row.append(line)
        self.number += 1
        self.characters += len(line)
        if self.characters - self._row_begins >= LONGEST:
            raise _TooLong
        return line

    def begin(self) -> None:
        """A row is whole, another begins."""
        self._row.clear()
        self._row_begins = self.characters

    def give_up(self) -> str:
        """The first line of the row, which is broken; the others are handed out again."""
        first, *others = self._row
        self.number -= len(others)
        self._again.extendleft(reversed(others))
        return first


class CsvSource(TextLines):
    """A `Source`. The first row names the columns. Commas stand between the values, tabs in a .tsv;
    in a .csv whose first line has no comma, semicolons or tabs if it has those."""

    place = "line"
    open_ended = False

    def __init__(self, path: Path) -> None:
        """DataError for a file that has no readable first row."""
        super().__init__(path, "")
        lines = iter(self)
        first = next(lines, "")
        self._separator = _separator(path, first)
        self._feed = _Feed(itertools.chain([first], lines))
        self._rows = self._read()
        names = next((names for _, names in self._rows if names), [])
        if isinstance(names, Torn) or not is_text("".join(names)):
            self.__exit__(None, None, None)
            why = names.reason if isinstance(names, Torn) else NOT_UTF8
            raise DataError(f"{path}: line 1, which should name the columns, {why}")
        self.columns: Sequence[str] = [name.strip() for name in names]

    def batches(
        self, columns: Mapping[str, str], wanted: Sequence[Wanted], separator: str
    ) -> Iterator[Batch]:
        """All rows; see `Source`."""
        at = {name: self.columns.index(column) for name, column in columns.items()}
        places, rows, torn = list[int](), list[list[str]](), list[Torn]()
        width, full = len(self.columns), self._feed.characters + CHARACTERS
        for begins, row in self._rows:
            if isinstance(row, Torn):
                torn.append(row)
            elif len(row) == width:
                places.append(begins)
                rows.append(row)
            elif row:  # an empty line is no row
                reason = (
                    f"has {'more' if len(row) > width else 'fewer'} values than the {width} columns"
                )
                torn.append(Torn(begins, reason, shown(self._separator.join(row))))
            if len(rows) + len(torn) >= ROWS or self._feed.characters >= full:
                yield self._batch(places, rows, torn, at)
                places, rows, torn = [], [], []
                full = self._feed.characters + CHARACTERS
        yield self._batch(places, rows, torn, at)

    def _batch(
        self,
        places: list[int],
        rows: list[list[str]],
        torn: list[Torn],
        at: Mapping[str, int],
    ) -> Batch:
        values = list(zip(*rows, strict=True)) or [()] * len(self.columns)
        try:
            cells = {name: of_texts(values[column]) for name, column in at.items()}
        except UnicodeEncodeError:
            whole = [all(is_text(row[column]) for column in at.values()) for row in rows]
            torn += [
                Torn(place, NOT_UTF8, shown(self._separator.join(row)))
                for place, row, good in zip(places, rows, whole, strict=True)
                if not good
            ]
            rows = list(itertools.compress(rows, whole))
            return self._batch(list(itertools.compress(places, whole)), rows, torn, at)
        return Batch(pl.Series(places, dtype=pl.Int64), cells, torn, self.share)

    def _read(self) -> Iterator[tuple[int, list[str] | Torn]]:
        """Every row, with the line at which it begins."""
        feed = self._feed
        reader = csv.reader(feed, delimiter=self._separator, strict=True)
        while True:
            feed.begin()
            begins = feed.number + 1
            try:
                yield begins, next(reader)
            except StopIteration:
                return
            except (csv.Error, _TooLong) as error:
                why = f"is no row ({error}): check its quotes"
                if isinstance(error, _TooLong):
                    why = f"has more than {LONGEST:,} characters: a quote may not be closed"
                yield begins, Torn(begins, why, shown(feed.give_up()))
                reader = csv.reader(feed, delimiter=self._separator, strict=True)


def _separator(path: Path, first: str) -> str:
    if ".tsv" in (suffix.lower() for suffix in path.suffixes):
        return "\t"
    return "," if "," in first else next((mark for mark in ";\t" if mark in first), ",")


def shown(text: str) -> str:
    """The beginning of a row that is refused."""
    return text[:SHOWN].encode(errors="replace").decode().rstrip("\r\n")
