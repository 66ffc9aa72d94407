"""The feature updater: feedback events from the log into user and item rows of the feature store.

It closes the loop of a request: what a user did is in the features that the next request reads. One
or more processes share the partitions of topic `feedback` as group `feature-updater`.

Every event counts once, although records are delivered at least once and clients send twice:

* A user's events lie in one partition (the log is keyed by user id), in order. The user's delivery
  rows (watermark per partition, the last event ids) are written together with what they tell of, so
  whether a record is fresh for its user follows from the log before it alone: every worker and
  every replay decides alike, as long as the user row has not passed the record.
* Per batch, ITEMS ARE WRITTEN FIRST, THEN USERS, then how far the log is applied
  (`source.advance`), THEN the consumer commits. A crash before the items: nothing happened. A crash
  between items and users: the replay finds the same records fresh for their users; an item's own
  watermark refuses those it has counted and takes the others (each item's write is all or nothing),
  so none is lost and none counts twice. A crash between users and commit: the replay finds nothing
  fresh, and the items needed nothing more, being written before.
* A client's retry is a second record at a later offset. The ids in its user's rows refuse it: in
  the same batch, because the fold goes through the batch in order; after any crash, because the
  replay starts at or before the first copy, folds that one first and puts its id there again.
  Only fresh records touch items, so the retry never reaches their counters, and an item's watermark
  is always the offset of a record that counted.
* A refused guard means that another worker wrote the entity meanwhile (items are shared by all
  partitions; users only while a partition changes hands). The entity is read and folded again: what
  the other worker applied is then below the watermark. Users follow only when all items are in.

Not guaranteed: a retry more than EVENT_IDS events of its user later counts again; so may one
that lands in another partition (after re-partitioning) while the first copy is still in flight.

With another log's offsets, or this one's after it went back, watermarks would refuse new records:
`source.py` sees to it that nobody works on then. Times ahead of the clock are bounded (`ahead.py`),
and a record that can never be applied is a dead letter: no record stops the worker.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog
from prometheus_client import Counter, Histogram

import services.event_log.connect
from feature_store.interface import FeatureStore, FeatureStoreUnavailable, FeatureStoreUnfit, RowKey
from models.catalogue import ItemTable
from models.schema.compiled import Schema
from models.schema.groups import FeatureGroup
from services.catalogue.follower import NoItems, follower_of
from services.common import telemetry
from services.common.clock import epoch_ms
from services.common.discovery import metrics_announced
from services.common.processes.stopping import stop_on_sigterm
from services.common.processes.waiting import Stopped, wait_for
from services.common.schema import schema_of
from services.common.settings import Settings
from services.common.telemetry import OwnedGauge
from services.event_log.interface import Consumer, EventLog, LogRecord, LogUnavailable
from services.event_log.topics import FEEDBACK
from services.feedback.ahead import MAX_FUTURE_S, latest_ms
from services.feedback.dead_letters import bury
from services.feedback.deliveries import Delivery, parse
from services.feedback.rows import EntityRows, Folded
from services.feedback.store_log import GROUP, StoreRefused, advance, claim, open_store, verify

log = structlog.get_logger(__name__)

POLL_S = 0.5  # the longest that SIGTERM waits for an idle worker
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.1, 5.0  # a Kafka group evicts a member silent for minutes
GUARD_ATTEMPTS = 8
SWEEP_EVERY_MS = 3_600_000
LAG_EVERY_MS = 1_000  # Kafka's lag is asked of the broker: once a second is enough
VERIFY_EVERY_MS = 5_000
MAX_OFFSET = 2**63 - 1

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


class Contended(Exception):
    """Guards were refused again and again: too many workers write the same entities."""


_PUT_BACK = (FeatureStoreUnavailable, LogUnavailable, Contended)

Fold = Callable[[str, Sequence[bytes | None], Sequence[Delivery], int], Folded]


class FeatureUpdater:
    """One worker. Used by one thread; `run` until told to stop, or `step` by step."""

    def __init__(
        self,
        schema: Schema,
        store: FeatureStore,
        event_log: EventLog,
        consumer: Consumer,
        items: Callable[[], ItemTable],
        *,
        clock_ms: Callable[[], int],
        poll_records: int = 500,
        max_future_s: float = MAX_FUTURE_S,
        verify: Callable[[], None] = lambda: None,
    ) -> None:
        """`consumer` reads FEEDBACK of `event_log`, which takes the dead letters, too; `items`
        gives the item table in force, asked once per batch. Events further ahead of the clock than
        `ahead.latest_ms` allows are dead letters. `verify` raises StoreRefused when store and log
        do not belong together any more; asked every few seconds, and before anything is applied of
        a partition that is new to this worker or has gone back."""
        self._folds = schema.fold
        self._rows = EntityRows(schema)
        self._store = store
        self._log = event_log
        self._consumer = consumer
        self._items = items
        self._clock_ms = clock_ms
        self._poll_records = poll_records
        self._max_future_s = max_future_s
        self._latest_ms = 0  # of the batch at hand
        self._verify = verify
        self._next_offsets: dict[int, int] = {}  # by partition, of what was polled
        self._put_back = False
        self.outcomes = Tally[str]()  # of all batches so far
        self._next_sweep_ms = self._next_lag_ms = self._next_verify_ms = clock_ms()

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
        next step begins with the same records again. Raises StoreRefused and LogWentBack, after
        which no step can succeed.
        """
        try:
            if self._put_back:
                self._consumer.rewind()
                self._put_back = False
                self._next_offsets.clear()
            records = self._consumer.poll(self._poll_records, timeout_s)
            self._verify_when_due(records)
            if records:
                with BATCH_SECONDS.time():
                    self._apply(records)
                    ends = {r.partition: r.offset + 1 for r in records}
                    advance(self._store, ends, self._clock_ms())
                    self._consumer.commit()
                BATCH_EVENTS.observe(len(records))
            self._measure_lag_when_due()
        except FeatureStoreUnfit as error:
            raise StoreRefused(str(error)) from error
        except _PUT_BACK as error:
            self._put_back = True
            UNAVAILABLE.labels(type(error).__name__).inc()
            raise
        return len(records)

    def _verify_when_due(self, records: Sequence[LogRecord]) -> None:
        suspicious = False
        for record in records:
            # A partition's first record may follow on what another worker read of another log.
            suspicious |= record.offset < self._next_offsets.get(record.partition, MAX_OFFSET)
            self._next_offsets[record.partition] = record.offset + 1
        now_ms = self._clock_ms()
        if suspicious or now_ms >= self._next_verify_ms:
            self._next_verify_ms = now_ms + VERIFY_EVERY_MS
            self._verify()

    def _measure_lag_when_due(self) -> None:
        now_ms = self._clock_ms()
        if now_ms >= self._next_lag_ms:
            self._next_lag_ms = now_ms + LAG_EVERY_MS
            lag = self._consumer.lag()
            LAG_EVENTS.set(lag.events)
            LAG_SECONDS.set(lag.seconds)

    def _apply(self, records: Sequence[LogRecord]) -> None:
        now_ms = self._clock_ms()
        self._latest_ms = latest_ms(now_ms, self._max_future_s)
        deliveries, dead = parse(records, self._items(), self._latest_ms, self._folds)
        if dead:
            bury(self._log, dead, now_ms)
        by_user = _grouped(deliveries, lambda d: d.event.user_id)
        of_user, of_item = self._rows.of_user, self._rows.of_item
        fold_user, fold_item = self._rows.fold_user, self._rows.fold_item
        users = self._fold(of_user, by_user, fold_user)
        fresh = {(d.partition, d.offset) for folded in users.values() for d in folded.fresh}
        # In the batch's order, not user by user: an item's late events are then the late ones.
        counted = [
            d
            for d in deliveries
            if (d.partition, d.offset) in fresh and self._folds.counts_items(d.event.event_type)
        ]
        by_item = _grouped(counted, lambda d: d.item_id)
        items = self._fold(of_item, by_item, fold_item)
        for _ in self._write(of_item, by_item, fold_item, items):
            pass  # what counts is what the users' rows counted
        applied = 0
        for written in self._write(of_user, by_user, fold_user, users):
            applied += len(written)
            self._measure_applied(written)
        counts = {"applied": applied, "duplicate": len(deliveries) - applied, "invalid": len(dead)}
        self.outcomes.update(counts)
        DUPLICATE.inc(counts["duplicate"])
        INVALID.inc(counts["invalid"])

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
            entity: fold(entity, rows[i * width : (i + 1) * width], deliveries, self._latest_ms)
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

    def _sweep_when_due(self) -> None:
        now_ms = self._clock_ms()
        if now_ms >= self._next_sweep_ms:
            self._next_sweep_ms = now_ms + SWEEP_EVERY_MS
            log.info("swept", rows=self._store.sweep(now_ms))


