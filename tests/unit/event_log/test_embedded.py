"""The embedded log as a whole: who waits for it, who may read it, and a disk that is full."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.event_log.embedded import EmbeddedEventLog
from services.event_log.interface import LogRecord, LogUnavailable
from tests.unit.event_log.embedded_logs import PATIENCE_S, open_log, read_all, record


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


def test_a_poll_returns_empty_when_its_reader_is_closed_meanwhile(tmp_path: Path) -> None:
    times = itertools.count()

    def monotonic() -> float:
        if (now := next(times)) == 5:
            reader.close()
        return float(now)

    log = open_log(tmp_path, monotonic=monotonic)
    reader = log.reader("t")
    assert reader.poll(10, 1000.0) == []
    assert next(times) < 20
    log.close()


def test_a_reader_without_a_group_changes_no_file(tmp_path: Path, log: EmbeddedEventLog) -> None:
    log.append("t", [record()] * 3).result()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    reader = log.reader("t")
    assert len(reader.poll(2, 0.0)) == 2
    reader.close()
    log.reader("t", {0: 1}).close()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


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
