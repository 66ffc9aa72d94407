"""Frames: what was encoded comes back, and nothing else ever does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.event_log.interface import LogRecord, Record
from services.event_log.segment import FrameError, decode_frame, encode_frame
from tests.unit.event_log.embedded_logs import record


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 2**62), st.integers(0))
def test_a_frame_gives_back_its_record_and_nothing_when_any_byte_is_missing(
    key: bytes, value: bytes, offset: int, time_ms: int
) -> None:
    time_ms %= 2**62
    frame = encode_frame(offset, Record(key, value, time_ms))
    expected = LogRecord(3, offset, time_ms, key, value)
    assert decode_frame(frame, 0, 3, offset) == (expected, len(frame))
    for cut in {0, 7, 8, len(frame) // 2, len(frame) - 1}:
        with pytest.raises(FrameError):
            decode_frame(frame[:cut], 0, 3, offset)
    for other in (offset + 1, offset - 1):
        with pytest.raises(FrameError, match="offset"):
            decode_frame(frame, 0, 3, other)
    assert decode_frame(frame, 0, 3, offset - 1, gaps=True) == (expected, len(frame))
    with pytest.raises(FrameError, match="offset"):
        decode_frame(frame, 0, 3, offset + 1, gaps=True)


@given(st.data())
def test_a_flipped_bit_never_passes_as_a_record(data: st.DataObject) -> None:
    frame = bytearray(encode_frame(5, record(data.draw(st.binary(max_size=50)))))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        decode_frame(bytes(frame), 0, 0, 5)
