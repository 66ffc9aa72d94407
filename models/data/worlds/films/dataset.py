"""MovieLens as a data set of the films' declaration.

A rating is an impression that was clicked, and a rating of 4 or more also a like. MovieLens logged
no impression that was NOT clicked: wherever a click model needs them they are sampled negatives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from models.catalogue import ItemTable
from models.data.errors import DataError
from models.data.events import Dataset, time_quantile
from models.data.worlds.films import movielens
from models.data.worlds.films.movielens import MovieLens
from models.data.worlds.films.schema import GENRES, SCHEMA
from models.schema.layout import value_id
from models.schema.stored import records

_GENRES, _TAGS = (SCHEMA.declaration.item_field[name] for name in ("genres", "tags"))
LIKE_RATING = 4.0
_TEXTS = pl.List(pl.String())
MIN_TAG_USES = 5  # a tag given less often before the split says nothing that a model could learn


def load(folder: Path = movielens.BUNDLED, train_share: float = 0.8) -> Dataset:
    """The data set in `folder`, split where `train_share` of the events have happened."""
    return build(folder.name.replace("_", "-"), movielens.read(folder), train_share)


def build(
    name: str, source: MovieLens, train_share: float = 0.8, valid_share: float = 0.1
) -> Dataset:
    """Split `source` by time; the last `valid_share` of the training events is for validation."""
    events = canonical_events(source)
    train_until_ms = time_quantile(events, train_share)
    train = events.filter(pl.col("event_time_ms") < train_until_ms)
    valid_from_ms = time_quantile(train, 1.0 - valid_share)
    items = catalogue(source, events, train_until_ms)
    return Dataset(name, SCHEMA, events, train_until_ms, valid_from_ms, items)


def canonical_events(source: MovieLens) -> pl.DataFrame:
    """Ratings as events, oldest first; equal times keep the order of the file."""
    return source.ratings.select(
        user_id=pl.col("userId").cast(pl.String),
        item_id=pl.col("movieId").cast(pl.String),
        event_time_ms=pl.col("timestamp") * 1000,
        impression=pl.lit(True),
        click=pl.lit(True),
        like=pl.col("rating") >= LIKE_RATING,
    ).sort("event_time_ms", maintain_order=True)


def catalogue(source: MovieLens, events: pl.DataFrame, before_ms: int) -> ItemTable:
    """Items with an event before `before_ms`, most clicked first, with the tags' vocabulary."""
    counts = (
        events.filter(pl.col("event_time_ms") < before_ms)
        .group_by("item_id")
        .agg(clicks=pl.len(), likes=pl.col("like").sum())
        .sort(["clicks", "item_id"], descending=[True, False])
    )
    vocabulary = _frequent_tags(_tags_before(source, before_ms))
    described = films_of(source, before_ms)
    found = counts.join(described, on="item_id", how="left", maintain_order="left")
    if len(missing := found.filter(pl.col("title").is_null())):
        raise DataError(f"movies.csv.gz: item {missing['item_id'][0]} has events but no row")
    features = records(SCHEMA.layout.item, SCHEMA.declaration.item_fields, found)
    hashes = np.array([value_id(_TAGS, tag) for tag in vocabulary], np.uint64)
    counted = counts.select("clicks", "likes").to_numpy()
    return ItemTable.build(found["item_id"].to_list(), features, counted, {"tags": hashes})


def films_of(source: MovieLens, before_ms: int) -> pl.DataFrame:
    """The films as an owner would bring them: item_id, title, year, genres and the tags that were
    given most before a time. DataError."""
    tags = _tags_before(source, before_ms)
    per_item = (
        tags.filter(pl.col("tag").is_in(_frequent_tags(tags)))
        .group_by("item_id", "tag")
        .len()
        .sort(["item_id", "len", "tag"], descending=[False, True, False])
        .group_by("item_id", maintain_order=True)
        .agg(tags=pl.col("tag").head(_TAGS.slots))
    )
    year = pl.col("title").str.extract(r"\(([0-9]{4})\)\s*$").cast(pl.Float64)
    films = source.movies.select(
        pl.col("movieId").cast(pl.String).alias("item_id"), "title", year=year
    )
    listed = source.movies["genres"]
    films = films.with_columns(genres=pl.Series(list(map(_genres, listed)), dtype=_TEXTS))
    if len(many := films.filter(pl.col("genres").list.len() > _GENRES.slots)):
        raise DataError(
            f"movies.csv.gz: item {many['item_id'][0]} has {len(many['genres'][0])} genres;"
            f" schema.yaml keeps {_GENRES.slots} (item.fields.genres.slots)"
        )
    return films.join(per_item, on="item_id", how="left", maintain_order="left")


def served_films(folder: Path = movielens.BUNDLED, train_share: float = 0.8) -> pl.DataFrame:
    """The films of `load`'s catalogue, in its order: what can be shown. DataError."""
    source = movielens.read(folder)
    events = canonical_events(source)
    before_ms = time_quantile(events, train_share)
    known = catalogue(source, events, before_ms).ids[1:]
    order = pl.DataFrame({"item_id": known})
    return order.join(films_of(source, before_ms), on="item_id", maintain_order="left")


def _genres(listed: str) -> list[str]:
    """The genres of a '|' separated list, in the order of their ids."""
    if listed == "(no genres listed)":
        return []
    unknown = [g for g in listed.split("|") if g not in GENRES]
    if unknown:
        raise DataError(f"movies.csv.gz: unknown genre {unknown[0]!r}; known: {', '.join(GENRES)}")
    return sorted(listed.split("|"), key=lambda genre: value_id(_GENRES, genre))


def _tags_before(source: MovieLens, before_ms: int) -> pl.DataFrame:
    """item_id and tag, as they were given."""
    return source.tags.filter(pl.col("timestamp") * 1000 < before_ms).select(
        item_id=pl.col("movieId").cast(pl.String),
        tag=pl.col("tag").str.to_lowercase().str.strip_chars(),
    )


def _frequent_tags(given: pl.DataFrame) -> list[str]:
    """Tags that a model could learn of, the most frequent first."""
    frequent = given.group_by("tag").len().filter(pl.col("len") >= MIN_TAG_USES)
    return frequent.sort(["len", "tag"], descending=[True, False])["tag"].to_list()
