"""MovieLens 1M as a ranking table and as sequences; the ranking table of any MovieLens ratings.

A rating is an impression with two tasks: `click` = rating >= 3, known for every event, and `like` =
rating >= 4, known where the rating is. Two forms of the files are read:

- the owner's `ratings.dat`, `users.dat`, `movies.dat` (GroupLens), where every rating is known;
- the derived `interactions_derived.csv` (`rating_ge3` for every event, the rating for one in ten,
  times partly interpolated: their order is right, their gaps are not evidence).

MovieLens users rate in one sitting: with the split by time more than half of the test rows are of
users that the training part does not know. "click" means "was rated 3 or more", not that something
was shown and clicked.
With the random split a training row's history may hold a test row's event, if that was earlier.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from models.data.columns import earlier_items, encode_frame, item_bags, numbered
from models.data.delimited import read_lines, read_table
from models.data.errors import DataError
from models.data.own.prepared import Frames
from models.data.readers import movielens_1m_sequences
from models.data.sequences import Sequences, from_events
from models.data.source_files import (
    Report,
    check_times,
    check_unique,
    check_values,
    find,
    locate,
    once,
    quiet,
    suspect,
)
from models.data.tables import TRAIN, FieldTable, HistoryField, Side, random_split, time_split
from models.data.worlds.films import movielens

CLICK_RATING, LIKE_RATING = 3, 4
HISTORY = 50
GENRE_SLOTS = 6  # ml-1m lists at most six genres for a film
MIN_ITEM_EVENTS = 5  # of the leave-one-out benchmark, which drops rarer items

Split = Literal["time", "random"]
SPLITS: tuple[Split, ...] = ("time", "random")

_USERS = {
    "user": pl.Int64,
    "gender": pl.String,
    "age": pl.Int64,
    "occupation": pl.Int64,
    "zip": pl.String,
}
_MOVIES = {"item": pl.Int64, "title": pl.String, "genres": pl.String}
_YEAR = pl.col("title").str.extract(r"\(([0-9]{4})\)\s*$").cast(pl.Int32)
_GENRES = pl.col("genres").replace("(no genres listed)", "").str.split("|")
_DERIVED = {
    "user_id": pl.Int64,
    "movie_id": pl.Int64,
    "pos": pl.Int32,
    "rating": pl.Float32,
    "rating_ge3": pl.Int32,
    "ts": pl.Int64,
    "ts_exact": pl.Int32,
}


def read(folder: Path, split: Split = "time", seed: int = 0, report: Report = quiet) -> FieldTable:
    """The ranking table; `split` by "time" (80/20, validation before it) or at "random" (80/20)."""
    events = read_events(folder, report)
    users, movies = _described(folder)
    sides: dict[str, Side] = {"gender": "user", "age": "user", "occupation": "user"}
    users = users.select("user", *sides)
    return ratings_table("ml-1m", events, movies, users, sides, split, seed, report)


def read_frames(folder: Path) -> Frames:
    """The domain `movielens_1m`: each rating as an impression, and as a click from 3 on."""
    events = read_events(folder)
    users, movies = _described(folder)
    rated = events.select(user_id="user", item_id="item", time="time_ms", event=pl.lit("rate"))
    clicked = rated.filter(events["click"]).with_columns(event=pl.lit("click"))
    return Frames(
        pl.concat([rated, clicked]),
        movies.select(item_id="item", title="title", year=_YEAR, genres=_GENRES),
        users.select(
            pl.col("gender", "occupation"), user_id="user", age=pl.col("age").cast(pl.String)
        ),
    )


def _described(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Users and movies."""
    users = read_lines(find(folder, "users.dat"), "::", _USERS)
    check_unique(find(folder, "users.dat"), users["user"], header=False)
    movies = read_lines(find(folder, "movies.dat"), "::", _MOVIES, "latin-1")
    check_unique(find(folder, "movies.dat"), movies["item"], header=False)
    return users, movies


def read_latest(
    folder: Path = movielens.BUNDLED, split: Split = "time", seed: int = 0, report: Report = quiet
) -> FieldTable:
    """The ranking table of ml-latest-small (or a folder of its form): no user attributes."""
    report("reading ratings")
    source = movielens.read(folder)
    events = _with_tasks(
        source.ratings.select(
            user="userId", item="movieId", rating="rating", time_ms=pl.col("timestamp") * 1000
        )
    )
    movies = source.movies.select(item="movieId", title="title", genres="genres")
    return ratings_table("ml-latest-small", events, movies, None, {}, split, seed, report)


def read_sequences(folder: Path) -> Sequences:
    """The leave-one-out benchmark's sequences: its file, or the same rule on the owner's ratings.

    Items with fewer than five ratings are dropped; among equal times the file's order stands.
    """
    if locate(folder, *movielens_1m_sequences.FILES):
        return movielens_1m_sequences.read(folder)
    kept = (
        _owner_ratings(find(folder, "ratings.dat"))
        .filter(pl.len().over("item") >= MIN_ITEM_EVENTS)
        .sort(["user", "time_ms"], maintain_order=True)
    )
    return from_events("ml-1m", *kept[["user", "item", "time_ms"]])


