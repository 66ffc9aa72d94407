"""The records of all items, by row: those of a generation in its file, later ones in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from protos.tandem.v1.records_pb2 import ItemRecord

RECORDS_FILE, PLACES_FILE = "records.bin", "record_places.npy"


class StoredRecords:
    """Serialized ItemRecords by row. One thread puts; any thread may read."""

    def __init__(self) -> None:
        self._late: dict[int, bytes] = {}
        self._divided: dict[int, bytes] = {}  # of before the generation that is being written
        self._file: np.ndarray = np.zeros(0, np.uint8)
        self._places = np.zeros(1, np.int64)  # [n + 2]: where the record of each row begins

    def open(self, folder: Path) -> None:
        """Take those of a generation, which stay on disk."""
        places = np.load(folder / PLACES_FILE)
        file = folder / RECORDS_FILE
        whole = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
        self._file, self._places = whole, places

    def divide(self) -> None:
        """Begin a generation: what is put from here on is later than it."""
        self._divided = {**self._divided, **self._late}
        self._late = {}

    def settle(self, folder: Path | None) -> None:
        """Take the generation that was begun, if it was written, in the place of what it holds."""
        if folder is not None:
            self.open(folder)
            self._divided = {}

    def put(self, row: int, record: bytes) -> None:
        """The record that is in force of a row."""
        self._late[row] = record

    def serialized(self, row: int) -> bytes:
        """The record of a row; empty where there is none."""
        late = self._late.get(row) or self._divided.get(row)
        if late:
            return late
        if row + 1 < len(self._places):
            return self._file[self._places[row] : self._places[row + 1]].tobytes()
        return b""

    def of_row(self, row: int) -> ItemRecord | None:
        """The record of a row."""
        found = self.serialized(row)
        return ItemRecord.FromString(found) if found else None

    def upto(self, rows: int) -> Iterator[bytes]:
        """Those of the rows 0 to `rows`, empty where there is none."""
        return (self.serialized(row) for row in range(rows + 1))
