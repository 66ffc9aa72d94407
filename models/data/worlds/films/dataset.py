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

_GENRES, _TAGS = (SCHEMA.declaration.item_field[name] for name in ("genres", "tags"))
LIKE_RATING = 4.0
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
    item_ids = counts["item_id"].to_list()
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    features = np.zeros(len(item_ids), SCHEMA.layout.item.dtype)

    years = source.movies["title"].str.extract(r"\(([0-9]{4})\)\s*$").cast(pl.UInt16).fill_null(0)
    described = set()
    for movie, year, genres in zip(
        source.movies["movieId"], years, source.movies["genres"], strict=True
    ):
        row = row_of.get(str(movie))
        if row is not None:
            described.add(row)
            features["year"][row] = year
            ids = _genre_ids(genres)
            if len(ids) > _GENRES.slots:
                raise DataError(
                    f"movies.csv.gz: item {movie} has {len(ids)} genres; schema.yaml keeps"
                    f" {_GENRES.slots} (item.fields.genres.slots)"
                )
            features["genres"][row, : len(ids)] = ids
    if len(described) < len(item_ids):
        missing = next(i for row, i in enumerate(item_ids) if row not in described)
        raise DataError(f"movies.csv.gz: item {missing} has events but no row")

    vocabulary = _add_tags(features, row_of, source.tags, before_ms)
    hashes = np.array([value_id(_TAGS, tag) for tag in vocabulary], np.uint64)
    counted = counts.select("clicks", "likes").to_numpy()
    return ItemTable.build(item_ids, features, counted, {"tags": hashes})


def _genre_ids(listed: str) -> list[int]:
    """Ids of a '|' separated genre list."""
    if listed == "(no genres listed)":
        return []
    unknown = [g for g in listed.split("|") if g not in GENRES]
    if unknown:
        raise DataError(f"movies.csv.gz: unknown genre {unknown[0]!r}; known: {', '.join(GENRES)}")
    return sorted(value_id(_GENRES, g) for g in listed.split("|"))


def _add_tags(
    features: np.ndarray, row_of: dict[str, int], tags: pl.DataFrame, before_ms: int
) -> tuple[str, ...]:
    """Fill each item's most used tags given before `before_ms`; returns the vocabulary."""
    given = tags.filter(pl.col("timestamp") * 1000 < before_ms).select(
        item_id=pl.col("movieId").cast(pl.String),
        tag=pl.col("tag").str.to_lowercase().str.strip_chars(),
    )
    frequent = (
        given.group_by("tag")
        .len()
        .filter(pl.col("len") >= MIN_TAG_USES)
        .sort(["len", "tag"], descending=[True, False])
    )
    vocabulary = tuple(frequent["tag"].to_list())
    tag_id = {tag: value_id(_TAGS, tag) for tag in vocabulary}
    per_item = (
        given.filter(pl.col("tag").is_in(vocabulary))
        .group_by("item_id", "tag")
        .len()
        .sort(["item_id", "len", "tag"], descending=[False, True, False])
        .group_by("item_id", maintain_order=True)
        .agg(pl.col("tag").head(_TAGS.slots))
    )
    for item_id, names in per_item.iter_rows():
        if item_id in row_of:
            features["tags"][row_of[item_id], : len(names)] = [tag_id[n] for n in names]
    return vocabulary
