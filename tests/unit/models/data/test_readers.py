"""Each reader on tiny files of the owner's format: values by hand, and no leak anywhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.data.errors import DataError
from models.data.readers import (
    avazu,
    criteo,
    grocery,
    kuairand,
    movielens_1m,
    movielens_tags,
    taobao_ad,
)
from models.data.source_files import DataWarning
from models.data.tables import TRAIN, FieldTable
from tests.unit.models.data import owner_files


@pytest.fixture(autouse=True)
def expected_warnings() -> Iterator[None]:
    """The tiny files have items and users without attributes on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        yield


def column(table: FieldTable, name: str) -> np.ndarray:
    return table.categorical[:, [field.name for field in table.fields].index(name)]


def test_ml_1m_by_hand(tmp_path: Path) -> None:
    owner_files.ml_1m(tmp_path)
    ratings = [
        [int(x) for x in line.split("::")]
        for line in (tmp_path / "ratings.dat").read_text().splitlines()
    ]
    table = movielens_1m.read(tmp_path)
    rating = np.array([r[2] for r in ratings])  # the file is in the order of time
    np.testing.assert_array_equal(table.labels[:, 0], rating >= 3)
    np.testing.assert_array_equal(table.labels[:, 1], rating >= 4)
    assert table.known.all()
    assert table.time_ms.tolist() == [r[3] * 1000 for r in ratings]
    assert np.bincount(table.split).tolist() == [28, 4, 8]
    names = [f.name for f in table.fields]
    assert names == ["user", "gender", "age", "occupation", "item", "year"]
    # Years of training rows: 1995 (films 1, 2, 4) before 1996 (film 3); film 5 is unknown.
    item = np.array([r[1] for r in ratings])
    np.testing.assert_array_equal(
        column(table, "year"), np.select([item == 5, item == 3], [0, 2], 1)
    )
    genres = {m: set(table.bags["genres"].ids[item == m].ravel()) - {0} for m in range(1, 6)}
    assert [len(genres[m]) for m in range(1, 6)] == [3, 2, 1, 2, 0]
    assert genres[3] < genres[4]  # Action, Crime


def test_ml_1m_derived_form_knows_every_click_and_some_likes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    owner_files.ml_1m(tmp_path / "a")
    owner_files.ml_1m_derived(tmp_path / "b")
    full, derived = movielens_1m.read(tmp_path / "a"), movielens_1m.read(tmp_path / "b")
    np.testing.assert_array_equal(full.categorical, derived.categorical)
    np.testing.assert_array_equal(full.history["click"].ids, derived.history["click"].ids)
    np.testing.assert_array_equal(full.labels[:, 0], derived.labels[:, 0])
    assert derived.known[:, 0].all()
    assert derived.known[:, 1].tolist() == [True, False] * 20
    known = derived.known[:, 1]
    np.testing.assert_array_equal(full.labels[known, 1], derived.labels[known, 1])
    assert not derived.labels[~known, 1].any()


def test_ml_1m_random_split_keeps_the_rows_and_another_name(tmp_path: Path) -> None:
    owner_files.ml_1m(tmp_path)
    table = movielens_1m.read(tmp_path, split="random", seed=1)
    assert table.name == "ml-1m-random"
    assert np.bincount(table.split).tolist() == [29, 3, 8]
    with pytest.raises(DataError, match="unknown split 'sideways': use time or random"):
        movielens_1m.read(tmp_path, split="sideways")  # type: ignore[arg-type]


def test_ml_1m_sequences_from_the_owners_ratings_drop_rare_films(tmp_path: Path) -> None:
    ratings = [[1, 7, 5, 100], [1, 8, 5, 50]] + [[u, 8, 3, 100 + u] for u in range(2, 7)]
    owner_files.write(tmp_path / "ratings.dat", None, ratings, "::")
    sequences = movielens_1m.read_sequences(tmp_path)
    assert (len(sequences), sequences.num_items, sequences.item_ids) == (6, 1, ("8",))


def test_ml_1m_rating_out_of_range_names_the_line(tmp_path: Path) -> None:
    owner_files.ml_1m(tmp_path)
    path = tmp_path / "ratings.dat"
    path.write_text(path.read_text().replace("\n", "\n1::1::9::956700000\n", 1))
    with pytest.raises(DataError, match=r"ratings\.dat: line 2: rating is 9\.0"):
        movielens_1m.read(tmp_path)


def test_ml_latest_small_is_a_table_too() -> None:
    table = movielens_1m.read_latest()
    assert len(table) == 100_836
    assert [f.name for f in table.fields] == ["user", "item", "year"]
    assert 0 < (column(table, "user") == 0).mean() < 1  # users after the split are unknown


