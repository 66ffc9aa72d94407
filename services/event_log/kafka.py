"""The event log on Kafka, `kafka://host:port[,host:port]`, through kafka-python.

One thread owns the producer: it opens topics (created when missing), sends, and replaces a producer
that no longer acknowledges anything. kafka-python itself queues without bound while the broker is
away, so un-acknowledged records are counted here. The producer is not idempotent: one refused
record poisons kafka-python's idempotent producer for good; order is kept by one request in flight,
and a retry may store a batch twice, which every reader must stand anyway.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError

from services.event_log.interface import (
    MAX_RECORD_BYTES,
    Lag,
    LogRecord,
    LogUnavailable,
    Record,
)
from services.event_log.limits import MAX_KEY_BYTES, PENDING, check_append, check_name, saturated

log = structlog.get_logger(__name__)

LINGER_MS = 2
SESSION_TIMEOUT_MS, HEARTBEAT_MS = 10_000, 1_000
CONSUMER_TIMEOUT_MS = 5_000  # some calls of kafka-python wait for ever without one
PEEK_S = 1.0  # what `lag` may take to look at the next records
WATCHDOG_GRACE_S = 2.0  # beyond the producer's own delivery timeout


class _Append:
    """An append under way: its future ends with the last acknowledgement or the first failure."""

    def __init__(self, topic: str, records: Sequence[Record], deadline: float) -> None:
        self.topic = topic
        self.records = records
        self.deadline = deadline
        self.future: Future[None] = Future()
        self.future.set_running_or_notify_cancel()
        self.unacknowledged = len(records)


class KafkaEventLog:
    """EventLog on a Kafka cluster. See the interface for the contract."""

    def __init__(
        self,
        bootstrap: Sequence[str],
        *,
        partitions: int = 4,
        retention_days: float = 7.0,
        max_pending: int = 20_000,
        append_timeout_s: float = 10.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bootstrap = list(bootstrap)
        self._new_topic_partitions = partitions
        self._retention_ms = int(retention_days * 86_400_000)
        self._max_pending = max_pending
        self._append_timeout_s = append_timeout_s
        self._request_timeout_ms = int(min(3_000, append_timeout_s * 1000 / 2))
        self._clock = clock
        self._monotonic = monotonic
        self._topic_partitions: dict[str, int] = {}
        self._topics_lock = threading.Lock()
        self._wake = threading.Condition()
        self._queue: deque[_Append] = deque()
        self._sent: dict[int, _Append] = {}  # by id, oldest first: sent, not yet ended
        self._pending = 0
        self._closed = False
        self._sender: threading.Thread | None = None

    def append(self, topic: str, records: Sequence[Record]) -> Future[None]:
        check_append(topic, records)
        append = _Append(topic, records, self._monotonic() + self._append_timeout_s)
        with self._wake:
            if self._closed:
                append.future.set_exception(LogUnavailable("the event log is closed"))
                return append.future
            if self._pending + len(records) > self._max_pending:
                raise saturated(self._pending, self._max_pending)
            self._pending += len(records)
            PENDING.set(self._pending)
            self._queue.append(append)
            if self._sender is None:
                self._sender = threading.Thread(
                    target=self._send_until_closed, name="event-log-sender", daemon=True
                )
                self._sender.start()
            self._wake.notify()
        return append.future

    def consumer(self, topic: str, group: str) -> KafkaLogConsumer:
        check_name("group", group)
        self.partitions(topic)
        try:
            return KafkaLogConsumer(self._bootstrap, topic, group, self._clock, self._monotonic)
        except KafkaError as error:
            raise self._unavailable(f"cannot join group {group}", error) from error

    def forget_groups(self, topic: str, prefix: str) -> int:
        check_name("topic", topic)
        try:
            admin = self._admin()
            try:
                names = [group["group_id"] for group in admin.list_groups()]
                ours = [
                    name
                    for name in names
                    if name.endswith(f".{topic}")
                    and name.removesuffix(f".{topic}").startswith(prefix)
                ]
                outcomes = list(admin.delete_groups(ours).values()) if ours else []
            finally:
                admin.close()
        except KafkaError as error:
            raise self._unavailable(f"cannot forget groups of {topic}", error) from error
        # In use, or deleted by somebody else meanwhile: neither is ours to delete any more.
        left = {"NonEmptyGroupError", "GroupIdNotFoundError"}
        if failed := set(outcomes) - {"OK"} - left:
            raise LogUnavailable(f"cannot forget groups of {topic}: {', '.join(sorted(failed))}")
        return outcomes.count("OK")

    def partitions(self, topic: str) -> int:
        check_name("topic", topic)
        with self._topics_lock:
            if topic not in self._topic_partitions:
                try:
                    self._topic_partitions[topic] = self._open_topic(topic)
                except KafkaError as error:
                    raise self._unavailable(f"cannot open topic {topic}", error) from error
            return self._topic_partitions[topic]

    def identity(self, topic: str) -> str:
        self.partitions(topic)
        try:
            admin = self._admin()
            try:
                found = admin.describe_topics([topic])[0].get("topic_id")
            finally:
                admin.close()
        except KafkaError as error:
            raise self._unavailable(f"cannot describe topic {topic}", error) from error
        return str(found) if found else ""  # brokers before 2.8 give topics no id

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._sender is not None:
            self._sender.join()

    def _admin(self) -> KafkaAdminClient:
        return KafkaAdminClient(
            bootstrap_servers=self._bootstrap,
            request_timeout_ms=self._request_timeout_ms,
            bootstrap_timeout_ms=self._request_timeout_ms,
        )

    def _open_topic(self, topic: str) -> int:
        admin = self._admin()
        try:
            options = {
                "num_partitions": self._new_topic_partitions,
                "configs": {"retention.ms": str(self._retention_ms)},
            }
            try:
                admin.create_topics({topic: options}, wait_for_metadata=True)
            except TopicAlreadyExistsError:
                admin.wait_for_topics([topic])
            return len(admin.describe_topics([topic])[0]["partitions"])
        finally:
            admin.close()

    def _new_producer(self) -> KafkaProducer:
        return KafkaProducer(
            bootstrap_servers=self._bootstrap,
            bootstrap_timeout_ms=self._request_timeout_ms,
            acks="all",
            enable_idempotence=False,
            max_in_flight_requests_per_connection=1,
            linger_ms=LINGER_MS,
            delivery_timeout_ms=int(self._append_timeout_s * 1000),
            request_timeout_ms=self._request_timeout_ms,
            max_block_ms=self._request_timeout_ms,  # holds up the sender thread, never `append`
            max_request_size=MAX_RECORD_BYTES + MAX_KEY_BYTES,
            reconnect_backoff_max_ms=1_000,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )

    def _send_until_closed(self) -> None:
        producer: KafkaProducer | None = None
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closed, WATCHDOG_GRACE_S)
                if self._closed and not self._queue:
                    break
                append = self._queue.popleft() if self._queue else None
                stuck = self._oldest_overdue()
            if stuck and producer is not None:
                log.warning("kafka_producer_replaced", reason="nothing was acknowledged in time")
                self._retire(producer, timeout_s=0)
                producer = None
            if append is None:
                continue
            try:
                self.partitions(append.topic)
                if producer is None:
                    producer = self._new_producer()
                self._send(producer, append)
            except LogUnavailable as error:
                self._fail_queued(append, error)
            except Exception as error:
                # Whatever it was, nobody may be left waiting for an answer.
                self._fail_queued(append, self._unavailable("cannot append", error))
        if producer is not None:
            self._retire(producer, timeout_s=self._append_timeout_s + WATCHDOG_GRACE_S)

    def _oldest_overdue(self) -> bool:
        oldest = next(iter(self._sent.values()), None)
        return oldest is not None and self._monotonic() > oldest.deadline + WATCHDOG_GRACE_S

    def _send(self, producer: KafkaProducer, append: _Append) -> None:
        with self._wake:
            self._sent[id(append)] = append
        if not append.records:
            self._end(append, None)
        for record in append.records:
            sent = producer.send(
                append.topic,
                value=record.value,
                key=record.key or None,
                timestamp_ms=record.time_ms,
            )
            sent.add_callback(self._acknowledged, append)
            sent.add_errback(self._refused, append)

    def _acknowledged(self, append: _Append, _metadata: object) -> None:
        with self._wake:
            append.unacknowledged -= 1
            done = append.unacknowledged == 0
        if done:
            self._end(append, None)

    def _refused(self, append: _Append, error: Exception) -> None:
        self._end(append, self._unavailable(f"topic {append.topic} took no record", error))

    def _fail_queued(self, append: _Append, error: LogUnavailable) -> None:
        """The broker is away: what has queued up meanwhile would wait for nothing."""
        with self._wake:
            queued, self._queue = list(self._queue), deque()
        for waiting in (append, *queued):
            self._end(waiting, error)

    def _end(self, append: _Append, error: LogUnavailable | None) -> None:
        """Resolve an append's future, once, and free its place under the bound."""
        with self._wake:
            if append.future.done():
                return
            self._sent.pop(id(append), None)
            self._pending -= len(append.records)
            PENDING.set(self._pending)
            if error is None:
                append.future.set_result(None)
            else:
                append.future.set_exception(error)

    def _retire(self, producer: KafkaProducer, timeout_s: float) -> None:
        """Close a producer; whatever it has not delivered by then fails."""
        try:
            producer.close(timeout=timeout_s)
        except KafkaTimeoutError:
            # close() gives up here without stopping its thread, which would go on for ever.
            producer._sender.force_close()
        with self._wake:
            left = list(self._sent.values())
        for append in left:
            self._end(append, LogUnavailable("the broker acknowledged nothing in time"))

    def _unavailable(self, what: str, error: Exception) -> LogUnavailable:
        return LogUnavailable(f"{what} at {','.join(self._bootstrap)}: {error!r}")


