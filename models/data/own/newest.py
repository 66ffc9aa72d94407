"""The catalogue of a cold start: all imported items, the newest first.

New is what the first declared field of type `time` says, as long as that lies in the past (the end
of a sale says nothing); items without it, and of equal times, by their import, the last first.
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
    times = (f.name for f in schema.declaration.item_fields if f.type == "time")
    field = next((name for name in times if name in items.columns), None)
    since = pl.lit(0) if field is None else pl.col(field)
    known = pl.when(since <= now_ms).then(since)
    ordered = (
        items.with_columns(since=known)
        .reverse()
        .sort("since", descending=True, nulls_last=True, maintain_order=True)
    )
    return table_of(schema, ordered, np.zeros((len(items), len(schema.declaration.tasks))))
