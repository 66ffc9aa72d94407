"""Consumer groups on disk: who is a member, who reads what, how far it got."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.event_log.embedded import EmbeddedEventLog
from services.event_log.group import Group, Position, committed, forget, share
from services.event_log.interface import LogCorrupt
from tests.contract.event_log_process import log_process
from tests.contract.event_logs import read, records, values, values_of


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


# At Kafka the broker notices a killed member only after the session timeout.
def test_a_killed_member_leaves_its_partitions_and_uncommitted_records_to_the_others(
    tmp_path: Path,
) -> None:
    log = EmbeddedEventLog(tmp_path)
    everything = frozenset(range(log.partitions("t")))
    with log_process("member", f"log://{tmp_path}", "t", "g") as member:
        assert json.loads(member.stdout.readline())["assigned"] == sorted(everything)
        log.append("t", records(10, "first")).result()
        seen = 0
        while seen < 10:
            seen += len(json.loads(member.stdout.readline())["records"])
        member.stdin.write("commit\n")
        member.stdin.flush()
        assert json.loads(member.stdout.readline()) == {"committed": True}
        log.append("t", records(10, "second")).result()
        while seen < 20:
            seen += len(json.loads(member.stdout.readline())["records"])
        member.kill()
        member.wait()
    heir = log.consumer("t", "g")
    assert values(read(heir, 10)) == values_of(records(10, "second"))
    assert heir.assigned() == everything
    heir.close()
    log.close()


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
            assert committed(group.directory, 0) == Position(1, 0, 1)
            assert group.live_members() == [group.member]
            group.leave()
    finally:
        stop.set()
        forgetting.join()


def test_an_unreadable_position_is_damage_and_names_the_file(tmp_path: Path) -> None:
    group = Group(tmp_path)
    assert committed(group.directory, 0) is None
    group.commit(0, Position(5, 3, 120))
    assert committed(group.directory, 0) == Position(5, 3, 120)
    (tmp_path / "0.position.json").write_text("{")
    with pytest.raises(LogCorrupt, match=r"0\.position\.json"):
        committed(group.directory, 0)
    group.leave()
