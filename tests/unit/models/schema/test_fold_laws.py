"""The fold of any declaration equals a recount of its events, in memory and in stored rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import codec
from models.schema.declaration import ANY, Declaration, Since
from models.schema.fold import Event, Fold, Values, decay
from models.schema.layout import affinity_column, count_column, last_column, layout_of
from tests.unit.models.schema.declarations import declarations

T0 = 1_700_000_000_000


def two_ids(size: int) -> st.SearchStrategy[np.ndarray]:
    """Two different ids of a vocabulary; 0 is none."""
    return st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True).map(np.array)


@st.composite
def happened(draw: st.DrawFn, declared: Declaration) -> list[tuple[Event, Values]]:
    """Events of one user in any order, and the values of their items."""
    width = {a.field: _size(declared, a.field) for a in declared.affinities}
    values = {
        item: {name: draw(two_ids(size)) for name, size in width.items()} for item in range(1, 5)
    }
    events = draw(
        st.lists(
            st.builds(
                Event,
                st.just("e"),
                st.just("u"),
                st.integers(1, 4),
                st.sampled_from([event.id for event in declared.events]),
                st.sampled_from([T0 + days * 86_400_000 for days in (0, 1, 2, 3, 40, 400)]),
                st.integers(0, 100).map(float),
            ),
            max_size=12,
        )
    )
    return [(event, values[event.item_key]) for event in events]


def _size(declared: Declaration, field: str) -> int:
    vocabulary = declared.item_field[field].vocabulary
    assert vocabulary is not None
    return vocabulary.size


def faded(events: Sequence[Event], as_of: int, half_life_s: float, of_value: bool) -> float:
    return sum(
        (e.value if of_value else 1.0)
        * (decay(as_of - e.event_time_ms, half_life_s) if half_life_s < math.inf else 1.0)
        for e in events
    )


@settings(max_examples=150)
@given(st.data())
def test_rows_are_what_a_recount_of_the_events_says(data: st.DataObject) -> None:
    declared = data.draw(declarations())
    layout = layout_of(declared)
    fold = Fold(declared, layout)
    come = data.draw(happened(declared))
    user, item = fold.user_state(), fold.item_state()
    for event, values in come:
        fold.user(user, event, values)
        fold.item(item, event)  # as if all were of one item

    events = [event for event, _ in come]
    newest = max((e.event_time_ms for e in events), default=0)
    assert int(user.profile["last_event_ms"]) == newest
    counted = {declared.event[c.event].id for c in declared.item_counts}
    as_of = max((e.event_time_ms for e in events if e.event_type in counted), default=0)
    assert int(item.counters["as_of_ms"]) == as_of
    for counts, record, until in (
        (declared.user_counts, user.profile, newest),
        (declared.item_counts, item.counters, as_of),
    ):
        for count in counts:
            own = [e for e in events if e.event_type == declared.event[count.event].id]
            wanted = faded(own, until, count.half_life_s, count.of_value)
            found = float(record[count_column(declared, count)])
            assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    later = as_of + 7 * 86_400_000
    records = np.stack([item.counters, fold.item_state().counters])
    read = fold.counters_at(records, later)
    assert read.shape == (2, len(declared.item_counts))
    assert not read[1].any()
    for count, found in zip(declared.item_counts, read[0].tolist(), strict=True):
        own = [e for e in events if e.event_type == declared.event[count.event].id]
        assert found == pytest.approx(
            faded(own, later, count.half_life_s, count.of_value), rel=1e-5
        )
    for each in declared.derived:
        if isinstance(each, Since) and each.event != ANY:
            event = declared.event[each.event]
            own_ms = [e.event_time_ms for e in events if e.event_type == event.id]
            assert int(user.profile[last_column(event)]) == max(own_ms, default=0)
    for affinity in declared.affinities:
        wanted_shares = np.zeros(1 + _size(declared, affinity.field))
        by = {declared.event[name].id for name in affinity.by}
        for event, values in come:
            if event.event_type in by:
                ids = [i for i in values[affinity.field] if i] or [0]
                wanted_shares[ids] += faded([event], newest, affinity.half_life_s, False)
        shares = user.profile[affinity_column(declared, affinity)]
        np.testing.assert_allclose(shares, wanted_shares, rtol=1e-4, atol=1e-6)


@settings(max_examples=100)
@given(st.data())
def test_what_is_stored_between_events_changes_nothing(data: st.DataObject) -> None:
    declared = data.draw(declarations())
    layout = layout_of(declared)
    fold = Fold(declared, layout)
    kept, stored = fold.user_state(), fold.user_state()
    for event, values in data.draw(happened(declared)):
        fold.user(kept, event, values)
        for name, group in (("profile", layout.profile), ("history", layout.history)):
            row = codec.decode(group, codec.encode(group, getattr(stored, name), 1, 1))
            assert row is not None
            setattr(stored, name, row.record)
        fold.user(stored, event, values)
        assert stored.profile.tobytes() == kept.profile.tobytes()
        assert stored.history.tobytes() == kept.history.tobytes()


def above(declared: Declaration, name: str) -> set[str]:
    """The events whose entries one takes over."""
    direct = set(declared.event[name].upgrades)
    return direct.union(*(above(declared, other) for other in direct)) if direct else direct


@settings(max_examples=150)
@given(st.data())
def test_a_history_is_the_newest_choices_one_entry_each(data: st.DataObject) -> None:
    declared = data.draw(declarations())
    layout = layout_of(declared)
    fold = Fold(declared, layout)
    names = {event.id: event.name for event in declared.events}
    user = fold.user_state()
    wanted: list[tuple[int, int, str]] = []  # item, time, event; newest first
    for event, values in data.draw(happened(declared)):
        fold.user(user, event, values)
        name = names[event.event_type]
        if not declared.event[name].history:
            continue
        for at, (item, time_ms, of) in enumerate(wanted):
            if item == event.item_key and of in above(declared, name):
                wanted[at] = (item, time_ms, name)
                break
            if item == event.item_key and name in above(declared, of):
                break
        else:
            older = (i for i, entry in enumerate(wanted) if entry[1] <= event.event_time_ms)
            wanted.insert(next(older, len(wanted)), (event.item_key, event.event_time_ms, name))
            wanted = wanted[: declared.history.length]
    n = int(user.history["length"])
    columns = (user.history[c][:n].tolist() for c in ("item_keys", "event_times_ms", "event_ids"))
    found = [(item, time_ms, names[i]) for item, time_ms, i in zip(*columns, strict=True)]
    assert found == wanted