def test_grocery_by_hand(tmp_path: Path) -> None:
    owner_files.grocery(tmp_path)
    sequences = grocery.read(tmp_path)
    ids = [sequences.item_ids[row - 1] for row in sequences.items]
    # User 7 by day, the file's order within a day; then user 8.
    assert ids == ["11", "10", "12", "11"]
    assert sequences.offsets.tolist() == [0, 3, 4]
    assert sequences.times_ms is not None
    assert sequences.times_ms.tolist() == [86_400_000, 172_800_000, 172_800_000, 86_400_000]
    assert sequences.item_attributes is not None
    assert dict(zip(sequences.item_ids, sequences.item_attributes, strict=True)) == {
        "11": (4,), "10": (3,), "12": (3,),
    }  # fmt: skip


def test_criteo_x1_by_hand(tmp_path: Path) -> None:
    owner_files.criteo_x1(tmp_path)
    table = criteo.read_x1(tmp_path)
    assert np.bincount(table.split).tolist() == [8, 3, 3]
    assert table.dense_names == tuple(owner_files.COUNTS)
    np.testing.assert_allclose(table.dense[1], [(1 + j) / 10 for j in range(13)], rtol=1e-6)
    # Training values 0 and 1, each four times: ids by value. Others are unknown.
    assert table.categorical[:8, 0].tolist() == [1, 2] * 4
    assert not table.categorical[8:].any()
    assert [f.vocabulary for f in table.fields] == [3] * 26


def test_criteo_x4_by_hand(tmp_path: Path) -> None:
    owner_files.criteo_kaggle(tmp_path)
    table = criteo.read_x4(tmp_path)
    assert np.bincount(table.split).tolist() == [80, 10, 10]
    for part in range(3):  # stratified: half of each part is positive
        assert table.labels[table.split == part].mean() == 0.5
    vocabulary = {f.name: f.vocabulary for f in table.fields}
    # One value in every row; all rare; never present; one value in every row.
    assert [vocabulary[n] for n in ("I3", "C1", "C2", "C3", "C26")] == [2, 2, 1, 1, 2]
    # 20 counts, each in at most 5 rows: frequent are only those that fall together.
    counts = criteo.count_category(np.arange(100) % 20)
    train = table.split == TRAIN
    _, seen = np.unique(counts[train], return_counts=True)
    assert vocabulary["I2"] == 1 + (seen >= 10).sum()


def test_criteo_counts_by_hand() -> None:
    # ln(3)^2 = 1.207, ln(8)^2 = 4.32, ln(100)^2 = 21.2
    counts = np.array([-2, 0, 1, 2, 3, 8, 100])
    assert criteo.count_category(counts).tolist() == [-2, 0, 1, 2, 1, 4, 21]


def test_criteo_mlcc_keeps_the_order_and_folds_small_counts(tmp_path: Path) -> None:
    owner_files.criteo_kaggle(tmp_path)
    table = criteo.read_mlcc(tmp_path)
    assert table.split.tolist() == [0] * 90 + [1] + [2] * 9
    assert {f.vocabulary for f in table.fields} == {1_000_000}
    first, third = column(table, "I2"), column(table, "I3")
    assert len(set(first[:10])) == 1  # 0..9 are all "0"
    assert len(set(first[10:20])) == 10
    assert len(set(third)) == 1  # -1 is below 10, too
    assert len(set(column(table, "C2"))) == 100


def test_avazu_x4_takes_the_hour_apart(tmp_path: Path) -> None:
    owner_files.avazu_x4_parts(tmp_path)
    table = avazu.read_x4(tmp_path)
    assert np.bincount(table.split).tolist() == [80, 10, 10]
    assert len(table.fields) == 24
    sizes = {f.name: f.vocabulary for f in table.fields}
    # Friday and Saturday; not weekend and weekend; 24 hours; one site; every address differs.
    assert [sizes[n] for n in ("weekday", "weekend", "hour", "site_id", "device_ip")] == [
        3, 3, 25, 2, 1,
    ]  # fmt: skip
    assert column(table, "weekend").tolist() == [1, 2] * 50
    assert table.time_ms[0] == 1_414_108_800_000  # 2014-10-24 00:00 UTC


def test_avazu_x4_of_the_kaggle_file_is_cut_as_criteo(tmp_path: Path) -> None:
    owner_files.avazu_kaggle(tmp_path)
    table = avazu.read_x4(tmp_path)
    np.testing.assert_array_equal(table.split, criteo.stratified_folds(table.labels[:, 0]))


def test_avazu_hour_that_is_none_is_refused() -> None:
    with pytest.raises(DataError, match="row 1: hour is 14109900, expected YYMMDDHH"):
        avazu.hour_ms(pl.Series("hour", [14102400, 14109900]))


