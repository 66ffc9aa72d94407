"""The embedded log's own promises: crashes, damage, several writers, rolling, retention, disks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.event_log.embedded import EmbeddedEventLog, topic_file
from services.event_log.embedded_consumer import EmbeddedConsumer
from services.event_log.group import Group, Position, forget, share
from services.event_log.interface import LogCorrupt, LogRecord, LogUnavailable, LogWentBack, Record
from services.event_log.limits import LATEST_MS
from services.event_log.partition import Partition
from services.event_log.segment import (
    FrameError,
    decode_frame,
    encode_frame,
    segment_name,
)
from tests.contract.event_log_process import log_process

PATIENCE_S = 60.0
DAY_MS = 86_400_000
SEGMENT_BYTES = 1 << 20


def record(value: bytes = b"value", time_ms: int = 7, key: bytes = b"k") -> Record:
    return Record(key, value, time_ms)


def open_log(root: Path, **options: object) -> EmbeddedEventLog:
    # At time 0 nothing expires.
    return EmbeddedEventLog(root, **{"partitions": 1, "clock": lambda: 0.0, **options})


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedEventLog]:
    opened = open_log(tmp_path)
    yield opened
    opened.close()


def read_all(root: Path, topic: str = "t", group: str = "reader") -> list[LogRecord]:
    """Every durable record of the topic, read as a new group would."""
    log = open_log(root)
    consumer = log.consumer(topic, group)
    records = []
    consumer.poll(1, 0.0)
    consumer.rewind()
    while consumer.lag().events:
        records += consumer.poll(1000, 0.0)
    consumer.close()
    log.close()
    return records


def poll_in_vain(consumer: EmbeddedConsumer) -> None:
    """Poll until it raises."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert consumer.poll(10, 0.01) == []


def append_direct(directory: Path, *values: bytes) -> None:
    partition = Partition(directory, 0)
    partition.append([record(value) for value in values], SEGMENT_BYTES)
    partition.close()


# Frames


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
    with pytest.raises(FrameError, match="offset"):
        decode_frame(frame, 0, 3, offset + 1)


@given(st.data())
def test_a_flipped_bit_never_passes_as_a_record(data: st.DataObject) -> None:
    frame = bytearray(encode_frame(5, record(data.draw(st.binary(max_size=50)))))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        decode_frame(bytes(frame), 0, 0, 5)


# Crashes


def test_a_torn_tail_is_cut_at_every_byte_and_the_log_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    append_direct(whole, b"one", b"two")
    published = (whole / "durable").read_bytes()
    size = (whole / segment_name(0)).stat().st_size
    append_direct(whole, b"torn!")
    complete = (whole / segment_name(0)).read_bytes()
    for end in range(size, len(complete) + 1):
        torn = tmp_path / f"torn-{end}"
        torn.mkdir()
        (torn / "durable").write_bytes(published)
        (torn / segment_name(0)).write_bytes(complete[:end])
        append_direct(torn, b"after")
        data = (torn / segment_name(0)).read_bytes()
        values, at = [], 0
        while at < len(data):
            found, at = decode_frame(data, at, 0, len(values))
            values.append(found.value)
        survived = [b"torn!"] if end == len(complete) else []
        assert values == [b"one", b"two", *survived, b"after"]


def test_without_its_published_end_a_partition_is_found_again_whole(tmp_path: Path) -> None:
    directory = tmp_path / "0"
    partition = Partition(directory, 0)
    for i in range(6):
        partition.append([record(b"%d" % i)], segment_bytes=60)
    end = partition.durable_end()
    partition.close()
    assert len(list(directory.glob("*.log"))) > 1
    for lost in (b"", b"\0" * 28, b"garbage of the right size ..."[:28]):
        (directory / "durable").write_bytes(lost)
        again = Partition(directory, 0)
        assert again.durable_end() is None
        assert again.recover() == again.durable_end() == end
        again.close()


