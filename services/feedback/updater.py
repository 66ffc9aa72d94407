"""The feature updater: feedback events from the log into user and item rows of the feature store.

It closes the loop of a request: what a user did is in the features that the next request reads. One
or more processes share the partitions of topic `feedback` as group `feature-updater`.

Every event counts once, although records are delivered at least once and clients send twice:

* A user's events lie in one partition (the log is keyed by user id), in order. The user's delivery
  row (watermark per partition, ring of event ids) is written together with what it describes, so
  whether a record is fresh for its user follows from the log before it alone: every worker and
  every replay decides alike, as long as the user row has not passed the record.
* Per batch, ITEMS ARE WRITTEN FIRST, THEN USERS, THEN the consumer commits. A crash before the
  items: nothing happened. A crash between items and users: the replay finds the same records fresh
  for their users; an item's own watermark refuses those it has counted and takes the others (each
  item's write is all or nothing), so none is lost and none counts twice. A crash between users and
  commit: the replay finds nothing fresh, and the items needed nothing more, being written before.
* A client's retry is a second record at a later offset. Its user's ring refuses it: in the same
  batch, because the fold goes through the batch in order; after any crash, because the replay
  starts at or before the first copy, folds that one first and puts its id into the ring again.
  Only fresh records touch items, so the retry never reaches their counters, and an item's watermark
  is always the offset of a record that counted.
* A refused guard means that another worker wrote the entity meanwhile (items are shared by all
  partitions; users only while a partition changes hands). The entity is read and folded again: what
  the other worker applied is then below the watermark. Users follow only when all items are in.

Not guaranteed: a retry more than EVENT_ID_RING events of its user later counts again; so may one
that lands in another partition (after re-partitioning) while the first copy is still in flight; the
store and the log belong together (`source.claim` sees to it): with another log's offsets,
watermarks refuse new records.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Histogram

import feature_store.connect
import services.event_log.connect
from feature_store.codec import Row, RowCorrupt, decode, guarded_write, row_version
from feature_store.interface import FeatureStore, FeatureStoreUnavailable, GuardedWrite, RowKey
from models.catalogue import ItemTable
from models.features import (
    Event,
    ItemState,
    UserState,
    admit_item_event,
    admit_user_event,
    fold_item,
    fold_user,
)
from models.schema import (
    CLICK,
    COUNTERS,
    HISTORY,
    IMPRESSION,
    ITEM_DELIVERY,
    LIKE,
    MAX_PARTITIONS,
    PROFILE,
    USER_DELIVERY,
    FeatureGroup,
    item_key,
)
from protos.tandem.v1 import records_pb2
from services.common import telemetry
from services.common.catalogue import CurrentCatalogue
from services.common.discovery import Announcement, replica_folder
from services.common.settings import Settings
from services.common.stopping import stop_on_sigterm
from services.common.telemetry import OwnedGauge
from services.event_log.interface import (
    MAX_RECORD_BYTES,
    Consumer,
    EventLog,
    LogRecord,
    LogSaturated,
    LogUnavailable,
    Record,
)
from services.feedback.source import claim

log = structlog.get_logger(__name__)

TOPIC, GROUP, DEAD_LETTERS = "feedback", "feature-updater", "feedback.dlq"

POLL_S = 0.5  # the longest that SIGTERM waits for an idle worker
APPEND_S = 10.0  # for the dead letters to be durable
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.1, 5.0  # a Kafka group evicts a member silent for minutes
GUARD_ATTEMPTS = 8
SWEEP_EVERY_MS = 3_600_000
LAG_EVERY_MS = 1_000  # Kafka's lag is asked of the broker: once a second is enough
CATALOGUE_POLL_S = 1.0
# A worker is in no hurry: with the request path's timeout a slow disk would turn into replays.
STORE_TIMEOUT_MS = 2_000.0

USER_GROUPS = (USER_DELIVERY, PROFILE, HISTORY)  # the guard first: read before what it guards
ITEM_GROUPS = (ITEM_DELIVERY, COUNTERS)

MAX_ID_BYTES = 256
MAX_TIME_MS = 253_402_300_799_999  # the end of the year 9999; expiries beyond overflow

EVENTS = Counter(
    "tandem_updater_events_total",
    "Feedback records by what became of them: invalid says that a sender or the edge's validation"
    " is broken (see topic feedback.dlq), duplicate how much is replayed or sent twice; what"
    " a write had done when its connection broke is found by the replay and counts as duplicate.",
    ["outcome"],
)
APPLIED, DUPLICATE, INVALID = (EVENTS.labels(o) for o in ("applied", "duplicate", "invalid"))
BATCH_SECONDS = Histogram(
    "tandem_updater_batch_seconds",
    "Time from a polled batch to its commit; with the batch's events it says what one worker can"
    " carry and when to add another.",
    buckets=telemetry.LATENCY_BUCKETS,
)
BATCH_EVENTS = Histogram(
    "tandem_updater_batch_events",
    "Records per polled batch: always at feedback.poll_records means that the worker is behind.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
)
LAG_EVENTS = OwnedGauge(
    "tandem_updater_lag_events",
    "Records in this worker's partitions that it has not polled: growing means add workers.",
)
LAG_SECONDS = OwnedGauge(
    "tandem_updater_lag_seconds",
    "Age of the oldest record not yet polled: how far features trail behind what users did.",
)
DELAY_SECONDS = Histogram(
    "tandem_updater_feedback_delay_seconds",
    "From an event's own time to its being in the feature store; the freshness promise is set on"
    " this.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3_600, 86_400),
)
UNAVAILABLE = Counter(
    "tandem_updater_unavailable_total",
    "Batches put back because the store or the log did not answer or guards kept being refused;"
    " while it grows, features stand still and nothing is lost.",
    ["cause"],
)
DAMAGED_ROWS = Counter(
    "tandem_updater_damaged_rows_total",
    "Rows read corrupt or under another schema and begun anew from the defaults; expected only"
    " after a schema change.",
)


class Contended(Exception):
    """Guards were refused again and again: too many workers write the same entities."""


_PUT_BACK = (FeatureStoreUnavailable, LogUnavailable, LogSaturated, TimeoutError, Contended)


class Delivery(NamedTuple):
    """One valid record as the fold needs it; `genres` is None for an unknown item."""

    partition: int
    offset: int
    item_id: str
    event: Event
    genres: np.ndarray | None


class Folded(NamedTuple):
    """An entity after the fold: what to write (None: nothing changed) and what it counted."""

    write: GuardedWrite | None
    fresh: list[Delivery]


Fold = Callable[[str, Sequence[bytes | None], Sequence[Delivery]], Folded]


class FeatureUpdater:
    """One worker. Used by one thread; `run` until told to stop, or `step` by step."""

    def __init__(
        self,
        store: FeatureStore,
        event_log: EventLog,
        consumer: Consumer,
        items: Callable[[], ItemTable],
        *,
        clock_ms: Callable[[], int],
        poll_records: int = 500,
    ) -> None:
        """`consumer` reads TOPIC of `event_log`, which also takes the dead letters; `items` gives
        the item table in force, asked once per batch."""
        self._store = store
        self._log = event_log
        self._consumer = consumer
        self._items = items
        self._clock_ms = clock_ms
        self._poll_records = poll_records
        self._put_back = False
        self._next_sweep_ms = self._next_lag_ms = clock_ms()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; the batch at hand is finished. Outages are waited out."""
        backoff_s = FIRST_BACKOFF_S
        while not stop.is_set():
            try:
                self.step(POLL_S)
                self._sweep_when_due()
                backoff_s = FIRST_BACKOFF_S
            except _PUT_BACK as error:
                log.warning("updater_waits", cause=str(error), seconds=backoff_s)
                stop.wait(backoff_s)
                backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    def step(self, timeout_s: float) -> int:
        """Poll one batch, apply it and commit; the number of records, 0 when none came in time.

        Raises what the store or the log raised, or Contended: nothing is committed then, and the
        next step begins with the same records again.
        """
        try:
            if self._put_back:
                self._consumer.rewind()
                self._put_back = False
            records = self._consumer.poll(self._poll_records, timeout_s)
            if records:
                with BATCH_SECONDS.time():
                    self._apply(records)
                    self._consumer.commit()
                BATCH_EVENTS.observe(len(records))
            self._measure_lag_when_due()
        except _PUT_BACK as error:
            self._put_back = True
            UNAVAILABLE.labels(type(error).__name__).inc()
            raise
        return len(records)

    def _measure_lag_when_due(self) -> None:
        now_ms = self._clock_ms()
        if now_ms >= self._next_lag_ms:
            self._next_lag_ms = now_ms + LAG_EVERY_MS
            lag = self._consumer.lag()
            LAG_EVENTS.set(lag.events)
            LAG_SECONDS.set(lag.seconds)

    def _apply(self, records: Sequence[LogRecord]) -> None:
        deliveries, dead = parse(records, self._items())
        if dead:
            self._bury(dead)
        by_user = _grouped(deliveries, lambda d: d.event.user_id)
        users = self._fold(USER_GROUPS, by_user, fold_user_rows)
        fresh = {(d.partition, d.offset) for folded in users.values() for d in folded.fresh}
        # In the batch's order, not user by user: an item's late events are then the late ones.
        counted = [d for d in deliveries if (d.partition, d.offset) in fresh]
        by_item = _grouped(counted, lambda d: d.item_id)
        items = self._fold(ITEM_GROUPS, by_item, fold_item_rows)
        for _ in self._write(ITEM_GROUPS, by_item, fold_item_rows, items):
            pass  # what counts is what the users' rows counted
        applied = 0
        for written in self._write(USER_GROUPS, by_user, fold_user_rows, users):
            applied += len(written)
            self._measure_applied(written)
        DUPLICATE.inc(len(deliveries) - applied)
        INVALID.inc(len(dead))

    def _measure_applied(self, written: Sequence[Delivery]) -> None:
        APPLIED.inc(len(written))
        now_ms = self._clock_ms()
        for delivery in written:
            DELAY_SECONDS.observe(max(0, now_ms - delivery.event.event_time_ms) / 1000.0)

    def _fold(
        self,
        groups: Sequence[FeatureGroup],
        by_entity: Mapping[str, Sequence[Delivery]],
        fold: Fold,
    ) -> dict[str, Folded]:
        """Read the rows of all entities at once and fold each entity's deliveries into them."""
        keys = [RowKey(group.name, entity) for entity in by_entity for group in groups]
        rows = self._store.read(keys)
        width = len(groups)
        return {
            entity: fold(entity, rows[i * width : (i + 1) * width], deliveries)
            for i, (entity, deliveries) in enumerate(by_entity.items())
        }

    def _write(
        self,
        groups: Sequence[FeatureGroup],
        by_entity: Mapping[str, Sequence[Delivery]],
        fold: Fold,
        folded: dict[str, Folded],
    ) -> Iterator[list[Delivery]]:
        """Write what was folded; entities whose guard was refused are read and folded again.

        Gives, after each write, the deliveries that the written rows counted.
        """
        for _ in range(GUARD_ATTEMPTS):
            writes = [f.write for f in folded.values() if f.write is not None]
            applied = self._store.write(writes) if writes else []
            refused = {w.entity_id for w, ok in zip(writes, applied, strict=True) if not ok}
            yield [d for e, result in folded.items() if e not in refused for d in result.fresh]
            if not refused:
                return
            again = {entity: by_entity[entity] for entity in folded if entity in refused}
            folded = self._fold(groups, again, fold)
        raise Contended(f"{len(folded)} entities were written by others {GUARD_ATTEMPTS} times")

    def _bury(self, dead: Sequence[LogRecord]) -> None:
        log.warning("dead_letters", records=len(dead), first_offset=dead[0].offset)
        # Cut only what another producer put over the log's own bound.
        letters = [Record(r.key, r.value[: MAX_RECORD_BYTES - len(r.key)], r.time_ms) for r in dead]
        self._log.append(DEAD_LETTERS, letters).result(APPEND_S)

    def _sweep_when_due(self) -> None:
        now_ms = self._clock_ms()
        if now_ms >= self._next_sweep_ms:
            self._next_sweep_ms = now_ms + SWEEP_EVERY_MS
            log.info("swept", rows=self._store.sweep(now_ms))


