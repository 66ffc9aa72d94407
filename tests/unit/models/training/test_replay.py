"""Training examples are exactly what serving would have computed at the time."""

from __future__ import annotations

import numpy as np

from feature_store import codec
from models.data.backfill import interactions
from models.data.worlds.films.schema import (
    COUNTERS,
    FILMS,
    FOLD,
    HISTORY,
    MODEL_HISTORY,
    PROFILE,
    SCHEMA,
)
from models.inputs import user_batch
from models.schema.fold import Event, ItemState, UserState
from models.schema.groups import FeatureGroup
from models.training.replay import replay
from tests.unit.models import synthetic


def _stored(group: FeatureGroup, record: np.ndarray, now_ms: int) -> np.ndarray:
    """The record after a trip through the feature store's row format."""
    row = codec.decode(group, codec.encode(group, record, now_ms, 1))
    assert row is not None
    return row.record


def test_replay_equals_what_serving_computes_from_stored_rows() -> None:
    data = synthetic.dataset(users=40)
    examples = replay(data)
    users: dict[str, UserState] = {}
    items: dict[int, ItemState] = {}
    given, context = (np.zeros(1, g.dtype) for g in (SCHEMA.layout.given, SCHEMA.layout.context))
    for i, event in enumerate(interactions(data.events, FILMS)):
        user = users.setdefault(event.user_id, FOLD.user_state())
        now_ms = event.event_time_ms
        served = user_batch(
            _stored(PROFILE, user.profile, now_ms).reshape(1),
            _stored(HISTORY, user.history, now_ms).reshape(1),
            given,
            context,
            np.array([now_ms]),
            data.items,
            MODEL_HISTORY,
        )
        trained = examples.user_batch(np.array([i]))
        for name, array in vars(served).items():
            np.testing.assert_array_equal(array, getattr(trained, name), err_msg=name)
            assert array.dtype == getattr(trained, name).dtype
        for row, counters in zip(examples.slate[i], examples.counters[i], strict=True):
            item = (
                items.setdefault(int(data.items.keys[row]), FOLD.item_state())
                if row
                else FOLD.item_state()
            )
            stored = _stored(COUNTERS, item.counters, now_ms)
            np.testing.assert_array_equal(FOLD.counters_at(stored, now_ms), counters)
        row = int(data.items.index_of(np.array([event.item_key], np.uint64))[0])
        item = items.setdefault(event.item_key, FOLD.item_state())
        (values,) = data.items.values_of(np.array([row]), FOLD.item_fields)
        for kind in event.kinds:
            one = Event(f"{i}-{kind}", event.user_id, event.item_key, kind, now_ms)
            FOLD.user(user, one, values)
            FOLD.item(item, one)
    assert i + 1 == len(examples)


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