def test_a_writer_that_died_between_rolling_and_publishing_is_carried_on(tmp_path: Path) -> None:
    directory = tmp_path / "0"
    append_direct(directory, b"one")
    published = (directory / "durable").read_bytes()
    partition = Partition(directory, 0)
    partition.append([record(b"two")], segment_bytes=1)
    partition.close()
    (directory / "durable").write_bytes(published)
    append_direct(directory, b"three")  # its segments are large: it would not have rolled
    assert sorted(p.name for p in directory.glob("*.log")) == [segment_name(0), segment_name(1)]
    partition = Partition(directory, 0)
    assert partition.recover().offset == 3
    partition.close()


def test_a_killed_writer_loses_nothing_that_it_was_told_is_durable(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    with log_process("append", f"log://{tmp_path}", "t", "w") as writer:
        while len(acknowledged) < 300:
            acknowledged += json.loads(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            acknowledged += json.loads(line) if line.endswith("\n") else []
    stored = {r.key.decode() for r in read_all(tmp_path)}
    assert set(acknowledged) <= stored


def test_two_appending_processes_interleave_whole_records(tmp_path: Path) -> None:
    counts = {"left": 0, "right": 0}
    with (
        log_process("append", f"log://{tmp_path}", "t", "left") as left,
        log_process("append", f"log://{tmp_path}", "t", "right") as right,
    ):
        while min(counts.values()) < 150:
            counts["left"] += len(json.loads(left.stdout.readline()))
            counts["right"] += len(json.loads(right.stdout.readline()))
    records = read_all(tmp_path)
    assert all(r.value == r.key * 20 for r in records)
    assert len({r.key for r in records}) == len(records)
    for name, count in counts.items():
        assert sum(r.key.startswith(name.encode()) for r in records) >= count
    offsets = [r.offset for r in records if r.partition == 0]
    assert offsets == list(range(len(offsets)))


# Damage


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
        poll_in_vain(consumer)
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


# Rolling and retention


def test_segments_are_named_by_their_first_offset_and_read_as_one(tmp_path: Path) -> None:
    log = open_log(tmp_path, segment_mb=200 / 2**20)
    values = [b"%03d" % i * 30 for i in range(12)]
    consumer = log.consumer("t", "g")
    seen = []
    for value in values:
        log.append("t", [record(value)]).result()
        seen += consumer.poll(10, 0.0)
    names = sorted(int(p.stem) for p in (tmp_path / "t" / "0").glob("*.log"))
    assert names == [0, 2, 4, 6, 8, 10]
    assert [r.value for r in seen] == [r.value for r in read_all(tmp_path)] == values
    consumer.close()
    log.close()


def test_expired_segments_go_oldest_first_and_the_one_being_written_stays(tmp_path: Path) -> None:
    log = open_log(tmp_path, segment_mb=1e-6, retention_days=1)
    for day in (1, 3, 2, 4):  # event times: the second segment is newer than the third
        log.append("t", [record(time_ms=day * DAY_MS)]).result()
    segments = tmp_path / "t" / "0"
    assert log.enforce_retention(2 * DAY_MS) == 0
    assert log.enforce_retention(2 * DAY_MS + 1) == 1
    assert log.enforce_retention(4 * DAY_MS) == 0  # kept by the one before it
    assert log.enforce_retention(100 * DAY_MS) == 2
    assert [p.name for p in segments.glob("*.log")] == [segment_name(3)]
    log.append("t", [record(time_ms=100 * DAY_MS)]).result()
    assert [r.offset for r in read_all(tmp_path)] == [3, 4]
    log.close()


def test_a_record_of_the_future_expires_with_those_that_were_written_beside_it(
    tmp_path: Path,
) -> None:
    now_ms = time.time_ns() // 1_000_000
    log = open_log(tmp_path, segment_mb=1e-6, retention_days=1)
    for time_ms in (now_ms, now_ms + 400 * DAY_MS, LATEST_MS, now_ms):
        log.append("t", [record(time_ms=time_ms)]).result()
    assert log.enforce_retention(now_ms) == 0
    assert log.enforce_retention(now_ms + DAY_MS + 60_000) == 3
    log.close()


def test_the_writer_enforces_retention_when_it_rolls(tmp_path: Path) -> None:
    now_s = 0.0
    log = open_log(tmp_path, segment_mb=1e-6, retention_days=1, clock=lambda: now_s)
    log.append("t", [record(time_ms=0)]).result()
    now_s = 86_400 + 1.0
    log.append("t", [record(time_ms=int(now_s * 1000))]).result()
    log.close()
    assert [p.name for p in (tmp_path / "t" / "0").glob("*.log")] == [segment_name(1)]


def test_a_consumer_whose_position_expired_goes_on_at_the_earliest_record_and_says_so(
    tmp_path: Path,
) -> None:
    log = open_log(tmp_path, segment_mb=1e-6, retention_days=1)
    for i in range(5):
        log.append("t", [record(b"%d" % i, time_ms=i)]).result()
    consumer = log.consumer("t", "g")
    assert [r.offset for r in consumer.poll(1, 1.0)] == [0]
    consumer.commit()
    log.enforce_retention(DAY_MS + 4)
    # It has the committed segment open and reads on from there; the next one is gone.
    assert [r.offset for r in consumer.poll(10, 1.0)] == [4]
    assert consumer.records_skipped == 3
    consumer.close()
    successor = log.consumer("t", "g")
    assert [r.offset for r in successor.poll(10, 1.0)] == [4]
    assert successor.records_skipped == 3
    successor.close()
    log.close()


# Groups


@given(st.integers(1, 64), st.sets(st.uuids().map(str), min_size=1, max_size=70))
def test_the_shares_of_all_members_are_every_partition_once(
    partitions: int, members: set[str]
) -> None:
    shares = [share(partitions, list(members), member) for member in members]
    assert sorted(p for one in shares for p in one) == list(range(partitions))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_partition_is_read_by_one_member_at_a_time(tmp_path: Path) -> None:
    first, second = Group(tmp_path), Group(tmp_path)
    assert sorted(first.live_members()) == sorted([first.member, second.member])
    assert first.try_acquire(0)
    assert not second.try_acquire(0)
    first.leave()
    assert second.try_acquire(0)
    assert second.live_members() == [second.member]
    second.leave()
    assert list((tmp_path / "members").iterdir()) == []


def test_a_group_that_is_forgotten_leaves_nothing_and_a_killed_member_does_not_keep_it(
    tmp_path: Path, log: EmbeddedEventLog
) -> None:
    kept = log.consumer("t", "once-kept")
    kept.poll(1, 0.0)
    with log_process("member", f"log://{tmp_path}", "t", "once-killed") as member:
        member.stdout.readline()
        assert log.forget_groups("t", "once-") == 0
        member.kill()
        member.wait()
    assert log.forget_groups("t", "once-") == 1
    assert [g.name for g in (tmp_path / "t" / "groups").iterdir()] == ["once-kept"]
    kept.close()


def test_joining_and_forgetting_at_once_leaves_every_member_its_group(tmp_path: Path) -> None:
    stop = threading.Event()

    def forget_until_stopped() -> None:
        while not stop.is_set():
            forget(tmp_path, "g")

    forgetting = threading.Thread(target=forget_until_stopped)
    forgetting.start()
    try:
        for _ in range(200):
            group = Group(tmp_path / "g")
            group.commit(0, Position(1, 0, 1))
            assert group.committed(0) == Position(1, 0, 1)
            assert group.live_members() == [group.member]
            group.leave()
    finally:
        stop.set()
        forgetting.join()


def test_an_unreadable_position_is_damage_and_names_the_file(tmp_path: Path) -> None:
    group = Group(tmp_path)
    assert group.committed(0) is None
    group.commit(0, Position(5, 3, 120))
    assert group.committed(0) == Position(5, 3, 120)
    (tmp_path / "0.position.json").write_text("{")
    with pytest.raises(LogCorrupt, match=r"0\.position\.json"):
        group.committed(0)
    group.leave()


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
    assert log.enforce_retention(2**60) == 0


def test_a_waiting_poll_returns_when_a_record_becomes_durable(log: EmbeddedEventLog) -> None:
    consumer = log.consumer("t", "g")
    got: list[LogRecord] = []
    waiting = threading.Thread(target=lambda: got.extend(consumer.poll(10, PATIENCE_S)))
    waiting.start()
    log.append("t", [record()]).result()
    waiting.join(PATIENCE_S / 2)
    assert [r.offset for r in got] == [0]
    consumer.close()


def test_who_did_what_is_readable_to_the_owner_alone(tmp_path: Path) -> None:
    root = tmp_path / "made" / "events"
    before = os.umask(0o022)
    try:
        log = open_log(root)
        log.append("t", [record()]).result()
        consumer = log.consumer("t", "g")
        consumer.poll(1, 0.0)
        consumer.commit()
    finally:
        os.umask(before)
    made = [root, *root.rglob("*")]
    assert len(made) > 8
    assert [p for p in made if p.stat().st_mode & 0o077] == []
    consumer.close()
    log.close()


# Disks


FEW_DESCRIPTORS = """
import os
import resource
import sys
from pathlib import Path
from services.event_log.embedded import EmbeddedEventLog, topic_file
from services.event_log.interface import LogUnavailable, Record

log = EmbeddedEventLog(Path(sys.argv[1]), partitions=1)
log.append("t", [Record(b"k", b"before", 1)]).result()
consumer = log.consumer("t", "g")
open_ones = len(os.listdir("/proc/self/fd")) - 1
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
for spare in (0, 1, 2, 0, 1, 2):
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_ones + spare, most))
    for refused in (
        lambda: log.append("other", [Record(b"k", b"refused", 1)]).result(),
        lambda: consumer.poll(1, 0.0),
    ):
        try:
            refused()
            print("taken with", spare, "to spare")
        except LogUnavailable as error:
            assert "Too many open files" in str(error), error
resource.setrlimit(resource.RLIMIT_NOFILE, (open_ones + 8, most))
assert len(os.listdir("/proc/self/fd")) - 1 == open_ones
log.append("other", [Record(b"k", b"after", 1)]).result()
print(consumer.poll(1, 0.0)[0].value.decode())
"""


def test_without_descriptors_to_spare_it_says_so_loses_none_and_recovers(tmp_path: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS, str(tmp_path)], capture_output=True, text=True
    )
    assert outcome.stdout.split() == ["before"], outcome.stdout + outcome.stderr


FULL_DISK = """
import resource
import sys
from pathlib import Path
from services.event_log.embedded import EmbeddedEventLog, topic_file
from services.event_log.interface import LogUnavailable, Record

log = EmbeddedEventLog(Path(sys.argv[1]), partitions=1)
log.append("t", [Record(b"k", b"before", 1)]).result()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
try:
    log.append("t", [Record(b"k", b"x" * 700, 1)] * 2).result()
except LogUnavailable as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.append("t", [Record(b"k", b"after", 1)]).result()
log.close()
"""


def test_a_full_disk_fails_the_append_and_the_next_one_works_once_there_is_room(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "cannot write topic t" in done.stdout
    assert "File too large" in done.stdout
    assert [r.value for r in read_all(tmp_path)] == [b"before", b"after"]


def test_a_directory_that_cannot_be_made_is_unavailable_and_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    log = open_log(tmp_path / "file")
    with pytest.raises(LogUnavailable, match="cannot open topic"):
        log.append("t", [record()]).result()
    with pytest.raises(LogUnavailable, match="cannot open topic"):
        log.consumer("t", "g")
    log.close()


def test_appends_to_a_topic_that_vanished_fail_and_the_writer_lives_on(
    tmp_path: Path, log: EmbeddedEventLog
) -> None:
    assert log.partitions("gone") == 1
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(LogUnavailable, match="gone"):
        log.append("gone", [record()]).result()
    log.append("t", [record()]).result()


@given(st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=10)
def test_racing_creators_agree_on_the_partition_count(ours: int, theirs: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        logs = [open_log(Path(root), partitions=n) for n in (ours, theirs)]
        counts: list[int] = []
        threads = [
            threading.Thread(target=lambda log=log: counts.append(log.partitions("t")))
            for log in logs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts[0] == counts[1]
        assert counts[0] in (ours, theirs)
