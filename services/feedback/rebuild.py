"""A feature store made from the event log: emptied, then filled by the updater's own code.

For a store that was lost, emptied or put back from a backup, for one of another log, and for rows
in a layout that is no more. It is a feature updater like any other, on an emptied store and from
the earliest record on: broken off, it leaves a store that is refused until it is run again (while
it empties), or one that any updater goes on with (while it fills).

Not in the result: what users did before the oldest record that the log retains, unless it was
imported (`tandem import`), and what was written otherwise. Equal to what a store that followed live
holds: users' rows exactly; items' counters up to rounding, because partitions are read in another
order; and an event that was refused when it came, because it lay ahead of the clock, counts once
the clock has reached it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from feature_store.interface import FeatureStore
from models.catalogue import ItemTable
from models.data.own.tables import OwnTables
from services.common.schema import schema_of
from services.common.settings import Settings
from services.event_log.interface import Consumer, EventLog
from services.event_log.topics import FEEDBACK
from services.feedback import backfill
from services.feedback.ahead import epoch_ms
from services.feedback.source import GROUP, claim, empty
from services.feedback.updater import worker_of

LEAVE_S = 15.0  # a killed worker's place is kept for ten seconds by Kafka
PROGRESS_S = 1.0
POLL_S = 0.2


class UpdaterRuns(Exception):
    """Somebody else reads the log into a store; the message says what to do."""


class Rebuilt(NamedTuple):
    """What became of the rows and the records."""

    deleted: int
    imported: int  # users and items
    records: int
    outcomes: Mapping[str, int]  # applied, duplicate, invalid


def rebuild(
    settings: Settings,
    store: FeatureStore,
    event_log: EventLog,
    items: ItemTable,
    *,
    own: OwnTables | None = None,
    clock_ms: Callable[[], int] = epoch_ms,
    on_progress: Callable[[int, int], None] = lambda read, left: None,
    leave_s: float = LEAVE_S,
) -> Rebuilt:
    """Empty the store and fill it with what `own` tables hold, then with all retained feedback,
    until nothing is left to read.

    `on_progress` gets the records read and those left. Raises UpdaterRuns before anything is
    changed when other members of the updaters' group have not left after `leave_s`; StoreRefused,
    LogWentBack, and what store and log raise when they fail: run it again then.
    """
    with contextlib.closing(_alone(event_log, leave_s)) as consumer:
        schema = schema_of(settings)
        made = schema.groups.keys() - {schema.layout.given.name}  # which no event has made
        deleted = empty(store, event_log, made, clock_ms())
        claim(store, event_log, settings, clock_ms())
        written = 0 if own is None else backfill.imported(store, own, items)
        worker = worker_of(settings, store, event_log, consumer, lambda: items, clock_ms)
        read, next_progress = 0, 0.0
        while True:
            polled = worker.step(POLL_S)
            read += polled
            if not polled or time.monotonic() >= next_progress:
                next_progress = time.monotonic() + PROGRESS_S
                left = consumer.lag().events
                on_progress(read, left)
                if not left:
                    return Rebuilt(deleted, written, read, dict(worker.outcomes))


def _alone(event_log: EventLog, leave_s: float) -> Consumer:
    """The only member of the updaters' group, at the beginning of every partition."""
    deadline = time.monotonic() + leave_s
    pause = threading.Event()
    while event_log.forget_groups(FEEDBACK, GROUP) == 0 and event_log.positions(FEEDBACK, GROUP):
        if time.monotonic() >= deadline:
            raise UpdaterRuns(_SENTENCE)
        pause.wait(POLL_S)
    partitions = frozenset(range(event_log.partitions(FEEDBACK)))
    consumer = event_log.consumer(FEEDBACK, GROUP)
    try:
        while consumer.assigned() != partitions:
            if time.monotonic() >= deadline:
                raise UpdaterRuns(_SENTENCE)
            consumer.poll(1, POLL_S)
        consumer.rewind()
    except BaseException:
        consumer.close()
        raise
    return consumer


_SENTENCE = (
    f"feature updaters are reading topic {FEEDBACK!r} (group {GROUP!r}): stop them, on every"
    " machine, and run this again"
)
