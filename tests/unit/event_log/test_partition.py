"""A partition on disk: crashes, several writers, rolling and retention."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from structlog.testing import capture_logs

from services.event_log.limits import LATEST_MS
from services.event_log.partition import Partition
from services.event_log.segment import decode_frame, segment_name
from tests.contract.event_log_process import log_process
from tests.contract.event_logs import read_from
from tests.unit.event_log.embedded_logs import (
    DAY_MS,
    append_direct,
    expire,
    open_log,
    read_all,
    record,
)


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
    log = open_log(tmp_path, segment_mb=1e-6)
    for day in (1, 3, 2, 4):  # event times: the second segment is newer than the third
        log.append("t", [record(time_ms=day * DAY_MS)]).result()
    topic = tmp_path / "t"
    assert expire(topic, DAY_MS) == 0
    assert expire(topic, DAY_MS + 1) == 1
    assert expire(topic, 3 * DAY_MS) == 0  # kept by the one before it
    assert expire(topic, 99 * DAY_MS) == 2
    assert [p.name for p in (topic / "0").glob("*.log")] == [segment_name(3)]
    log.append("t", [record(time_ms=100 * DAY_MS)]).result()
    assert [r.offset for r in read_all(tmp_path)] == [3, 4]
    log.close()


def test_a_record_of_the_future_expires_with_those_that_were_written_beside_it(
    tmp_path: Path,
) -> None:
    now_ms = time.time_ns() // 1_000_000
    log = open_log(tmp_path, segment_mb=1e-6)
    for time_ms in (now_ms, now_ms + 400 * DAY_MS, LATEST_MS, now_ms):
        log.append("t", [record(time_ms=time_ms)]).result()
    assert expire(tmp_path / "t", now_ms - DAY_MS) == 0
    assert expire(tmp_path / "t", now_ms + 60_000) == 3
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
    log = open_log(tmp_path, segment_mb=1e-6)
    for i in range(5):
        log.append("t", [record(b"%d" % i, time_ms=i)]).result()
    consumer = log.consumer("t", "g")
    assert [r.offset for r in consumer.poll(1, 1.0)] == [0]
    consumer.commit()
    expire(tmp_path / "t", 4)
    # It has the committed segment open and reads on from there; the next one is gone.
    with capture_logs() as said:
        assert [r.offset for r in consumer.poll(10, 1.0)] == [4]
    consumer.close()
    successor = log.consumer("t", "g")
    with capture_logs() as said_again:
        assert [r.offset for r in successor.poll(10, 1.0)] == [4]
    assert [line["records"] for line in (*said, *said_again)] == [3, 3]
    successor.close()
    log.close()


def test_a_reader_finds_every_start_in_every_segment_and_an_expired_one_is_the_earliest_kept(
    tmp_path: Path,
) -> None:
    log = open_log(tmp_path, segment_mb=100 / 2**20)
    for i in range(20):
        log.append("t", [record(b"%d" % i, time_ms=i)]).result()
    for start in range(21):
        assert [r.offset for r in read_from(log, "t", start)] == list(range(start, 20))
    assert expire(tmp_path / "t", 10)
    (first,) = log.start_offsets("t")
    assert 5 < first < 11
    for start in range(21):
        with capture_logs() as said:
            offsets = [r.offset for r in read_from(log, "t", start)]
        assert offsets == list(range(max(start, first), 20))
        assert [line["records"] for line in said] == ([first - start] if start < first else [])
    log.close()


def test_a_reader_whose_next_segment_expired_goes_on_at_the_earliest_kept(tmp_path: Path) -> None:
    log = open_log(tmp_path, segment_mb=1e-6)
    for i in range(6):
        log.append("t", [record(b"%d" % i, time_ms=i)]).result()
    reader = log.reader("t", {0: 1})
    assert [r.offset for r in reader.poll(1, 1.0)] == [1]
    assert expire(tmp_path / "t", 4) == 4
    assert reader.positions() == {0: 2}
    assert [r.offset for r in reader.poll(10, 1.0)] == [4, 5]
    reader.close()
    log.close()
