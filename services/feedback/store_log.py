"""Which event log the rows of a feature store come from, and how far it was read into them.

Rows remember offsets: what is at or below one was applied before. That holds for the log that they
were made from, and only as long as it does not go back. With another log, a topic that was deleted
and made anew, or a log put back from a backup, new events would be taken for applied ones, without
a word; in a store that was emptied or put back from a backup, events between it and the log's
positions would be missing. So the store has two notes, and no updater works where they disagree
with the log (one that is only behind the group's positions is mended: the log is read again):

* SOURCE names the topic that was read (`EventLog.identity`), and what was imported before it;
* APPLIED says, per partition, before which offset every record is in the rows.

A batch is written in the order items, users, APPLIED, and then the consumer commits. So at every
moment, however a worker ends:

    committed position <= APPLIED <= end of the log,

and rows may be ahead of APPLIED by the batch at hand, which the replay finds applied. APPLIED is
never ahead of rows. It only grows: a worker that lost a partition meanwhile does not set it back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping

import structlog
import xxhash

from feature_store import codec
from feature_store.interface import FeatureStore, FeatureStoreUnfit, RowKey
from feature_store.urls import public
from models.schema.groups import FeatureGroup
from models.schema.progress import APPLIED, MAX_PARTITIONS, SOURCE
from services.common.feature_store import store_of
from services.common.settings import Settings
from services.event_log.connect import connect as connect_log
from services.event_log.interface import EventLog
from services.event_log.topics import FEEDBACK

log = structlog.get_logger(__name__)

ATTEMPTS = 10
GROUP = "feature-updater"
IMPORTED = "imported"  # beside the log's: the digest of the tables that were imported, 0 for none
REBUILDING = 0  # the identity in SOURCE while `empty` is at work
NO_IDENTITY = 1  # of a log of the first version
# A worker is in no hurry: with the request path's timeout a slow disk would turn into replays.
STORE_TIMEOUT_MS = 2_000.0

_REMEDY = (
    "Stop the updaters and run `tandem features rebuild`: it empties the feature store and makes it"
    " from the log"
)


class StoreRefused(Exception):
    """This store cannot be worked on as things are; the message says why and what to do."""


class OtherLog(StoreRefused):
    """The store and the log do not belong together, or not any more."""


class ForeignLayout(StoreRefused):
    """A row has a layout that neither schema.yaml nor schema.lock knows."""

    def __init__(self, group: FeatureGroup, found: int) -> None:
        super().__init__(
            f"the feature store holds rows of group {group.name!r} in layout {found:016x}, which"
            f" this process does not know: it has {group.hash:016x} and those of its schema.lock."
            f" Nothing of them was overwritten. Give it the schema.lock of who wrote them: a new"
            f" layout is read everywhere before `schema_write` lets anybody write it. If the schema"
            f" went back for good, stop the updaters and run `tandem features rebuild`: it empties"
            f" the feature store and makes it from the log"
        )


def open_store(settings: Settings) -> FeatureStore:
    """The settings' store, with a worker's patience. Raises StoreRefused where none can help, a
    URL that names no store included."""
    try:
        return store_of(settings, STORE_TIMEOUT_MS)
    except (FeatureStoreUnfit, ValueError) as error:
        raise StoreRefused(str(error)) from error


def claim(store: FeatureStore, event_log: EventLog, settings: Settings, now_ms: int) -> None:
    """Note that the store follows this log's feedback; before anything writes rows.

    A group that has read further than the store is made to read the log again. Raises OtherLog
    where store and log do not belong together (see above), ForeignLayout, StoreRefused, and what
    store and log raise when they cannot be reached.
    """
    names = _Names(settings)
    with _unfit_is_refused():
        # Before the marks: the other way round a worker that goes on meanwhile would be refused.
        positions = event_log.positions(FEEDBACK, GROUP)
        if (identity := _identity(event_log)) and _noted(store, FEEDBACK) is None:
            if any(positions.values()):
                raise OtherLog(names.emptied(positions))
            _note(store, FEEDBACK, identity, now_ms)
        verify(store, event_log, settings)
        applied = _applied(store, event_log.partitions(FEEDBACK))
        if not applied:  # a new store, or of a version without marks: what was committed is in it
            advance(store, positions, now_ms)
            return
        starts = event_log.start_offsets(FEEDBACK)  # a group may begin there without any record
        for partition, offset in sorted(positions.items()):
            if offset > max(there := applied.get(partition, 0), starts[partition]):
                _read_again(event_log, names.store_went_back(partition, there, offset))
                return


def verify(store: FeatureStore, event_log: EventLog, settings: Settings) -> None:
    """That the store still follows this log and the log has not gone back; while it is read.

    Raises as `claim`. A few reads of the store and of the log's ends.
    """
    names = _Names(settings)
    with _unfit_is_refused():
        if identity := _identity(event_log):  # logs of the first version may have none
            known = _noted(store, FEEDBACK)
            if known is None:
                raise OtherLog(names.vanished())
            if known == REBUILDING:
                raise OtherLog(names.rebuilding())
            if known != identity:
                raise OtherLog(names.other_log())
        # Before the ends, which grow: the other way round a worker that goes on meanwhile would be
        # refused.
        applied = _applied(store, event_log.partitions(FEEDBACK))
        ends = event_log.end_offsets(FEEDBACK)
        if len(ends) > MAX_PARTITIONS:
            raise StoreRefused(
                f"topic {FEEDBACK!r} has {len(ends)} partitions; item rows keep the offsets of"
                f" {MAX_PARTITIONS}: use a topic with fewer"
            )
        for partition, offset in sorted(applied.items()):
            if offset > (end := ends[partition] if partition < len(ends) else 0):
                raise OtherLog(names.log_went_back(partition, end, offset))


def advance(store: FeatureStore, offsets: Mapping[int, int], now_ms: int) -> None:
    """Note that every record before these offsets (by partition) is in the rows."""
    left = dict(offsets)
    for _ in range(ATTEMPTS):
        rows = store.read([_mark(partition) for partition in left])
        writes = {}
        for (partition, offset), row in zip(left.items(), rows, strict=True):
            found = readable(APPLIED, row)
            if found is None or int(found.record["next_offset"]) < offset:
                record = APPLIED.defaults()
                record["next_offset"] = offset
                writes[partition] = codec.guarded_write(
                    _mark(partition).entity_id,
                    APPLIED,
                    codec.row_version(row),
                    {APPLIED: record},
                    now_ms,
                )
        done = store.write(list(writes.values())) if writes else []
        left = {p: left[p] for p, ok in zip(writes, done, strict=True) if not ok}
        if not left:
            return
    raise RuntimeError("the rows that say how far the log was read are written all the time")


def _read_again(event_log: EventLog, cause: str) -> None:
    """Let the updaters begin at the oldest record: rows went back together with what they say is
    applied, so exactly the records that they lack will count."""
    event_log.forget_groups(FEEDBACK, GROUP)
    if event_log.positions(FEEDBACK, GROUP):
        raise OtherLog(f"{cause}. Stop all updaters, then start them: they will read the log again")
    log.warning("log_is_read_again", cause=cause)


def empty(
    store: FeatureStore,
    event_log: EventLog,
    groups: Collection[str],
    now_ms: int,
    fill: Callable[[], int] = lambda: 0,
) -> int:
    """Delete every row that the log's feedback has made, of all `groups` of the schema, and write
    what was imported with `fill`, which gives its digest; the store follows this log from then on.

    Returns how many were deleted. Nobody may write meanwhile. Broken off in the middle it leaves a
    store that `claim` and `verify` refuse.
    """
    with _unfit_is_refused():
        _note(store, FEEDBACK, REBUILDING, now_ms, over=True)
        deleted = store.clear(set(groups) - {SOURCE.name})
        _note(store, IMPORTED, fill(), now_ms, over=True)
        _note(store, FEEDBACK, _identity(event_log) or NO_IDENTITY, now_ms, over=True)
    return deleted


def imported_into(store: FeatureStore) -> int | None:
    """The digest of the imported tables that are in the rows, 0 for none; None: it is not noted, as
    in a store that nobody has filled, or a former version has."""
    return _noted(store, IMPORTED)


def is_new(store: FeatureStore, settings: Settings) -> bool:
    """Whether nobody has read the settings' log into a store yet, nor filled this one.

    That it names no log is not enough: a log of the first version, or of Kafka before 2.8, has no
    identity. The log is asked only where the store does not say. Raises what they raise when they
    cannot be reached.
    """
    if _noted(store, FEEDBACK) is not None:
        return False
    with contextlib.closing(connect_log(settings.event_log, settings.installation)) as event_log:
        applied = _applied(store, event_log.partitions(FEEDBACK))
        return not applied and not any(event_log.positions(FEEDBACK, GROUP).values())


@contextlib.contextmanager
def _unfit_is_refused() -> Iterator[None]:
    """What no waiting mends is a refusal."""
    try:
        yield
    except FeatureStoreUnfit as error:
        raise StoreRefused(str(error)) from error


class _Names:
    """The sentences, with the URLs of the settings (without their passwords)."""

    def __init__(self, settings: Settings) -> None:
        self._store = public(settings.feature_store.url)
        self._log = public(settings.event_log.url)

    def other_log(self) -> str:
        return (
            f"the features in {self._store} were made from another event log than {self._log} (or"
            f" its topic {FEEDBACK!r} was made anew): new events would be taken for old ones."
            f" {_REMEDY}. Or set both URLs as they were"
        )

    def log_went_back(self, partition: int, end: int, applied: int) -> str:
        return (
            f"the event log {self._log} ends at offset {end} of partition {partition} of topic"
            f" {FEEDBACK!r}, but the features in {self._store} were made from its records up to"
            f" offset {applied}: it went back (was it restored from a backup?), and new events"
            f" would be taken for old ones. {_REMEDY}. Or put back the log as it was"
        )

    def store_went_back(self, partition: int, applied: int, position: int) -> str:
        return (
            f"the features in {self._store} were made from records up to offset {applied} of"
            f" partition {partition} of topic {FEEDBACK!r}, but updaters of {self._log} have read"
            f" up to offset {position}: the store went back (a restored backup, or a server that"
            " lost its last writes), and the events between are missing"
        )

    def emptied(self, positions: Mapping[int, int]) -> str:
        return (
            f"the feature store {self._store} names no event log, but updaters of {self._log} have"
            f" read {sum(positions.values())} records of topic {FEEDBACK!r} into one: it was"
            f" emptied, or it is another. What they wrote would be missing. {_REMEDY}"
        )

    def vanished(self) -> str:
        return (
            f"the feature store {self._store} does not name its event log any more: it was emptied"
            f" (FLUSHALL?) or replaced while it was written to. {_REMEDY}"
        )

    def rebuilding(self) -> str:
        return (
            f"the feature store {self._store} is being made anew from the event log, or that was"
            " broken off. Wait for `tandem features rebuild`, or run it again"
        )


def _identity(event_log: EventLog) -> int | None:
    identity = event_log.identity(FEEDBACK)
    return xxhash.xxh3_64_intdigest(identity.encode()) if identity else None


def _noted(store: FeatureStore, what: str) -> int | None:
    (row,) = store.read([RowKey(SOURCE.name, what)])
    found = readable(SOURCE, row)
    return None if found is None else int(found.record["identity"])


def _note(
    store: FeatureStore, what: str, identity: int, now_ms: int, *, over: bool = False
) -> None:
    """`over`: whatever stands there; otherwise another worker's stays, and `verify` judges it."""
    record = SOURCE.defaults()
    record["identity"] = identity
    for _ in range(ATTEMPTS):
        (row,) = store.read([RowKey(SOURCE.name, what)])
        if not over and readable(SOURCE, row) is not None:
            return
        version = codec.row_version(row)
        write = codec.guarded_write(what, SOURCE, version, {SOURCE: record}, now_ms)
        if store.write([write])[0]:
            return
    raise RuntimeError("the row that names the store's log is written by others all the time")


def _applied(store: FeatureStore, partitions: int) -> dict[int, int]:
    rows = store.read([_mark(p) for p in range(partitions)])
    found = {p: readable(APPLIED, row) for p, row in enumerate(rows)}
    return {p: int(mark.record["next_offset"]) for p, mark in found.items() if mark is not None}


def _mark(partition: int) -> RowKey:
    return RowKey(APPLIED.name, f"{FEEDBACK}/{partition}")


def readable(group: FeatureGroup, row: bytes | None) -> codec.Row | None:
    """The row; None where there is none, or a damaged one, which says nothing.

    Raises ForeignLayout.
    """
    if not row:
        return None
    try:
        found = codec.decode(group, row)
    except codec.RowCorrupt as error:
        log.error("corrupt_row", group=group.name, error=str(error))
        return None
    if found is None:
        raise ForeignLayout(group, codec.layout_hash(row))
    return found
