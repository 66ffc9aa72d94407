"""Amazon Grocery and Gourmet Food as prepared by ReChorus: sequences with days and categories.

`train.csv` (`user_id item_id time`, tab separated, seconds, whole days) and `item_meta.csv`
(`i_category` and lists of complements and substitutes, which are not read). Users span years
(median 451 days): long-term against short-term interest can be told apart here, unlike MovieLens.
41 % of the events share their day with a neighbour; their order is the file's, not evidence.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from models.data.delimited import read_table
from models.data.own.prepared import Frames
from models.data.sequences import Sequences, from_events
from models.data.source_files import check_times, check_unique, find, suspect

_EVENTS = {"user_id": pl.Int64, "item_id": pl.Int64, "time": pl.Int64}
_ITEMS = {
    "item_id": pl.Int64,
    "i_category": pl.Int32,
    "r_complement": pl.String,
    "r_substitute": pl.String,
}


def read_frames(folder: Path) -> Frames:
    """The domain `grocery`: purchases, and the category of each item."""
    events, items = _read(folder)
    return Frames(
        events.select("user_id", "item_id", time=pl.col("time") * 1000, event=pl.lit("buy")),
        items.select("item_id", category=pl.col("i_category").cast(pl.String)),
    )


def read(folder: Path) -> Sequences:
    """Sequences with times and one attribute per item, its category (57 of them)."""
    events, items = _read(folder)
    category: dict[str, tuple[int, ...]] = {
        str(i): (c,) for i, c in items.select("item_id", "i_category").iter_rows()
    }
    times_ms = events["time"] * 1000
    return from_events("grocery", events["user_id"], events["item_id"], times_ms, category)


def _read(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events by user and time, and items."""
    path = find(folder, "train.csv")
    events = read_table(path, _EVENTS, separator="\t")
    check_times(path, events["time"])
    events = events.sort(["user_id", "time"], maintain_order=True)
    path = find(folder, "item_meta.csv")
    items = read_table(path, _ITEMS, ("r_complement", "r_substitute"), separator="\t")
    check_unique(path, items["item_id"])
    chosen = events["item_id"].unique()
    unknown = chosen.filter(~chosen.is_in(items["item_id"].implode()))
    if len(unknown):
        suspect(f"grocery: {len(unknown)} items have no category (first: {unknown[0]})")
    return events, items
