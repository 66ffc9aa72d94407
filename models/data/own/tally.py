"""What happened to the rows of a file: those that are refused by reason, and what was left out of
others. Nothing is refused or left out without being counted here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import polars as pl

from models.data.errors import DataError
from models.data.own.batch import Batch
from models.data.own.cells import Cells
from models.data.own.convert import Converted

SHOWN = 60  # characters of a value
WHOLE_ROW = "(row)"  # in place of a column, where a row could not be taken apart


class RowRefused(DataError):
    """The first row that is refused, where none may be."""


class Why(NamedTuple):
    """Of which column, and what of it."""

    column: str
    reason: str


@dataclass
class Group:
    """Rows of one reason. The example is the first in the file; its value is None where it is
    missing."""

    rows: int
    place: int
    value: str | None


@dataclass
class Tally:
    """Counts of one file. `place`: what places count, "line" or "row"."""

    file: str
    place: str
    strict: bool = False
    read: int = 0
    refused: dict[Why, Group] = field(default_factory=dict)
    noted: dict[Why, Group] = field(default_factory=dict)

    @property
    def refusals(self) -> int:
        """Rows refused."""
        return sum(group.rows for group in self.refused.values())

    def take(
        self, batch: Batch, converted: Mapping[str, Converted], columns: Mapping[str, str]
    ) -> pl.Series:
        """Count a batch, and say which of its rows are accepted. Each row is refused once, for the
        first of its columns that is at fault. `columns`: the file's names of the columns. With
        `strict`, RowRefused for the first one."""
        self.read += len(batch) + len(batch.torn)
        found: dict[Why, Group] = {}
        for torn in batch.torn:
            _add(found, Why(WHOLE_ROW, torn.reason), Group(1, torn.place, torn.text))
        good = pl.repeat(True, len(batch), dtype=pl.Boolean, eager=True)
        for name, column in converted.items():
            for reason, mask in column.faults:
                bad = mask & good
                if rows := int(bad.sum()):
                    at = int(bad.arg_max() or 0)
                    value = _shown(batch.cells.get(name), at)
                    group = Group(rows, int(batch.places[at]), value)
                    _add(found, Why(_named(name, columns), reason), group)
                    good &= ~bad
        if found and self.strict:
            why, group = min(found.items(), key=lambda each: each[1].place)
            raise RowRefused(f"{self.file}: {self.sentence(why, group)}")
        for why, group in found.items():
            _add(self.refused, why, group)
        for name, column in converted.items():
            for note in column.notes:
                mask = note.mask & good
                if rows := int(mask.sum()):
                    at = int(mask.arg_max() or 0)
                    group = Group(rows, int(batch.places[at]), str(note.shown[at])[:SHOWN])
                    _add(self.noted, Why(_named(name, columns), note.text), group)
        return good

    def sentence(self, why: Why, group: Group) -> str:
        """Where and what the first example is, and why it is refused."""
        value = "" if group.value is None else f" {group.value!r}"
        return f"{self.place} {group.place}: {why.column}{value} {why.reason}"


def _add(groups: dict[Why, Group], why: Why, more: Group) -> None:
    group = groups.setdefault(why, more)
    if group is more:
        return
    group.rows += more.rows
    if more.place < group.place:
        group.place, group.value = more.place, more.value


def _named(name: str, columns: Mapping[str, str]) -> str:
    column = columns.get(name, name)
    return name if column == name else f"{name} ({column})"


def _shown(cells: Cells | None, at: int) -> str | None:
    value = None if cells is None else cells.values[at]
    if value is None:
        return None
    if isinstance(value, pl.Series):
        many = value.head(8).to_list()
        return str(many)[:SHOWN] if len(many) == len(value) else f"{len(value)} values"
    return str(value)[:SHOWN]
