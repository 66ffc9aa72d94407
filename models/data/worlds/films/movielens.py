"""Reads a MovieLens folder (ratings, movies, tags as gzipped CSV) into checked polars frames.

A checkout of Tandem has `ml-latest-small` (F. M. Harper and J. A. Konstan, 2015; see its README.txt
for the terms, for which no package has it). Everything is checked here, at the edge, so that
nothing behind it meets a NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from models.data.delimited import read_table
from models.data.errors import DataError
from models.data.source_files import check_times, check_unique, once, place_of

BUNDLED = Path(__file__).parent / "ml_latest_small"
RATINGS = "ratings.csv.gz"

_RATINGS = {"userId": pl.Int64, "movieId": pl.Int64, "rating": pl.Float64, "timestamp": pl.Int64}
_MOVIES = {"movieId": pl.Int64, "title": pl.String, "genres": pl.String}
_TAGS = {"userId": pl.Int64, "movieId": pl.Int64, "tag": pl.String, "timestamp": pl.Int64}


@dataclass(frozen=True)
class MovieLens:
    """The three files as frames, columns as in MovieLens; timestamps are seconds."""

    ratings: pl.DataFrame
    movies: pl.DataFrame
    tags: pl.DataFrame


def read(folder: Path = BUNDLED) -> MovieLens:
    """Read and check a folder; DataError names the file, the line and what is wrong."""
    _check_bundled(folder)
    path = folder / RATINGS
    ratings = read_table(path, _RATINGS)
    wrong = ratings.with_row_index().filter(~pl.col("rating").is_between(0.5, 5.0))
    if len(wrong):
        place, value = place_of(path, wrong["index"][0]), wrong["rating"][0]
        raise DataError(f"{place}: rating {value} is not in 0.5..5")
    check_times(path, ratings["timestamp"])
    movies = read_table(folder / "movies.csv.gz", _MOVIES)
    check_unique(folder / "movies.csv.gz", movies["movieId"])
    tags = read_table(folder / "tags.csv.gz", _TAGS)
    check_times(folder / "tags.csv.gz", tags["timestamp"])
    return MovieLens(once(path, ratings), movies, tags)


def _check_bundled(folder: Path) -> None:
    """DataError where it is the checkout's, and this is none."""
    if folder == BUNDLED and not folder.is_dir():
        raise DataError(
            "ml-latest-small, the demo's data, is not in an installed Tandem, as its terms are its"
            " own: run this in a checkout of the repository (`make demo`), or name data that you"
            " have: a MovieLens folder, or a folder of your own (`tandem init` writes one)"
        )
