"""Sequences and their splits: nothing is lost, nothing of the future is trained on."""

from __future__ import annotations

import gzip
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.errors import DataError
from models.data.sequences import (
    Sequences,
    from_events,
    last_fifth,
    leave_one_out,
    next_item_pairs,
    read_user_item_lines,
    user_split,
)

EVENTS = st.lists(
    st.tuples(st.integers(1, 6), st.integers(100, 112)), min_size=1, max_size=120, unique=True
)


def world(users: int = 40, items: int = 30, seed: int = 0, least: int = 5) -> Sequences:
    """Users with `least` to 20 different items each, in random order."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(least, 21, users)
    chosen = [rng.choice(items, n, replace=False) for n in lengths]
    return from_events("world", np.repeat(np.arange(users), lengths), np.concatenate(chosen))


@given(EVENTS)
def test_every_event_keeps_its_user_its_order_and_its_item(events: list[tuple[int, int]]) -> None:
    user, item = np.array(events).T
    made = from_events("x", user, item)
    for number, of in enumerate(dict.fromkeys(user.tolist())):
        rows = made.items[made.offsets[number] : made.offsets[number + 1]]
        assert [int(made.item_ids[r - 1]) for r in rows] == item[user == of].tolist()


@given(EVENTS)
def test_items_are_numbered_by_decreasing_count(events: list[tuple[int, int]]) -> None:
    user, item = np.array(events).T
    made = from_events("x", user, item)
    counts = made.counts()
    assert counts[0] == 0
    assert (np.diff(counts[1:]) <= 0).all()
    assert counts.sum() == len(events)
    assert sorted(made.item_ids) == sorted({str(i) for i in item.tolist()})


def test_equal_counts_are_numbered_by_first_event() -> None:
    made = from_events("x", np.array([1, 1, 2]), np.array([9, 4, 7]))
    assert made.item_ids == ("9", "4", "7")


def test_times_and_attributes_follow_their_events_and_items() -> None:
    made = from_events(
        "x",
        np.array([1, 2, 1]),
        np.array([5, 6, 6]),
        np.array([10, 20, 30]),
        {"6": (3, 1)},
    )
    assert made.times_ms is not None
    assert made.times_ms.tolist() == [10, 30, 20]
    assert made.item_ids == ("6", "5")
    assert made.item_attributes == ((3, 1), ())


def test_user_split_parts_the_users_and_asks_for_the_last_fifth() -> None:
    split = user_split(world(users=100))
    offsets = split.sequences.offsets
    train = np.searchsorted(offsets, split.train_start)
    users = [set(train.tolist()), set(split.valid.user.tolist()), set(split.test.user.tolist())]
    assert [len(u) for u in users] == [80, 10, 10]
    assert set.union(*users) == set(range(100))
    for cases in (split.valid, split.test):
        known, length = cases.cut - cases.start, cases.end - cases.start
        assert known.tolist() == [int(0.8 * n + 1e-9) for n in length]
        assert (cases.start == offsets[cases.user]).all()
        assert (cases.end == offsets[cases.user + 1]).all()
    assert not split.filter_seen


def test_user_split_refuses_users_that_are_too_short() -> None:
    with pytest.raises(DataError, match="fewer than the 5 events"):
        user_split(from_events("x", np.array([1, 1]), np.array([1, 2])))


@pytest.mark.parametrize("protocol", [leave_one_out, last_fifth])
def test_no_case_asks_for_what_was_trained_on(protocol) -> None:  # type: ignore[no-untyped-def]
    split = protocol(world(least=1))
    trained = set(split.train_events().tolist())
    asked = []
    for cases in (split.valid, split.test):
        assert len(cases)
        events = [set(range(a, b)) for a, b in zip(cases.cut, cases.end, strict=True)]
        assert not trained & set.union(*events)
        assert (cases.cut > cases.start).all()
        asked.append(set.union(*events))
    assert not asked[0] & asked[1]
    assert split.filter_seen
    # The test moment comes after the validation moment of the same user and may know its answer.
    assert (split.test.cut == split.valid.end).all()


def test_leave_one_out_asks_for_the_last_and_the_last_but_one() -> None:
    user = np.array([1, 1, 1, 1, 2, 2])
    split = leave_one_out(from_events("x", user, np.array([1, 2, 3, 4, 1, 2])))
    assert split.test.user.tolist() == [0]
    assert (split.test.cut[0], split.test.end[0]) == (3, 4)
    assert (split.valid.cut[0], split.valid.end[0]) == (2, 3)
    assert split.train_events().tolist() == [0, 1, 4, 5]  # a user of two events only trains
    assert split.train_user().tolist() == [0, 0, 1, 1]


def test_training_events_and_counts_are_those_of_the_training_users() -> None:
    split = user_split(world())
    events, user = split.train_events(), split.train_user()
    assert len(events) == len(set(events.tolist())) == len(user)
    assert (events >= split.train_start[user]).all()
    assert (events < split.train_end[user]).all()
    assert split.train_counts().sum() == len(events)


def test_next_item_pairs_join_neighbours_of_one_user_and_part_90_to_10() -> None:
    sequences = world()
    pairs = next_item_pairs(sequences)
    expected = sorted(
        pair
        for a, b in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)
        for pair in zip(
            sequences.items[a : b - 1].tolist(), sequences.items[a + 1 : b].tolist(), strict=True
        )
    )
    found = np.concatenate([pairs.train, pairs.valid, pairs.test])
    assert sorted(map(tuple, found.tolist())) == expected
    assert len(pairs.test) == len(expected) // 10
    for part, users in (
        (pairs.train, pairs.train_user), (pairs.valid, pairs.valid_user),
        (pairs.test, pairs.test_user),
    ):  # fmt: skip
        for (query, item), user in zip(part.tolist(), users.tolist(), strict=True):
            rows = sequences.items[sequences.offsets[user] : sequences.offsets[user + 1]].tolist()
            assert (query, item) in set(itertools.pairwise(rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": np.array([1, 2, 9], np.int32)}, "event 2: item 9 is not in 1..2"),
        ({"items": np.array([2, 2, 1], np.int32)}, "not ordered by decreasing count"),
        ({"offsets": np.array([0, 4, 3])}, "user 1: offsets decrease"),
        ({"offsets": np.array([0, 2, 2])}, "do not span"),
        ({"item_ids": ("a",)}, "1 item ids for 2 items"),
        ({"item_attributes": ((1,),)}, "attributes of 1 items"),
        ({"times_ms": np.array([1])}, "1 times, 3 events"),
    ],
)
def test_what_does_not_fit_together_is_named(change: dict, message: str) -> None:
    good = Sequences(
        "x", np.array([0, 2, 3]), np.array([1, 2, 1], np.int32), None, 2, ("a", "b")
    ).check()
    with pytest.raises(DataError, match=message):
        replace(good, **change).check()


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_user_item_lines_are_read_in_order(tmp_path: Path) -> None:
    made = read_user_item_lines(write(tmp_path / "x.txt.gz", "7 3\n7 5\n2 5\n"), "x")
    assert made.offsets.tolist() == [0, 2, 3]
    assert [made.item_ids[r - 1] for r in made.items] == ["3", "5", "5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n1 x\n", "line 2: item is 'x', expected a whole number"),
        ("1 2\n1\n", "line 2: item is ''"),
        ("a 2\n1 2\n", "line 1: user is 'a'"),
        ("1 2\n1 3 77\n", "line 2: more than a user and an item in '1 3 77'"),
        ("1 2 9\n1 3 9\n", "line 1: more than a user and an item"),
        ("1 2\n\n1 3\n", "line 2: user is ''"),
        ("1  2\n", "line 1: item is ''"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("1 2\n1 02\n", "line 2: item is '02'.* taken for 2"),
        ("1 2\n1 99999999999999999999\n", "line 2: item is '9+', expected a whole number"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_user_item_lines(write(tmp_path / "x.txt.gz", text), "x")


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"1 2\n" * 100)
    (tmp_path / "cut.gz").write_bytes(whole[:-9])
    (tmp_path / "lfs.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    for name, message in (("cut.gz", "truncated"), ("lfs.gz", "Git LFS"), ("no.gz", "cannot be")):
        with pytest.raises(DataError, match=message):
            read_user_item_lines(tmp_path / name, "x")
