"""Laws of the field table: what `check` refuses, no leak into histories, save = load."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.columns import (
    earlier_items,
    encode,
    encode_frame,
    hashed_frame,
    item_bags,
    list_history,
    log2_bucket,
    numbered,
    vocabulary,
)
from models.data.errors import DataError
from models.data.tables import (
    TEST,
    TRAIN,
    VALID,
    BagField,
    Field,
    FieldTable,
    HistoryField,
    ordered_split,
    random_split,
    time_split,
)


def tiny() -> FieldTable:
    return FieldTable(
        name="tiny",
        fields=(Field("user", 3, "user"), Field("item", 4, "item")),
        categorical=np.array([[1, 1], [2, 2], [1, 3], [0, 0]], np.int32),
        dense_names=("price",),
        dense=np.array([[0.5], [1.0], [2.0], [0.0]], np.float32),
        bags={"tags": BagField(np.array([[1, 2], [1, 0], [0, 0], [2, 0]], np.int32), 3, "item")},
        history={
            "click": HistoryField(np.array([[0, 0], [1, 0], [2, 1], [3, 2]], np.int32), "item")
        },
        tasks=("click", "like"),
        labels=np.array([[1, 0], [0, 0], [1, 1], [1, 0]], np.float32),
        known=np.array([[1, 1], [1, 0], [1, 1], [1, 0]], bool),
        user=np.array([0, 1, 0, 2], np.int32),
        time_ms=np.array([1, 2, 3, 4], np.int64),
        split=np.array([0, 0, 1, 2], np.int8),
    )


def changed(array: np.ndarray, at: tuple[int, ...] | int, value: float) -> np.ndarray:
    copy = array.copy()
    copy[at] = value
    return copy


def faults() -> dict[str, FieldTable]:
    t = tiny()
    click = t.history["click"]
    tags = t.bags["tags"]
    return {
        r"item: row 2: id 4 is outside 0\.\.3": replace(
            t, categorical=changed(t.categorical, (2, 1), 4)
        ),
        r"user: row 1: id -1 is outside 0\.\.2": replace(
            t, categorical=changed(t.categorical, (1, 0), -1)
        ),
        r"bag tags: row 1: id 3 is outside 0\.\.2": replace(
            t, bags={"tags": replace(tags, ids=changed(tags.ids, (1, 1), 3))}
        ),
        r"history click: row 3: id 9 is outside 0\.\.3": replace(
            t, history={"click": replace(click, ids=changed(click.ids, (3, 0), 9))}
        ),
        "history click: row 0: has padding before an item": replace(
            t, history={"click": replace(click, ids=changed(click.ids, (0, 1), 2))}
        ),
        "history click: shares the unknown field 'video'": replace(
            t, history={"click": replace(click, of="video")}
        ),
        "price: row 3: is not a finite number": replace(t, dense=changed(t.dense, (3, 0), np.inf)),
        "label like: row 2: is NaN": replace(t, labels=changed(t.labels, (2, 1), np.nan)),
        "label click: row 1: is not 0 or 1": replace(t, labels=changed(t.labels, (1, 0), 0.5)),
        "label like: is not known for any row of the training part": replace(
            t, known=changed(t.known, (0, 1), False)
        ),
        "split: the valid part is empty": replace(t, split=changed(t.split, 2, 0)),
        "split: the train part is empty": replace(t, split=np.array([1, 1, 1, 2], np.int8)),
        "split: row 3: is not 0, 1 or 2": replace(t, split=changed(t.split, 3, 7)),
        "a name is used twice": replace(t, fields=(t.fields[0], t.fields[0])),
        "side 'both' is none of": replace(
            t,
            fields=(t.fields[0], Field("item", 4, "both")),  # type: ignore[arg-type]
        ),
        r"categorical: is int64\[4, 2\], expected int32\[4, 2\]": replace(
            t, categorical=t.categorical.astype(np.int64)
        ),
        r"user: is int32\[3\], expected int32\[4\]": replace(t, user=t.user[:3]),
    }


def test_a_sound_table_passes() -> None:
    assert len(tiny().check()) == 4


@pytest.mark.parametrize("sentence", faults())
def test_check_names_table_column_and_row(sentence: str) -> None:
    with pytest.raises(DataError, match=f"table tiny: .*{sentence}"):
        faults()[sentence].check()


def assert_equal(a: FieldTable, b: FieldTable) -> None:
    assert (a.name, a.fields, a.dense_names, a.tasks) == (b.name, b.fields, b.dense_names, b.tasks)
    for name in ("categorical", "dense", "labels", "known", "user", "time_ms", "split"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype
    assert list(a.bags) == list(b.bags)
    assert list(a.history) == list(b.history)
    for name, bag in a.bags.items():
        np.testing.assert_array_equal(bag.ids, b.bags[name].ids)
        assert (bag.vocabulary, bag.side) == (b.bags[name].vocabulary, b.bags[name].side)
    for name, history in a.history.items():
        np.testing.assert_array_equal(history.ids, b.history[name].ids)
        assert history.of == b.history[name].of


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    tiny().save(tmp_path / "t")
    assert_equal(FieldTable.load(tmp_path / "t").check(), tiny())


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    tiny().save(tmp_path / "t")
    replace(tiny(), name="second").save(tmp_path / "t")
    assert FieldTable.load(tmp_path / "t").name == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_failed_save_keeps_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny().save(tmp_path / "t")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="disk full"):
        replace(tiny(), name="second").save(tmp_path / "t")
    assert FieldTable.load(tmp_path / "t").name == "tiny"
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="holds other files"):
        tiny().save(tmp_path)


@pytest.mark.parametrize("name", ["categorical", "bag0", "history0", "split"])
def test_a_damaged_or_missing_array_is_refused(tmp_path: Path, name: str) -> None:
    tiny().save(tmp_path / "t")
    path = tmp_path / "t" / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}\.npy: checksum differs"):
        FieldTable.load(tmp_path / "t")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{name}\.npy: checksum differs"):
        FieldTable.load(tmp_path / "t")
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}\.npy: cannot be read"):
        FieldTable.load(tmp_path / "t")


def test_a_folder_without_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tandem data prepare"):
        FieldTable.load(tmp_path)


def test_subset_and_take_keep_rows_together() -> None:
    part = tiny().subset("train")
    assert part.user.tolist() == [0, 1]
    assert part.history["click"].ids.tolist() == [[0, 0], [1, 0]]
    swapped = tiny().take(np.array([3, 0]))
    assert swapped.categorical.tolist() == [[0, 0], [1, 1]]
    assert swapped.bags["tags"].ids.tolist() == [[2, 0], [1, 2]]
    assert swapped.labels[:, 0].tolist() == [1, 1]


# --- histories ----------------------------------------------------------------------------------

events = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 5)), max_size=25)
requests = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 7)), min_size=1, max_size=15)


def build(rows: list, log: list, length: int) -> np.ndarray:
    r = np.array(rows, np.int64).reshape(-1, 2)
    e = np.array(log, np.int64).reshape(-1, 3)
    return earlier_items(r[:, 0], r[:, 1], e[:, 0], e[:, 1], e[:, 2], length)


def brute_force(rows: list, log: list, length: int) -> list[list[int]]:
    result = []
    for user, time in rows:
        mine = [(t, n, i) for n, (u, t, i) in enumerate(log) if u == user and t < time and i > 0]
        newest = [i for _, _, i in sorted(mine, reverse=True)][:length]
        result.append(newest + [0] * (length - len(newest)))
    return result


@given(rows=requests, log=events, length=st.integers(1, 6))
def test_histories_equal_brute_force(rows: list, log: list, length: int) -> None:
    history = build(rows, log, length)
    assert history.dtype == np.int32
    assert history.tolist() == brute_force(rows, log, length)


@given(rows=requests, log=events, data=st.data())
def test_nothing_of_the_same_or_a_later_time_reaches_a_row(
    rows: list, log: list, data: st.DataObject
) -> None:
    """Removing, changing or adding events from `now` on leaves rows up to `now` as they are."""
    now = data.draw(st.integers(0, 7))
    others = data.draw(events)
    altered = [e for e in log if e[1] < now] + [e for e in others if e[1] >= now]
    until_now = [r for r in rows if r[1] <= now]
    if until_now:
        assert build(until_now, log, 4).tolist() == build(until_now, altered, 4).tolist()


@given(rows=requests, log=events)
def test_another_users_events_never_matter(rows: list, log: list) -> None:
    only = [r for r in rows if r[0] == rows[0][0]]
    own = [e for e in log if e[0] == rows[0][0]]
    assert build(only, log, 4).tolist() == build(only, own, 4).tolist()


# --- vocabularies, buckets, bags ----------------------------------------------------------------


def test_a_vocabulary_counts_the_training_part_only() -> None:
    values = pl.Series(["b", "a", "b", None, "c", "c", "c"])
    train = np.array([1, 1, 1, 1, 1, 0, 0], bool)
    assert vocabulary(values, train).to_list() == ["b", "a", "c"]
    assert vocabulary(values, train, min_count=2).to_list() == ["b"]
    assert encode(values, vocabulary(values, train, 2)).tolist() == [1, 0, 1, 0, 0, 0, 0]


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=1), st.integers(1, 3), st.data())
def test_known_values_decode_to_themselves(
    values: list, min_count: int, data: st.DataObject
) -> None:
    train = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    series = pl.Series("x", values, dtype=pl.Int64)
    fields, ids = encode_frame(series.to_frame(), {"x": "item"}, train, min_count)
    known = vocabulary(series, train, min_count).to_list()
    seen = [v for v, t in zip(values, train, strict=True) if t and v is not None]
    assert set(known) == {v for v in seen if seen.count(v) >= min_count}
    assert fields[0].vocabulary == len(known) + 1
    for value, number in zip(values, ids[:, 0], strict=True):
        assert number == (known.index(value) + 1 if value in known else 0)


def test_log2_buckets_by_hand() -> None:
    counts = pl.Series([None, -1, 0, 1, 2, 3, 4, 7, 8, 2**40])
    assert log2_bucket(counts, 10).tolist() == [0, 0, 1, 2, 3, 3, 4, 4, 5, 9]


def test_hashed_ids_are_md5_of_field_and_value() -> None:
    frame = pl.DataFrame({"pid": ["430548_1007", None], "code": [0x68FD1E64, 10]})
    _, ids = hashed_frame(frame, {"pid": "context", "code": "context"}, 1000, {"code": "08x"})

    def of(text: str) -> int:
        return int(hashlib.md5(text.encode()).hexdigest(), 16) % 1000

    assert ids.tolist() == [
        [of("pid_430548_1007"), of("code_68fd1e64")],
        [0, of("code_0000000a")],
    ]


def test_bags_hold_an_items_known_values_in_order() -> None:
    items = pl.Series([10, 11, 12])
    listed = pl.Series([["x", "y", "z"], ["y", None], ["new", "x"]])
    rows = pl.Series([10, 11, 12, 99, 11])
    train = np.array([1, 1, 0, 1, 0], bool)  # item 12 is not trained on: "new" is unknown
    bag = item_bags(items, listed, rows, train, slots=2)
    # Counted over the trained items 10 and 11: y 2, x 1, z 1.
    assert bag.vocabulary == 4
    assert bag.ids.tolist() == [[2, 1], [1, 0], [2, 0], [0, 0], [1, 0]]


def test_list_histories_skip_unknown_values_and_keep_the_order() -> None:
    listed = pl.Series([[7, 8, 9, 7], None, [], [9]], dtype=pl.List(pl.Int32))
    known = pl.Series([9, 7], dtype=pl.Int32)
    assert list_history(listed, known, 2).tolist() == [[2, 1], [0, 0], [0, 0], [1, 0]]


# --- splits -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_a_time_split_never_separates_a_moment_nor_reverses_time(times: list[int]) -> None:
    time = np.array(times)
    try:
        split = time_split(time)
    except DataError:
        # Refused only where some part would be empty: too few different times.
        ordered = np.sort(time)
        first = ordered[min(int(0.8 * 0.9 * len(time)), len(time) - 1)]
        second = ordered[min(int(0.8 * len(time)), len(time) - 1)]
        assert first == second or first == ordered[0]
        return
    assert time[split == TRAIN].max() < time[split == VALID].min()
    assert time[split == VALID].max() < time[split == TEST].min()


def test_a_random_split_has_exact_sizes_and_follows_its_seed() -> None:
    split = random_split(1000, seed=3)
    assert np.bincount(split).tolist() == [720, 80, 200]
    np.testing.assert_array_equal(split, random_split(1000, seed=3))
    assert (split != random_split(1000, seed=4)).any()
    with pytest.raises(DataError, match="valid part of 3 rows is empty"):
        random_split(3)


def test_an_ordered_split_follows_the_file() -> None:
    assert ordered_split(10, 0.7, 0.2).tolist() == [0] * 7 + [1] * 2 + [2]
    with pytest.raises(DataError, match="valid part"):
        ordered_split(10, 0.9, 0.01)


def test_users_are_numbered_by_value() -> None:
    assert numbered(pl.Series([30, 10, 30, 20])).tolist() == [2, 0, 2, 1]
