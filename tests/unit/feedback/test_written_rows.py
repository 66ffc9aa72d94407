"""Which of a user's rows an event writes, and how much that is: each event by itself."""

from __future__ import annotations

from feature_store.codec import RowStatus
from feature_store.reader import serve_raw
from models.data.backfill import interactions, values_by_key
from models.data.worlds.films import dataset as films
from models.data.worlds.films.schema import CLICK, HISTORY, IMPRESSION, SCHEMA
from models.schema.fold import Event
from services.feedback.deliveries import Delivery
from services.feedback.rows import EntityRows

ROWS = EntityRows(SCHEMA)

MOST_WRITTEN, MOST_STORED = 3_000, 9_000
T0, YEAR_S = 1_700_000_000_000, 365 * 86_400


def test_a_user_costs_nine_kilobytes_and_an_event_writes_three() -> None:
    dataset = films.load()
    values = values_by_key(dataset.items, SCHEMA.fold)
    counts = dataset.events["user_id"].value_counts(sort=True)
    busiest = dataset.events.filter(dataset.events["user_id"] == counts["user_id"][0])
    rows: dict[str, bytes | None] = {group.name: None for group in ROWS.of_user}
    sent = written = 0
    for one in interactions(busiest[:700], SCHEMA.declaration):
        for kind in one.kinds:
            event = Event(f"e{sent}", one.user_id, one.item_key, kind, one.event_time_ms)
            delivery = Delivery(0, sent, one.item_id, event, values.get(one.item_key))
            folded = ROWS.fold_user(one.user_id, list(rows.values()), [delivery], 2**62)
            assert folded.write is not None
            rows |= folded.write.rows
            sent += 1
            written += sum(map(len, folded.write.rows.values()))
    assert sent > 1_500
    assert written / sent <= MOST_WRITTEN
    assert sum(len(row or b"") for row in rows.values()) <= MOST_STORED


def test_a_history_does_not_expire_while_its_user_is_active() -> None:
    """A click, and impressions alone for twice as long as rows are kept."""
    rows: dict[str, bytes | None] = {group.name: None for group in ROWS.of_user}
    years = int(2 * HISTORY.ttl_s / YEAR_S)
    for year in range(years):
        kind = IMPRESSION if year else CLICK
        event = Event(f"e{year}", "u", 1, kind, T0 + year * YEAR_S * 1000)
        folded = ROWS.fold_user(
            "u", list(rows.values()), [Delivery(0, year, "i", event, None)], 2**62
        )
        assert folded.write is not None
        rows |= folded.write.rows
    history = serve_raw(HISTORY, rows[HISTORY.name], T0 + years * YEAR_S * 1000)
    assert history.status is RowStatus.FRESH
    assert history.age_s < HISTORY.ttl_s / 2


def test_a_damaged_history_is_begun_anew_as_one_of_now() -> None:
    clicked = Event("e0", "u", 1, CLICK, T0)
    folded = ROWS.fold_user(
        "u", [None] * len(ROWS.of_user), [Delivery(0, 0, "i", clicked, None)], 2**62
    )
    assert folded.write is not None
    rows = [folded.write.rows.get(group.name) for group in ROWS.of_user]
    rows[-1] = bytes(reversed(rows[-1] or b""))
    seen = Event("e1", "u", 1, IMPRESSION, T0 + 1)
    folded = ROWS.fold_user("u", rows, [Delivery(0, 1, "i", seen, None)], 2**62)
    assert folded.write is not None
    begun = serve_raw(HISTORY, folded.write.rows[HISTORY.name], T0 + 2)
    assert begun.status is RowStatus.FRESH
