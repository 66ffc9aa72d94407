"""What a compacted topic must hold, embedded and Kafka alike.

A broker compacts in its own time, minutes later; the embedded log does here after every few
records.
"""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.event_log.interface import EventLog, LogRecord, Record, TopicUnfit
from tests.contract.event_logs import (
    NOW_MS,
    PATIENCE_S,
    Backend,
    check_kept,
    new_name,
    read,
    read_from,
    read_to_end,
    records,
)

TINY_MB = 150 / 2**20
BATCHES = st.lists(
    st.lists(
        st.builds(
            Record,
            key=st.sampled_from([b"a", b"b", b"\x00\xff", b"item-17"]),
            value=st.one_of(st.just(b""), st.binary(max_size=100), st.just(b"x" * 300_000)),
            time_ms=st.integers(NOW_MS - 10_000_000, NOW_MS),
        ),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=12,
)

SOME = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(BATCHES)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_last_record_of_every_key_is_read_and_what_is_kept_has_its_offset_and_its_order(
    backend: Backend, batches: list[list[Record]]
) -> None:
    topic = new_name()
    options = {"compacted": [topic], "segment_mb": TINY_MB}
    log = backend.open(**options)
    follower = log.reader(topic)
    appended: list[Record] = []
    followed: list[LogRecord] = []
    for number, batch in enumerate(batches):
        log.append(topic, batch).result(PATIENCE_S)
        appended += batch
        if number % 3 == 0:
            followed += read_to_end(follower, 2)
            check_kept(appended, followed)
    check_kept(appended, followed + read_to_end(follower))
    follower.close()
    log.close()  # what is being compacted is then
    check_kept(appended, read_from(backend.open(**options), topic))


@given(BATCHES, st.data())
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_start_shows_what_is_kept_from_there_on(
    backend: Backend, batches: list[list[Record]], data: st.DataObject
) -> None:
    topic = new_name()
    options = {"compacted": [topic], "segment_mb": TINY_MB}
    log = backend.open(**options)
    for batch in batches:
        log.append(topic, batch).result(PATIENCE_S)
    log.close()
    log = backend.open(**options)
    kept = read_from(log, topic)
    for _ in range(4):
        start = data.draw(st.integers(0, sum(map(len, batches))))
        assert read_from(log, topic, start) == [r for r in kept if r.offset >= start]


def test_a_compacted_topic_has_one_partition_whatever_the_settings_say(
    backend: Backend, topic: str
) -> None:
    log = backend.open(compacted=[topic], partitions=3)
    assert log.partitions(topic) == 1
    log.append(topic, records(20)).result()
    assert log.end_offsets(topic) == [20]
    assert [r.value for r in read_from(log, topic)] == [r.value for r in records(20)]
    assert log.partitions(new_name()) == 3


def test_a_record_without_a_key_is_refused_in_a_compacted_topic_alone(
    backend: Backend, topic: str
) -> None:
    log = backend.open(compacted=[topic])
    keyless = Record(b"", b"v", NOW_MS)
    with pytest.raises(ValueError, match="must have a key"):
        log.append(topic, [*records(3), keyless])
    log.append(topic, records(2)).result()
    assert log.end_offsets(topic) == [2]
    other = new_name()
    log.append(other, [keyless]).result()
    assert sum(log.end_offsets(other)) == 1


def test_a_record_with_an_empty_value_is_kept_as_the_last_of_its_key(
    backend: Backend, topic: str
) -> None:
    log = backend.open(compacted=[topic], segment_mb=TINY_MB)
    for value in (b"x" * 200, b"", b"y" * 200, b""):
        log.append(topic, [Record(b"k", value, NOW_MS)]).result()
    log.append(topic, [Record(b"other", b"x" * 200, NOW_MS)] * 3).result()
    log.close()
    got = read_from(backend.open(compacted=[topic]), topic)
    assert [(r.offset, r.value) for r in got if r.key == b"k"][-1] == (3, b"")


def test_nothing_of_a_compacted_topic_expires(backend: Backend, topic: str) -> None:
    log = backend.open(
        clock=lambda: NOW_MS / 1000 + 1e9,
        compacted=[topic],
        segment_mb=TINY_MB,
        retention_days=1e-6,
    )
    long_ago = [Record(b"k%d" % i, b"v" * 100, NOW_MS - 10**11) for i in range(20)]
    for record in long_ago:
        log.append(topic, [record]).result()
    log.close()
    got = read_from(backend.open(compacted=[topic]), topic)
    assert [r.key for r in got] == [r.key for r in long_ago]


def test_a_group_reads_a_compacted_topic_and_goes_on_where_it_has_committed(
    backend: Backend, topic: str
) -> None:
    log = backend.open(compacted=[topic], segment_mb=TINY_MB)
    consumer = log.consumer(topic, "g")
    appended = [Record(b"k%d" % (i % 7), b"v%d" % i, NOW_MS) for i in range(60)]
    followed: list[LogRecord] = []
    for number, record in enumerate(appended):
        log.append(topic, [record]).result()
        if number % 11 == 5:
            followed += read(consumer, 1)
            consumer.commit()
            check_kept(appended[: number + 1], [*followed, *read_from(log, topic, after(followed))])
    consumer.close()
    successor = log.consumer(topic, "g")
    start = after(followed)
    log.close()
    successor.close()
    log = backend.open(compacted=[topic])
    kept = [r for r in read_from(log, topic) if r.offset >= start]
    successor = log.consumer(topic, "g")
    assert read(successor, len(kept)) == kept
    successor.close()


def after(got: list[LogRecord]) -> int:
    return got[-1].offset + 1


@pytest.mark.parametrize("compacted", [True, False])
def test_a_topic_that_was_made_to_be_of_the_other_kind_is_refused(
    backend: Backend, topic: str, compacted: bool
) -> None:
    def opened(kind: bool) -> EventLog:
        return backend.open(compacted=[topic] if kind else [], partitions=1)

    opened(compacted).append(topic, records(3)).result()
    log = opened(not compacted)
    for refused in (
        lambda: log.append(topic, records(1)).result(PATIENCE_S),
        lambda: log.partitions(topic),
        lambda: log.consumer(topic, "g"),
        lambda: log.reader(topic),
    ):
        for _ in range(2):
            with pytest.raises(TopicUnfit, match=f"topic .*{topic} .* must "):
                refused()
    with contextlib.closing(opened(compacted).reader(topic)) as reader:
        assert len(read_to_end(reader)) == 3
