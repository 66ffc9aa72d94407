"""The bytes of the embedded log: framed records in segment files named by their first offset.

A frame is little-endian: u32 length and u32 crc32 of everything after them, then i64 offset,
i64 time_ms, u16 key length, key, value. The offsets of a segment have no gaps, but where compaction
has left records out (compaction.py). Pure functions: nothing here opens a file.
"""

from __future__ import annotations

import struct
from zlib import crc32

from services.event_log.interface import MAX_RECORD_BYTES, LogCorrupt, LogRecord, Record

PREFIX = struct.Struct("<II")
BODY = struct.Struct("<qqH")
MAX_BODY_BYTES = BODY.size + MAX_RECORD_BYTES


def damaged(path: object, byte: int, reason: object) -> LogCorrupt:
    """The error for a file whose records cannot be read, with what to do."""
    return LogCorrupt(
        f"{path} is damaged at byte {byte}: {reason}; restore it from a backup, or move it and the"
        " older ones of its folder away to go on with the next"
    )


class FrameError(Exception):
    """The bytes at a position are not a whole, intact frame: a torn tail, or damage."""


def segment_name(first_offset: int) -> str:
    """File name of the segment whose first record has this offset; sorts by offset."""
    return f"{first_offset:020d}.log"


def encode_frame(offset: int, record: Record) -> bytes:
    """One framed record."""
    body = BODY.pack(offset, record.time_ms, len(record.key)) + record.key + record.value
    return PREFIX.pack(len(body), crc32(body)) + body


def frame_size(data: bytes, at: int) -> int:
    """Bytes of the frame that starts at `at`, of which `data` may hold only the beginning.

    Raises FrameError when not even its length is there or the length is impossible.
    """
    if len(data) - at < PREFIX.size:
        raise FrameError("the frame's first bytes are cut off")
    length = PREFIX.unpack_from(data, at)[0]
    if not BODY.size <= length <= MAX_BODY_BYTES:
        raise FrameError(f"a frame cannot be {length} bytes long")
    return PREFIX.size + length


def decode_frame(
    data: bytes, at: int, partition: int, offset: int, gaps: bool = False
) -> tuple[LogRecord, int]:
    """The record at `at`, which must have this offset, and where the next frame starts.

    With `gaps` it may have a later one: records before it were left out by compaction. Raises
    FrameError when the frame is cut off, fails its checksum or holds another offset.
    """
    end = at + frame_size(data, at)
    if end > len(data):
        raise FrameError("the frame is cut off")
    body = data[at + PREFIX.size : end]
    if crc32(body) != PREFIX.unpack_from(data, at)[1]:
        raise FrameError("the checksum does not match")
    found, time_ms, key_length = BODY.unpack_from(body)
    if found != offset and not (gaps and found > offset):
        raise FrameError(f"it holds offset {found} where {offset} belongs")
    key_end = BODY.size + key_length
    key, value = body[BODY.size : key_end], body[key_end:]
    return LogRecord(partition, found, max(0, time_ms), key, value), end
