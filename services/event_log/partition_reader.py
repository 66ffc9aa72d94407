"""Reading one partition of the embedded log: a place in it, and the bytes read ahead of it.

Nothing is locked, so files go away under a reader: the oldest ones by retention and, in a compacted
topic, all closed ones when they are merged into the first (compaction.py). One that is open stays
as it was. In a compacted topic a place is therefore found again by its offset, never by its byte.
"""

from __future__ import annotations

import os
from pathlib import Path

from services.event_log.group import Position
from services.event_log.interface import LogCorrupt, LogRecord, LogWentBack
from services.event_log.limits import went_back
from services.event_log.partition import Partition, stands_at
from services.event_log.segment import (
    BODY,
    PREFIX,
    FrameError,
    damaged,
    decode_frame,
    frame_size,
)

READ_BYTES = 1 << 18


class Reader:
    """Where somebody is in one partition, with the bytes read ahead of it."""

    def __init__(
        self,
        directory: Path,
        number: int,
        committed: Position | None = None,
        *,
        start: int | None = None,
        compacted: bool = False,
    ) -> None:
        """Begin at the committed position, at the start offset, or at the earliest record (see
        `skipped`).

        Raises LogWentBack, as `refresh` does, when the partition ends before that.
        """
        self.skipped = 0
        self._file = -1
        self._must_reopen = False
        self.partition = Partition(directory, number, compacted)
        wanted = start if committed is None else committed.offset
        try:
            self.end = self.partition.recovered_end()  # publishes what a crashed writer left
            if wanted is not None and wanted > self.end.offset:
                raise self._went_back(wanted, self.end.offset)
            if start is None:
                self.seek(committed)
            else:
                self.seek_offset(start)
        except BaseException:
            self.close()
            raise

    def seek(self, wanted: Position | None) -> None:
        """Go to a position; when its segment has expired, to the earliest record that is kept."""
        if wanted is None:
            first = self.partition.segments()[0]
            wanted = Position(first, first, 0)
        if self.partition.compacted:
            self.seek_offset(wanted.offset)
            return
        while True:
            try:
                file = os.open(self.partition.path(wanted.base), os.O_RDONLY)
                break
            except FileNotFoundError:
                first = min(self.partition.segments(), default=-1)
                if first < wanted.base:
                    # Segments expire oldest first: a gap after one that is there is no expiry.
                    raise self._missing(wanted.base) from None
                self.skipped += max(0, first - wanted.offset)
                wanted = Position(first, first, 0)
        self._stand(file, wanted, searching=False)

    def seek_offset(self, offset: int) -> None:
        """Go to the first record that is kept of those with this offset and later ones."""
        while True:
            end = self.end
            found = Position(offset, end.base, end.position)
            if offset != end.offset:
                base = self._segment_with(offset)
                found = Position(max(offset, base), base, 0)
            try:
                file = os.open(self.partition.path(found.base), os.O_RDONLY)
            except FileNotFoundError:
                self.refresh()
                if found.base == end.base == self.end.base:  # it is being written: nobody's to move
                    raise self._missing(end.base) from None
                continue
            self._stand(file, found, searching=found.byte == 0)
            # Asked after the file was opened: one that was merged before is then known as closed.
            self.refresh()
            if not found.byte or self.end.base == end.base:
                break
        self.skipped += found.offset - offset

    def _stand(self, file: int, position: Position, searching: bool) -> None:
        """Read on in this file. `searching`: records before the position are skipped."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self.position, self._buffer, self._at = file, position, b"", 0
        self._must_reopen, self._searching = False, searching

    def close(self) -> None:
        self.partition.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def refresh(self) -> None:
        """Learn how far the log reaches now."""
        end = self.partition.durable_end() or self.end
        if end.offset < self.end.offset:
            raise self._went_back(self.end.offset, end.offset)
        self.end = end

    def read_into(self, records: list[LogRecord], limit: int) -> None:
        """Add records after the position, which moves past them, until there are `limit`."""
        while len(records) < limit and (record := self._next()) is not None:
            records.append(record)

    def _next(self) -> LogRecord | None:
        if not self._load_frame():
            return None
        offset, base, byte = self.position
        partition = self.partition
        try:
            record, end = decode_frame(
                self._buffer, self._at, partition.number, offset, partition.compacted
            )
        except FrameError as error:
            raise self._corrupt(error) from error
        self.position = Position(record.offset + 1, base, byte + end - self._at)
        self._at = end
        return record

    def next_time_ms(self) -> int | None:
        """Time of the next record; None when everything durable was read."""
        if not self._load_frame():
            return None
        return BODY.unpack_from(self._buffer, self._at + PREFIX.size)[1]

    def behind(self) -> int:
        """Records between the position and the durable end, and those left out by compaction."""
        return self.end.offset - self.position.offset

    def _load_frame(self) -> bool:
        """Have the frame at the position whole in the buffer; False at the durable end."""
        if self.behind() <= 0:
            return False
        if self._must_reopen and self._searching:
            self.seek_offset(self.position.offset)
        elif self._must_reopen:
            self.seek(self.position)
        while True:
            remaining = len(self._buffer) - self._at
            try:
                wanted = frame_size(self._buffer, self._at) if remaining >= PREFIX.size else 0
            except FrameError as error:
                raise self._corrupt(error) from error
            if wanted and wanted <= remaining:
                if not self._searching or self._is_found():
                    return True
                continue
            _, base, byte = self.position
            last = self.end.position if base == self.end.base else os.fstat(self._file).st_size
            if byte == last and base != self.end.base:
                self._open_next()
                continue
            size = max(0, min(max(wanted, READ_BYTES), last - byte))
            self._buffer, self._at = os.pread(self._file, size, byte), 0
            if len(self._buffer) < max(wanted, PREFIX.size):
                raise self._corrupt(f"{last - byte} bytes are left where a record must be")

    def _is_found(self) -> bool:
        """Whether the next record is at or after the position; skipped if not."""
        offset, base, byte = self.position
        try:
            # Whole, as a damaged offset may be that of one that is wanted.
            record, end = decode_frame(self._buffer, self._at, self.partition.number, base, True)
        except FrameError as error:
            raise self._corrupt(error) from error
        if record.offset >= offset:
            self._searching = False
            return True
        self.position = Position(offset, base, byte + end - self._at)
        self._at = end
        return False

    def _open_next(self) -> None:
        """Go on to the segment after this one, which was read to its end."""
        offset, base, _ = self.position
        if self.partition.compacted:
            # The last record of a segment is never left out, so the next one begins right after it,
            # or is in the first one now.
            here = self.partition.path(base)
            if self._segment_with(offset) == base and stands_at(self._file, here):
                raise self._no_next(offset)
            self.seek_offset(offset)
            return
        if self.partition.path(base).exists() and not self.partition.path(offset).exists():
            # Segments expire oldest first: a gap after one that is still there is no expiry.
            raise self._no_next(offset)
        self.seek(Position(offset, offset, 0))

    def _segment_with(self, offset: int) -> int:
        """First offset of the segment that holds the record, or of the oldest one that is kept."""
        segments = self.partition.segments()
        if not segments:
            raise FileNotFoundError(f"{self.partition.directory} holds no segment")
        return max((base for base in segments if base <= offset), default=segments[0])

    def _no_next(self, offset: int) -> LogCorrupt:
        return self._corrupt(f"it ends, and no segment begins at its next offset, {offset}")

    def _missing(self, base: int) -> LogCorrupt:
        return LogCorrupt(
            f"{self.partition.path(base)} is missing: restore it from a backup, or move the older"
            " ones of its folder away to go on with the next"
        )

    def _corrupt(self, reason: object) -> LogCorrupt:
        """The error; the next attempt looks at the file anew, which may have been restored."""
        self._must_reopen = True
        path = self.partition.path(self.position.base)
        return damaged(path, self.position.byte, reason)

    def _went_back(self, known: int, end: int) -> LogWentBack:
        directory = self.partition.directory
        return went_back(
            str(directory.parent),
            f"partition {directory.name} ends at offset {end}, but was known up to {known}",
        )
