"""The canonical event table of a domain, its split by time, and the catalogue as of the split.

A row is an interaction: what a user did with an item at one moment, oldest first: `user_id`,
`item_id`, `event_time_ms`, a column of true and false per event of the declaration that the data
have, and `EVENT.value` where an event comes with one (null where it did not). Of the request that
the list was made for the data may have the fields (`context.FIELD`) and the surface, and the item's
place in the list. Rows of one visit (a number; without that column each is one of its own) are one
example. Where the data log no impression without a choice, the negatives of a training are
*sampled*, and are called that.

Nothing from the future leaks: the catalogue, its order by popularity, its counts and its learned
vocabularies use only what happened before the split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import xxhash

from models.catalogue import ItemTable
from models.data.errors import DataError
from models.schema.compiled import Schema

# Columns of the table that no name of a schema.yaml is: those have neither parentheses nor dots.
VISIT, POSITION, CONTEXT = "(visit)", "(position)", "context."


@dataclass(frozen=True)
class Dataset:
    """Events and the catalogue as of the split.

    Training reads events with `event_time_ms < train_until_ms` only; the part of them from
    `valid_from_ms` on chooses the number of epochs. The rest is the test period.
    """

    name: str
    schema: Schema
    events: pl.DataFrame
    train_until_ms: int
    valid_from_ms: int
    items: ItemTable
    given: tuple[Mapping[str, int], np.ndarray] | None = None  # users' places in given records

    @property
    def train(self) -> pl.DataFrame:
        return self.events.filter(pl.col("event_time_ms") < self.train_until_ms)

    @property
    def test(self) -> pl.DataFrame:
        return self.events.filter(pl.col("event_time_ms") >= self.train_until_ms)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that differ when an event, the catalogue or the schema does."""
        found = xxhash.xxh3_128(f"{self.schema.digest:016x}".encode())
        for column in self.events.columns:
            # As text: polars' own bytes may change with its version.
            found.update(self.events.select(column).write_csv().encode())
        parts = [self.items.keys, self.items.features, self.items.counts]
        for part in parts if self.given is None else [*parts, self.given[1]]:
            found.update(part.tobytes())
        return found.hexdigest()


def time_quantile(events: pl.DataFrame, share: float) -> int:
    """The time (ms) before which about `share` of the events lie; DataError if a side is empty."""
    times = events["event_time_ms"]
    if len(times):
        at = int(times[min(int(share * len(times)), len(times) - 1)])
        if 0 < (times < at).sum() < len(times):
            return at
    raise DataError(
        f"splitting {len(times)} events at share {share} leaves one side empty: "
        "use more events or another share"
    )
