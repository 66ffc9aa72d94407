"""What every event log must hold, embedded and Kafka alike (services/event_log/interface.py)."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.event_log.interface import (
    MAX_RECORD_BYTES,
    Consumer,
    Lag,
    LogRecord,
    LogSaturated,
    LogUnavailable,
    LogWentBack,
    Record,
)
from tests.contract.event_log_process import log_process
from tests.contract.event_logs import (
    NOW_MS,
    PATIENCE_S,
    Backend,
    append_when_possible,
    new_name,
    places,
    poll_until_raised,
    read,
    read_until,
    records,
    values,
    values_of,
)

RECORDS = st.lists(
    st.builds(
        Record,
        key=st.sampled_from([b"a", b"b", b"\x00\xff", b"user-17", b""]),
        value=st.one_of(st.just(b""), st.binary(max_size=100), st.just(b"x" * 70_000)),
        time_ms=st.integers(NOW_MS - 10_000_000, NOW_MS),
    ),
    min_size=1,
    max_size=30,
)


@given(st.lists(RECORDS, min_size=1, max_size=3))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_of_a_key_come_back_in_order_with_their_bytes_and_times(
    backend: Backend, batches: list[list[Record]]
) -> None:
    log, topic = backend.open(), new_name()
    for future in [log.append(topic, batch) for batch in batches]:
        future.result()
    appended, came = defaultdict(list), defaultdict(list)
    for record in [r for batch in batches for r in batch]:
        appended[record.key].append((record.value, record.time_ms))
    consumer = log.consumer(topic, "g")
    got = read(consumer, sum(map(len, batches)))
    assert consumer.lag().events == 0
    consumer.close()
    for record in got:
        came[record.key].append((record.value, record.time_ms))
    # Records without a key go anywhere, so among them only the set is promised.
    assert sorted(came.pop(b"", [])) == sorted(appended.pop(b"", []))
    assert came == appended
    for key in came:
        assert len({r.partition for r in got if r.key == key}) == 1
    by_partition = defaultdict(list)
    for record in got:
        by_partition[record.partition].append(record.offset)
    assert all(offsets == list(range(len(offsets))) for offsets in by_partition.values())


def test_the_largest_record_is_stored_and_a_larger_one_is_refused(
    backend: Backend, topic: str
) -> None:
    log = backend.open()
    largest = Record(b"k", bytes(range(250)) * 3999 + b"x" * 249, NOW_MS)
    assert len(largest.key) + len(largest.value) == MAX_RECORD_BYTES
    log.append(topic, [largest, Record(b"k", b"after", NOW_MS)]).result()
    consumer = log.consumer(topic, "g")
    assert [r.value for r in read(consumer, 2)] == [largest.value, b"after"]
    consumer.close()
    with pytest.raises(ValueError, match="1000000 bytes"):
        log.append(topic, [Record(b"kk", largest.value, NOW_MS)])


@pytest.mark.parametrize(
    "unfit",
    [
        Record(b"k", b"v", -1),
        Record(b"k", b"v", 2**63),
        Record(b"k", b"v", 1.5),
        Record(b"k" * 65_536, b"v", NOW_MS),
        Record("k", b"v", NOW_MS),
        Record(b"k", "v", NOW_MS),
    ],
    ids=["before 1970", "beyond 64 bits", "a part of a ms", "a long key", "a text key", "a text"],
)
def test_a_record_that_cannot_be_stored_is_refused_to_its_caller_alone(
    backend: Backend, topic: str, unfit: Record
) -> None:
    log = backend.open()
    appended = [log.append(topic, records(3))]
    with pytest.raises(ValueError, match=r"must be|may have"):
        log.append(topic, [*records(1), unfit])
    appended.append(log.append(topic, records(3)))
    for future in appended:
        future.result()
    assert sum(log.end_offsets(topic)) == 6


def test_installations_that_share_a_backend_see_nothing_of_each_other(
    backend: Backend, topic: str
) -> None:
    names = None, "g", "g-1"  # a group may be called as an installation is
    logs = {name: backend.open(installation=name, partitions=2) for name in names}
    consumers = {}
    for count, (name, log) in enumerate(logs.items(), 3):
        log.append(topic, records(count, f"of {name} ")).result()
        consumers[name] = log.consumer(topic, "g")
    for count, (name, log) in enumerate(logs.items(), 3):
        seen = read(consumers[name], count)
        assert {r.value for r in seen} == {r.value for r in records(count, f"of {name} ")}
        assert consumers[name].assigned() == {0, 1}  # which no other's member reads
        assert consumers[name].lag().events == 0
        consumers[name].commit()
        consumers[name].close()
        assert sum(log.end_offsets(topic)) == count
    assert len({log.identity(topic) for log in logs.values()}) == len(logs)
    for name, log in logs.items():
        before = {other: logs[other].positions(topic, "g") for other in names if other != name}
        assert log.forget_groups(topic, "g") == 1
        assert log.positions(topic, "g") == {}
        assert {other: logs[other].positions(topic, "g") for other in before} == before


def test_names_that_are_no_topics_are_refused(backend: Backend) -> None:
    log = backend.open()
    for name in ("", "../up", "a/b", ".hidden", "x" * 201):
        with pytest.raises(ValueError, match="must be"):
            log.append(name, [])
        with pytest.raises(ValueError, match="must be"):
            log.consumer(name, "g")


def test_a_topic_keeps_the_partition_count_it_was_created_with(
    backend: Backend, topic: str
) -> None:
    assert backend.open(partitions=3).partitions(topic) == 3
    assert backend.open(partitions=5).partitions(topic) == 3


def test_a_topic_keeps_its_identity_and_shares_it_with_no_other(
    backend: Backend, topic: str
) -> None:
    identity = backend.open().identity(topic)
    assert identity
    log = backend.open()
    log.append(topic, records(3)).result(PATIENCE_S)
    assert log.identity(topic) == identity
    assert log.identity(new_name()) != identity


def test_a_group_has_the_positions_that_it_has_committed(backend: Backend, topic: str) -> None:
    log = backend.open(partitions=2)
    log.append(topic, [Record(b"k", b"x", NOW_MS)] * 5).result(PATIENCE_S)
    with contextlib.closing(log.consumer(topic, "group")) as consumer:
        first = read(consumer, 5)[0]
        assert log.positions(topic, "group") == log.positions(topic, "another") == {}
        consumer.commit()
        assert log.positions(topic, "group")[first.partition] == 5
    assert log.positions(topic, "group")[first.partition] == 5
    assert log.forget_groups(topic, "group") == 1
    assert log.positions(topic, "group") == {}
    assert log.start_offsets(topic) == [0, 0]


def test_a_topic_ends_after_its_last_record_in_every_partition(
    backend: Backend, topic: str
) -> None:
    log = backend.open(partitions=3)
    assert log.end_offsets(topic) == [0, 0, 0]
    log.append(topic, records(20)).result()
    consumer = log.consumer(topic, "g")
    counts = Counter(r.partition for r in read(consumer, 20))
    consumer.close()
    assert log.end_offsets(topic) == [counts[number] for number in range(3)]


def test_a_consumer_of_a_topic_that_was_made_anew_says_so_and_returns_nothing_of_it(
    backend: Backend, topic: str
) -> None:
    log = backend.open()
    log.append(topic, records(5)).result()
    identity = log.identity(topic)
    consumer = log.consumer(topic, "g")
    read(consumer, 5)
    backend.delete(topic)
    with pytest.raises(LogUnavailable, match="gone"):
        poll_until_raised(consumer)
    successor = backend.open()
    append_when_possible(successor, topic, records(50, "new"))
    for _ in range(2):
        with pytest.raises(LogWentBack, match="made anew"):
            poll_until_raised(consumer, unless=LogUnavailable)
    consumer.close()
    assert log.identity(topic) == successor.identity(topic) != identity
    assert sum(log.end_offsets(topic)) == 50
    fresh = log.consumer(topic, "fresh")
    assert values(read(fresh, 50)) == values_of(records(50, "new"))
    fresh.close()


def test_a_group_that_has_read_beyond_the_end_says_so_until_it_is_forgotten(
    backend: Backend, topic: str
) -> None:
    log = backend.open(partitions=1)
    log.append(topic, records(5)).result()
    backend.move_group(topic, "g", 8)
    consumer = log.consumer(topic, "g")
    with pytest.raises(LogWentBack, match=r"partition 0 ends at offset 5.* 8"):
        poll_until_raised(consumer)
    log.append(topic, records(5)).result()  # now it is long enough, but not what was read
    with pytest.raises(LogWentBack):
        consumer.poll(1, 0.1)
    consumer.close()
    log.forget_groups(topic, "g")
    consumer = log.consumer(topic, "g")
    assert len(read(consumer, 10)) == 10
    consumer.close()


def test_what_was_acknowledged_another_process_reads(backend: Backend, topic: str) -> None:
    log = backend.open()
    log.append(topic, records(20)).result()
    seen: list[str] = []
    with log_process("member", backend.url, topic, "g") as member:
        while len(seen) < 20:
            seen += [value for _, _, value in json.loads(member.stdout.readline())["records"]]
    assert sorted(seen) == sorted(r.value.decode() for r in records(20))


def test_uncommitted_records_are_delivered_again_and_committed_ones_are_not(
    backend: Backend, topic: str
) -> None:
    log = backend.open()
    log.append(topic, records(10, "first")).result()
    consumer = log.consumer(topic, "g")
    read(consumer, 10)
    consumer.commit()
    log.append(topic, records(5, "second")).result()
    uncommitted = read(consumer, 5)
    consumer.close()
    for _ in range(2):
        successor = log.consumer(topic, "g")
        assert places(read(successor, 5)) == places(uncommitted)
        successor.close()


def test_two_groups_each_see_every_record(backend: Backend, topic: str) -> None:
    log = backend.open()
    log.append(topic, records(10)).result()
    for group in ("one", "two"):
        consumer = log.consumer(topic, group)
        assert values(read(consumer, 10)) == values_of(records(10))
        consumer.commit()
        consumer.close()


def test_members_share_the_partitions_and_see_every_record_between_them(
    backend: Backend, topic: str
) -> None:
    log = backend.open()
    members = [log.consumer(topic, "g") for _ in range(2)]
    everything = frozenset(range(log.partitions(topic)))

    def shared() -> bool:
        a, b = (m.assigned() for m in members)
        return bool(a) and bool(b) and not a & b and a | b == everything

    assert read_until(members, shared) == []
    log.append(topic, records(40)).result()
    seen: list[LogRecord] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(seen) < 40:
        assert time.monotonic() < deadline
        for member in members:
            got = member.poll(100, 0.05)
            assert {r.partition for r in got} <= member.assigned()
            seen += got
    assert values(seen) == values_of(records(40))

    members[0].commit()
    left = members[1].assigned()
    members[1].close()  # it has not committed: what it read comes again
    again = read_until(members[:1], lambda: members[0].assigned() == everything)
    again += read(members[0], sum(r.partition in left for r in seen) - len(again))
    assert places(again) == places([r for r in seen if r.partition in left])
    members[0].close()


def test_rewind_delivers_again_what_was_not_committed(backend: Backend, topic: str) -> None:
    log = backend.open()
    log.append(topic, records(10)).result()
    consumer = log.consumer(topic, "g")
    first = read(consumer, 10)
    consumer.rewind()
    assert places(read(consumer, 10)) == places(first)
    consumer.commit()
    log.append(topic, records(4, "new")).result()
    fresh = read(consumer, 4)
    consumer.rewind()
    assert places(read(consumer, 4)) == places(fresh)
    consumer.close()


def test_a_forgotten_group_begins_anew_and_a_group_with_a_member_is_left_alone(
    backend: Backend, topic: str
) -> None:
    log = backend.open()
    log.append(topic, records(5)).result()
    groups = ("once-1", "once-2", "other")
    consumers = [log.consumer(topic, group) for group in groups]
    for consumer in consumers:
        read(consumer, 5)
        consumer.commit()
    assert log.forget_groups(topic, "once-") == 0
    for consumer in consumers[1:]:
        consumer.close()
    assert log.forget_groups(topic, "once-") == 1
    assert log.forget_groups(topic, "once-") == 0
    assert log.forget_groups(new_name(), "once-") == 0
    consumers[0].rewind()
    log.append(topic, [Record(b"k", b"new", NOW_MS)]).result()
    assert values(read(consumers[0], 1)) == ["new"]
    consumers[0].close()
    for group, came in (("once-2", [*values_of(records(5)), "new"]), ("other", ["new"])):
        successor = log.consumer(topic, group)
        assert values(read(successor, len(came))) == sorted(came)
        successor.close()


def read_one(consumer: Consumer) -> list[LogRecord]:
    """Poll until one record came, and no more than that one."""
    deadline = time.monotonic() + PATIENCE_S
    while not (got := consumer.poll(1, 0.1)):
        assert time.monotonic() < deadline
    return got


def test_lag_counts_what_was_not_delivered_and_the_age_of_the_oldest(
    backend: Backend, topic: str
) -> None:
    log = backend.open(clock=lambda: NOW_MS / 1000 + 60)
    consumer = log.consumer(topic, "g")
    everything = frozenset(range(log.partitions(topic)))
    read_until([consumer], lambda: consumer.assigned() == everything)
    assert consumer.lag() == Lag(0, 0.0)
    log.append(topic, [Record(b"k", b"", NOW_MS + i * 1000) for i in range(10)]).result()
    behind = consumer.lag()
    assert (behind.events, behind.seconds) == (10, pytest.approx(60.0))
    assert [r.value for _ in range(3) for r in read_one(consumer)] == [b"", b"", b""]
    behind = consumer.lag()
    assert (behind.events, behind.seconds) == (7, pytest.approx(57.0))
    read(consumer, 7)
    assert consumer.lag() == Lag(0, 0.0)
    consumer.close()


def test_appends_past_the_bound_are_refused_until_the_pending_ones_end(
    backend: Backend, topic: str
) -> None:
    log = backend.open(max_pending=10)
    one = [Record(b"k", b"v", NOW_MS)]
    log.append(topic, one).result()
    with backend.stall(topic):
        pending = [log.append(topic, one * 5) for _ in range(2)]
        with pytest.raises(LogSaturated, match="10 of at most 10"):
            log.append(topic, one)
        assert not any(future.done() for future in pending)
    for future in pending:
        future.result()
    log.append(topic, one).result()


def test_close_waits_for_pending_appends_and_later_ones_fail(backend: Backend, topic: str) -> None:
    log = backend.open()
    futures = [log.append(topic, [record]) for record in records(50)]
    log.close()
    log.close()
    assert all(f.done() and f.exception() is None for f in futures)
    with pytest.raises(LogUnavailable, match="closed"):
        log.append(topic, records(1)).result()
    consumer = backend.open().consumer(topic, "g")
    assert values(read(consumer, 50)) == values_of(records(50))
    consumer.close()


def test_a_future_cannot_be_cancelled_and_does_not_stop_the_others(
    backend: Backend, topic: str
) -> None:
    log = backend.open()
    given_up = log.append(topic, records(1))
    assert not given_up.cancel()
    log.append(topic, records(1)).result()
    given_up.result()
