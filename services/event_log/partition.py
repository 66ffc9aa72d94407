"""One partition of the embedded log on disk: appended by any process, readable by any process.

Writers take the partition's lock (flock: the kernel releases it with the process) for one batch:
recover, roll, write, fdatasync, publish. What is published is the `durable` file: segment, byte end
and next offset, rewritten in place with a checksum. Readers look at nothing beyond it. It is a
hint: after a crash it may lag behind the segment, never lead it, so the next process that takes the
lock scans on from it, keeps the whole records, cuts the torn tail off and publishes anew. (A record
whose writer died between fdatasync and publish surfaces then, though it was never acknowledged.)
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import structlog

from models.files import sync
from services.event_log.interface import LogCorrupt, LogUnavailable, Record
from services.event_log.segment import (
    BODY,
    PREFIX,
    FrameError,
    damaged,
    decode_frame,
    encode_frame,
    frame_size,
    segment_name,
)

log = structlog.get_logger(__name__)

END = struct.Struct("<qqqI")
SCAN_BYTES = 1 << 20
FILE_MODE, DIRECTORY_MODE = 0o600, 0o700  # who did what is nobody else's business


class DurableEnd(NamedTuple):
    """Everything before byte `position` of segment `base` is durable; `offset` comes next."""

    base: int
    position: int
    offset: int


class Partition:
    """Directory of one partition. Methods raise OSError, and LogCorrupt for damaged bytes."""

    def __init__(self, directory: Path, number: int, compacted: bool = False) -> None:
        self.directory = directory
        self.number = number
        self.compacted = compacted
        self._lock_fd = self._end_fd = self._segment_fd = -1
        self._segment_base = -1
        directory.mkdir(exist_ok=True, mode=DIRECTORY_MODE)
        try:
            self._lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, FILE_MODE)
            self._end_fd = os.open(directory / "durable", os.O_RDWR | os.O_CREAT, FILE_MODE)
        except OSError:  # without descriptors to spare, the first must not be lost
            self.close()
            raise
        self._newest_ms: dict[int, int] = {}  # by segment, of closed ones only
        self._last_end: DurableEnd | None = None

    def close(self) -> None:
        for fd in (self._lock_fd, self._end_fd, self._segment_fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._end_fd = self._segment_fd = -1

    # Reading: no lock.

    def replaced(self) -> bool:
        """Whether other files, or none, stand where those that are open stood: a backup was put in
        their place, and what is written to the open ones nobody would ever read."""
        return not (
            stands_at(self._lock_fd, self.directory / "lock")
            and stands_at(self._end_fd, self.directory / "durable")
        )

    def path(self, base: int) -> Path:
        return self.directory / segment_name(base)

    def segments(self) -> list[int]:
        """First offsets of the segments that exist, ascending. Other files are nobody's."""
        files = (p for p in self.directory.glob("*.log") if p.stem.isdecimal())
        return sorted(base for p in files if segment_name(base := int(p.stem)) == p.name)

    def durable_end(self) -> DurableEnd | None:
        """What is published; None when nothing valid is (a new partition, or after power loss)."""
        data = os.pread(self._end_fd, END.size, 0)
        if len(data) == END.size:
            base, position, offset, checksum = END.unpack(data)
            if crc32(data[:-4]) == checksum:
                self._last_end = DurableEnd(base, position, offset)
        # A read that met a write half done shows the older end, as if it had come first.
        return self._last_end

    # Writing: under the lock.

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the partition's lock against other processes and other open logs."""
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def append(self, records: Sequence[Record], segment_bytes: int) -> bool:
        """Write the records, make them durable and publish them; True when a segment was begun.

        On OSError nothing is published and what was written is cut off again.
        """
        with self.locked():
            end = self.recover()
            rolled = end.position >= segment_bytes
            if rolled:
                end = DurableEnd(end.offset, 0, end.offset)
            fd = self._open_segment(end.base)
            frames = b"".join(encode_frame(end.offset + i, r) for i, r in enumerate(records))
            try:
                write_all(fd, frames, end.position)
                os.fdatasync(fd)
            except OSError:
                os.ftruncate(fd, end.position)
                raise
            self._publish(
                DurableEnd(end.base, end.position + len(frames), end.offset + len(records))
            )
            return rolled

    def recovered_end(self) -> DurableEnd:
        """The true end, for somebody who does not hold the lock."""
        with self.locked():
            return self.recover()

    def recover(self) -> DurableEnd:
        """The true end, published. Costs two system calls when the last writer ended well."""
        published = self.durable_end()
        end = published
        if end is None or self.compacted:
            # What was published before a compaction (in a backup, after a power loss) is a place in
            # a file that is now another one. The last segment is never merged.
            segments = self.segments()
            last = segments[-1] if segments else 0
            if end is None or end.base < last:
                end = DurableEnd(last, 0, last)
        while True:
            end = self._scan_tail(end)
            # A segment that begins at the next offset was rolled to by a writer that then died.
            if end.base == end.offset or not self.path(end.offset).exists():
                break
            end = DurableEnd(end.offset, 0, end.offset)
        if end != published:
            self._publish(end)
        return end

    def enforce_retention(self, oldest_ms: int) -> list[int]:
        """Delete, oldest first, segments whose newest record is before `oldest_ms`; their bases.

        The segment being written always stays, and so does everything after the first kept one. No
        record is newer than the last writing of its segment's file, whatever time it bears.
        """
        deleted = []
        with self.locked():
            active = self.recover().base
            for base in self.segments():
                if base >= active or self._newest(base) >= oldest_ms:
                    break
                self.path(base).unlink()
                self._newest_ms.pop(base, None)
                deleted.append(base)
        return deleted

    def _open_segment(self, base: int) -> int:
        if base != self._segment_base or not stands_at(self._segment_fd, self.path(base)):
            new = not self.path(base).exists()
            fd = os.open(self.path(base), os.O_RDWR | os.O_CREAT, FILE_MODE)
            if new:
                sync(self.directory)
            if self._segment_fd >= 0:
                os.close(self._segment_fd)
            self._segment_fd, self._segment_base = fd, base
        return self._segment_fd

    def _scan_tail(self, end: DurableEnd) -> DurableEnd:
        """Where the whole records of the segment end; bytes after that are cut off."""
        fd = self._open_segment(end.base)
        size = os.fstat(fd).st_size
        if size == end.position:
            return end
        path = self.path(end.base)
        if size < end.position:
            raise LogCorrupt(
                f"{path} ends at byte {size}, but {end.position} were durable: restore it from a"
                f" backup, or delete {self.directory / 'durable'} to give up what is missing"
            )
        tail = os.pread(fd, size - end.position, end.position)
        at, offset = 0, end.offset
        try:
            while at < len(tail):
                _, at = decode_frame(tail, at, self.number, offset)
                offset += 1
        except FrameError as error:
            log.warning("torn_tail_cut", file=str(path), at=end.position + at, reason=str(error))
            os.ftruncate(fd, end.position + at)
        os.fdatasync(fd)
        return DurableEnd(end.base, end.position + at, offset)

    def _publish(self, end: DurableEnd) -> None:
        fields = END.pack(*end, 0)[:-4]
        os.pwrite(self._end_fd, fields + struct.pack("<I", crc32(fields)), 0)
        self._last_end = end

    def _newest(self, base: int) -> int:
        """When the newest record of a closed segment was made, or at the latest written; one read
        of its frame headers, kept."""
        if base not in self._newest_ms:
            newest = 0
            with self.path(base).open("rb", buffering=SCAN_BYTES) as file:
                while head := file.read(PREFIX.size + BODY.size):
                    try:
                        size = frame_size(head, 0)
                        newest = max(newest, BODY.unpack_from(head, PREFIX.size)[1])
                    except (FrameError, struct.error) as error:
                        raise damaged(file.name, file.tell() - len(head), error) from error
                    file.seek(size - len(head), os.SEEK_CUR)
                written_ms = os.fstat(file.fileno()).st_mtime_ns // 1_000_000
            self._newest_ms[base] = min(newest, written_ms)
        return self._newest_ms[base]


@contextmanager
def unavailable(what: str) -> Iterator[None]:
    """What the file system refuses meanwhile is LogUnavailable: `what`, and the cause."""
    try:
        yield
    except OSError as error:
        raise LogUnavailable(f"{what}: {error}") from error


def stands_at(fd: int, path: Path) -> bool:
    """Whether the open file is the one that is found at the path."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def private(path: str, flags: int) -> int:
    """An `opener` for files that only their owner may read."""
    return os.open(path, flags, FILE_MODE)


def write_all(fd: int, data: bytes, position: int) -> None:
    """pwrite until everything is written (a full disk first takes a part, then fails)."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written
