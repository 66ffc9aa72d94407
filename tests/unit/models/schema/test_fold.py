"""The laws of the event fold: what any order, repetition and amount of events leads to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.worlds.films.schema import (
    CLICK,
    COUNTS,
    FOLD,
    GENRE_CLICKS,
    GENRE_SLOTS,
    HISTORY,
    HISTORY_LENGTH,
    IMPRESSION,
    IMPRESSIONS,
    ITEM_COUNTS,
    LIKE,
)
from models.schema.fold import Event, decay
from models.schema.progress import (
    EVENT_IDS,
    ITEM_DELIVERY,
    WATERMARK_SLOTS,
    admit_item_event,
    admit_user_event,
    applied_ids,
    event_id_digest,
)
from services.common.settings import FeedbackSettings

T0 = 1_700_000_000_000
COUNTER_HALF_LIFE_S, GENRE_HALF_LIFE_S = 90.0 * 86_400, 365.0 * 86_400
YEAR_MS = 365 * 86_400_000


def event(kind: int, item: int, time_ms: int, event_id: str = "") -> Event:
    return Event(event_id, "u", item, kind, time_ms)


def entries(history: np.ndarray) -> list[tuple[int, int, int]]:
    """The history as (item, time, type), newest first."""
    n = int(history["length"])
    columns = (history[name][:n].tolist() for name in ("item_keys", "event_times_ms"))
    return list(zip(*columns, history["event_ids"][:n].tolist(), strict=True))


def folded(events: list[Event]) -> np.ndarray:
    history = HISTORY.defaults()
    for e in events:
        FOLD.history(history, e)
    return history


choices = st.builds(
    event, st.sampled_from([CLICK, LIKE]), st.integers(1, 2**64 - 1), st.integers(1, 10**13)
)
few_items = st.builds(
    event, st.sampled_from([CLICK, LIKE]), st.integers(1, 5), st.integers(T0, T0 + 20)
)


@given(st.lists(choices, max_size=2 * HISTORY_LENGTH, unique_by=lambda e: e.item_key))
def test_history_is_the_newest_choices_newest_first_and_bounded(events: list[Event]) -> None:
    # A stable sort of the reversed arrivals: among equal times the later arrival is newer.
    arrived_last_first = list(reversed(events))
    newest = sorted(arrived_last_first, key=lambda e: -e.event_time_ms)[:HISTORY_LENGTH]
    expected = [(e.item_key, e.event_time_ms, e.event_type) for e in newest]
    assert entries(folded(events)) == expected


@given(st.lists(choices, min_size=1, max_size=30, unique_by=lambda e: e.event_time_ms), st.data())
def test_order_of_arrival_does_not_change_the_history_of_distinct_choices(
    events: list[Event], data: st.DataObject
) -> None:
    events = list({e.item_key: e for e in events}.values())
    shuffled = data.draw(st.permutations(events))
    assert folded(events).tobytes() == folded(shuffled).tobytes()


@given(st.lists(few_items, max_size=40))
def test_history_is_sorted_and_holds_no_more_than_was_chosen(events: list[Event]) -> None:
    seen = entries(folded(events))
    times = [time for _, time, _ in seen]
    assert times == sorted(times, reverse=True)
    for item in {item for item, _, _ in seen}:
        assert sum(i == item for i, _, _ in seen) <= sum(e.item_key == item for e in events)


@given(st.sets(st.integers(1, 60), min_size=1), st.data())
def test_a_click_and_its_like_are_one_entry_however_they_interleave(
    items: set[int], data: st.DataObject
) -> None:
    pairs = [event(kind, item, T0 + item) for item in items for kind in (CLICK, LIKE)]
    seen = entries(folded(data.draw(st.permutations(pairs))))
    assert seen == [(item, T0 + item, LIKE) for item in sorted(items, reverse=True)]


def test_a_choice_older_than_a_full_history_changes_nothing() -> None:
    full = [event(CLICK, i + 1, T0 + i) for i in range(HISTORY_LENGTH)]
    before = folded(full)
    assert folded([*full, event(CLICK, 10_000, T0 - 1)]).tobytes() == before.tobytes()


def test_an_impression_is_counted_but_is_not_a_choice() -> None:
    state = FOLD.user_state()
    FOLD.user(state, event(IMPRESSION, 7, T0), None)
    assert int(state.profile[IMPRESSIONS]) == 1
    assert int(state.profile["last_event_ms"]) == T0
    assert entries(state.history) == []


any_event = st.builds(
    event,
    st.sampled_from([IMPRESSION, CLICK, LIKE]),
    st.integers(1, 9),
    st.integers(T0, T0 + 3 * YEAR_MS),
)


@given(st.lists(any_event, max_size=30))
def test_profile_equals_the_decayed_recount_in_any_order_of_arrival(events: list[Event]) -> None:
    genres = np.eye(GENRE_SLOTS, dtype=np.float32)
    state = FOLD.user_state()
    for e in events:
        FOLD.user(state, e, {"genres": np.array([e.item_key, 0])})
    newest = max((e.event_time_ms for e in events), default=0)
    expected = np.zeros(GENRE_SLOTS)
    for e in events:
        if e.event_type == CLICK:
            expected += genres[e.item_key] * decay(newest - e.event_time_ms, GENRE_HALF_LIFE_S)
    np.testing.assert_allclose(state.profile[GENRE_CLICKS], expected, rtol=1e-4, atol=1e-6)
    assert int(state.profile["last_event_ms"]) == newest
    for name, kind in zip(COUNTS, (IMPRESSION, CLICK, LIKE), strict=True):
        assert int(state.profile[name]) == sum(e.event_type == kind for e in events)


@given(st.lists(any_event, max_size=30))
def test_counters_equal_the_decayed_recount_in_any_order_of_arrival(events: list[Event]) -> None:
    state = FOLD.item_state()
    for e in events:
        FOLD.item(state, e)
    newest = max((e.event_time_ms for e in events if e.event_type != IMPRESSION), default=0)
    fading = (COUNTER_HALF_LIFE_S, math.inf)
    of = [(kind, half_life_s) for kind in (CLICK, LIKE) for half_life_s in fading]
    for name, (kind, half_life_s) in zip(ITEM_COUNTS, of, strict=True):
        expected = sum(
            decay(newest - e.event_time_ms, half_life_s) for e in events if e.event_type == kind
        )
        assert float(state.counters[name]) == pytest.approx(expected, rel=1e-9)
    assert int(state.counters["as_of_ms"]) == newest


def test_counters_halve_in_a_half_life_and_do_not_grow_back_in_time() -> None:
    state = FOLD.item_state()
    FOLD.item(state, event(CLICK, 1, T0))
    later = T0 + int(COUNTER_HALF_LIFE_S * 1000)
    assert FOLD.counters_at(state.counters, later).tolist() == [0.5, 1.0, 0.0, 0.0]
    assert FOLD.counters_at(state.counters, T0 - 5_000).tolist() == [1.0, 1.0, 0.0, 0.0]


class Admission:
    """A user's delivery rows, and what they make of records."""

    def __init__(self) -> None:
        state = FOLD.user_state()
        self.delivery, self.older = state.delivery, state.older

    def __call__(self, partition: int, offset: int, event_id: str) -> bool:
        admitted = event(CLICK, 1, T0 + offset, event_id)
        return admit_user_event(self.delivery, self.older, partition, offset, admitted)


