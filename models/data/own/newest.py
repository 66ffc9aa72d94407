"""The catalogue of a cold start: all imported items, the newest first.

New is what a declared field of type `time` says, as long as that lies in the past: of several the
one that lies there for most items, as what begins does so before it ends. Items without it, and of
equal times, stand by their import, the last first.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from models.catalogue import ItemTable
from models.data.own.dataset import table_of
from models.schema.compiled import Schema


def newest_first(schema: Schema, items: pl.DataFrame, now_ms: int) -> ItemTable:
    """The table of imported `items`, one or more, with a column per declared field that they have;
    nothing is counted yet."""
    fields = schema.declaration.item_fields
    times = [f.name for f in fields if f.type == "time" and f.name in items.columns]
    past = items.select(pl.when(pl.col(name) <= now_ms).then(pl.col(name)) for name in times)
    since = min(past, key=pl.Series.null_count, default=pl.repeat(0, len(items), eager=True))
    ordered = (
        items.with_columns(since.alias("(since)"))  # no declared name is in parentheses
        .reverse()
        .sort("(since)", descending=True, nulls_last=True, maintain_order=True)
    )
    return table_of(schema, ordered, np.zeros((len(items), len(schema.declaration.tasks))))
