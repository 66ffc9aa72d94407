"""Reading the event log on Kafka, through kafka-python: what members of groups have in common with
readers without one.

The consumer is told to reset no offset by itself: kafka-python would begin a topic anew, without a
word, when it is shorter than it was. What lies beyond the end is judged here.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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

from services.event_log.interface import LogCorrupt, LogRecord, LogUnavailable, LogWentBack
from services.event_log.limits import unknown_partition, went_back

log = structlog.get_logger(__name__)

CONSUMER_TIMEOUT_MS = 5_000  # some calls of kafka-python wait for ever without one
METADATA_MAX_AGE_MS = 10_000  # how soon a topic that was made anew is noticed if nothing else tells
# A broker answers at once when something comes; until then whatever else it is asked must wait for
# that answer, and `caught_up` is asked again and again by who reads up to the end.
FETCH_WAIT_MS = 50
UNDECODABLE = CorruptRecordError, UnsupportedCodecError  # and whatever else decoding may raise

T = TypeVar("T")
Batches = Mapping[TopicPartition, Sequence[ConsumerRecord]]


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


class KafkaReading:
    """What a member of a group and a reader without one have in common."""

    def __init__(
        self,
        bootstrap: Sequence[str],
        topic: str,
        group: str | None,
        monotonic: Callable[[], float],
        **options: object,
    ) -> None:
        """`topic` and `group` are their names at the broker, `options` kafka-python's."""
        self._topic = topic
        self._who: dict[str, str] = {"group": group} if group else {}  # reads, for the log
        self._monotonic = monotonic
        self._went_back: LogWentBack | None = None
        self._consumer = DecodingConsumer(
            bootstrap_servers=bootstrap,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
            bootstrap_timeout_ms=CONSUMER_TIMEOUT_MS,
            request_timeout_ms=CONSUMER_TIMEOUT_MS,
            reconnect_backoff_max_ms=1_000,
            allow_auto_create_topics=False,
            metrics_enabled=False,
            **options,
        )
        # A member that joins before it has the topic's metadata is assigned nothing, and when the
        # metadata comes at the wrong moment kafka-python never joins again.
        try:
            self._numbers = frozenset(self._consumer.partitions_for_topic(topic) or ())
        except KafkaError:
            self._consumer.close(autocommit=False)
            raise
        self._identity = self._current_identity()

    def _read(self, max_records: int, timeout_s: float) -> tuple[Batches, bool]:
        """What came in time, and whether the topic is there."""
        with self._reading():
            batches = self._poll(max_records, self._monotonic() + timeout_s)
            return batches, self._check_identity()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What the broker refuses meanwhile is LogUnavailable; a log that went back stays so."""
        if self._went_back is not None:
            raise self._went_back
        try:
            with self._asking("read"):
                yield
        except LogWentBack as error:
            self._went_back = error
            raise

    def _records(self, batches: Batches, is_there: bool) -> list[LogRecord]:
        if not batches and not is_there:
            raise self._gone()
        return [
            LogRecord(r.partition, r.offset, max(0, r.timestamp), r.key or b"", r.value or b"")
            for batch in batches.values()
            for r in batch
        ]

    def _gone(self) -> LogUnavailable:
        return LogUnavailable(f"topic {self._topic} is gone; is it being made anew?")

    def _poll(self, max_records: int, deadline: float) -> Batches:
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
        ends = self._ends(positions)
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
                    records=firsts[partition] - position,
                    **self._who,
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

    def _position(self, partition: TopicPartition) -> int:
        ask = partial(self._consumer.position, partition, CONSUMER_TIMEOUT_MS)
        return self._positioned(ask) or 0

    def _ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return self._consumer.end_offsets(partitions, timeout_ms=CONSUMER_TIMEOUT_MS)

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=CONSUMER_TIMEOUT_MS)

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """What the broker refuses meanwhile is LogUnavailable."""
        try:
            yield
        except KafkaError as error:
            raise LogUnavailable(f"cannot {what}: topic {self._topic}: {error!r}") from error


class KafkaTopicReader(KafkaReading):
    """TopicReader of a Kafka topic."""

    def __init__(
        self,
        bootstrap: Sequence[str],
        topic: str,
        start: Mapping[int, int],
        monotonic: Callable[[], float],
    ) -> None:
        """`topic` is its name at the broker."""
        super().__init__(bootstrap, topic, None, monotonic, fetch_max_wait_ms=FETCH_WAIT_MS)
        if not self._numbers:
            self.close()
            raise self._gone()
        partitions = [TopicPartition(topic, number) for number in sorted(self._numbers)]
        self._went_back = unknown_partition(topic, start, self._numbers)
        self._consumer.assign(partitions)
        for partition in partitions:
            if partition.partition in start:
                self._consumer.seek(partition, start[partition.partition])
            else:
                self._consumer.seek_to_beginning(partition)

    def poll(self, max_records: int, timeout_s: float) -> list[LogRecord]:
        return self._records(*self._read(max_records, timeout_s))

    def positions(self) -> dict[int, int]:
        with self._reading():
            return {p.partition: self._position(p) for p in self._consumer.assignment()}

    def caught_up(self) -> bool:
        with self._reading():
            self._check_identity()
            ends = self._ends(self._consumer.assignment())
            positions = {partition: self._position(partition) for partition in ends}
            if beyond := {p: at for p, at in positions.items() if at > ends[p]}:
                self._judge(beyond)
            return positions == ends
