"""An answer knows what its user did, whether or not the feature updater has come that far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feature_store import codec
from models.catalogue import ItemTable
from models.data.worlds.films.schema import CLICKS, HISTORY, ITEM_DTYPE, PROFILE, SCHEMA
from models.schema import first_version
from models.schema.progress import EVENT_IDS, event_id_digest
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services.event_log.interface import LogRecord
from services.feedback.deliveries import parse
from services.feedback.rows import EntityRows
from services.router.recent_feedback import KEEP_S, MANY, RecentFeedback

ROWS = EntityRows(SCHEMA)

T0 = 1_700_000_000_000
Rows = list[bytes | None]  # delivery, profile and history, as the updater orders them
NONE: Rows = [None, None, None, None]


def catalogue() -> ItemTable:
    features = np.zeros(3, ITEM_DTYPE)
    features["genres"][:, 0] = [1, 2, 3]
    return ItemTable.build(["m1", "m2", "m3"], features)


ITEMS = catalogue()
EVENTS = st.lists(
    st.builds(
        FeedbackEvent,
        event_id=st.sampled_from([f"e{i}" for i in range(12)]),  # some are sent again
        user_id=st.just("u"),
        item_id=st.sampled_from(["m1", "m2", "m3", "no-such-item"]),
        event_type=st.sampled_from([1, 2, 3]),
        event_time_ms=st.integers(T0, T0 + 10_000),
    ),
    max_size=20,
)


def applied(rows: Rows, events: Sequence[FeedbackEvent], first_offset: int = 0) -> Rows:
    """The user's rows after the updater has gone through the events."""
    records = [
        LogRecord(0, first_offset + i, event.event_time_ms, b"u", event.SerializeToString())
        for i, event in enumerate(events)
    ]
    deliveries, dead = parse(records, ITEMS, T0 + 86_400_000, SCHEMA.fold)
    assert not dead
    write = ROWS.fold_user("u", rows, deliveries, T0 + 86_400_000).write
    written = {} if write is None else write.rows
    return [written.get(g.name, row) for g, row in zip(ROWS.of_user, rows, strict=True)]


def recent(clock: Sequence[float] = (0.0,)) -> RecentFeedback:
    return RecentFeedback(SCHEMA, lambda: ITEMS, monotonic=lambda: clock[0])


def contents(rows: Sequence[bytes | None]) -> list[tuple[bytes, int] | None]:
    """Profile and history without the number of writes that made them."""
    found: list[tuple[bytes, int] | None] = []
    for group, row in zip((PROFILE, HISTORY), rows, strict=True):
        decoded = codec.decode(group, row) if row else None
        found.append(decoded and (decoded.record.tobytes(), decoded.event_time_ms))
    return found


def over(kept: RecentFeedback, rows: Rows) -> list[tuple[bytes, int] | None]:
    delivery, older, profile, history = rows
    return contents(kept.over("u", profile, history, delivery, older))


@given(before=EVENTS, acknowledged=EVENTS, data=st.data())
def test_rows_are_what_the_updater_will_write_however_far_it_has_come(
    before: list[FeedbackEvent], acknowledged: list[FeedbackEvent], data: st.DataObject
) -> None:
    """`before` went through another router and is applied; then the updater is anywhere."""
    store = applied(NONE, before)
    kept = recent()
    kept.add(acknowledged)
    end = contents(applied(store, acknowledged, len(before))[2:])
    come = sorted(data.draw(st.lists(st.integers(0, len(acknowledged)), max_size=4)))
    for reached in (*come, len(acknowledged)):
        assert over(kept, applied(store, acknowledged[:reached], len(before))) == end
    assert "u" not in kept.users  # all is applied


def event(event_id: str, item_id: str = "m1", user_id: str = "u") -> FeedbackEvent:
    return FeedbackEvent(
        event_id=event_id, user_id=user_id, item_id=item_id, event_type=2, event_time_ms=T0
    )