def has_sequences(folder: Path) -> bool:
    """Whether `read_sequences` finds files: the derived form alone does not give the benchmark."""
    files = (*movielens_1m_sequences.FILES, "ratings.dat")
    return locate(folder, *files) is not None


def read_events(folder: Path, report: Report = quiet) -> pl.DataFrame:
    """user, item, time_ms, click (bool), like (bool, null where not known); oldest first."""
    report("reading ratings")
    derived = locate(folder, "interactions_derived.csv")
    if derived is None:
        return _with_tasks(_owner_ratings(find(folder, "ratings.dat", "interactions_derived.csv")))
    frame = read_table(derived, _DERIVED, nullable=("rating",))
    check_values(derived, frame["rating_ge3"], (0, 1))
    check_times(derived, frame["ts"])
    return (
        frame.sort(["ts", "user_id", "pos"])
        .select(
            user="user_id",
            item="movie_id",
            time_ms=pl.col("ts") * 1000,
            click=pl.col("rating_ge3") == 1,
            like=pl.col("rating") >= LIKE_RATING,
        )
    )  # fmt: skip


def _owner_ratings(path: Path) -> pl.DataFrame:
    """`user::movie::rating::timestamp` lines; split at ':' every other column is empty."""
    columns: Mapping[str, type[pl.DataType]] = {
        "user": pl.Int64, "_1": pl.String, "item": pl.Int64, "_2": pl.String,
        "rating": pl.Float32, "_3": pl.String, "timestamp": pl.Int64,
    }  # fmt: skip
    frame = read_table(path, columns, nullable=("_1", "_2", "_3"), separator=":", header=False)
    check_values(path, frame["rating"], (1, 2, 3, 4, 5), header=False)
    check_times(path, frame["timestamp"], header=False)
    return once(path, frame).select("user", "item", "rating", time_ms=pl.col("timestamp") * 1000)


def _with_tasks(ratings: pl.DataFrame) -> pl.DataFrame:
    return ratings.sort("time_ms", maintain_order=True).select(
        "user",
        "item",
        "time_ms",
        click=pl.col("rating") >= CLICK_RATING,
        like=pl.col("rating") >= LIKE_RATING,
    )


def ratings_table(
    name: str,
    events: pl.DataFrame,
    movies: pl.DataFrame,
    users: pl.DataFrame | None,
    user_fields: dict[str, Side],
    split: Split = "time",
    seed: int = 0,
    report: Report = quiet,
) -> FieldTable:
    """Events (as of `read_events`) with the attributes of movies and users as a checked table.

    `movies`: item, title (with the year in brackets), genres ('|' separated); `users`: user and
    `user_fields`. Fields: user, `user_fields`, item, year; the bag `genres`; the history `click`.
    """
    report("splitting")
    time_ms = events["time_ms"].to_numpy()
    if split == "time":
        parts = time_split(time_ms, name=name)
    elif split == "random":
        name = f"{name}-random"
        parts = random_split(len(events), seed=seed, name=name)
    else:
        raise DataError(f"{name}: unknown split {split!r}: use {' or '.join(SPLITS)}")
    train = parts == TRAIN

    report("encoding fields")
    described = movies.select(
        "item",
        year=_YEAR,
        genres=_GENRES,
    )
    frame = events.join(described, on="item", how="left", maintain_order="left")
    _warn_unmatched(name, frame, "genres", "item")
    if users is not None:
        frame = frame.join(users, on="user", how="left", maintain_order="left")
        _warn_unmatched(name, frame, next(iter(user_fields)), "user")
    sides: dict[str, Side] = {"user": "user", **user_fields, "item": "item", "year": "item"}
    fields, categorical = encode_frame(frame, sides, train)
    item = categorical[:, list(sides).index("item")]

    listed = described["genres"].list.eval(pl.element().filter(pl.element() != ""))
    genres = item_bags(described["item"], listed, frame["item"], train, GENRE_SLOTS)

    report("building histories")
    click = frame["click"].to_numpy()
    user = numbered(frame["user"])
    history = earlier_items(user, time_ms, user[click], time_ms[click], item[click], HISTORY)
    like = frame["like"]
    known = np.stack([np.ones(len(frame), bool), like.is_not_null().to_numpy()], axis=1)
    labels = {"click": click, "like": like.fill_null(False)}
    return FieldTable.of(
        name, fields, categorical, labels, parts,
        bags={"genres": genres}, history={"click": HistoryField(history, "item")}, known=known,
        user=user, time_ms=time_ms,
    )  # fmt: skip


def _warn_unmatched(name: str, frame: pl.DataFrame, attribute: str, key: str) -> None:
    unmatched = frame.filter(pl.col(attribute).is_null())[key].unique().sort()
    if len(unmatched):
        suspect(
            f"{name}: {len(unmatched)} {key}s with events have no attributes "
            f"(first: {unmatched[0]}); they get the unknown id"
        )
