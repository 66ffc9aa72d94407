"""From UserContext messages to model inputs, for both model services."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from prometheus_client import Counter

from feature_store import codec
from models.catalogue import ItemTable
from models.inputs import UserBatch, user_batch
from models.schema.compiled import Schema
from models.schema.fold import Event
from models.schema.groups import FeatureGroup
from models.schema.layout import SURFACE
from models.schema.stored import stored
from protos.tandem.v1.features_pb2 import UserContext
from services.common.packed import U8
from services.common.rpc import invalid
from services.common.validate import TEXTS

UNREADABLE = Counter(
    "tandem_user_rows_unreadable_total",
    "User rows that a replica could not read and served as defaults; more than none during a"
    " rollout means that router and replicas are of builds with different schemas.",
    ["group"],
)


WARM_UP_MS = 1_700_000_000_000  # when warming a model happens, as far as the model can tell


def _records(group: FeatureGroup, rows: Sequence[bytes]) -> np.ndarray:
    decoded = codec.decode_many(group, rows)
    stale = decoded.status != codec.RowStatus.FRESH
    if stale.any():
        unreadable = np.count_nonzero(stale & (decoded.status != codec.RowStatus.MISSING))
        UNREADABLE.labels(group.name).inc(int(unreadable))
    return decoded.records


def _given(group: FeatureGroup, contexts: Sequence[UserContext]) -> np.ndarray:
    if not group.features:
        return np.zeros(len(contexts), group.dtype)
    return _records(group, [context.given_row for context in contexts])


def _of_requests(schema: Schema, contexts: Sequence[UserContext]) -> np.ndarray:
    """Records [B] of what came with the requests; the default of what did not, and of a value that
    is not declared."""
    group = schema.layout.context
    found = np.zeros(len(contexts), group.dtype)
    if not group.features:
        return found
    found[...] = group.defaults()
    for field in schema.declaration.context:
        column, vocabulary = found[field.name], field.vocabulary
        text = field.type in TEXTS
        for i, context in enumerate(contexts):
            sent = context.context_text if text else context.context
            if field.name not in sent:
                continue
            value = sent[field.name].strip() if text else sent[field.name]  # as an import reads it
            if value == "":
                continue
            if vocabulary is None or vocabulary.lists(value):
                column[i] = stored(field, value)
    if SURFACE in (group.dtype.names or ()):
        ids = schema.declaration.surface_ids
        found[SURFACE] = [ids.get(context.surface, 0) for context in contexts]
    return found


def batch_of_users(
    contexts: Sequence[UserContext], schema: Schema, known: ItemTable, models_read: int
) -> UserBatch:
    """B users' inputs; an empty or unreadable row stands for the schema's defaults. `models_read`
    entries of a history are kept, of the items that are in the model's own table."""
    layout = schema.layout
    return user_batch(
        _records(layout.profile, [c.profile_row for c in contexts]),
        _records(layout.history, [c.history_row for c in contexts]),
        _given(layout.given, contexts),
        _of_requests(schema, contexts),
        np.fromiter((c.now_ms for c in contexts), np.int64, len(contexts)),
        known,
        models_read,
    )


def popular_items(known: ItemTable, items: ItemTable, count: int) -> np.ndarray:
    """int64[<= count], ascending: the rows in a model's own table of its most popular items, of
    those that the table has which it is served over."""
    if known is items:
        return np.arange(1, min(len(known), count) + 1)
    rows = items.index_of(known.keys[1:])
    return 1 + np.flatnonzero((rows > 0) & ~items.removed[rows])[:count]


def warm_up_users(
    schema: Schema, known: ItemTable, items: ItemTable
) -> tuple[UserContext, UserContext]:
    """One of whom nothing is known, and one in whose history are the most popular items, by every
    event in turn. `known`, `items`: as of `popular_items`.

    Models compute the two in different ways."""
    state, now_ms, layout = schema.fold.user_state(), WARM_UP_MS, schema.layout
    kept = [event.id for event in schema.declaration.events if event.history]
    rows = popular_items(known, items, 20) if kept else np.arange(0)
    values_of = known.values_of(rows, schema.fold.item_fields)
    for place, (row, values) in enumerate(zip(rows.tolist(), values_of, strict=True), 1):
        kind, time_ms = kept[place % len(kept)], now_ms - place * 60_000
        schema.fold.user(state, Event("", "", int(known.keys[row]), kind, time_ms), values)
    return UserContext(now_ms=now_ms), UserContext(
        now_ms=now_ms,
        profile_row=codec.encode(layout.profile, state.profile, now_ms, 1),
        history_row=codec.encode(layout.history, state.history, now_ms, 1),
    )


def unpack_keys(field: str, data: bytes, limit: int) -> np.ndarray:
    """uint64[n] from a packed field; refuses a broken length and more than `limit` keys."""
    if len(data) % 8:
        raise invalid(field, f"{len(data)} bytes are no whole number of uint64")
    if len(data) > 8 * limit:
        raise invalid(field, f"{len(data) // 8} keys; at most {limit} are accepted")
    return np.frombuffer(data, U8)
