"""How much of a user is written with an event, and how much is kept: each event by itself."""

from __future__ import annotations

from models.data import events
from models.data.backfill import interactions, values_by_key
from models.schema.films import CLICK, IMPRESSION, LIKE
from models.schema.fold import Event
from services.feedback.deliveries import Delivery
from services.feedback.rows import USER_GROUPS, fold_user_rows

MOST_WRITTEN, MOST_STORED = 3_000, 9_000


def test_a_user_costs_nine_kilobytes_and_an_event_writes_three() -> None:
    dataset = events.load()
    values = values_by_key(dataset.items)
    counts = dataset.events["user_id"].value_counts(sort=True)
    busiest = dataset.events.filter(dataset.events["user_id"] == counts["user_id"][0])
    rows: dict[str, bytes | None] = {group.name: None for group in USER_GROUPS}
    sent = written = 0
    for one in interactions(busiest[:700]):
        for kind in (IMPRESSION, CLICK, LIKE) if one.like else (IMPRESSION, CLICK):
            event = Event(f"e{sent}", one.user_id, one.item_key, kind, one.event_time_ms)
            delivery = Delivery(0, sent, one.item_id, event, values.get(one.item_key))
            folded = fold_user_rows(one.user_id, list(rows.values()), [delivery], 2**62)
            assert folded.write is not None
            rows |= folded.write.rows
            sent += 1
            written += sum(map(len, folded.write.rows.values()))
    assert sent > 1_500
    assert written / sent <= MOST_WRITTEN
    assert sum(len(row or b"") for row in rows.values()) <= MOST_STORED