def parse(records: Sequence[LogRecord], items: ItemTable) -> tuple[list[Delivery], list[LogRecord]]:
    """The valid records in order, and those that can never be applied."""
    parsed, valid, dead = [], [], []
    for record in records:
        event = _parse_event(record.value)
        if event is None:
            dead.append(record)
        else:
            parsed.append(event)
            valid.append(record)
    keys = np.fromiter((item_key(event.item_id) for event in parsed), np.uint64, len(parsed))
    item_rows = items.index_of(keys)
    genres = items.features["genres"][item_rows]
    deliveries = [
        Delivery(
            record.partition,
            record.offset,
            event.item_id,
            Event(event.event_id, event.user_id, int(key), event.event_type, event.event_time_ms),
            row_genres if item_row else None,
        )
        for record, event, key, item_row, row_genres in zip(
            valid, parsed, keys, item_rows, genres, strict=True
        )
    ]
    return deliveries, dead


def _parse_event(value: bytes) -> records_pb2.FeedbackEvent | None:
    try:
        event = records_pb2.FeedbackEvent.FromString(value)
    except DecodeError:
        return None
    ids = (event.event_id, event.user_id, event.item_id)
    ids_valid = all(1 <= len(i.encode()) <= MAX_ID_BYTES for i in ids)
    type_valid = event.event_type in (IMPRESSION, CLICK, LIKE)
    time_valid = 0 < event.event_time_ms <= MAX_TIME_MS
    return event if ids_valid and type_valid and time_valid else None