def test_avazu_x1_and_mlcc_shapes(tmp_path: Path) -> None:
    owner_files.avazu_x1(tmp_path)
    table = avazu.read_x1(tmp_path)
    assert np.bincount(table.split).tolist() == [8, 3, 3]
    assert [f.vocabulary for f in table.fields] == [9] * 22
    owner_files.avazu_kaggle(tmp_path)
    hashed = avazu.read_mlcc(tmp_path)
    assert np.bincount(hashed.split).tolist() == [90, 1, 9]
    assert len(hashed.fields) == 22
    assert "id" not in {f.name for f in hashed.fields}


def test_movielens_tags_by_hand(tmp_path: Path) -> None:
    owner_files.movielens_tags(tmp_path)
    table = movielens_tags.read(tmp_path)
    assert table.split.tolist() == [0, 0, 0, 1, 1, 2]
    # user 1 twice, 2 once, 3 unknown; item 6 twice, 5 once; tag 7 twice, 8 once, 9 unknown.
    assert table.categorical.tolist() == [
        [1, 2, 1], [1, 1, 1], [2, 1, 2], [2, 2, 2], [0, 2, 1], [1, 2, 0],
    ]  # fmt: skip
    assert table.labels[:, 0].tolist() == [1, 0, 1, 1, 0, 1]
    assert table.user.tolist() == [0, 0, 1, 1, 2, 0]


def log_of(folder: Path, version: str = "pure") -> pl.DataFrame:
    logs = [
        pl.read_csv(folder / "data" / f"log_standard_{part}_{version}.csv")
        for part in ("4_08_to_4_21", "4_22_to_5_08")
    ]
    return pl.concat(logs)


def test_kuairand_split_labels_and_fields(tmp_path: Path) -> None:
    owner_files.kuairand(tmp_path)
    log = log_of(tmp_path)
    table = kuairand.read(tmp_path)
    assert table.tasks == ("click", "like", "long_view")
    assert table.split.tolist() == [0] * 60 + [1] * 10 + [2] * 10
    np.testing.assert_array_equal(
        table.labels, log.select("is_click", "is_like", "long_view").to_numpy()
    )
    sides = {side: [f.name for f in table.fields if f.side == side] for side in ("user", "item")}
    assert len(sides["user"]) == 31  # the owner's 30 features and the id
    assert not {"upload_dt", "date"} & {f.name for f in table.fields}
    video = log["video_id"].to_numpy()
    # 1000 * 2^v: floor(log2) = 9 + v, bucket + 2; video 0 has none, video 5 no features.
    duration = np.select([(video == 0) | (video == 5)], [0], 11 + video)
    np.testing.assert_array_equal(column(table, "video_duration"), duration)
    tags = (table.bags["tags"].ids > 0).sum(axis=1)
    np.testing.assert_array_equal(tags, np.select([video == 5, video == 4], [0, 2], 1))


@pytest.mark.parametrize("task", ["click", "like", "long_view"])
def test_kuairand_histories_are_the_earlier_events_of_the_action(tmp_path: Path, task: str) -> None:
    owner_files.kuairand(tmp_path)
    table = kuairand.read(tmp_path, history=4)
    label = table.labels[:, table.tasks.index(task)]
    video = column(table, "video_id")
    for row in range(len(table)):
        earlier = [
            video[r]
            for r in range(len(table))
            if table.user[r] == table.user[row]
            and table.time_ms[r] < table.time_ms[row]
            and label[r] == 1
            and video[r] > 0
        ]
        expected = (earlier[::-1] + [0] * 4)[:4]
        assert table.history[task].ids[row].tolist() == expected


