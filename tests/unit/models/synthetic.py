"""A small MovieLens-like world: each user likes one genre, so taste can be learned in seconds."""

from __future__ import annotations

import numpy as np
import polars as pl

from models.data.events import Dataset
from models.data.worlds.films.dataset import build
from models.data.worlds.films.movielens import MovieLens

GENRES = ("Action", "Comedy", "Drama", "Horror")
ITEMS_PER_GENRE = 40


def movielens(users: int = 120, events_per_user: int = 25, seed: int = 0) -> MovieLens:
    """Users arrive one after the other and rate mostly films of their own genre, highest first."""
    rng = np.random.default_rng(seed)
    items = len(GENRES) * ITEMS_PER_GENRE
    rows: list[tuple[int, int, float, int]] = []
    for user in range(users):
        own = user % len(GENRES)
        pool = np.where(np.arange(items) % len(GENRES) == own, 12.0, 1.0)
        pool /= 1 + np.arange(items) // len(GENRES)  # popular films first
        chosen = rng.choice(items, events_per_user, replace=False, p=pool / pool.sum())
        for place, item in enumerate(chosen):
            mine = item % len(GENRES) == own
            rating = 4.5 if rng.random() < (0.85 if mine else 0.2) else 2.0
            rows.append((user + 1, int(item) + 1, rating, 1_000_000 + user * 1000 + place * 7))
    ratings = pl.DataFrame(rows, ["userId", "movieId", "rating", "timestamp"], orient="row")
    movies = pl.DataFrame(
        {
            "movieId": np.arange(1, items + 1),
            "title": [f"Film {i} ({1960 + i % 50})" for i in range(items)],
            "genres": [GENRES[i % len(GENRES)] for i in range(items)],
        }
    )
    tags = pl.DataFrame(
        {
            "userId": np.ones(items, np.int64),
            "movieId": np.arange(1, items + 1),
            "tag": [f"tag {i % 5}" for i in range(items)],
            "timestamp": np.full(items, 1_000_000),
        }
    )
    return MovieLens(ratings, movies, tags)


def dataset(users: int = 120, events_per_user: int = 25, seed: int = 0) -> Dataset:
    return build("synthetic", movielens(users, events_per_user, seed))
