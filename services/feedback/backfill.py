"""A past that was never in the log, written into an empty store: what an owner imported, or what
the demo begins with.

The delivery rows that guard it are new, so that all of the log's feedback counts on top of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
import polars as pl

from feature_store.codec import guarded_write
from feature_store.interface import FeatureStore, GuardedWrite
from models.catalogue import ItemTable, item_key
from models.data.backfill import FeatureState, interactions, values_by_key
from models.data.own.dataset import canonical, given_records
from models.data.own.tables import OwnTables
from models.schema.compiled import Schema
from models.schema.groups import FeatureGroup

WRITE_CHUNK = 500  # entities per transaction
USERS_AT_ONCE = 50_000  # whose rows are held in memory: some 9 kB each


class NotEmpty(Exception):
    """The feature store holds rows of somebody's."""


def imported(store: FeatureStore, own: OwnTables, items: ItemTable) -> int:
    """Fold all imported events and write every user's and item's rows, and given fields; the
    number of users and items. Raises NotEmpty, and what the store raises when it fails.

    A part of the users is held at a time. Items' counters are up to rounding those of events in
    the order of time, as events of other users come later.
    """
    schema = own.schema
    events, users = own.events.collect(), own.users.collect()
    values = values_by_key(items, schema.fold)
    parts = 1 + events["user_id"].n_unique() // USERS_AT_ONCE
    share = (pl.col("user_id").hash(0) % parts).alias("(part)")  # no event is in parentheses
    table = canonical(schema, events).with_columns(share)
    given = given_records(schema, users)
    state, written = FeatureState(schema.fold), 0
    for part in range(parts):
        state.users.clear()
        rows = table.filter(pl.col("(part)") == part)
        for one in interactions(rows, schema.declaration):
            state.apply(one, values.get(one.item_key))
        written += write(store, users_of(schema, state, given))
    known = set(events["user_id"].unique())
    only_given = [user for user in given[0] if user not in known]
    written += write(store, given_of(schema, only_given, given))
    ids = {item_key(item_id): item_id for item_id in events["item_id"].unique()}
    return written + write(store, items_of(schema, state, ids))


def write(store: FeatureStore, writes: Iterator[GuardedWrite]) -> int:
    """Write first rows; how many entities. Raises NotEmpty if there is a row already."""
    written = 0
    while chunk := list(islice(writes, WRITE_CHUNK)):
        if not all(store.write(chunk)):
            raise NotEmpty
        written += len(chunk)
    return written


def users_of(
    schema: Schema,
    state: FeatureState,
    given: tuple[Mapping[str, int], np.ndarray] | None = None,
) -> Iterator[GuardedWrite]:
    """A state's users as first writes of their rows, with what is given of them."""
    layout = schema.layout
    places, records = given or ({}, np.zeros(0))
    for user_id, user in state.users.items():
        rows: dict[FeatureGroup, np.ndarray] = {
            layout.user_delivery: user.delivery,
            layout.profile: user.profile,
            layout.history: user.history,
        }
        if user_id in places and layout.given.features:
            rows[layout.given] = records[places[user_id]]
        yield guarded_write(
            user_id, layout.user_delivery, 0, rows, int(user.profile["last_event_ms"])
        )


def given_of(
    schema: Schema, users: list[str], given: tuple[Mapping[str, int], np.ndarray]
) -> Iterator[GuardedWrite]:
    """What is given of users without any event."""
    layout, (places, records) = schema.layout, given
    if layout.given.features:
        for user_id in users:
            rows = {
                layout.user_delivery: layout.user_delivery.defaults(),
                layout.given: records[places[user_id]],
            }
            yield guarded_write(user_id, layout.user_delivery, 0, rows, 0)


def items_of(schema: Schema, state: FeatureState, ids: Mapping[int, str]) -> Iterator[GuardedWrite]:
    """A state's items, by their keys, as first writes of their rows."""
    layout = schema.layout
    for key, item in state.items.items():
        rows = {layout.item_delivery: item.delivery, layout.counters: item.counters}
        yield guarded_write(ids[key], layout.item_delivery, 0, rows, int(item.counters["as_of_ms"]))