def test_a_replayed_offset_is_refused_and_remembers_nothing() -> None:
    admit = Admission()
    assert admit(2, 40, "a")
    before = admit.delivery.tobytes()
    for offset in (40, 39, 0):
        assert not admit(2, offset, "b")
    assert admit.delivery.tobytes() == before
    assert admit(2, 41, "b")


@pytest.mark.parametrize("before", [0, 1, 31, 63, 64, 1000])
def test_a_clients_retry_is_recognised_among_the_last_events(before: int) -> None:
    admit = Admission()
    for i in range(before):
        assert admit(0, i, f"before {i}")
    for i in range(EVENT_IDS):
        assert admit(0, before + i, f"e{i}")
        assert not admit(0, before + i, f"e{i}")
    for i in range(EVENT_IDS):
        assert not admit(0, 10_000 + i, f"e{i}")


def test_what_is_kept_of_event_ids_is_bounded() -> None:
    admit = Admission()
    for i in range(3 * EVENT_IDS):
        assert admit(0, i, f"e{i}")
    assert admit(0, 3 * EVENT_IDS, "e0")
    known = applied_ids(admit.delivery, admit.older)
    assert event_id_digest(f"e{3 * EVENT_IDS - 1}") in known
    assert event_id_digest("e1") not in known
    assert int(admit.older["moved_ms"]) > T0 + 2 * EVENT_IDS


def test_most_events_leave_the_ids_of_older_ones_as_they_are() -> None:
    admit, writes, before = Admission(), 0, b""
    for i in range(2_000):
        admit(0, i, f"e{i}")
        writes += before != (before := admit.older.tobytes())
    assert writes <= 2_000 / 32


def test_a_whole_batch_of_one_user_that_is_sent_again_counts_once() -> None:
    admit = Admission()
    size = FeedbackSettings.model_fields["max_batch_events"].default
    for i in range(size):
        assert admit(0, i, f"e{i}")
    for i in range(size):
        assert not admit(0, size + i, f"e{i}")


def test_watermarks_of_several_partitions_are_kept_apart() -> None:
    admit = Admission()
    for partition in range(WATERMARK_SLOTS):
        assert admit(partition, 10 + partition, f"e{partition}")
    for partition in range(WATERMARK_SLOTS):
        assert not admit(partition, 10 + partition, "other")


def test_an_item_counts_each_record_of_each_partition_once() -> None:
    delivery = ITEM_DELIVERY.defaults()
    deliveries = [(0, 5), (1, 3), (0, 5), (0, 4), (1, 4), (0, 6), (1, 4)]
    assert [admit_item_event(delivery, *d) for d in deliveries] == [
        True,
        True,
        False,
        False,
        True,
        True,
        False,
    ]
