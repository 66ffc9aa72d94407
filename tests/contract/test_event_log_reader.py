"""What a reader without a group must hold, embedded and Kafka alike."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict

import pytest

from services.event_log.interface import (
    LogRecord,
    LogUnavailable,
    LogWentBack,
    Record,
    TopicReader,
)
from tests.contract.event_logs import (
    NOW_MS,
    PATIENCE_S,
    Backend,
    append_when_possible,
    places,
    poll_until_raised,
    read,
    read_to_end,
    records,
    values,
    values_of,
)


def test_a_reader_returns_what_is_there_and_then_what_is_appended_each_record_once(
    backend: Backend, topic: str
) -> None:
    log = backend.open(partitions=3)
    log.append(topic, records(40)).result()
    reader = log.reader(topic)
    assert not reader.caught_up()
    got = read_to_end(reader, 7)
    assert values(got) == values_of(records(40))
    for turn in range(3):
        assert reader.caught_up()
        log.append(topic, records(20, f"later {turn} ")).result()
        assert not reader.caught_up()
        later = read_to_end(reader)
        assert values(later) == values_of(records(20, f"later {turn} "))
        got += later
    by_partition = defaultdict(list)
    for record in got:
        by_partition[record.partition].append(record.offset)
    ends = dict(enumerate(log.end_offsets(topic)))
    assert by_partition == {number: list(range(end)) for number, end in ends.items()}
    assert reader.positions() == ends
    reader.close()
    reader.close()
    with pytest.raises(LogUnavailable, match="closed"):
        reader.poll(1, 0.0)


def test_a_reader_begins_at_its_start_and_at_the_beginning_of_partitions_that_have_none(
    backend: Backend, topic: str
) -> None:
    log = backend.open(partitions=3)
    log.append(topic, records(60)).result()
    ends = log.end_offsets(topic)
    assert min(ends) > 3
    start = {0: 3, 2: ends[2]}
    reader = log.reader(topic, start)
    assert reader.positions() == {0: 3, 1: 0, 2: ends[2]}
    rest = [(0, offset) for offset in range(3, ends[0])] + [(1, o) for o in range(ends[1])]
    assert places(read_to_end(reader)) == rest
    reader.close()


def test_a_reader_goes_on_where_another_one_was(backend: Backend, topic: str) -> None:
    log = backend.open(partitions=2)
    log.append(topic, records(30)).result()
    with contextlib.closing(log.reader(topic)) as first:
        got = read_some(first, 11)
        positions = first.positions()
    log.append(topic, records(5, "later ")).result()
    with contextlib.closing(backend.open().reader(topic, positions)) as second:
        got += read_to_end(second)
    assert values(got) == values_of([*records(30), *records(5, "later ")])
    assert len(set(places(got))) == 35


def read_some(reader: TopicReader, count: int) -> list[LogRecord]:
    """Poll until `count` records came, and no more than those."""
    got: list[LogRecord] = []
    while len(got) < count:
        got += reader.poll(count - len(got), 0.1)
    return got


def test_readers_and_groups_do_not_disturb_each_other(backend: Backend, topic: str) -> None:
    log = backend.open(partitions=2)
    log.append(topic, records(20)).result()
    consumer = log.consumer(topic, "g")
    first, second = log.reader(topic), backend.open().reader(topic)
    assert len(read_some(first, 5)) == 5
    assert len(read(consumer, 20)) == 20
    assert consumer.assigned() == {0, 1}
    consumer.commit()
    assert len(read_to_end(second)) == 20
    second.close()
    assert len(read_to_end(first)) == 15
    log.append(topic, records(10)).result()
    assert consumer.lag().events == 10
    assert len(read(consumer, 10)) == len(read_to_end(first)) == 10
    first.close()
    consumer.close()


def test_a_reader_leaves_nothing_behind(backend: Backend, topic: str) -> None:
    log = backend.open(partitions=2)
    log.append(topic, records(5)).result()
    for _ in range(2):
        with contextlib.closing(log.reader(topic)) as reader:
            assert len(read_to_end(reader)) == 5
            assert log.forget_groups(topic, "") == 0
    assert log.forget_groups(topic, "") == 0
    assert sum(log.end_offsets(topic)) == 5


def test_a_waiting_reader_returns_when_a_record_becomes_durable(
    backend: Backend, topic: str
) -> None:
    log = backend.open()
    reader = log.reader(topic)
    assert reader.caught_up()
    got: list[LogRecord] = []
    waiting = threading.Thread(target=lambda: got.extend(reader.poll(10, PATIENCE_S)))
    waiting.start()
    log.append(topic, [Record(b"k", b"v", NOW_MS)]).result()
    waiting.join(PATIENCE_S / 2)
    assert [r.value for r in got] == [b"v"]
    reader.close()


def test_a_poll_returns_empty_when_its_time_is_over(backend: Backend, topic: str) -> None:
    reader = backend.open().reader(topic)
    assert reader.poll(10, 0.0) == reader.poll(10, 0.01) == []
    assert reader.caught_up()
    reader.close()


@pytest.mark.parametrize("start", [{0: 6}, {0: 5, 1: 0}], ids=["an offset", "a partition"])
def test_a_start_beyond_the_end_has_gone_back_for_ever(
    backend: Backend, topic: str, start: dict[int, int]
) -> None:
    log = backend.open(partitions=1)
    log.append(topic, records(5)).result()
    polled, asked = log.reader(topic, start), log.reader(topic, start)
    with pytest.raises(LogWentBack, match="partition"):
        poll_until_raised(polled)
    with pytest.raises(LogWentBack, match="partition"):
        asked.caught_up()
    log.append(topic, records(5)).result()  # now it is long enough, but not what was read
    for reader in (polled, asked):
        with pytest.raises(LogWentBack, match="partition"):
            reader.poll(1, 0.1)
        with pytest.raises(LogWentBack, match="partition"):
            reader.positions()
        reader.close()


@pytest.mark.parametrize("start", [{0: -1}, {-1: 0}, {0: 1.0}, {0: None}])
def test_a_start_that_is_no_offset_is_refused(backend: Backend, start: dict) -> None:
    with pytest.raises(ValueError, match="must be an offset"):
        backend.open().reader("t", start)
    with pytest.raises(ValueError, match="must be"):
        backend.open().reader("../up")


def test_a_reader_of_a_topic_that_was_made_anew_says_so_and_returns_nothing_of_it(
    backend: Backend, topic: str
) -> None:
    log = backend.open()
    log.append(topic, records(5)).result()
    reader = log.reader(topic)
    read(reader, 5)
    backend.delete(topic)
    with pytest.raises(LogUnavailable, match="gone"):
        poll_until_raised(reader)
    append_when_possible(backend.open(), topic, records(50, "new"))
    for _ in range(2):
        with pytest.raises(LogWentBack, match="made anew"):
            poll_until_raised(reader, unless=LogUnavailable)
    with pytest.raises(LogWentBack, match="made anew"):
        reader.caught_up()
    reader.close()
    with contextlib.closing(log.reader(topic)) as fresh:
        assert values(read_to_end(fresh)) == values_of(records(50, "new"))
