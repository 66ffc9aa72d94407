"""Reading the event log on Kafka: one member of a consumer group, through kafka-python.

The consumer is told to reset no offset by itself: kafka-python would begin a topic anew, without a
word, when it is shorter than it was. What lies beyond the end is judged here.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import (
    CorruptRecordError,
    KafkaError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    UnsupportedCodecError,
)

from services.event_log.interface import Lag, LogCorrupt, LogRecord, LogUnavailable, LogWentBack
from services.event_log.limits import went_back

log = structlog.get_logger(__name__)

SESSION_TIMEOUT_MS, HEARTBEAT_MS = 10_000, 1_000
CONSUMER_TIMEOUT_MS = 5_000  # some calls of kafka-python wait for ever without one
METADATA_MAX_AGE_MS = 10_000  # how soon a topic that was made anew is noticed if nothing else tells
PEEK_S = 1.0  # what `lag` may take to look at the next records
UNDECODABLE = CorruptRecordError, UnsupportedCodecError  # and whatever else decoding may raise

T = TypeVar("T")


class DecodingConsumer(KafkaConsumer):
    """A KafkaConsumer that says what it cannot decode, as often as it is asked: LogCorrupt.

    kafka-python says so once, and then looks for the next record of that batch for ever.
    """

    def poll(
        self, timeout_ms: int, max_records: int | None = None
    ) -> Mapping[TopicPartition, Sequence[ConsumerRecord]]:
        try:
            return super().poll(timeout_ms, max_records)
        except Exception as error:
            batch = self._fetcher._next_partition_records  # nothing public drops it
            of_the_broker = isinstance(error, KafkaError) and not isinstance(error, UNDECODABLE)
            if not batch or of_the_broker:
                raise
            batch.drain()
            place = batch.topic_partition
            raise LogCorrupt(
                f"topic {place.topic}: partition {place.partition} cannot be read at offset"
                f" {batch.next_fetch_offset}: {error!r}. Install the codec, if it is one (and set"
                " the topic's compression.type=uncompressed for what comes later); give damaged"
                " records up with kafka-delete-records"
            ) from error


class KafkaLogConsumer:
    """Consumer of a Kafka topic. `assigned` shows the partitions as of the last poll."""

    def __init__(
        self,
        bootstrap: Sequence[str],
        topic: str,
        group: str,
        check_topic: Callable[[], None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """`topic` and `group` are their names at the broker. `check_topic` raises TopicUnfit; it is
        asked whenever partitions are dealt anew."""
        self._bootstrap = bootstrap
        self._topic = topic
        self._group = group
        self._check_topic = check_topic
        self._clock = clock
        self._monotonic = monotonic
        self._assigned: frozenset[int] = frozenset()
        self._dealt_anew = False
        self._went_back: LogWentBack | None = None
        self._peeker: KafkaConsumer | None = None
        self._consumer = DecodingConsumer(
            bootstrap_servers=bootstrap,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            bootstrap_timeout_ms=CONSUMER_TIMEOUT_MS,
            request_timeout_ms=CONSUMER_TIMEOUT_MS,
            reconnect_backoff_max_ms=1_000,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
        # A member that joins before it has the topic's metadata is assigned nothing, and when the
        # metadata comes at the wrong moment kafka-python never joins again.
        try:
            self._consumer.partitions_for_topic(topic)
        except KafkaError:
            self._consumer.close(autocommit=False)
            raise
        self._identity = self._current_identity()
        self._consumer.subscribe([topic])

    def poll(self, max_records: int, timeout_s: float) -> list[LogRecord]:
        if self._went_back is not None:
            raise self._went_back
        if self._dealt_anew:
            self._check_topic()
            self._dealt_anew = False
        try:
            with self._asking("read"):
                batches = self._poll(max_records, self._monotonic() + timeout_s)
                is_there = self._check_identity()
        except LogWentBack as error:
            self._went_back = error
            raise
        before = self._assigned
        self._assigned = frozenset(p.partition for p in self._consumer.assignment())
        self._dealt_anew = bool(before) and before != self._assigned
        if not batches and not is_there:
            raise LogUnavailable(f"topic {self._topic} is gone; is it being made anew?")
        return [
            LogRecord(r.partition, r.offset, max(0, r.timestamp), r.key or b"", r.value or b"")
            for batch in batches.values()
            for r in batch
        ]

    def _poll(
        self, max_records: int, deadline: float
    ) -> Mapping[TopicPartition, Sequence[ConsumerRecord]]:
        while True:
            left_ms = max(0, int((deadline - self._monotonic()) * 1000))
            try:
                return self._positioned(partial(self._consumer.poll, left_ms, max_records))
            except OffsetOutOfRangeError as error:
                self._judge(error.args[0])
            except LogTruncationError as error:
                where = ", ".join(f"partition {p.partition}" for p in error.divergent_offsets)
                raise went_back(self._topic, f"{where} lost records that were read") from error

    def _positioned(self, ask: Callable[[], T]) -> T:
        """What `ask` returns. A partition of which nothing is committed begins at its beginning."""
        while True:
            try:
                return ask()
            except NoOffsetForPartitionError as error:
                self._consumer.seek_to_beginning(*error.args[0])

    def _judge(self, positions: Mapping[TopicPartition, int]) -> None:
        """Go on from the earliest record where those before it have expired; LogWentBack where the
        position lies beyond the end."""
        firsts = self._consumer.beginning_offsets(positions, timeout_ms=CONSUMER_TIMEOUT_MS)
        ends = self._consumer.end_offsets(positions, timeout_ms=CONSUMER_TIMEOUT_MS)
        for partition, position in positions.items():
            if position > ends[partition]:
                raise went_back(
                    self._topic,
                    f"partition {partition.partition} ends at offset {ends[partition]},"
                    f" but was read up to {position}",
                )
            if position < firsts[partition]:
                log.warning(
                    "records_expired_unread",
                    topic=self._topic,
                    group=self._group,
                    records=firsts[partition] - position,
                )
                self._consumer.seek(partition, firsts[partition])

    def _check_identity(self) -> bool:
        """LogWentBack if the topic is another; whether it is there. By the metadata at hand, which
        kafka-python asks for whenever a topic does not answer."""
        found = self._current_identity()
        if found is not None and found != self._identity:
            raise went_back(self._topic, "it was deleted and made anew")
        return found == self._identity

    def _current_identity(self) -> uuid.UUID | None:
        """None for a topic that is gone, and for each of a broker before 2.8."""
        return self._consumer._cluster.topic_id(self._topic)  # nothing public tells it

    def commit(self) -> None:
        with self._asking("commit"):
            self._consumer.commit(timeout_ms=CONSUMER_TIMEOUT_MS)

    def rewind(self) -> None:
        with self._asking("rewind"):
            for partition in self._consumer.assignment():
                offset = self._consumer.committed(partition, timeout_ms=CONSUMER_TIMEOUT_MS)
                if offset is None:
                    self._consumer.seek_to_beginning(partition)
                else:
                    self._consumer.seek(partition, offset)

    def assigned(self) -> frozenset[int]:
        return self._assigned

    def lag(self) -> Lag:
        """Asks the broker: a consumer that has stopped polling must not look caught up."""
        with self._asking("ask for the lag"):
            partitions = self._consumer.assignment()
            ends = (
                self._consumer.end_offsets(partitions, timeout_ms=CONSUMER_TIMEOUT_MS)
                if partitions
                else {}
            )
            positions = {
                p: self._positioned(partial(self._consumer.position, p, CONSUMER_TIMEOUT_MS)) or 0
                for p in ends
            }
            behind = {p: positions[p] for p, end in ends.items() if end > positions[p]}
            oldest_ms = self._oldest_ms(behind) if behind else None
        age_s = 0.0 if oldest_ms is None else max(0.0, self._clock() - oldest_ms / 1000)
        return Lag(sum(ends[p] - position for p, position in behind.items()), age_s)

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=CONSUMER_TIMEOUT_MS)
        if self._peeker is not None:
            self._peeker.close()

    def _oldest_ms(self, positions: dict[TopicPartition, int]) -> int | None:
        """Time of the oldest record at these positions, read aside so that nothing moves."""
        if self._peeker is None:
            self._peeker = DecodingConsumer(
                bootstrap_servers=self._bootstrap,
                group_id=None,
                max_partition_fetch_bytes=1,  # the broker still answers with one batch
                bootstrap_timeout_ms=CONSUMER_TIMEOUT_MS,
                metrics_enabled=False,
            )
        self._peeker.assign(list(positions))
        for partition, position in positions.items():
            self._peeker.seek(partition, position)
        times: dict[TopicPartition, int] = {}
        deadline = self._monotonic() + PEEK_S
        while len(times) < len(positions) and self._monotonic() < deadline:
            for partition, batch in self._peeker.poll(int(PEEK_S * 100)).items():
                times.setdefault(partition, batch[0].timestamp)
        return min(times.values(), default=None)

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """What the broker refuses meanwhile is LogUnavailable."""
        try:
            yield
        except KafkaError as error:
            raise LogUnavailable(f"cannot {what}: topic {self._topic}: {error!r}") from error
