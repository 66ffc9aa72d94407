"""Training examples are exactly what serving would have computed at the time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

import numpy as np
import pytest

from feature_store import codec
from models.data.backfill import interactions
from models.data.events import Dataset
from models.data.worlds.films.schema import PROFILE
from models.inputs import user_batch
from models.schema.fold import Event, ItemState, UserState
from models.schema.groups import FeatureGroup
from models.training import replay as replaying
from models.training.replay import context_records, replay
from tests.unit.models import synthetic
from tests.unit.models.data.own.shop import tables as shop_tables


def _stored(group: FeatureGroup, record: np.ndarray, now_ms: int) -> np.ndarray:
    """The record after a trip through the feature store's row format."""
    row = codec.decode(group, codec.encode(group, record, now_ms, 1))
    assert row is not None
    return row.record


@pytest.mark.parametrize(
    "made",
    [lambda: synthetic.dataset(users=40), lambda: shop_tables(users=12)],
    ids=["films", "shop"],
)
def test_replay_equals_what_serving_computes_from_stored_rows(
    made: Callable[[], Dataset],
) -> None:
    data = made()
    schema, declaration = data.schema, data.schema.declaration
    fold, layout = schema.fold, schema.layout
    examples = replay(data)
    beginning = {row: n for n, row in enumerate(replaying._visits(data).first)}
    context = context_records(schema, data.events)
    places, imported = data.given or ({}, np.zeros(0, layout.given.dtype))
    users: dict[str, UserState] = {}
    items: dict[int, ItemState] = {}
    for i, event in enumerate(interactions(data.events, declaration)):
        user = users.setdefault(event.user_id, fold.user_state())
        now_ms = event.event_time_ms
        if (example := beginning.get(i)) is not None:
            at = places.get(event.user_id)
            given = layout.given.defaults() if at is None else imported[at]
            served = user_batch(
                _stored(layout.profile, user.profile, now_ms).reshape(1),
                _stored(layout.history, user.history, now_ms).reshape(1),
                _stored(layout.given, given, now_ms).reshape(1),
                context[i : i + 1],
                np.array([now_ms]),
                data.items,
                declaration.history.models_read,
            )
            trained = examples.user_batch(np.array([example]))
            for name, array in vars(served).items():
                np.testing.assert_array_equal(array, getattr(trained, name), err_msg=name)
                assert array.dtype == getattr(trained, name).dtype
            for row, counters in zip(
                examples.slate[example], examples.counters[example], strict=True
            ):
                item = (
                    items.setdefault(int(data.items.keys[row]), fold.item_state())
                    if row
                    else fold.item_state()
                )
                stored = _stored(layout.counters, item.counters, now_ms)
                np.testing.assert_array_equal(fold.counters_at(stored, now_ms), counters)
        row = int(data.items.index_of(np.array([event.item_key], np.uint64))[0])
        item = items.setdefault(event.item_key, fold.item_state())
        (values,) = data.items.values_of(np.array([row]), fold.item_fields)
        for kind, value in zip_longest(event.kinds, event.values, fillvalue=0.0):
            one = Event(f"{i}-{kind}", event.user_id, event.item_key, int(kind), now_ms, value)
            fold.user(user, one, values)
            if fold.counts_items(int(kind)):
                fold.item(item, one)
    assert len(beginning) == len(examples)


def test_sampled_negatives_existed_and_were_not_rated() -> None:
    data = synthetic.dataset()
    examples = replay(data, negatives=4)
    past = examples.time_ms < data.train_until_ms
    first: dict[int, int] = {}
    for i, row in enumerate(examples.item):
        first.setdefault(int(row), i)
    rated: dict[int, set[int]] = {}
    for user, row in zip(examples.user[past], examples.item[past], strict=True):
        rated.setdefault(int(user), set()).add(int(row))
    drawn = 0
    for i in np.flatnonzero(past):
        for row in examples.slate[i, 1:]:
            if row:
                drawn += 1
                assert first[int(row)] < i
                assert int(row) not in rated[int(examples.user[i])]
    assert drawn > 0.9 * past.sum() * 4


def test_the_first_event_of_a_user_sees_an_empty_user() -> None:
    examples = replay(synthetic.dataset(users=24))
    _, first = np.unique(examples.user, return_index=True)
    batch = examples.user_batch(first)
    assert not batch.history.any()
    assert not batch.events.any()
    assert (batch.profile == PROFILE.defaults()).all()
