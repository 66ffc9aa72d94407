"""What users did through this router that the feature store may not show yet.

An answer knows every event that was acknowledged before it was asked for, also while the feature
updater is behind: the router keeps the events that it has acknowledged, and folds those that a
user's rows lack into the rows it has read, with the fold that the updater uses. Which they are say
the user's delivery rows, which hold the ids of what was applied; they are read along with the
other rows, for users of whom anything is kept. What was found applied is forgotten.

Not guaranteed: events that another router acknowledged (they count once the updater has applied
them), those that the updater has not applied after KEEP_S, and those of users whose turn it was to
go because MAX_EVENTS later ones were kept.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from feature_store import codec
from feature_store.codec import RowCorrupt
from models.catalogue import ItemTable, item_key
from models.schema.compiled import Schema
from models.schema.fold import Event, UserState, Values
from models.schema.groups import FeatureGroup
from models.schema.progress import (
    EVENT_IDS,
    USER_DELIVERY,
    USER_OLDER,
    applied_ids,
    event_id_digest,
)
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services.feedback.deliveries import event_of

MAX_EVENTS = 20_000  # of all users together: some 10 MB
MANY = 32  # of one user: what they make of his rows is kept, for folding takes over half a ms
KEEP_S = 3_600.0  # an event that never appears (a dead letter, say) must not count for ever


class _Kept(NamedTuple):
    event: Event
    until_s: float


class _Folded(NamedTuple):
    """What some events made of some rows."""

    of: tuple[object, ...]
    rows: tuple[bytes, bytes | None]


class RecentFeedback:
    """Acknowledged events by user, until they are seen to be applied. Used by one event loop."""

    def __init__(
        self,
        schema: Schema,
        items: Callable[[], ItemTable],
        max_events: int = MAX_EVENTS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`items` gives the item table in force: of known items the values are folded, too."""
        self._fold = schema.fold
        self._profile, self._history = schema.layout.profile, schema.layout.history
        self._items = items
        self._max_events = max_events
        self._monotonic = monotonic
        self._by_user: OrderedDict[str, dict[int, _Kept]] = OrderedDict()  # by hash of the event id
        self._folded: dict[str, _Folded] = {}  # of users with MANY
        self._count = 0
        self.users = self._by_user.keys()  # of whom anything is kept: a view

    def add(self, events: Sequence[FeedbackEvent]) -> None:
        """Keep events that have just been acknowledged, in the order in which they were."""
        until_s = self._monotonic() + KEEP_S
        for event in events:
            of_user = self._by_user.setdefault(event.user_id, {})
            self._by_user.move_to_end(event.user_id)
            digest = event_id_digest(event.event_id)
            if digest in of_user:
                continue  # sent again
            if len(of_user) == EVENT_IDS:  # its row would not know it any more
                del of_user[next(iter(of_user))]
                self._count -= 1
            of_user[digest] = _Kept(event_of(event, item_key(event.item_id)), until_s)
            self._count += 1
        while self._count > self._max_events:
            user_id, gone = self._by_user.popitem(last=False)
            self._count -= len(gone)
            self._folded.pop(user_id, None)

    def over(
        self,
        user_id: str,
        profile_row: bytes | None,
        history_row: bytes | None,
        delivery_row: bytes | None,
        older_row: bytes | None,
    ) -> tuple[bytes | None, bytes | None]:
        """Profile and history row as the updater will have written them once it is through.

        Rows that cannot be read (damaged, or of another layout) are given back as they are.
        """
        kept = self._by_user.get(user_id)
        if kept is None:
            return profile_row, history_row
        try:
            applied_rows = codec.split_delivery(delivery_row, older_row)
            delivery, _ = _decoded(USER_DELIVERY, applied_rows[0])
            older, _ = _decoded(USER_OLDER, applied_rows[1])
            profile, profile_ms = _decoded(self._profile, profile_row)
            history, history_ms = _decoded(self._history, history_row)
        except RowCorrupt:
            return profile_row, history_row
        self._forget(user_id, kept, applied_ids(delivery, older))
        if not kept:
            return profile_row, history_row
        which = (next(iter(kept)), next(reversed(kept)), len(kept))
        of = (profile_row, history_row, self._items().fingerprint, *which)
        folded = self._folded.get(user_id)
        if folded is not None and folded.of == of:
            return folded.rows
        state, history_before = UserState(profile, history, delivery, older), history.tobytes()
        events = [of_user.event for of_user in kept.values()]
        for event, values in zip(events, self._values(events), strict=True):
            self._fold.user(state, event, values)
        newest_ms = max(profile_ms, history_ms, *(event.event_time_ms for event in events))
        version = codec.row_version(delivery_row) + 1
        if state.history.tobytes() != history_before:  # else the updater will not write it
            history_ms = int(state.history["event_times_ms"][0])
            history_row = codec.encode(
                self._history, state.history, history_ms, version, history_row
            )
        profile_row = codec.encode(self._profile, state.profile, newest_ms, version, profile_row)
        rows = (profile_row, history_row)
        if len(kept) > MANY:
            self._folded[user_id] = _Folded(of, rows)
        return rows

    def _forget(self, user_id: str, kept: dict[int, _Kept], applied: np.ndarray) -> None:
        """Keep no more what is applied, or should have been long ago."""
        digests = np.fromiter(kept, np.uint64, len(kept))
        applied = np.isin(digests, applied)
        now_s = self._monotonic()
        for digest, is_applied in zip(digests.tolist(), applied, strict=True):
            if is_applied or kept[digest].until_s < now_s:
                del kept[digest]
                self._count -= 1
        if len(kept) <= MANY:
            self._folded.pop(user_id, None)
        if not kept:
            del self._by_user[user_id]

    def _values(self, events: Sequence[Event]) -> list[Values | None]:
        """Of each event's item; None for an item that the table does not hold."""
        items = self._items()
        keys = np.fromiter((e.item_key for e in events), np.uint64, len(events))
        return items.values_of(items.index_of(keys), self._fold.item_fields)


def _decoded(group: FeatureGroup, row: bytes | None) -> tuple[np.ndarray, int]:
    """The record of a row and its event time; of no row the defaults and 0.

    RowCorrupt for a row that cannot be read, whatever the reason.
    """
    if not row:
        return group.defaults(), 0
    decoded = codec.decode(group, row)
    if decoded is None:
        raise RowCorrupt(f"a row of another layout than group {group.name!r} has")
    return decoded.record, decoded.event_time_ms
