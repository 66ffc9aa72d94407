"""What every format of file is read as: batches of rows, and the rows that are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import polars as pl

from models.data.own.cells import Cells
from models.data.own.wanted import Wanted

ROWS = 50_000  # of a batch
CHARACTERS = 1 << 24  # of a batch of text


class Torn(NamedTuple):
    """A row that could not be taken apart."""

    place: int
    reason: str
    text: str


@dataclass(frozen=True)
class Batch:
    """Rows in the order of the file."""

    places: pl.Series  # int64: the line at which each row begins, or its number, from 1
    cells: Mapping[str, Cells]  # by wanted name
    torn: Sequence[Torn] = field(default=())
    share: float = 0.0  # of the file that has been read

    def __len__(self) -> int:
        return len(self.places)


class Source(Protocol):
    """An open file of rows."""

    place: str  # what a place counts: "line" or "row"
    open_ended: bool  # further columns may appear further on

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns that were met so far."""

    def batches(
        self, columns: Mapping[str, str], wanted: Sequence[Wanted], separator: str
    ) -> Iterator[Batch]:
        """All rows. `columns` names the file's column of each wanted name; lists in one text are
        split at `separator`. DataError for a file that is damaged."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