def _grouped(
    deliveries: Sequence[Delivery], key: Callable[[Delivery], str]
) -> dict[str, list[Delivery]]:
    groups: dict[str, list[Delivery]] = {}
    for delivery in deliveries:
        groups.setdefault(key(delivery), []).append(delivery)
    return groups


def run_updater(settings: Settings, stop: threading.Event) -> None:
    """Run one worker of these settings until `stop` or SIGTERM, which finish the batch at hand.

    Call it from the main thread of its own process, after configure_logging. Waits for a store and
    a log that do not answer, at the start and later. Raises StoreRefused, LogWentBack, and
    ValueError for settings that cannot work.
    """
    stop_on_sigterm(stop)
    with contextlib.ExitStack() as opened:
        try:
            worker = opened.enter_context(opened_updater(settings, stop))
        except Stopped:
            return
        host, port = settings.router.host, settings.feedback.updater_metrics_port
        serving = metrics_announced(settings.run_dir, "updater", host, port, "feature_updater")
        port = opened.enter_context(serving)
        log.info("updater_started", metrics_port=port)
        worker.run(stop)
    log.info("updater_stopped")


@contextlib.contextmanager
def opened_updater(settings: Settings, stop: threading.Event) -> Iterator[FeatureUpdater]:
    """A worker of these settings on its store and log, which are closed with the block.

    Waits until both answer. Raises Stopped, StoreRefused, and ValueError for a URL.
    """

    with contextlib.ExitStack() as opened:
        event_log = services.event_log.connect.connect(settings.event_log, settings.installation)
        opened.callback(event_log.close)
        store = wait_for(
            "the feature store", lambda: open_store(settings), stop, FeatureStoreUnavailable
        )
        opened.callback(store.close)
        consumer = wait_for(
            "the feature store and the event log",
            lambda: _joined(store, event_log, settings),
            stop,
            FeatureStoreUnavailable,
            LogUnavailable,
        )
        opened.callback(consumer.close)
        catalogue = follower_of(settings, event_log, schema_of(settings).fold.item_fields)
        opened.callback(catalogue.close)
        wait_for("the catalogue", catalogue.begin_with_items, stop, LogUnavailable, NoItems)
        catalogue.start()
        yield worker_of(settings, store, event_log, consumer, lambda: catalogue.items)


def worker_of(
    settings: Settings,
    store: FeatureStore,
    event_log: EventLog,
    consumer: Consumer,
    items: Callable[[], ItemTable],
    clock_ms: Callable[[], int] = epoch_ms,
) -> FeatureUpdater:
    """A worker of these settings; the rest is as FeatureUpdater has it."""
    return FeatureUpdater(
        schema_of(settings),
        store,
        event_log,
        consumer,
        items,
        clock_ms=clock_ms,
        poll_records=settings.feedback.poll_records,
        max_future_s=settings.feedback.max_future_s,
        verify=lambda: verify(store, event_log, settings),
    )


def _joined(store: FeatureStore, event_log: EventLog, settings: Settings) -> Consumer:
    claim(store, event_log, settings, epoch_ms())
    return event_log.consumer(FEEDBACK, GROUP)
