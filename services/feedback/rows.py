"""One entity's rows and the deliveries that change them: read, folded, to be written back.

Pure functions between the packed rows of the feature store and the fold that training shares
(models/schema/fold.py). A time in a row never lies beyond `latest_ms`, the latest that the updater
accepts of an event: what an earlier version or a wrong clock left beyond it is brought back to it
here, so that events of today count again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from prometheus_client import Counter

from feature_store import codec
from feature_store.codec import Row, event_time_of, row_version, split_delivery
from feature_store.interface import GuardedWrite
from models.schema.compiled import Schema
from models.schema.fold import ItemState, UserState
from models.schema.groups import FeatureGroup
from models.schema.progress import USER_OLDER, admit_item_event, admit_user_event
from services.feedback.deliveries import Delivery
from services.feedback.store_log import readable

_TIMES = {USER_OLDER.name: "moved_ms", "history": "event_times_ms", "counters": "as_of_ms"}
SELDOM = (USER_OLDER.name, "history")  # not every event of a user changes them
DAMAGED_ROWS = Counter(
    "tandem_updater_damaged_rows_total",
    "Rows read corrupt and begun anew from the defaults: look at the disk or the server.",
)
FUTURE_ROWS = Counter(
    "tandem_updater_future_rows_total",
    "Rows whose times lay beyond this machine's clock and were brought back: left by a wrong clock"
    " before there was a bound; if it grows, this machine's clock is slow.",
)


class Folded(NamedTuple):
    """An entity after the fold: what to write (None: nothing changed) and what it counted."""

    write: GuardedWrite | None
    fresh: list[Delivery]


class EntityRows:
    """The rows of users and items of a schema. Of each entity's groups the guard comes first: it is
    read before what it guards."""

    def __init__(self, schema: Schema) -> None:
        layout = schema.layout
        self._fold = schema.fold
        self.of_user = (layout.user_delivery, layout.user_older, layout.profile, layout.history)
        self.of_item = (layout.item_delivery, layout.counters)

    def fold_user(
        self,
        user_id: str,
        rows: Sequence[bytes | None],
        deliveries: Sequence[Delivery],
        latest_ms: int,
    ) -> Folded:
        """Fold a user's deliveries, in log order, into the user's rows."""
        decoded = _decoded(self.of_user, [*split_delivery(*rows[:2]), *rows[2:]], latest_ms)
        delivery, older, profile, history = map(_record, self.of_user, decoded)
        state = UserState(profile, history, delivery, older)
        before = state.delivery.tobytes()
        fresh = []
        for d in deliveries:
            if admit_user_event(state.delivery, state.older, d.partition, d.offset, d.event):
                self._fold.user(state, d.event, d.values)
                fresh.append(d)
        if state.delivery.tobytes() == before:
            return Folded(None, [])
        records = (state.delivery, state.older, state.profile, state.history)
        return _folded(user_id, self.of_user, records, rows, decoded, fresh)

    def fold_item(
        self,
        item_id: str,
        rows: Sequence[bytes | None],
        deliveries: Sequence[Delivery],
        latest_ms: int,
    ) -> Folded:
        """Fold deliveries that are fresh for their users into an item's rows."""
        decoded = _decoded(self.of_item, rows, latest_ms)
        delivery, counters = map(_record, self.of_item, decoded)
        state = ItemState(counters, delivery)
        fresh = []
        for d in deliveries:
            if admit_item_event(state.delivery, d.partition, d.offset):
                self._fold.item(state, d.event)
                fresh.append(d)
        if not fresh:
            return Folded(None, [])
        records = (state.delivery, state.counters)
        return _folded(item_id, self.of_item, records, rows, decoded, fresh)


def _decoded(
    groups: Sequence[FeatureGroup], rows: Sequence[bytes | None], latest_ms: int
) -> list[Row | None]:
    """Whatever is stored counts, expired or not: a watermark does not age."""
    return [_decode(group, row, latest_ms) for group, row in zip(groups, rows, strict=True)]


def _decode(group: FeatureGroup, row: bytes | None, latest_ms: int) -> Row | None:
    """The row, its times no later than `latest_ms`; None where there is none or a damaged one.

    Raises ForeignLayout: what another build means by its row is not ours to throw away.
    """
    decoded = readable(group, row)
    if decoded is None:
        if row:
            DAMAGED_ROWS.inc()
        return None
    return _bounded(group, decoded, latest_ms)


def _bounded(group: FeatureGroup, row: Row, latest_ms: int) -> Row:
    """The row, its times brought back to `latest_ms`. A history's newest become equally old."""
    times = _times_of(group)
    newest_ms = max((int(row.record[name].flat[0]) for name in times), default=0)  # of a history
    if max(newest_ms, row.event_time_ms) <= latest_ms:
        return row
    FUTURE_ROWS.inc()
    for name in times:
        row.record[name] = np.minimum(row.record[name], latest_ms)
    return row._replace(event_time_ms=min(row.event_time_ms, latest_ms))


def _times_of(group: FeatureGroup) -> Sequence[str]:
    """The features that hold times, of a history the newest first."""
    if group.name == "profile":
        return [name for name in group.dtype.names or () if name.startswith("last_")]
    return [_TIMES[group.name]] if group.name in _TIMES else ()


def _record(group: FeatureGroup, row: Row | None) -> np.ndarray:
    return group.defaults() if row is None else row.record


def _folded(
    entity_id: str,
    groups: Sequence[FeatureGroup],
    records: Sequence[np.ndarray],
    rows: Sequence[bytes | None],
    before: Sequence[Row | None],
    fresh: list[Delivery],
) -> Folded:
    """What to write of an entity: those of its records that are not what its rows hold."""
    times = [row.event_time_ms for row in before if row is not None]
    newest_ms = max(times + [d.event.event_time_ms for d in fresh])
    guard, expected = groups[0], row_version(rows[0])
    version = codec.next_version(expected)
    changed = {}
    for group, record, row, decoded in zip(groups, records, rows, before, strict=True):
        layout = codec.layout_over(group, row)
        values = codec.values(group, record, layout, row)
        time_ms = newest_ms
        if _differs(layout, values, row, decoded):
            if group.name in SELDOM:  # in whatever batches events come, its time is the same
                time_ms = int(record[_TIMES[group.name]].flat[0]) or newest_ms
        elif not decoded or newest_ms - decoded.event_time_ms <= group.ttl_ms // 4:
            continue  # else it is written again, not to expire while its entity lives
        changed[group.name] = codec.packed(layout, values, time_ms, version)
    return Folded(GuardedWrite(entity_id, guard.name, expected, changed), fresh)


def _differs(layout: FeatureGroup, values: bytes, row: bytes | None, decoded: Row | None) -> bool:
    """Whether what is written of a record is not what its row holds, or the row is damaged."""
    if not row:
        return values != layout.defaults().tobytes()
    if decoded is None or event_time_of(row) != decoded.event_time_ms:
        return True
    return codec.layout_hash(row) != layout.hash or not row.endswith(values)