def fold_user_rows(
    user_id: str, rows: Sequence[bytes | None], deliveries: Sequence[Delivery]
) -> Folded:
    """Fold a user's deliveries, in log order, into the user's rows (USER_GROUPS)."""
    delivery, profile, history = _decoded(USER_GROUPS, rows)
    state = UserState(_record(profile), _record(history), _record(delivery))
    before = state.delivery.tobytes()
    fresh = []
    for d in deliveries:
        if admit_user_event(state.delivery, d.partition, d.offset, d.event.event_id):
            fold_user(state, d.event, d.genres)
            fresh.append(d)
    if state.delivery.tobytes() == before:
        return Folded(None, [])
    write = guarded_write(
        user_id,
        USER_DELIVERY,
        row_version(rows[0]),
        {
            USER_DELIVERY.name: state.delivery,
            PROFILE.name: state.profile,
            HISTORY.name: state.history,
        },
        _newest_ms((delivery, profile, history), fresh),
    )
    return Folded(write, fresh)


def fold_item_rows(
    item_id: str, rows: Sequence[bytes | None], deliveries: Sequence[Delivery]
) -> Folded:
    """Fold deliveries that are fresh for their users into an item's rows (ITEM_GROUPS)."""
    delivery, counters = _decoded(ITEM_GROUPS, rows)
    state = ItemState(_record(counters), _record(delivery))
    fresh = []
    for d in deliveries:
        if admit_item_event(state.delivery, d.partition, d.offset):
            fold_item(state, d.event)
            fresh.append(d)
    if not fresh:
        return Folded(None, [])
    write = guarded_write(
        item_id,
        ITEM_DELIVERY,
        row_version(rows[0]),
        {ITEM_DELIVERY.name: state.delivery, COUNTERS.name: state.counters},
        _newest_ms((delivery, counters), fresh),
    )
    return Folded(write, fresh)