def test_kuairand_27k_reads_every_part_and_can_draw_users(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    owner_files.kuairand(tmp_path / "a")
    owner_files.kuairand(tmp_path / "b", "27k")
    whole, parts = kuairand.read(tmp_path / "a"), kuairand.read(tmp_path / "b", "27k")
    np.testing.assert_array_equal(whole.categorical, parts.categorical)
    np.testing.assert_array_equal(whole.split, parts.split)
    drawn = kuairand.read(tmp_path / "b", "27k", users=2, seed=5)
    assert len(set(drawn.user)) == 2
    assert len(drawn) < len(whole)


def test_kuairand_that_would_not_fit_is_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner_files.kuairand(tmp_path)

    class Little:
        available = 1000

    monkeypatch.setattr(kuairand.psutil, "virtual_memory", Little)
    with pytest.raises(DataError, match=r"80 rows need about .* pass --users N"):
        kuairand.read(tmp_path)


def test_taobao_days_fields_and_histories(tmp_path: Path) -> None:
    owner_files.taobao_raw(tmp_path)
    table = taobao_ad.read(tmp_path)
    assert table.split.tolist() == [0] * 48 + [1] * 8 + [2] * 8
    assert len(table.fields) == 16
    # Ads 2, 3 share a category; ad 3 has no brand; user 9 no profile.
    ad = np.array([1 + i % 3 for i in range(64)])
    assert len(set(column(table, "cate_id")[ad >= 2])) == 1
    assert not column(table, "brand")[ad == 3].any()
    stranger = np.arange(64) % 8 == 7
    assert not column(table, "cms_segid")[stranger].any()
    assert column(table, "cms_segid")[~stranger].all()
    # 170 -> 2 + 7; 1 -> 2; 0.5 counts as none -> 1
    assert column(table, "price")[:3].tolist() == [9, 2, 1]
    # Only ad 1 is ever clicked (rows 0, 3, 6, ...), by user 1 and by user 9.
    clicked = column(table, "adgroup_id")[0]
    ids = table.history["ads"].ids
    assert set(np.unique(ids)) == {0, clicked}
    assert (ids[6] > 0).sum() == 2  # user 1 clicked in rows 0 and 3
    assert not ids[1].any()


def test_taobao_mlcc_has_17_hashed_fields(tmp_path: Path) -> None:
    owner_files.taobao_raw(tmp_path)
    table = taobao_ad.read_mlcc(tmp_path)
    assert len(table.fields) == 17
    assert {"userid", "time_stamp"} <= {f.name for f in table.fields}
    assert np.bincount(table.split).tolist() == [57, 1, 6]


def test_taobao_x1_histories_share_the_fields_vocabulary(tmp_path: Path) -> None:
    owner_files.taobao_x1(tmp_path)
    table = taobao_ad.read_x1(tmp_path)
    assert np.bincount(table.split).tolist() == [57, 3, 4]
    sizes = {f.name: f.vocabulary for f in table.fields}
    assert sizes["cate_id"] == 3  # 60 and, from the histories alone, 61
    row = int(np.flatnonzero((table.split == TRAIN) & (table.labels[:, 0] == 0))[0])
    sixty = column(table, "cate_id")[row]
    categories = table.history["cate_his"].ids[row]
    assert categories[:4].tolist() == [sixty, 3 - sixty, sixty, 0]
    # 90^99^91 oldest first: newest first 91, 99, 90, each of them in half of the training rows.
    brands = table.history["brand_his"].ids[row]
    assert (brands > 0).sum() == 3
    assert brands[2] == column(table, "brand")[row]
    # btag is 1 in every row and twice in half of the lists, 2 once: ids 1 and 2.
    assert table.history["btag_his"].ids[row][:4].tolist() == [1, 2, 1, 0]


def test_taobao_click_and_nonclick_must_disagree(tmp_path: Path) -> None:
    owner_files.taobao_raw(tmp_path)
    path = tmp_path / "raw_sample.csv"
    path.write_text(path.read_text().replace(",1,0\n", ",1,1\n", 1))
    with pytest.raises(DataError, match=r"raw_sample\.csv: line 3: clk"):
        taobao_ad.read(tmp_path)


@pytest.mark.parametrize(
    ("write", "read", "file"),
    [
        (owner_files.ml_1m, movielens_1m.read, "ratings.dat"),
        (owner_files.taobao_raw, taobao_ad.read, "raw_sample.csv"),
        (owner_files.movielens_tags, movielens_tags.read, "test.csv"),
        (owner_files.avazu_x4_parts, avazu.read_x4, "test.csv"),
        (owner_files.criteo_x1, criteo.read_x1, "test.csv"),
    ],
)
def test_what_comes_last_changes_nothing_before_it(
    tmp_path: Path,
    write: Callable[[Path], None],
    read: Callable[[Path], FieldTable],
    file: str,
) -> None:
    """Other values in the last (test) row leave every other row's inputs as they were."""
    write(tmp_path)
    before = read(tmp_path)
    path = tmp_path / file
    lines = path.read_text().splitlines()
    separator = "::" if "::" in lines[-1] else ","
    last = lines[-1].split(separator)
    at = {"ratings.dat": 2, "raw_sample.csv": 2}.get(file, len(last) - 1)
    last[at] = "3" if last[at] != "3" else "1"
    path.write_text("\n".join([*lines[:-1], separator.join(last)]) + "\n")
    after = read(tmp_path)
    np.testing.assert_array_equal(before.categorical[:-1], after.categorical[:-1])
    np.testing.assert_array_equal(before.split, after.split)
    assert before.fields == after.fields
    for name, history in before.history.items():
        np.testing.assert_array_equal(history.ids, after.history[name].ids)
