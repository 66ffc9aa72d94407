"""Compaction of a partition of the embedded log: of each key the last record stays.

The closed segments are merged into one, which takes the name of the first; the one being written is
not looked at, so the last record of the closed ones always stays and the next segment begins right
after it. Records keep their bytes and offsets. Nobody is locked out meanwhile but other
compactions: closed segments are changed by nothing else.

A crash leaves the log whole at every step: before the rename with what was written beside it, which
the next compaction deletes; after it with old segments whose records the first one holds as well.
Those are never read after it, as it ends where the last of them does, and they are deleted from the
oldest on: where one is gone, so are those before it, and the first one holds them all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import xxhash

from models.files import replacing, sync
from services.event_log.interface import LogCorrupt
from services.event_log.partition import FILE_MODE, SCAN_BYTES, Partition
from services.event_log.segment import PREFIX, FrameError, damaged, decode_frame, frame_size


class Compacted(NamedTuple):
    """What has become one: how many segments, and how many of their records stay."""

    segments: int
    records: int
    kept: int


class _Segment(NamedTuple):
    """A closed segment: the file, as it was when it was read, and the numbers of its records (over
    all segments), the last one being that of its end."""

    path: Path
    seen: tuple[int, int, int]
    first: int
    end: int


def compact(partition: Partition) -> Compacted | None:
    """Merge the closed segments if it pays; None if not, or if somebody else is at it.

    Raises OSError, and LogCorrupt for records that cannot be read; the log is whole then, too.
    """
    with _alone(partition.directory) as alone:
        if not alone:
            return None
        # Published, so nobody takes a closed one for the one that is being written.
        active = partition.recovered_end().base
        closed = [base for base in partition.segments() if base < active]
        if not _pays([partition.path(base).stat().st_size for base in closed]):
            return None
        for left in partition.directory.glob(".*.log-*"):
            left.unlink()  # by a compaction that was killed
        return _merge(partition, closed, active)


def _pays(sizes: Sequence[int]) -> bool:
    """Whether at least as much was closed since the last compaction as it had left, which is the
    first segment. So two bytes at most are written for each that is appended, and a partition is
    hardly larger than twice what must be kept, and a segment or two."""
    return len(sizes) > 1 and sum(sizes[1:]) >= sizes[0]


def _merge(partition: Partition, closed: Sequence[int], active: int) -> Compacted:
    begins = array("q")  # the byte where each record begins in its segment, and that of its end
    last: dict[bytes, int] = {}  # the number of the last record of each key, by the key's hash
    segments: list[_Segment] = []
    offset = closed[0]
    for base in closed:
        if base < offset:
            continue  # of a compaction that was killed after it had merged this one into the first
        if base > offset:
            raise _gap(segments[-1].path, offset)
        segment, offset = _read(partition, base, begins, last)
        segments.append(segment)
    if offset != active:
        raise _gap(segments[-1].path, offset)
    kept = bytearray(len(begins))
    for number in last.values():
        kept[number] = 1
    merged = Compacted(len(segments), len(begins) - len(segments), len(last))
    del last
    with replacing(segments[0].path, durable=True, mode=FILE_MODE) as temporary:
        with temporary.open("wb", buffering=SCAN_BYTES) as out:
            for segment in segments:
                _copy(segment, begins, kept, out)
        sync(temporary)
        for path, seen, *_ in segments:
            if _seen(path) != seen:
                raise OSError(f"{path} was replaced while it was compacted")
    for base in closed[1:]:
        partition.path(base).unlink()
    return merged


def _read(
    partition: Partition, base: int, begins: array[int], last: dict[bytes, int]
) -> tuple[_Segment, int]:
    """Add a segment's records to `begins` and `last`; it, and the offset after them."""
    path, first, offset = partition.path(base), len(begins), base
    seen = _seen(path)
    data, at, place = b"", 0, 0  # of data that is read ahead, the next record's byte in the file
    with path.open("rb", buffering=0) as file:
        while True:
            try:
                if len(data) - at < PREFIX.size or frame_size(data, at) > len(data) - at:
                    more = file.read(SCAN_BYTES)
                    if not more and at == len(data):
                        break
                    if not more:
                        raise FrameError("the frame is cut off")
                    data, at = data[at:] + more, 0
                    continue
                record, end = decode_frame(data, at, partition.number, offset, gaps=True)
            except FrameError as error:
                raise damaged(path, place, error) from error
            last[xxhash.xxh3_128_digest(record.key)] = len(begins)
            begins.append(place)
            offset = record.offset + 1
            place += end - at
            at = end
    begins.append(place)
    return _Segment(path, seen, first, len(begins) - 1), offset


def _copy(segment: _Segment, begins: array[int], kept: bytearray, out: BinaryIO) -> None:
    """Copy the records of a segment that stay: those that lie side by side at once."""
    with segment.path.open("rb", buffering=0) as source:
        number = segment.first
        while (number := kept.find(1, number, segment.end)) >= 0:
            stop = kept.find(0, number, segment.end + 1)  # the end is none that stays
            for at in range(begins[number], begins[stop], SCAN_BYTES):
                wanted = min(SCAN_BYTES, begins[stop] - at)
                data = os.pread(source.fileno(), wanted, at)
                if len(data) < wanted:
                    raise damaged(segment.path, at + len(data), "it is shorter than it was")
                out.write(data)
            number = stop


def _seen(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced or written."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _gap(path: Path, offset: int) -> LogCorrupt:
    size = path.stat().st_size
    return damaged(path, size, f"it ends, and no segment begins at its next offset, {offset}")


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[bool]:
    """Whether no other compaction of the partition is going on, and none begins meanwhile."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(fd)