def _decoded(groups: Sequence[FeatureGroup], rows: Sequence[bytes | None]) -> list[Row | None]:
    """Whatever is stored counts, expired or not: a watermark does not age."""
    return [_decode(group, row) for group, row in zip(groups, rows, strict=True)]


def _decode(group: FeatureGroup, row: bytes | None) -> Row | None:
    if not row:
        return None
    try:
        decoded = decode(group, row)
    except RowCorrupt as error:
        log.error("corrupt_row", group=group.name, error=str(error))
        decoded = None
    if decoded is None:
        DAMAGED_ROWS.inc()
    return decoded


def _record(row: Row | None) -> np.ndarray | None:
    return None if row is None else row.record


def _newest_ms(rows: Iterable[Row | None], fresh: Sequence[Delivery]) -> int:
    stored = (row.event_time_ms for row in rows if row is not None)
    return max((*stored, *(d.event.event_time_ms for d in fresh)))


def _grouped(
    deliveries: Sequence[Delivery], key: Callable[[Delivery], str]
) -> dict[str, list[Delivery]]:
    groups: dict[str, list[Delivery]] = {}
    for delivery in deliveries:
        groups.setdefault(key(delivery), []).append(delivery)
    return groups


def run_updater(settings: Settings, stop: threading.Event) -> None:
    """Run one worker of these settings until `stop` or SIGTERM, which finish the batch at hand.

    Call it from the main thread of its own process, after configure_logging. Raises ValueError for
    settings that cannot work, OtherLog, and whatever the artifact, store or log raise when they are
    opened.
    """
    stop_on_sigterm(stop)
    catalogue = CurrentCatalogue(settings.artifacts_dir, settings.candidate_generation.models[0])
    while not catalogue.refresh():  # which has said why
        if stop.wait(CATALOGUE_POLL_S):
            return
    event_log = services.event_log.connect.connect(settings.event_log)
    partitions = event_log.partitions(TOPIC)
    if partitions > MAX_PARTITIONS:
        raise ValueError(
            f"topic {TOPIC!r} has {partitions} partitions; item rows keep watermarks for"
            f" {MAX_PARTITIONS}: use a topic with fewer"
        )
    store = feature_store.connect.connect(
        settings.feature_store.url,
        timeout_ms=max(settings.feature_store.timeout_ms, STORE_TIMEOUT_MS),
        lmdb_map_size_mb=settings.feature_store.lmdb_map_size_mb,
    )
    claim(store, event_log, settings, time.time_ns() // 1_000_000)
    consumer = event_log.consumer(TOPIC, GROUP)
    server, _, port = telemetry.serve_metrics(
        "feature_updater", settings.router.host, settings.feedback.updater_metrics_port
    )
    metrics = f"{settings.router.host}:{port}"
    announcement = Announcement(
        replica_folder(settings.run_dir, "updater"), metrics, metrics=metrics
    )
    log.info("updater_started", metrics_port=port, items=len(catalogue.loaded))
    try:
        FeatureUpdater(
            store,
            event_log,
            consumer,
            lambda: catalogue.refresh_if_due(CATALOGUE_POLL_S),
            clock_ms=lambda: time.time_ns() // 1_000_000,
            poll_records=settings.feedback.poll_records,
        ).run(stop)
    finally:
        announcement.withdraw()
        server.shutdown()
        server.server_close()
        consumer.close()
        store.close()
        event_log.close()
        log.info("updater_stopped")
