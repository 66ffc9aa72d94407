"""Data: what is refused and how, and that nothing after the split reaches what is before it."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.data.backfill import future_interactions, initial_state, shift_to
from models.data.errors import DataError
from models.data.events import time_quantile
from models.data.worlds.films import dataset as films
from models.data.worlds.films import movielens
from models.data.worlds.films.schema import CLICKS, GENRE_CLICKS, GENRES, LIKES
from models.training.replay import replay
from tests.unit.models import synthetic

HEADER = "userId,movieId,rating,timestamp\n"


def _ratings(folder: Path, text: str) -> Path:
    path = folder / "ratings.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    return path


def _error(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        movielens.read(folder)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("userId,movieId,stars,timestamp\n1,2,3.0,4\n", ("line 1", "no column 'rating'")),
        (HEADER + "1,2,3.0,4\n1,2,nan,4\n", ("line 3", "rating")),
        (HEADER + "1,2,3.0,4\n1,2,4.0,\n", ("line 3", "timestamp")),
        (HEADER + "1,x,3.0,4\n", ("line 2", "movieId", "'x'")),
        (HEADER + "1,2,3.0,4\n1,2,9.0,4\n", ("line 3", "9.0")),
        (HEADER, ("no rows",)),
    ],
)
def test_a_bad_table_is_refused_by_file_and_line(
    tmp_path: Path, text: str, parts: tuple[str, ...]
) -> None:
    _ratings(tmp_path, text)
    message = _error(tmp_path)
    assert "ratings.csv.gz" in message
    assert all(part in message for part in parts), message


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    path = _ratings(tmp_path, HEADER + "1,2,3.0,4\n" * 100)
    path.write_bytes(path.read_bytes()[:-12])
    assert "truncated" in _error(tmp_path)


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv.gz").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in _error(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "ratings.csv.gz" in _error(tmp_path)


def test_an_empty_side_of_a_split_is_refused() -> None:
    same_time = pl.DataFrame({"event_time_ms": [5, 5, 5]})
    with pytest.raises(DataError, match="empty"):
        time_quantile(same_time, 0.8)


def test_an_unknown_genre_is_refused_by_name() -> None:
    source = synthetic.movielens(users=8)
    wrong = replace(source, movies=source.movies.with_columns(genres=pl.lit("Opera")))
    with pytest.raises(DataError, match="Opera"):
        films.build("wrong", wrong)


def test_more_genres_than_there_is_room_for_are_refused_with_the_item() -> None:
    source = synthetic.movielens(users=8)
    many = source.movies.with_columns(genres=pl.lit("|".join(GENRES[:11])))
    with pytest.raises(DataError, match=r"item \d+ has 11 genres; schema.yaml keeps 10"):
        films.build("many", replace(source, movies=many))


def test_the_bundled_data_has_its_known_shape() -> None:
    data = films.load()
    train, test = set(data.train["user_id"]), set(data.test["user_id"])
    assert len(data.events) == 100_836
    assert (len(train), len(test), len(train & test)) == (522, 116, 28)
    assert len(data.items) == 7_867
    toy_story = int(data.items.index_of(data.items.keys[[data.items.ids.index("1")]])[0])
    row = data.items.features[toy_story]
    assert row["year"] == 1995
    assert row["genres"].tolist() == [2, 3, 4, 5, 9, 0, 0, 0, 0, 0]


def test_items_are_numbered_by_training_popularity() -> None:
    clicks = synthetic.dataset().items.counts[1:, 0].astype(int)
    assert (np.diff(clicks) <= 0).all()
    assert clicks[-1] > 0


def test_changing_the_future_changes_nothing_of_the_past() -> None:
    source = synthetic.movielens()
    data = films.build("a", source)
    cut = data.train_until_ms // 1000
    future = pl.col("timestamp") >= cut
    altered = source.ratings.with_columns(
        movieId=pl.when(future).then(1 + pl.col("movieId") * 7 % 160).otherwise("movieId"),
        rating=pl.when(future).then(0.5).otherwise("rating"),
    )
    late_tags = source.tags.with_columns(tag=pl.lit("x"), timestamp=pl.lit(cut, pl.Int64))
    tags = pl.concat([source.tags, late_tags])
    other = films.build("b", replace(source, ratings=altered, tags=tags))
    assert other.train_until_ms == data.train_until_ms
    assert other.items.ids == data.items.ids
    assert (other.items.features == data.items.features).all()
    one, two = replay(data), replay(other)
    past = one.time_ms < data.train_until_ms
    assert past.sum() == len(data.train)
    assert not (one.slate[~past] == two.slate[~past]).all()
    assert one.columns == two.columns
    of_examples = [name for name in vars(one) if name not in ("users", "columns")]
    for first, second, names in ((one, two, of_examples), (one.users, two.users, vars(one.users))):
        for name in names:
            found, expected = getattr(second, name), getattr(first, name)
            np.testing.assert_array_equal(found[past], expected[past], name)


def test_initial_state_counts_every_training_event() -> None:
    data = synthetic.dataset()
    state = initial_state(data)
    clicks = sum(int(user.profile[CLICKS]) for user in state.users.values())
    likes = sum(int(user.profile[LIKES]) for user in state.users.values())
    assert clicks == len(data.train)
    assert likes == data.train["like"].sum()
    assert set(state.items) == {int(key) for key in data.items.keys[1:]}


def test_rebasing_moves_times_and_nothing_else() -> None:
    data = synthetic.dataset(users=24)
    shift = shift_to(data, 1_700_000_000_000)
    plain, moved = initial_state(data), initial_state(data, shift)
    for user_id, state in plain.users.items():
        other = moved.users[user_id]
        assert int(other.profile["last_event_ms"]) == int(state.profile["last_event_ms"]) + shift
        for name in (CLICKS, LIKES, GENRE_CLICKS):
            np.testing.assert_array_equal(other.profile[name], state.profile[name])
        np.testing.assert_array_equal(other.history["item_keys"], state.history["item_keys"])
    future = future_interactions(data, shift)
    assert sum(map(len, future.values())) == len(data.test)
    assert min(i.event_time_ms for own in future.values() for i in own) == 1_700_000_000_000


def test_the_digest_tells_equal_data_from_changed_data() -> None:
    data, again = synthetic.dataset(users=20), synthetic.dataset(users=20)
    assert data.digest == again.digest
    later = data.events.with_columns(pl.col("event_time_ms") + 1)
    assert replace(data, events=later).digest != data.digest
    again.items.features["year"][1] += 1
    assert again.digest != data.digest
