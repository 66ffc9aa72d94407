"""Reading all of some topics, and again when they are no longer those that were read."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from services.event_log.embedded import EmbeddedEventLog
from services.event_log.interface import LogWentBack, Record
from services.event_log.whole_log import WholeTopics

PATIENCE_S = 60.0


def append(log: EmbeddedEventLog, topic: str, *values: bytes) -> None:
    log.append(topic, [Record(b"k", value, 1) for value in values]).result()


def read_to_the_end(reader: WholeTopics) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while reader.step(0.01) or not reader.caught_up():
        assert time.monotonic() < deadline


def test_after_a_topic_was_made_anew_a_reader_can_begin_with_all_that_there_is(
    tmp_path: Path,
) -> None:
    log = EmbeddedEventLog(tmp_path, clock=lambda: 0.0)
    append(log, "a", b"a1", b"a2")
    append(log, "b", b"b1")
    taken: list[bytes] = []
    takers = dict.fromkeys("ab", lambda record: taken.append(record.value))
    reader = WholeTopics(log, "reader", 10, takers)
    read_to_the_end(reader)
    assert sorted(taken) == [b"a1", b"a2", b"b1"]
    shutil.rmtree(tmp_path / "b")
    restarted = EmbeddedEventLog(tmp_path, clock=lambda: 0.0)
    append(restarted, "b", b"b2", b"b3")
    with pytest.raises(LogWentBack, match="made anew"):
        read_to_the_end(reader)
    taken.clear()
    reader.begin_anew()
    assert not reader.caught_up()
    assert reader.lags().keys() == {"a", "b"}  # of a worker that is told to stop just then
    read_to_the_end(reader)
    assert sorted(taken) == [b"a1", b"a2", b"b2", b"b3"]
    reader.close()
    for topic in "ab":
        assert list((tmp_path / topic / "groups").iterdir()) == []
    log.close()
    restarted.close()
