"""Rows of a Parquet file, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl

from models.data.errors import DataError
from models.data.own.batch import Batch
from models.data.own.cells import of_parquet
from models.data.own.wanted import LISTS, Wanted
from models.data.source_files import check_file

BYTES = 1 << 26  # of a batch, roughly
MOST_ROWS = 250_000  # of a batch


class ParquetSource:
    """A `Source`; places are the numbers of rows."""

    place = "row"
    open_ended = False

    def __init__(self, path: Path) -> None:
        """DataError for what is no Parquet file."""
        check_file(path)
        self._path = path
        self._scan = pl.scan_parquet(path.resolve(), glob=False)
        try:
            self.columns: Sequence[str] = self._scan.collect_schema().names()
            self._rows = int(self._scan.select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._damaged(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def batches(
        self, columns: Mapping[str, str], wanted: Sequence[Wanted], separator: str
    ) -> Iterator[Batch]:
        """All rows; see `Source`."""
        kinds = {each.name: each for each in wanted}
        step = max(1_000, min(MOST_ROWS, BYTES // _width(columns, wanted)))
        needed = sorted(set(columns.values()))
        for begin in range(0, self._rows, step):
            end = min(begin + step, self._rows)
            try:
                frame = self._scan.slice(begin, step).select(needed).collect()
            except (pl.exceptions.PolarsError, OSError) as error:
                raise self._damaged(error) from error
            cells = {
                name: of_parquet(frame[column], kinds[name]) for name, column in columns.items()
            }
            places = pl.Series(range(begin + 1, end + 1), dtype=pl.Int64)
            yield Batch(places, cells, share=end / self._rows)

    def _damaged(self, error: Exception) -> DataError:
        first = str(error).split("\n", 1)[0]
        return DataError(f"{self._path}: no Parquet file, or a damaged one ({first})")


def _width(columns: Mapping[str, str], wanted: Sequence[Wanted]) -> int:
    """Bytes of a row, roughly."""
    fields = [each.field for each in wanted if each.name in columns and each.kind in LISTS]
    return 256 + sum(8 * field.length + 32 * field.slots for field in fields if field)
