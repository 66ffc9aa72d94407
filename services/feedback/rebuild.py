"""A feature store made from the event log: emptied, then filled by the updater's own code.

For a store that was lost, emptied or put back from a backup, for one of another log, and for rows
in a layout that is no more. It is a feature updater like any other, on an emptied store and from
the earliest record on: broken off, it leaves a store that is refused until it is run again (while
it empties), or one that any updater goes on with (while it fills).

Imported events that the log does not hold come first (`history.py`), in the order of time, then the
log. Not in the result: what users did before the oldest record that the log retains and was not
imported, and what was written otherwise. Equal to what a store that followed live
holds: users' rows exactly; items' counters up to rounding, because partitions are read in another
order; and an event that was refused when it came, because it lay ahead of the clock, counts once
the clock has reached it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from feature_store.interface import FeatureStore
from models.catalogue import ItemTable
from models.data.errors import DataError
from models.data.own.tables import OwnTables
from models.data.own.wanted import TableName
from services.catalogue.follower import catalogue_now
from services.common.clock import epoch_ms
from services.common.own_data import digest_of, own_tables
from services.common.schema import schema_of
from services.common.settings import Settings
from services.event_log.connect import connect
from services.event_log.interface import Consumer, EventLog
from services.event_log.topics import FEEDBACK
from services.feedback import backfill
from services.feedback.imported_history import history_of
from services.feedback.store_log import GROUP, claim, empty, open_store
from services.feedback.updater import worker_of

FOLDED: tuple[TableName, ...] = ("events", "users")  # the imported tables that are in the rows
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
    sentences: tuple[str, ...] = ()  # of how what was imported and the log meet


def rebuild(
    settings: Settings,
    store: FeatureStore,
    event_log: EventLog,
    items: ItemTable,
    *,
    own: OwnTables | None = None,
    digest: int = 0,
    clock_ms: Callable[[], int] = epoch_ms,
    on_progress: Callable[[int, int], None] = lambda read, left: None,
    leave_s: float = LEAVE_S,
) -> Rebuilt:
    """Empty the store and fill it with what `own` tables hold, then with all retained feedback,
    until nothing is left to read. `digest` (64 bits) is noted as theirs.

    `on_progress` gets the records read and those left. Raises UpdaterRuns before anything is
    changed when other members of the updaters' group have not left after `leave_s`; StoreRefused,
    LogWentBack, and what store and log raise when they fail: run it again then.
    """
    with contextlib.closing(_alone(event_log, leave_s)) as consumer:
        schema = schema_of(settings)
        made = schema.groups.keys() - {schema.layout.given.name}  # which no event has made
        past = own and history_of(own, event_log, settings.feedback.poll_records)
        written = 0

        def fill() -> int:
            nonlocal written
            written = backfill.imported(store, past.own, items) if past else 0
            return digest

        deleted = empty(store, event_log, made, clock_ms(), fill)
        claim(store, event_log, settings, clock_ms())
        worker = worker_of(settings, store, event_log, consumer, lambda: items, clock_ms)
        read, next_progress = 0, 0.0
        while True:
            polled = worker.step(POLL_S)
            read += polled
            if not polled or time.monotonic() >= next_progress:
                next_progress = time.monotonic() + PROGRESS_S
                left = consumer.lag().events
                on_progress(read, left)
                # Of partitions that were taken away (this process was held up) none are left.
                if not left and len(consumer.assigned()) == event_log.partitions(FEEDBACK):
                    said = tuple(past.sentences) if past else ()
                    return Rebuilt(deleted, written, read, dict(worker.outcomes), said)


def rebuild_all(
    settings: Settings,
    folder: Path | None,
    on_progress: Callable[[int, int], None] = lambda read, left: None,
) -> Rebuilt:
    """`rebuild` of the settings' store from their log and what was imported into `folder`, with the
    items of the catalogue. Raises what `rebuild` does, DataError for the tables, and ValueError for
    a URL."""
    own = None if folder is None else own_tables(settings, folder)
    digest = 0 if folder is None else digest_of(folder, *FOLDED)
    with contextlib.ExitStack() as opened:
        event_log = opened.enter_context(
            contextlib.closing(connect(settings.event_log, settings.installation))
        )
        store = opened.enter_context(contextlib.closing(open_store(settings)))
        items = catalogue_now(settings, event_log).items
        if not len(items):
            raise DataError(
                "the catalogue holds no item, and what users did is judged by the items' fields:"
                " bring them first (`tandem items sync FILE`; `tandem serve` brings imported ones)"
            )
        return rebuild(
            settings, store, event_log, items, own=own, digest=digest, on_progress=on_progress
        )


def told(done: Rebuilt) -> list[str]:
    """What was done, in sentences."""
    outcomes = ", ".join(f"{n} {outcome}" for outcome, n in sorted(done.outcomes.items()))
    return [
        f"{done.deleted} rows deleted; {done.imported} users and items imported; {done.records}"
        f" records read: {outcomes or 'none'}.",
        *done.sentences,
    ]


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
