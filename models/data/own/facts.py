"""What a table of the owner's holds, for the summary of an import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl


@dataclass(frozen=True)
class EventFacts:
    """Counts over all events of a table; times in ms since 1970."""

    events: Mapping[str, int]  # by name, the most frequent first
    users: int
    items: int
    first_ms: int
    last_ms: int


def event_facts(path: Path) -> EventFacts:
    """Counts of a table of events that is there and has some."""
    rows = pl.scan_parquet(path.resolve(), glob=False)
    names = rows.group_by("event").len().sort("len", "event", descending=[True, False])
    counts = rows.select(
        users=pl.col("user_id").n_unique(),
        items=pl.col("item_id").n_unique(),
        first=pl.col("time_ms").min(),
        last=pl.col("time_ms").max(),
    )
    found = counts.collect(engine="streaming").row(0, named=True)
    events = dict(names.collect(engine="streaming").iter_rows())
    return EventFacts(events, found["users"], found["items"], found["first"], found["last"])


def number_of_rows(path: Path) -> int:
    """Rows of a table that is there."""
    return int(pl.scan_parquet(path.resolve(), glob=False).select(pl.len()).collect().item())