class KafkaLogConsumer:
    """Consumer of a Kafka topic. `assigned` shows the partitions as of the last poll.

    The group's name at the broker is group.topic: a Kafka group spans topics, and a member that
    comes or goes for one of them would make the members for the others pause.
    """

    def __init__(
        self,
        bootstrap: Sequence[str],
        topic: str,
        group: str,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._clock = clock
        self._monotonic = monotonic
        self._assigned: frozenset[int] = frozenset()
        self._peeker: KafkaConsumer | None = None
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=f"{group}.{topic}",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
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
        self._consumer.subscribe([topic])

    def poll(self, max_records: int, timeout_s: float) -> list[LogRecord]:
        try:
            batches = self._consumer.poll(int(timeout_s * 1000), max_records)
        except KafkaError as error:
            raise self._unavailable("read", error) from error
        self._assigned = frozenset(p.partition for p in self._consumer.assignment())
        return [
            LogRecord(r.partition, r.offset, r.timestamp, r.key or b"", r.value or b"")
            for batch in batches.values()
            for r in batch
        ]

    def commit(self) -> None:
        try:
            self._consumer.commit(timeout_ms=CONSUMER_TIMEOUT_MS)
        except KafkaError as error:
            raise self._unavailable("commit", error) from error

    def rewind(self) -> None:
        try:
            for partition in self._consumer.assignment():
                offset = self._consumer.committed(partition, timeout_ms=CONSUMER_TIMEOUT_MS)
                if offset is None:
                    self._consumer.seek_to_beginning(partition)
                else:
                    self._consumer.seek(partition, offset)
        except KafkaError as error:
            raise self._unavailable("rewind", error) from error

    def assigned(self) -> frozenset[int]:
        return self._assigned

    def lag(self) -> Lag:
        """Asks the broker: a consumer that has stopped polling must not look caught up."""
        try:
            partitions = self._consumer.assignment()
            ends = (
                self._consumer.end_offsets(partitions, timeout_ms=CONSUMER_TIMEOUT_MS)
                if partitions
                else {}
            )
            positions = {p: self._consumer.position(p, CONSUMER_TIMEOUT_MS) or 0 for p in ends}
            behind = {p: positions[p] for p, end in ends.items() if end > positions[p]}
            oldest_ms = self._oldest_ms(behind) if behind else None
        except KafkaError as error:
            raise self._unavailable("ask for the lag", error) from error
        age_s = 0.0 if oldest_ms is None else max(0.0, self._clock() - oldest_ms / 1000)
        return Lag(sum(ends[p] - position for p, position in behind.items()), age_s)

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=CONSUMER_TIMEOUT_MS)
        if self._peeker is not None:
            self._peeker.close()

    def _oldest_ms(self, positions: dict[TopicPartition, int]) -> int | None:
        """Time of the oldest record at these positions, read aside so that nothing moves."""
        if self._peeker is None:
            self._peeker = KafkaConsumer(
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

    def _unavailable(self, what: str, error: Exception) -> LogUnavailable:
        return LogUnavailable(f"cannot {what}: topic {self._topic}: {error!r}")
