"""Compaction of the embedded log: what stays, what it costs, and what may happen meanwhile."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.event_log import compaction, embedded
from services.event_log.compaction import Compacted, compact
from services.event_log.interface import LogCorrupt, LogRecord, Record, TopicReader
from services.event_log.partition import Partition
from services.event_log.segment import encode_frame, segment_name
from tests.contract.event_log_process import UPDATED_KEYS, log_process
from tests.contract.event_logs import check_kept, read_from, read_to_end
from tests.unit.event_log.embedded_logs import PATIENCE_S, open_log

SEGMENT_BYTES = 200


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    """Of a compacted topic "t"."""
    with open_compacted(tmp_path) as log:
        log.partitions("t")
    with contextlib.closing(Partition(tmp_path / "t" / "0", 0, compacted=True)) as opened:
        yield opened


def open_compacted(root: Path, segment_bytes: int = SEGMENT_BYTES) -> contextlib.closing:
    segment_mb = segment_bytes / 2**20
    return contextlib.closing(open_log(root, compacted=["t"], segment_mb=segment_mb))


def read_kept(root: Path, start: int = 0) -> list[LogRecord]:
    with open_compacted(root) as log:
        return read_from(log, "t", start)


def update(partition: Partition, count: int, keys: int, seed: int = 0) -> list[Record]:
    """Append records of few keys, one by one, without compaction; them."""
    rng = random.Random(seed)
    made = [
        Record(b"k%d" % rng.randrange(keys), b"%d." % i * rng.randrange(20), i)
        for i in range(count)
    ]
    for record in made:
        partition.append([record], SEGMENT_BYTES)
    return made


def files(partition: Partition) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in partition.directory.iterdir()}


def test_of_the_closed_segments_only_the_last_records_of_the_keys_stay_as_they_were(
    partition: Partition,
) -> None:
    made = update(partition, 100, keys=5)
    *closed, active = partition.segments()
    last = {record.key: offset for offset, record in enumerate(made[:active])}
    whole = (partition.path(active)).read_bytes()
    assert compact(partition) == Compacted(len(closed), active, len(last))
    assert partition.segments() == [closed[0], active]
    kept = sorted(last.values())
    assert partition.path(0).read_bytes() == b"".join(encode_frame(i, made[i]) for i in kept)
    assert partition.path(active).read_bytes() == whole
    assert [r.offset for r in read_kept(partition.directory.parent.parent)] == [
        *kept,
        *range(active, 100),
    ]


def test_what_compaction_writes_and_what_it_leaves_is_at_most_twice_what_must_be(
    partition: Partition,
) -> None:
    for keys in (1, 10, 100):
        appended = written = 0
        largest = 0
        for seed in range(60):
            largest = max(largest, sum(map(len, files(partition).values())))
            for record in update(partition, 2, keys, seed):
                appended += len(encode_frame(0, record))
            if compact(partition):
                written += partition.path(0).stat().st_size
        live = {r.key: r for r in read_kept(partition.directory.parent.parent)}
        must = sum(len(encode_frame(0, Record(r.key, r.value, r.time_ms))) for r in live.values())
        assert written <= 2 * appended
        assert sum(map(len, files(partition).values())) <= 2 * must + 4 * SEGMENT_BYTES
        assert largest <= 4 * must + 4 * SEGMENT_BYTES


def test_a_log_compacts_by_itself_while_it_is_written(tmp_path: Path) -> None:
    with open_compacted(tmp_path) as log:
        for i in range(200):
            log.append("t", [Record(b"k%d" % (i % 4), b"v" * 50, i)]).result(PATIENCE_S)
    assert len(read_kept(tmp_path)) < 100
    with open_compacted(tmp_path) as log:  # and again what was written while it compacted
        for i in range(5):
            log.append("t", [Record(b"k%d" % (i % 4), b"v" * 250, i)]).result(PATIENCE_S)
    assert len(read_kept(tmp_path)) < 10
    assert [p.name for p in (tmp_path / "t" / "0").iterdir() if p.name[0] == "."] == []


def test_appends_do_not_wait_for_a_compaction_and_closing_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, began, ended = threading.Event(), threading.Event(), threading.Event()

    def waiting(partition: Partition) -> Compacted | None:
        began.set()
        assert go_on.wait(PATIENCE_S)
        ended.set()
        return compact(partition)

    monkeypatch.setattr(embedded, "compact", waiting)
    with open_compacted(tmp_path) as log:
        for i in range(30):
            log.append("t", [Record(b"k", b"v" * 50, i)]).result(PATIENCE_S)
        assert began.wait(PATIENCE_S)
        assert log.end_offsets("t") == [30]
        assert not ended.is_set()
        go_on.set()
    assert ended.is_set()


def test_one_compaction_of_a_partition_goes_on_at_a_time(partition: Partition) -> None:
    update(partition, 50, keys=3)
    before = files(partition)
    fd = os.open(partition.directory, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert compact(partition) is None
    assert files(partition) == before
    os.close(fd)
    assert compact(partition)


# Faults and crashes


class Killed(Exception):
    """The process of a compaction came no further."""


class Steps:
    """The calls by which a compaction reads and changes files. The n-th fails; with `killed`, so do
    all after it, so that what was begun stays as it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: int, killed: bool) -> None:
        self.calls = 0
        self._failing = failing
        self._killed = killed
        monkeypatch.setattr(compaction, "SCAN_BYTES", 100)
        for name in ("fsync", "open", "pread", "replace", "unlink"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        monkeypatch.setattr(Path, "open", lambda *given, **options: self._opened(*given, **options))

    def _counted(self, call: Callable) -> Callable:
        def counted(*arguments: object, **options: object) -> object:
            self.step()
            return call(*arguments, **options)

        return counted

    def _opened(self, path: Path, mode: str, buffering: int) -> io.RawIOBase | io.BufferedWriter:
        self.step()
        if mode == "rb":
            return io.FileIO(path)
        return io.BufferedWriter(StepwiseFile(path, self), buffering)

    def step(self) -> None:
        self.calls += 1
        if self._killed and self.calls >= self._failing:
            raise Killed
        if self.calls == self._failing:
            raise OSError(errno.ENOSPC, "no space")


class StepwiseFile(io.FileIO):
    """A file that is being written; of what fails the half is written before."""

    def __init__(self, path: Path, steps: Steps) -> None:
        super().__init__(path, "w")
        self._steps = steps

    def write(self, data: memoryview) -> int:
        half = super().write(data[: len(data) // 2])
        self._steps.step()
        return half + super().write(data[half:])


@pytest.mark.parametrize("killed", [False, True], ids=["an error", "a kill"])
def test_a_compaction_that_fails_at_any_step_loses_nothing_and_doubles_nothing(
    tmp_path: Path, partition: Partition, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    made = update(partition, 24, keys=4)
    folder = partition.directory.parent.parent
    for failing in itertools.count(1):
        root = tmp_path / str(failing)
        shutil.copytree(folder / "t", root / "t")
        with open_compacted(root) as log, contextlib.ExitStack() as opened:
            readers = [opened.enter_context(contextlib.closing(log.reader("t"))) for _ in range(4)]
            seen = [reader.poll(1 + 5 * i, PATIENCE_S) for i, reader in enumerate(readers)]
            consumer = opened.enter_context(contextlib.closing(log.consumer("t", "g")))
            committed = consumer.poll(11, PATIENCE_S)
            consumer.commit()
            directory = root / "t" / "0"
            with monkeypatch.context() as patched:
                one = opened.enter_context(contextlib.closing(Partition(directory, 0, True)))
                steps = Steps(patched, failing, killed)
                with contextlib.suppress(OSError, Killed):
                    compact(one)
            for reader, before in zip(readers, seen, strict=True):
                check_kept(made, before + read_to_end(reader))
            consumer.rewind()
            check_kept(made, committed + consumer.poll(100, PATIENCE_S))
            for start in range(0, len(made) + 1, 4):
                check_kept(made, read_from(log, "t", start), start)
            check_goes_on(directory)
            check_kept([*made, *LATER], read_from(log, "t"))
            consumer.rewind()
            check_kept([*made, *LATER], committed + consumer.poll(100, PATIENCE_S))
        if steps.calls < failing:
            break
    assert failing > 20


LATER = [Record(b"k%d" % (i % 3), b"later" * 10, i) for i in range(30)]


def check_goes_on(directory: Path) -> None:
    """That it can be written and compacted, and that nothing of what failed is left."""
    with contextlib.closing(Partition(directory, 0, compacted=True)) as partition:
        for i in range(0, len(LATER), 10):
            partition.append(LATER[i : i + 10], SEGMENT_BYTES)
        assert compact(partition)
        assert len(partition.segments()) == 2
    assert [path for path in directory.iterdir() if path.name[0] == "."] == []


def test_killed_writers_that_compact_lose_nothing_that_they_were_told_is_durable(
    tmp_path: Path,
) -> None:
    acknowledged: set[str] = set()
    for life in range(4):
        name = f"life{life}"
        with log_process("update", f"log://{tmp_path}", "t", name) as writer:
            for _ in range(150):
                acknowledged.update(json.loads(writer.stdout.readline()))
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:
                acknowledged.update(json.loads(line) if line.endswith("\n") else [])
        kept = read_kept(tmp_path)
        offsets = [r.offset for r in kept]
        assert offsets == sorted(set(offsets))
        last = {r.key: r.value[: len(r.value) // 20].decode() for r in kept}
        for number in numbers(acknowledged, name)[-UPDATED_KEYS:]:
            assert numbers([last[b"%d" % (number % UPDATED_KEYS)]], name)[0] >= number
    assert offsets[-1] > 2 * len(offsets)  # it was compacted


def numbers(identities: Iterable[str], name: str) -> list[int]:
    """Which of the process of that name, in order."""
    return sorted(int(i.removeprefix(f"{name}-")) for i in identities if i.startswith(f"{name}-"))


def test_readers_that_follow_and_such_that_begin_anew_stand_a_log_that_is_compacted_all_the_time(
    tmp_path: Path,
) -> None:
    made = [Record(b"k%d" % (i % 6), b"%d" % i * 20, i) for i in range(300)]
    done = threading.Event()
    failures: list[BaseException] = []

    def follow(begin_anew: bool) -> None:
        got: list[LogRecord] = []
        try:
            with open_compacted(tmp_path) as log:
                reader = log.reader("t")
                while not (done.is_set() and reader.caught_up()):
                    got += reader.poll(7, 0.01)
                    if begin_anew:
                        positions = reader.positions()
                        reader.close()
                        reader = log.reader("t", positions)
                reader.close()
            check_kept(made, got)
        except BaseException as error:
            failures.append(error)

    followers = [threading.Thread(target=follow, args=(anew,)) for anew in (False, True, True)]
    for follower in followers:
        follower.start()
    with open_compacted(tmp_path) as log:
        for record in made:
            log.append("t", [record]).result(PATIENCE_S)
    done.set()
    for follower in followers:
        follower.join(PATIENCE_S)
    assert failures == []


def test_a_consumer_that_had_read_all_goes_back_to_there_after_a_compaction(
    tmp_path: Path, partition: Partition
) -> None:
    made = update(partition, 3, keys=1)
    assert partition.segments() == [0]
    with open_compacted(tmp_path) as log, contextlib.closing(log.consumer("t", "g")) as consumer:
        assert consumer.poll(100, PATIENCE_S)[-1].offset == 2
        consumer.commit()
        made += update(partition, 30, keys=1)
        assert compact(partition)
        consumer.rewind()
        last = [r.offset for r in consumer.poll(100, PATIENCE_S)]
        assert last == [r.offset for r in read_from(log, "t", 3)]
        assert last[-1] == len(made) - 1


def test_an_end_that_was_published_before_a_compaction_is_not_believed(
    partition: Partition,
) -> None:
    made = update(partition, 5, keys=2)
    stale = (partition.directory / "durable").read_bytes()
    made += update(partition, 30, keys=2)
    assert compact(partition)
    whole = partition.path(0).read_bytes()
    for published in (stale, b""):
        (partition.directory / "durable").write_bytes(published)
        with contextlib.closing(Partition(partition.directory, 0, compacted=True)) as again:
            assert again.recovered_end().offset == len(made)
        assert partition.path(0).read_bytes() == whole
    check_kept(made, read_kept(partition.directory.parent.parent))


# Damage


def test_a_merged_segment_that_was_cut_anywhere_is_damage_and_what_lies_before_it_is_read(
    partition: Partition,
) -> None:
    made = update(partition, 30, keys=4)
    assert compact(partition)
    root, merged = partition.directory.parent.parent, partition.path(0)
    whole, kept = merged.read_bytes(), read_kept(root)
    for size in range(len(whole)):
        merged.write_bytes(whole[:size])
        with open_compacted(root) as log, contextlib.closing(log.reader("t")) as reader:
            got: list[LogRecord] = []
            for _ in range(2):
                with pytest.raises(LogCorrupt, match=f"{segment_name(0)} is damaged at byte"):
                    poll_into(got, reader)
            assert got == kept[: len(got)]
            assert sum(len(encode_frame(0, made[r.offset])) for r in got) <= size
            merged.write_bytes(whole)
            assert got + reader.poll(100, 0.0) == kept


def test_a_flipped_bit_in_a_merged_segment_is_damage(partition: Partition) -> None:
    update(partition, 30, keys=4)
    assert compact(partition)
    root, merged = partition.directory.parent.parent, partition.path(0)
    whole, kept = merged.read_bytes(), read_kept(root)
    for byte in range(0, len(whole), 7):
        merged.write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
        with open_compacted(root) as log, contextlib.closing(log.reader("t")) as reader:
            got: list[LogRecord] = []
            with pytest.raises(LogCorrupt, match="is damaged at byte"):
                poll_into(got, reader)
            assert got == kept[: len(got)]


def poll_into(got: list[LogRecord], reader: TopicReader) -> None:
    """Poll until something is raised."""
    for _ in range(100):
        got += reader.poll(100, 0.0)


@pytest.mark.parametrize("damage", ["a bit", "an end", "a segment"])
def test_damage_that_compaction_meets_stays_as_it_is_and_fails_no_append(
    tmp_path: Path, partition: Partition, damage: str
) -> None:
    update(partition, 30, keys=3)
    *old, _ = partition.segments()
    closed = partition.path(old[1])
    content = closed.read_bytes()
    if damage == "a segment":
        closed.unlink()
    else:
        closed.write_bytes(content[:-1] + (b"\0" if damage == "a bit" else b""))
    before = files(partition)
    with capture_logs() as said, open_compacted(tmp_path) as log:
        log.append("t", [Record(b"k", b"v" * SEGMENT_BYTES, 1)]).result(PATIENCE_S)
        log.append("t", [Record(b"k", b"v", 1)]).result(PATIENCE_S)
    assert {line["event"] for line in said} == {"compaction_failed"}
    assert all("is damaged at byte" in line["error"] for line in said)
    after = files(partition)
    assert all(after.get(segment_name(base)) == before.get(segment_name(base)) for base in old)
    closed.write_bytes(content)  # restored
    assert compact(partition)
