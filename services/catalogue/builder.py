"""The one process that builds the catalogue: takes changes, numbers rows, writes topic `items`.

A change is decided on the item as the topic has it, written whole, read back from the topic and
only then acknowledged: the state is what the topic says, before and after any crash, and what was
acknowledged everybody else can read. Changes that wait together are one append.

One builds, and says so every HEARTBEAT_S; another one begins when that one has ended, or has said
nothing for LEASE_S. It begins with a record by which whatever its predecessor still writes is void
(`fold.py`); of that the predecessor, reading back, hears before it acknowledges.

From time to time the state is written as a generation (`generations.py`), for whoever starts.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import structlog
from prometheus_client import Counter, Histogram

from models.catalogue import item_key
from models.schema.compiled import Schema
from protos.tandem.v1.records_pb2 import ItemRecord
from services.catalogue import generations
from services.catalogue.fold import BEGINS, BUILDS, CONTROL, IMPORTED, CatalogueFold
from services.catalogue.generation_writer import GenerationWriter
from services.catalogue.merging import NAMED, Change, Outcome, changed
from services.catalogue.reading import BATCH, POLL_S, begun, fold_to_end
from services.catalogue.stored_records import StoredRecords
from services.common.rpc import Refusal, invalid
from services.common.telemetry import LATENCY_BUCKETS, OwnedGauge
from services.event_log.interface import (
    MAX_RECORD_BYTES,
    EventLog,
    LogSaturated,
    LogUnavailable,
    LogWentBack,
    Record,
    TopicReader,
)
from services.event_log.topics import ITEMS

log = structlog.get_logger(__name__)

HEARTBEAT_S = 2.0
LEASE_S = 8.0  # and as long as an append may take (`main.builder_of`)
RETRY_S = 1.0  # after a failure
MAX_WAITING = 20_000  # changes
CHANGES = Counter(
    "tandem_catalogue_changes_total",
    "Changes of items by what became of them: stale ones came after newer ones, or twice; many"
    " unknown ones say that a feed names items which nobody brought.",
    ["outcome"],
)
TAKEN, STALE, UNKNOWN = (CHANGES.labels(outcome) for outcome in ("changed", "stale", "unknown"))
SECONDS = Histogram(
    "tandem_catalogue_change_seconds",
    "From a change's arrival to its acknowledgement: it is part of the promise how soon a removed"
    " item is not shown.",
    buckets=LATENCY_BUCKETS,
)
ROWS = OwnedGauge(
    "tandem_catalogue_rows",
    "Rows that are taken, those of removed items too: they are never given back, so memory grows"
    " with this.",
)


class NotBuilding(Exception):
    """Another process builds the catalogue, or this one ends; what was not acknowledged may be
    stored or not."""


class _Call(NamedTuple):
    changes: Sequence[Change]
    future: Future[Outcome]
    since: float


class Builder:
    """`lead`, then `run` or `step` on one thread; `submit` and `known` from any."""

    def __init__(
        self,
        event_log: EventLog,
        folder: Path,
        schema: Schema,
        *,
        max_waiting: int = MAX_WAITING,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`folder`: of the generations. Reads nothing yet."""
        self._event_log, self._folder, self._schema = event_log, folder, schema
        self._max_waiting, self._clock, self._monotonic = max_waiting, clock, monotonic
        self._fold = CatalogueFold(schema)
        self._reader: TopicReader | None = None
        self._topic = ""  # its identity
        self._lease_s = lease_s
        self._heartbeat_at = 0.0
        self._number = self._nonce = self._identity = 0  # of this builder; 0: it does not build
        self._nonces: set[int] = set()  # all that it began with
        self._told = ""  # the cause of the last failure
        self._sent = 0  # records under that number
        self._wake = threading.Condition()  # also the lock of the queue
        self._queue: deque[_Call] = deque()
        self._waiting = 0
        self._closed = False
        self._writer = GenerationWriter(folder, clock, monotonic)

    # Beginning

    def lead(self, stop: threading.Event) -> bool:
        """Wait until this is the process that builds, and take over; False where `stop` is set
        first. Raises LogUnavailable."""
        self._read_anew()
        assert self._reader is not None
        told, heard_at = False, self._monotonic()
        while not stop.is_set():
            fold = self._fold
            silent = self._monotonic() - heard_at >= self._lease_s
            if fold.ended or silent or not fold.builder:
                try:
                    self._begin()
                    break
                except NotBuilding:  # somebody else was first
                    heard_at = self._monotonic()
            elif not told:
                log.info("catalogue_builder_waits", number=fold.builder)
                told = True
            if batch := self._reader.poll(BATCH, POLL_S):
                fold.fold(batch)
                heard_at = self._monotonic()
        else:
            return False
        log.info("catalogue_builder_leads", number=self._number, rows=self.rows())
        return True

    def _read_anew(self) -> None:
        """Take the state as it is."""
        if self._reader is not None:
            self._reader.close()
        self._topic = self._event_log.identity(ITEMS)
        generations.delete_of_others(self._folder, self._topic)
        found = begun(self._event_log, self._folder, self._topic, self._new_fold)
        if found.went_back:
            # They would hold again once the topic has grown so far, with other records in it.
            generations.delete(self._folder)
        self._fold, self._reader = found.fold, found.reader
        self._writer.begin(found.loaded)

    def _new_fold(self) -> CatalogueFold:
        return CatalogueFold(self._schema, records=StoredRecords())

    def _begin(self) -> None:
        """Write the record by which this builder begins, under a number of its own. Raises
        NotBuilding where somebody else was first."""
        self._number, self._sent, self._nonce = self._fold.builder + 1, 0, _random()
        self._nonces.add(self._nonce)
        # Of two that begin an empty topic the identity holds that is read first.
        self._identity = self._fold.identity or _random()
        self._say(BEGINS + f"{self._number} {self._nonce}".encode())

    def _say(self, key: bytes, *, imported: int = 0, ended: bool = False) -> None:
        """A word of this builder; that it is there is said by all that it writes."""
        word = ItemRecord(
            catalogue=self._identity,
            builder=self._number,
            nonce=self._nonce,
            imported=imported,
            ended=ended,
        )
        self._append([Record(key, word.SerializeToString(), self._now_ms())])

    # Changes

    def submit(self, changes: Sequence[Change]) -> Future[Outcome]:
        """Take changes, each checked, which are decided in this order; the future ends when they
        are durable and read back, or with NotBuilding, LogUnavailable or a Refusal. Raises
        LogSaturated where too many wait."""
        call = _Call(changes, Future(), time.perf_counter())
        with self._wake:
            if self._closed:
                raise NotBuilding("this process ends: send the changes again")
            if self._waiting + len(changes) > self._max_waiting:
                raise LogSaturated(
                    f"{self._waiting} changes of items wait; at most {self._max_waiting} may"
                )
            self._waiting += len(changes)
            self._queue.append(call)
            self._wake.notify()
        return call.future

    def known(self, item_ids: Sequence[str]) -> list[ItemRecord]:
        """Of these items those that were ever there, in this order."""
        return [record for each in item_ids if (record := self._of(each)) is not None]

    def rows(self) -> int:
        """Rows that are taken."""
        return len(self._fold.table)

    def record(self, row: int) -> ItemRecord | None:
        """The item of a row; None where it has not come yet."""
        assert self._fold.records is not None
        return self._fold.records.of_row(row)

    def _of(self, item_id: str) -> ItemRecord | None:
        row = self._fold.table.items.row_of(item_id)
        record = self.record(row) if row else None
        return record if record is not None and record.item_id == item_id else None

    def run(self, stop: threading.Event) -> None:
        """Build until `stop` is set. Raises NotBuilding when another one has taken over."""
        try:
            while not stop.is_set():
                self.step(POLL_S)
        except BaseException:
            self._refuse_all()
            raise

    def step(self, timeout_s: float) -> None:
        """Take what waits, or wait up to `timeout_s` for it. Raises NotBuilding when another one
        has taken over."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._closed, timeout_s)
            calls: list[_Call] = []
            count = 0
            while self._queue and (not calls or count + len(self._queue[0].changes) <= BATCH):
                calls.append(self._queue.popleft())
                count += len(calls[-1].changes)
            self._waiting -= count
        # From here on nobody can cancel them; who has before is not answered.
        calls = [call for call in calls if call.future.set_running_or_notify_cancel()]
        try:
            if not self._number:
                self._begin_again()
            self._take(calls)
            if not calls:
                self._catch_up()
            self._rewrite_void()
            if self._monotonic() >= self._heartbeat_at:
                self._say(BUILDS)
        except (LogUnavailable, LogSaturated) as error:
            if str(error) != self._told:
                log.error("catalogue_log_unavailable", cause=str(error))
            self._told, self._number = str(error), 0
            self._end(calls, LogUnavailable(str(error)))
            self._stop_for(RETRY_S)
        except BaseException as error:
            self._number = 0  # what it still writes may be read by nobody: no generation either
            self._end(calls, NotBuilding(f"{error}"))
            if isinstance(error, LogWentBack):
                raise NotBuilding(str(error)) from error
            raise
        else:
            self._told = ""
            self._writer.write_when_due(self._fold, self._topic)

    def _stop_for(self, seconds: float) -> None:
        """Let what failed be mended, unless told to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed, seconds)

    def _take(self, calls: Sequence[_Call]) -> None:
        """Decide, write, read back, acknowledge."""
        staged: dict[str, ItemRecord] = {}
        keys: dict[int, str] = {}
        outcomes: list[tuple[_Call, Outcome]] = []
        for call in calls:
            try:
                self._check_keys(call.changes, keys)
                outcome, made = self._decided(call.changes, staged)
                _check_sizes(made)
            except Refusal as refused:
                self._end([call], refused)
                continue
            staged |= made
            outcomes.append((call, outcome))
        if staged:
            self._append([self._record(each) for each in staged.values()])
        for call, outcome in outcomes:
            for counter, count in zip((TAKEN, STALE, UNKNOWN), outcome[:3], strict=True):
                counter.inc(count)
            SECONDS.observe(time.perf_counter() - call.since)
            call.future.set_result(outcome)
        ROWS.set(self.rows())

    def _decided(
        self, changes: Sequence[Change], staged: dict[str, ItemRecord]
    ) -> tuple[Outcome, dict[str, ItemRecord]]:
        """What becomes of a call's changes beside those of calls before it, and the items that it
        makes."""
        taken = stale = 0
        unknown: list[str] = []
        made: dict[str, ItemRecord] = {}
        next_row = 1 + max([self.rows(), *(each.row for each in staged.values())])
        for change in changes:
            item = change.item_id
            before = made.get(item) or staged.get(item) or self._of(item)
            after = changed(before, change)
            if after is None:
                unknown.append(item)
            elif after is before:
                stale += 1
            else:
                taken += 1
                if not after.row:
                    after.row, next_row = next_row, next_row + 1
                after.catalogue, after.builder = self._fold.identity, self._number
                made[item] = after
        return Outcome(taken, stale, len(unknown), tuple(unknown[:NAMED])), made

    def _record(self, item: ItemRecord) -> Record:
        return Record(item.item_id.encode(), item.SerializeToString(), self._now_ms())

    def _check_keys(self, changes: Sequence[Change], keys: dict[int, str]) -> None:
        """Refuse an item whose key another one has: the system could not tell them apart."""
        for change in changes:
            if change.item_id.startswith(CONTROL):
                raise invalid("item_id", f"{change.item_id!r} begins with a control character")
            key, row = item_key(change.item_id), self._fold.table.items.row_of(change.item_id)
            there = self._fold.table.items.ids[row] if row else keys.get(key, change.item_id)
            if there != change.item_id:
                raise invalid(
                    "item_id",
                    f"{change.item_id!r} has the same 64-bit key as {there!r}: rename one of them",
                )
            keys[key] = change.item_id

    def _append(self, records: Sequence[Record]) -> None:
        """Write records under this builder's number; returns when the last of them was read."""
        for begin in range(0, len(records), BATCH):
            part = records[begin : begin + BATCH]
            self._event_log.append(ITEMS, part).result()
            self._sent += len(part)
            self._catch_up()
            self._heartbeat_at = self._monotonic() + HEARTBEAT_S

    def _catch_up(self) -> None:
        """Read what is there, and all that was sent. NotBuilding where somebody else builds."""
        assert self._reader is not None
        fold = self._fold
        while True:
            mine = (fold.builder, fold.nonce) == (self._number, self._nonce)
            waits = self._sent > (fold.of_builder if mine else 0)
            fold.fold(self._reader.poll(BATCH, POLL_S if waits else 0.0))
            mine = (fold.builder, fold.nonce) == (self._number, self._nonce)
            if not mine and fold.builder >= self._number:
                if fold.nonce in self._nonces:
                    raise LogUnavailable("what this builder began with before has come late")
                raise NotBuilding("another process builds the catalogue now")
            if mine and fold.of_builder >= self._sent:
                return

    def _begin_again(self) -> None:
        """After an append that failed. What of it is stored only the topic knows, and it may still
        come: under the number of before, so that it is void."""
        assert self._reader is not None
        before = self._fold.builder, self._fold.nonce
        fold_to_end(self._fold, self._reader)
        now = self._fold.builder, self._fold.nonce
        if now != before and self._fold.nonce not in self._nonces:
            raise NotBuilding("another process builds the catalogue now")
        self._begin()

    def _rewrite_void(self) -> None:
        """Write again what void records would take the place of, once the topic is compacted."""
        if self._fold.void:
            again = self.known(sorted(self._fold.void))
            self._fold.void.clear()
            log.warning("void_item_records", items=len(again))
            for record in again:
                record.builder = self._number
            self._append(list(map(self._record, again)))

    def set_imported(self, digest: int) -> None:
        """Say that all imported items of that digest are in. On the builder's thread."""
        self._say(IMPORTED, imported=digest)

    # Ending

    def close(self) -> None:
        """Refuse what waits, write a last generation where it still builds, and release everything.
        On the builder's thread, or after it. Idempotent."""
        self._refuse_all()
        self._writer.close(self._fold if self._number else None, self._topic)
        if self._number:
            with contextlib.suppress(LogUnavailable, NotBuilding):  # a successor waits then
                self._say(BUILDS, ended=True)
        if self._reader is not None:
            self._reader.close()
        self._reader, self._number = None, 0

    def _refuse_all(self) -> None:
        with self._wake:
            self._closed = True
            calls = list(self._queue)
            self._queue.clear()
            self._wake.notify()
        waiting = [call for call in calls if call.future.set_running_or_notify_cancel()]
        self._end(waiting, NotBuilding("this process ends: send the changes again"))

    def _end(self, calls: Sequence[_Call], error: Exception) -> None:
        for call in calls:
            if not call.future.done():
                call.future.set_exception(error)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _check_sizes(made: Mapping[str, ItemRecord]) -> None:
    """Refuse an item that is too large for a record, as several patches may make it."""
    for item_id, record in made.items():
        size = len(item_id.encode()) + record.ByteSize()
        if size > MAX_RECORD_BYTES:
            raise invalid(
                "items", f"{item_id!r} has {size} bytes; at most {MAX_RECORD_BYTES} are accepted"
            )


def _random() -> int:
    """64 bits, not 0."""
    return int.from_bytes(os.urandom(8), "little") or 1