def test_what_one_user_did_is_in_nobody_elses_rows() -> None:
    kept = recent()
    kept.add([event("e", user_id="somebody")])
    assert over(kept, NONE) == [None, None]
    assert "u" not in kept.users


def test_rows_that_cannot_be_read_are_left_to_those_who_judge_them() -> None:
    kept = recent()
    kept.add([event("e1")])
    delivery, older, profile, history = applied(NONE, [event("e0")])
    assert profile is not None
    damaged = profile[:-1]
    assert kept.over("u", damaged, history, delivery, older) == (damaged, history)
    foreign = codec.encode(HISTORY, HISTORY.defaults(), T0, 1)
    assert kept.over("u", foreign, history, delivery, older) == (foreign, history)
    assert "u" in kept.users


def test_an_event_that_never_appears_does_not_count_for_ever() -> None:
    clock = [0.0]
    kept = recent(clock)
    kept.add([event("a dead letter")])
    clock[0] = KEEP_S
    assert over(kept, NONE) != [None, None]
    clock[0] = KEEP_S + 1
    assert over(kept, NONE) == [None, None]
    assert "u" not in kept.users


def test_memory_is_bounded_and_those_who_did_nothing_for_longest_go_first() -> None:
    kept = RecentFeedback(SCHEMA, lambda: ITEMS, max_events=3)
    kept.add([event("e1", user_id="a"), event("e2", user_id="b"), event("e3", user_id="a")])
    kept.add([event("e4", user_id="c")])
    assert [user in kept.users for user in "abc"] == [True, False, True]
    kept.add([event(f"f{i}", user_id="d") for i in range(EVENT_IDS + 5)])
    assert "d" not in kept.users  # more than all may have


def test_of_one_user_no_more_is_kept_than_the_store_can_tell_applied() -> None:
    kept = RecentFeedback(SCHEMA, lambda: ITEMS, max_events=10 * EVENT_IDS)
    events = [event(f"e{i}", "m1" if i else "m2") for i in range(EVENT_IDS + 1)]
    kept.add(events)
    (profile, _), _ = over(kept, NONE)  # type: ignore[misc]
    assert int(np.frombuffer(profile, PROFILE.dtype)[CLICKS][0]) == EVENT_IDS
    assert over(kept, applied(NONE, events)) == contents(applied(NONE, events)[2:])
    assert "u" not in kept.users


def test_the_rows_of_a_user_who_did_much_are_right_at_every_look() -> None:
    """They are folded once for the same events; others, or other rows, are folded anew."""
    events = [event(f"e{i}", f"m{i % 3 + 1}") for i in range(4 * MANY)]
    kept = recent()
    kept.add(events[:-1])
    for reached in (0, 0, 5, 5):
        assert over(kept, applied(NONE, events[:reached])) == contents(
            applied(NONE, events[:-1])[2:]
        )
    kept.add(events[-1:])
    for reached in (5, 5, 3 * MANY + 1, len(events)):
        assert over(kept, applied(NONE, events[:reached])) == contents(applied(NONE, events)[2:])
    assert "u" not in kept.users


def test_what_a_first_versions_rows_have_counted_is_known() -> None:
    """Its updater has applied e0; e1 was acknowledged since."""
    first = first_version.DELIVERY.defaults()
    first["ring"][0] = event_id_digest("e0") << 24
    first["ring_next"] = 1
    delivery = codec.encode(first_version.DELIVERY, first, T0, 1)
    _, _, profile, history = applied(NONE, [event("e0")])
    kept = recent()
    kept.add([event("e0"), event("e1", "m2")])
    rows: Rows = [delivery, None, profile, history]
    later = applied(rows, [event("e1", "m2")], first_offset=5)
    assert over(kept, rows) == contents(later[2:])
    assert over(kept, later) == contents(later[2:])
    assert "u" not in kept.users
