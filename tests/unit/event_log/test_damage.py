"""Files that were damaged, lost or restored are said, and nothing is skipped."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.event_log.embedded import EmbeddedEventLog, topic_file
from services.event_log.group import Group, Position
from services.event_log.interface import LogCorrupt, LogUnavailable, LogWentBack, Record
from services.event_log.partition import Partition
from services.event_log.segment import segment_name
from tests.contract.event_logs import poll_until_raised
from tests.unit.event_log.embedded_logs import (
    SEGMENT_BYTES,
    expire,
    open_log,
    read_all,
    record,
)


def test_a_flipped_bit_is_reported_with_file_and_position(
    tmp_path: Path, log: EmbeddedEventLog
) -> None:
    log.append("t", [record(b"a" * 100) for _ in range(3)]).result()
    segment = tmp_path / "t" / "0" / segment_name(0)
    data = bytearray(segment.read_bytes())
    size = len(data) // 3
    data[size + 60] ^= 0x10
    segment.write_bytes(data)
    consumer = log.consumer("t", "g")
    assert [r.offset for r in consumer.poll(10, 0.0)] == [0]
    for _ in range(2):
        with pytest.raises(LogCorrupt, match=rf"{segment} is damaged at byte {size}: .*checksum"):
            consumer.poll(10, 0.0)
    consumer.close()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_that_was_restored_is_read_and_written_on_without_a_restart(
    tmp_path: Path, log: EmbeddedEventLog, in_place: bool
) -> None:
    log.append("t", [record(b"%d" % i) for i in range(3)]).result()
    segment = tmp_path / "t" / "0" / segment_name(0)
    intact = segment.read_bytes()
    consumer = log.consumer("t", "g")
    consumer.poll(1, 0.0)
    log.append("t", [record(b"3")]).result()
    whole = segment.read_bytes()
    segment.write_bytes(intact[:-1])
    with pytest.raises(LogCorrupt, match="restore it from a backup"):
        log.append("t", [record(b"refused")]).result()
    assert [r.value for r in consumer.poll(10, 0.0)] == [b"1", b"2"]  # read ahead
    with pytest.raises(LogCorrupt, match="restore it from a backup"):
        consumer.poll(10, 0.0)
    restored = segment if in_place else segment.with_suffix(".restored")
    restored.write_bytes(whole)
    restored.rename(segment)
    log.append("t", [record(b"4")]).result()
    assert [r.value for r in consumer.poll(10, 0.0)] == [b"3", b"4"]
    consumer.close()


@given(st.lists(st.integers(0, 5), min_size=3, max_size=3), st.integers(0, 2), st.integers(1, 10))
@settings(max_examples=30)
def test_a_poll_that_raises_has_lost_nothing_that_lies_before_the_damage(
    sizes: list[int], damaged: int, max_records: int
) -> None:
    with tempfile.TemporaryDirectory() as root:
        topic = Path(root) / "t"
        log = open_log(Path(root), partitions=3)
        log.partitions("t")
        for number, count in enumerate(sizes):
            partition = Partition(topic / str(number), number)
            partition.append([record() for _ in range(count + (number == damaged))], SEGMENT_BYTES)
            partition.close()
        segment = topic / str(damaged) / segment_name(0)
        data = bytearray(segment.read_bytes())
        data[-1] ^= 1
        segment.write_bytes(data)
        consumer = log.consumer("t", "g")
        came: dict[int, list[int]] = {number: [] for number in range(3)}
        raised = 0
        for _ in range(3 * (sum(sizes) + 2)):
            try:
                for got in consumer.poll(max_records, 0.0):
                    came[got.partition].append(got.offset)
            except LogCorrupt:
                raised += 1
        assert came == {number: list(range(count)) for number, count in enumerate(sizes)}
        assert raised
        consumer.close()
        log.close()


def test_a_segment_shorter_than_what_was_durable_is_reported_to_reader_and_writer(
    tmp_path: Path, log: EmbeddedEventLog
) -> None:
    log.append("t", [record() for _ in range(3)]).result()
    segment = tmp_path / "t" / "0" / segment_name(0)
    segment.write_bytes(segment.read_bytes()[:-1])
    with pytest.raises(LogCorrupt, match=f"{segment} ends at byte"):
        log.append("t", [record()]).result()
    consumer = log.consumer("t", "g")
    with pytest.raises(LogCorrupt, match=f"{segment} ends at byte"):
        consumer.poll(1, 0.0)
    assert consumer.assigned() == frozenset()
    consumer.close()


def test_damage_that_retention_meets_fails_no_append(tmp_path: Path) -> None:
    log = open_log(tmp_path, segment_mb=1e-6)
    log.append("t", [record(b"before")]).result()
    segment = tmp_path / "t" / "0" / segment_name(0)
    segment.write_bytes(b"\xff" * segment.stat().st_size)
    log.append("t", [record(b"after")]).result()  # begins a segment
    assert log.end_offsets("t") == [2]
    assert segment.exists()
    log.close()


def test_what_is_written_after_its_file_was_deleted_is_not_acknowledged(
    tmp_path: Path, log: EmbeddedEventLog
) -> None:
    log.append("t", [record(b"before")]).result()
    segment = tmp_path / "t" / "0" / segment_name(0)
    moved = segment.rename(tmp_path / "moved")
    for _ in range(2):
        with pytest.raises(LogCorrupt, match=f"{segment} ends at byte 0"):
            log.append("t", [record(b"refused")]).result()
    moved.rename(segment)
    log.append("t", [record(b"after")]).result()
    assert [r.value for r in read_all(tmp_path)] == [b"before", b"after"]


def test_a_missing_segment_in_the_middle_is_damage_and_not_expiry(tmp_path: Path) -> None:
    log = open_log(tmp_path, segment_mb=1e-6)
    for i in range(4):
        log.append("t", [record(b"%d" % i)]).result()
    log.close()
    (tmp_path / "t" / "0" / segment_name(2)).unlink()
    with pytest.raises(LogCorrupt, match="no segment begins at its next offset, 2"):
        read_all(tmp_path)
    group = Group(tmp_path / "t" / "groups" / "there")
    group.commit(0, Position(2, 2, 0))
    group.leave()
    log = open_log(tmp_path)
    consumer = log.consumer("t", "there")
    for _ in range(2):
        with pytest.raises(LogCorrupt, match=f"{segment_name(2)} is missing: restore it"):
            consumer.poll(1, 0.0)
    consumer.close()
    reader = log.reader("t", {0: 2})
    for _ in range(2):
        with pytest.raises(LogCorrupt, match="no segment begins at its next offset, 2"):
            reader.poll(1, 0.0)
    reader.close()
    log.close()


# Backups


def swap_folders(backup: Path, topic: Path) -> None:
    shutil.rmtree(topic)
    shutil.copytree(backup, topic)


def copy_over(backup: Path, topic: Path) -> None:
    shutil.copytree(backup, topic, dirs_exist_ok=True)


@pytest.mark.parametrize("restore", [swap_folders, copy_over])
def test_a_reader_of_a_log_that_is_restored_from_a_backup_says_so_and_the_writer_goes_on_in_it(
    tmp_path: Path, log: EmbeddedEventLog, restore: Callable[[Path, Path], None]
) -> None:
    topic, backup = tmp_path / "t", tmp_path / "backup"
    log.append("t", [record(b"%d" % i) for i in range(3)]).result()
    consumer = log.consumer("t", "g")
    assert len(consumer.poll(10, 0.0)) == 3
    shutil.copytree(topic, backup)
    log.append("t", [record(b"lost") for _ in range(5)]).result()
    assert len(consumer.poll(10, 0.0)) == 5
    restore(backup, topic)
    with pytest.raises(LogWentBack, match=re.escape(f"topic {topic} went back")):
        poll_until_raised(consumer)
    log.append("t", [record(b"after") for _ in range(20)]).result()
    with pytest.raises(LogWentBack):
        consumer.poll(10, 0.0)
    consumer.close()
    assert log.end_offsets("t") == [23]
    assert [r.value for r in read_all(tmp_path)] == [b"0", b"1", b"2", *[b"after"] * 20]


def test_a_topic_that_is_gone_takes_nothing_until_it_is_put_back(
    tmp_path: Path, log: EmbeddedEventLog
) -> None:
    log.append("t", [record(b"before")]).result()
    (tmp_path / "t").rename(tmp_path / "unmounted")
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="is gone: put it back"):
            log.append("t", [record(b"refused")]).result()
    assert not (tmp_path / "t").exists()
    (tmp_path / "unmounted").rename(tmp_path / "t")
    log.append("t", [record(b"after")]).result()
    assert [r.value for r in read_all(tmp_path)] == [b"before", b"after"]


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"{", b"[]", b"\xff", b'{"partitions": 0}', b'{"partitions": -1}',
     b'{"partitions": 2147483648}', b'{"partitions": Infinity}', b'{"partitions": "2"}'],
)  # fmt: skip
def test_a_topic_file_of_any_content_is_damage_and_leaves_no_append_waiting(
    log: EmbeddedEventLog, content: bytes
) -> None:
    record = [Record(b"k", b"v", 1)]
    log.append("t", record).result(10)
    topic_file(log.root / "t").write_bytes(content)
    with pytest.raises(LogCorrupt, match=r"topic\.json"):
        log.append("t", record).result(10)
    with pytest.raises(LogCorrupt, match=r"topic\.json"):
        log.consumer("t", "g")
    log.append("other", record).result(10)


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "[]", '{"offset": "1", "base": 0, "byte": 0}',
     '{"offset": null, "base": null, "byte": null}', '{"offset": -1, "base": 0, "byte": 0}',
     '{"offset": 0, "base": 0, "byte": 9223372036854775808}'],
)  # fmt: skip
def test_a_position_file_of_any_content_is_damage(log: EmbeddedEventLog, content: str) -> None:
    log.append("t", [Record(b"k", b"v", 1)]).result(10)
    with contextlib.closing(log.consumer("t", "g")) as consumer:
        for number in range(log.partitions("t")):
            (log.root / "t" / "groups" / "g" / f"{number}.position.json").write_text(content)
        with pytest.raises(LogCorrupt, match=r"position\.json .*: delete it"):
            consumer.poll(1, 1.0)


@pytest.mark.parametrize("name", ["abc.log", "-5.log", "7.log", f"{0:020d} (copy).log"])
def test_a_strange_file_beside_the_segments_changes_nothing(
    log: EmbeddedEventLog, name: str
) -> None:
    log.append("t", [Record(b"k", b"v", 1)]).result(10)
    starts, ends = log.start_offsets("t"), log.end_offsets("t")
    for number in range(log.partitions("t")):
        (log.root / "t" / str(number) / name).write_bytes(b"not ours")
    assert (log.start_offsets("t"), log.end_offsets("t")) == (starts, ends)
    assert expire(log.root / "t", 2**60) == 0


def test_appends_to_a_topic_that_vanished_fail_and_the_writer_lives_on(
    tmp_path: Path, log: EmbeddedEventLog
) -> None:
    assert log.partitions("gone") == 1
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(LogUnavailable, match="gone"):
        log.append("gone", [record()]).result()
    log.append("t", [record()]).result()
