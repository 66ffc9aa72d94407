"""An owner's imported tables as a data set to train on.

Rows of one user and item that follow each other within VISIT_MS are one visit: what was shown,
clicked and bought then. A visit is one example, at the time of its first row, whose labels are what
happened in it; the rows themselves are folded each at its own time. What a visit says of the time
after the split is no label of the training.

The catalogue is what was met before the split, most chosen first; other imported items are in no
model yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from models.catalogue import ItemTable
from models.data.errors import DataError
from models.data.events import CONTEXT, POSITION, VISIT, Dataset, time_quantile
from models.data.own.tables import tables
from models.schema.compiled import Schema
from models.schema.declaration import Declaration
from models.schema.layout import SURFACE
from models.schema.stored import most_frequent, records

VISIT_MS = 24 * 3_600_000  # between two rows of one visit, at most
TRAIN_SHARE, VALID_SHARE = 0.9, 0.1
LEAST_EVENTS = 30  # of each task: of fewer there is often none in a tenth of the time


def load(folder: Path) -> Dataset:
    """The data set of a folder with a schema.yaml and imported tables. DataError as `tables`, and
    where there are too few events to learn from."""
    own = tables(folder)
    name, events, users = folder.resolve().name, own.events.collect(), own.users.collect()
    _check_enough(name, own.schema, events)
    return build(name, own.schema, events, own.items.collect(), users if len(users) else None)


def _check_enough(name: str, schema: Schema, events: pl.DataFrame) -> None:
    """DataError where an event that a task predicts has happened too rarely."""
    counts = dict(events["event"].value_counts().iter_rows())
    happened = {task.event: counts.get(task.event, 0) for task in schema.declaration.tasks}
    if any(count < LEAST_EVENTS for count in happened.values()):
        found = " and ".join(f"{count} of {event}" for event, count in happened.items())
        raise DataError(
            f"{name}: the imported events are too few to learn from ({found}): bring at least"
            f" {LEAST_EVENTS} of each event that a task predicts, over some time, with `tandem"
            " import events FILE`; until then `tandem serve` shows what is new, popular and like a"
            " user's choices"
        )


def build(
    name: str,
    schema: Schema,
    events: pl.DataFrame,
    items: pl.DataFrame,
    users: pl.DataFrame | None = None,
) -> Dataset:
    """A data set of imported tables: `events` of user_id, item_id, event, time_ms and value; items
    and users with a column per declared field that they have. DataError says what is missing."""
    table = canonical(schema, events)
    train_until_ms = time_quantile(table, TRAIN_SHARE)
    train = table.filter(pl.col("event_time_ms") < train_until_ms)
    valid_from_ms = time_quantile(train, 1.0 - VALID_SHARE)
    given = None if users is None else given_records(schema, users)
    return Dataset(
        name, schema, table, train_until_ms, valid_from_ms, catalogue(schema, train, items), given
    )


def canonical(schema: Schema, events: pl.DataFrame) -> pl.DataFrame:
    """The canonical table (`models/data/events.py`), whose rows know their visits."""
    declared = schema.declaration.events
    known = [event.name for event in declared]
    if unknown := sorted(set(events["event"].unique()) - set(known)):
        raise DataError(f"event {unknown[0]!r} is not declared: import the events anew")
    columns = [
        pl.col("user_id"), pl.col("item_id"), pl.col("time_ms").alias("event_time_ms"),
        *((pl.col("event") == event.name).alias(event.name) for event in declared),
        *(
            pl.when(pl.col("event") == event.name)
            .then(pl.col("value"))
            .alias(f"{event.name}.value")
            for event in declared
            if event.value is not None
        ),
        *(
            pl.col(name).alias(canonical_name)
            for name, canonical_name in of_requests(schema.declaration).items()
            if name in events.columns
        ),
    ]  # fmt: skip
    ordered = events.select(columns).sort("event_time_ms", maintain_order=True)
    ordered = ordered.with_row_index("(row)")
    pair = ["user_id", "item_id"]
    since = pl.col("event_time_ms").diff().over(pair).fill_null(VISIT_MS + 1)
    begins = ordered.with_columns((since > VISIT_MS).alias("(begins)"))
    first = pl.when(pl.col("(begins)")).then(pl.col("(row)")).forward_fill().over(pair)
    visit = first.cast(pl.Int64).alias(VISIT)
    return begins.with_columns(visit).drop("(row)", "(begins)")


def of_requests(declaration: Declaration) -> dict[str, str]:
    """The columns of imported events that say what came with the request, and where it was shown;
    and what the canonical table calls them."""
    names = {field.name: CONTEXT + field.name for field in declaration.context}
    return names | {"surface": SURFACE, "position": POSITION}


def catalogue(schema: Schema, train: pl.DataFrame, items: pl.DataFrame) -> ItemTable:
    """Items met in the training events, by how often the first task's event happened, then by how
    often they were met."""
    declared = schema.declaration
    tasks = [task.event for task in declared.tasks]
    happened = [pl.col(event).sum().alias(f"task {i}") for i, event in enumerate(tasks)]
    counted = (
        train.group_by("item_id")
        .agg(*happened, pl.len().alias("(met)"))
        .sort(["task 0", "(met)", "item_id"], descending=[True, True, False])
    )
    fields = declared.item_fields
    described = items.select(
        "item_id", *(field.name for field in fields if field.name in items.columns)
    )
    found = counted.join(described, on="item_id", how="left", maintain_order="left")
    return table_of(
        schema, found, counted.select(f"task {i}" for i in range(len(tasks))).to_numpy()
    )


def table_of(schema: Schema, items: pl.DataFrame, counts: np.ndarray) -> ItemTable:
    """The table of n items in their order, with a column per declared field that they have;
    `counts` [n, T]: how often the event of each task happened."""
    fields = schema.declaration.item_fields
    features = records(schema.layout.item, fields, items)
    vocabularies = {
        field.name: most_frequent(features[field.name], field.vocabulary.size)
        for field in fields
        if field.vocabulary is not None and field.vocabulary.source == "learned"
    }
    ids = items["item_id"].to_list()
    return ItemTable.build(ids, features, counts.astype(np.uint32), vocabularies)


def given_records(schema: Schema, users: pl.DataFrame) -> tuple[Mapping[str, int], np.ndarray]:
    """The users' places in records [N] of the group given."""
    found = records(schema.layout.given, schema.declaration.user_given, users)
    return {user: i for i, user in enumerate(users["user_id"])}, found
