"""Reads a MovieLens folder (ratings, movies, tags as gzipped CSV) into checked polars frames.

Tandem ships `ml-latest-small` (F. M. Harper and J. A. Konstan, 2015; see its README.txt for the
terms). Everything is checked here, at the edge, so that nothing behind it meets a NaN.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from models.data.errors import DataError

BUNDLED = Path(__file__).parent / "ml_latest_small"

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
    ratings = read_table(folder / "ratings.csv.gz", _RATINGS)
    wrong = ratings.with_row_index().filter(~pl.col("rating").is_between(0.5, 5.0))
    if len(wrong):
        line, value = wrong["index"][0] + 2, wrong["rating"][0]
        raise DataError(
            f"{folder / 'ratings.csv.gz'}: line {line}: rating {value} is not in 0.5..5"
        )
    return MovieLens(
        ratings,
        read_table(folder / "movies.csv.gz", _MOVIES),
        read_table(folder / "tags.csv.gz", _TAGS),
    )


def titles(folder: Path = BUNDLED) -> dict[str, str]:
    """Item id -> title: what a person wants to read instead of an id."""
    movies = read_table(folder / "movies.csv.gz", _MOVIES)
    return {str(i): t for i, t in movies.select("movieId", "title").iter_rows()}


def read_table(path: Path, columns: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    """One gzipped CSV file with exactly these columns, every value present and of its type."""
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if packed.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: is a Git LFS pointer, not data: run `git lfs pull`")
    try:
        text = gzip.decompress(packed)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: truncated or damaged gzip file ({error}): copy it anew"
        ) from error
    try:
        frame = pl.read_csv(io.BytesIO(text), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: not a CSV table ({error})") from error
    if frame.columns != list(columns):
        raise DataError(f"{path}: line 1: columns are {frame.columns}, expected {list(columns)}")
    if frame.is_empty():
        raise DataError(f"{path}: no rows below the header")
    for name, dtype in columns.items():
        values = frame[name].cast(dtype, strict=False)
        bad = values.is_null()
        if dtype == pl.Float64:
            bad = bad | values.is_nan().fill_null(True)
        if bad.any():
            at = int(bad.arg_max() or 0)
            raise DataError(
                f"{path}: line {at + 2}: {name} is {frame[name][at]!r}, expected {dtype.__name__}"
            )
        frame = frame.with_columns(values)
    return frame
