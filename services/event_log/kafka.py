"""The event log on Kafka, `kafka://host:port[,host:port]`, through kafka-python.

One thread owns the producer: it opens topics (created when missing), sends, and replaces a producer
that no longer acknowledges anything. kafka-python itself queues without bound while the broker is
away, so un-acknowledged records are counted here. The producer is not idempotent: one refused
record poisons kafka-python's idempotent producer for good; a retry may store a batch twice, which
every reader must stand anyway.

Records go to the producer in groups, the next one when all of the last are answered, as the
embedded log commits. A group is one batch for each partition, which is stored whole or, for a
record that the broker refuses, not at all: then the others of it come first in the next group. So
records of one key keep their order beside one that is refused.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import structlog
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError, KafkaTimeoutError, RetriableError
from kafka.net.compat import KafkaNetClient

from services.event_log.appends import Append, AppendingLog
from services.event_log.interface import MAX_RECORD_BYTES, LogUnavailable, Record
from services.event_log.kafka_consumer import KafkaLogConsumer
from services.event_log.kafka_names import KafkaNames
from services.event_log.kafka_reader import KafkaTopicReader
from services.event_log.kafka_topics import KafkaTopics, described
from services.event_log.limits import MAX_KEY_BYTES, check_name, check_start

log = structlog.get_logger(__name__)

GROUP_BYTES = 256 * 1024  # of records at once; a larger append goes alone
RECORD_OVERHEAD = 64  # at most, in a batch
CONNECTION_WAIT_MS = 100
SILENT = "the broker acknowledged nothing in time"
GRACE_S = 2.0  # for the producer to end what is overdue, and for what its answers call


class _PatientClient(KafkaNetClient):
    """The producer's connections, of which its thread asks how long it must wait for one.

    kafka-python answers 0 for one that is connecting or has its request in flight, so that the
    thread asks again and again while a broker hangs, on a processor that this process needs; and it
    answers in seconds where milliseconds are meant. Whatever comes from the broker ends the wait.
    """

    def connection_delay(self, node_id: int) -> float:
        return max(CONNECTION_WAIT_MS, 1000 * super().connection_delay(node_id))


class _Append(Append):
    """Its future ends with the last acknowledgement or the first failure."""

    def __init__(self, topic: str, records: Sequence[Record], deadline: float) -> None:
        super().__init__(topic, records)
        self.deadline = deadline
        self.bytes = sum(len(r.key) + len(r.value) + RECORD_OVERHEAD for r in records)
        self.unanswered = 0  # records that the producer has
        self.again = False  # some were not stored, for another one that was refused


class KafkaEventLog(AppendingLog[_Append]):
    """EventLog on a Kafka cluster. See the interface for the contract."""

    def __init__(
        self,
        bootstrap: Sequence[str],
        *,
        installation: str | None,
        partitions: int = 4,
        retention_days: float = 7.0,
        max_pending: int = 20_000,
        compacted: Collection[str] = (),
        append_timeout_s: float = 10.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(max_pending, compacted)
        self._bootstrap = list(bootstrap)
        self._names = KafkaNames(installation)
        self._topics = KafkaTopics(
            bootstrap,
            partitions,
            int(retention_days * 86_400_000),
            frozenset(map(self._names.topic, compacted)),
        )
        self._append_timeout_s = append_timeout_s
        self._request_timeout_ms = int(min(3_000, append_timeout_s * 1000 / 2))
        self._clock = clock
        self._monotonic = monotonic
        self._topic_partitions: dict[str, int] = {}
        self._topics_lock = threading.Lock()
        self._again: deque[_Append] = deque()  # to be sent again, before the queue

    def _new_append(self, topic: str, records: Sequence[Record]) -> _Append:
        deadline = self._monotonic() + self._append_timeout_s
        return _Append(self._names.topic(topic), records, deadline)

    def consumer(self, topic: str, group: str) -> KafkaLogConsumer:
        check_name("group", group)
        name = self._checked(topic)
        try:
            return KafkaLogConsumer(
                self._bootstrap,
                name,
                self._names.group(topic, group),
                partial(self._check_topic, name),
                self._clock,
                self._monotonic,
            )
        except KafkaError as error:
            raise self._unavailable(f"cannot join group {group}", error) from error

    def reader(self, topic: str, start: Mapping[int, int] | None = None) -> KafkaTopicReader:
        start = start or {}
        check_start(start)
        name = self._checked(topic)
        try:
            return KafkaTopicReader(self._bootstrap, name, start, self._monotonic)
        except KafkaError as error:
            raise self._unavailable(f"cannot read topic {name}", error) from error

    def forget_groups(self, topic: str, prefix: str) -> int:
        check_name("topic", topic)
        with self._admin(f"cannot forget groups of {topic}") as admin:
            names = [group["group_id"] for group in admin.list_groups()]
            groups = {name: self._names.group_of(topic, name) for name in names}
            ours = [name for name, group in groups.items() if group and group.startswith(prefix)]
            outcomes = list(admin.delete_groups(ours).values()) if ours else []
        # In use, or deleted by somebody else meanwhile: neither is ours to delete any more.
        left = {"NonEmptyGroupError", "GroupIdNotFoundError"}
        if failed := set(outcomes) - {"OK"} - left:
            raise LogUnavailable(f"cannot forget groups of {topic}: {', '.join(sorted(failed))}")
        return outcomes.count("OK")

    def partitions(self, topic: str) -> int:
        return self._opened(self._named(topic))

    def _named(self, topic: str) -> str:
        check_name("topic", topic)
        return self._names.topic(topic)

    def _checked(self, topic: str) -> str:
        """The topic's name at the broker, where it is and is found to be as it must be."""
        name = self._named(topic)
        if name in self._topic_partitions:
            self._check_topic(name)
        else:
            self._opened(name)
        return name

    def _opened(self, topic: str) -> int:
        """The partitions of a topic of this name at the broker, where it is from now on."""
        with self._topics_lock:
            if topic not in self._topic_partitions:
                with self._admin(f"cannot open topic {topic}") as admin:
                    self._topic_partitions[topic] = self._topics.open(admin, topic)
            return self._topic_partitions[topic]

    def identity(self, topic: str) -> str:
        self.partitions(topic)
        name = self._named(topic)
        with self._admin(f"cannot describe topic {name}") as admin:
            found = described(admin, name).get("topic_id")
        return str(found) if found else ""  # brokers before 2.8 give topics no id

    def end_offsets(self, topic: str) -> list[int]:
        return self._offsets(topic, OffsetSpec.LATEST)

    def start_offsets(self, topic: str) -> list[int]:
        return self._offsets(topic, OffsetSpec.EARLIEST)

    def positions(self, topic: str, group: str) -> dict[int, int]:
        check_name("group", group)
        name, of_group = self._named(topic), self._names.group(topic, group)
        with self._admin(f"cannot ask for the positions of group {of_group}") as admin:
            found = admin.list_group_offsets({of_group: None})[of_group]
        return {
            place.partition: position.offset
            for place, position in found.items()
            if place.topic == name and position.offset >= 0
        }

    def _offsets(self, topic: str, which: OffsetSpec) -> list[int]:
        self.partitions(topic)
        name = self._named(topic)
        with self._admin(f"cannot ask how far topic {name} reaches") as admin:
            count = len(described(admin, name)["partitions"])
            wanted = [TopicPartition(name, number) for number in range(count)]
            found = admin.list_partition_offsets(dict.fromkeys(wanted, which))
        return [found[partition].offset for partition in wanted]

    @contextlib.contextmanager
    def _admin(self, refusal: str) -> Iterator[KafkaAdminClient]:
        """A connection to ask and command with; what fails on it is LogUnavailable."""
        try:
            admin = KafkaAdminClient(
                bootstrap_servers=self._bootstrap,
                request_timeout_ms=self._request_timeout_ms,
                bootstrap_timeout_ms=self._request_timeout_ms,
            )
            with contextlib.closing(admin):
                yield admin
        except KafkaError as error:
            raise self._unavailable(refusal, error) from error

    def _check_topic(self, topic: str) -> None:
        """TopicUnfit if the topic was altered since it was opened."""
        with self._admin(f"cannot ask how topic {topic} is configured") as admin:
            self._topics.check(admin, topic)

    def _new_producer(self) -> KafkaProducer:
        return KafkaProducer(
            bootstrap_servers=self._bootstrap,
            bootstrap_timeout_ms=self._request_timeout_ms,
            acks="all",
            enable_idempotence=False,
            max_in_flight_requests_per_connection=1,
            # What a group has for a partition must be one batch: it ends with the flush behind it.
            linger_ms=int(self._append_timeout_s * 250),
            batch_size=2 * GROUP_BYTES,
            delivery_timeout_ms=int(self._append_timeout_s * 1000),
            request_timeout_ms=self._request_timeout_ms,
            max_block_ms=self._request_timeout_ms,  # holds up the sender thread, never `append`
            max_request_size=MAX_RECORD_BYTES + MAX_KEY_BYTES,
            reconnect_backoff_max_ms=1_000,
            allow_auto_create_topics=False,
            metrics_enabled=False,
            kafka_client=_PatientClient,
        )

    def _write_until_closed(self) -> None:
        producer: KafkaProducer | None = None
        while group := self._next_group():
            for append in group:
                if append.future.done():
                    continue
                try:
                    self._opened(append.topic)
                    if producer is None:
                        producer = self._new_producer()
                    self._send(producer, append)
                except (LogUnavailable, RetriableError) as error:
                    failed = self._unavailable("cannot append", error)
                    self._fail_topic(append.topic, group, failed)
                except Exception as error:
                    # Whatever it was, nobody may be left waiting for an answer.
                    self._end(append, self._unavailable("cannot append", error))
            if producer is not None and not self._answered_all(producer, group):
                log.warning("kafka_producer_replaced", reason="nothing was acknowledged in time")
                self._retire(producer, 0.0)
                producer = None
                for append in group:
                    self._end(append, LogUnavailable(SILENT))
        if producer is not None:
            self._retire(producer, self._append_timeout_s)

    def _next_group(self) -> list[_Append]:
        """What is sent next, at most GROUP_BYTES or one append; nothing when closed."""
        group: list[_Append] = []
        left = GROUP_BYTES
        with self._wake:
            while not group:
                self._wake.wait_for(lambda: self._again or self._queue or self._closed)
                if not (self._again or self._queue):
                    return []
                self._end_overdue()
                while waiting := self._again or self._queue:
                    if group and waiting[0].bytes > left:
                        break
                    left -= waiting[0].bytes
                    group.append(waiting.popleft())
        return group

    def _answered_all(self, producer: KafkaProducer, group: Sequence[_Append]) -> bool:
        """Wait until the broker has answered to all of a group; False: it no longer does. Appends
        that wait for longer than they may end meanwhile."""
        while True:
            with self._wake:
                waiting = [a for a in group if a.unanswered and not a.future.done()]
                deadlines = [a.deadline for a in (*self._again, *islice(self._queue, 1))]
                deadlines += [a.deadline + GRACE_S for a in waiting]  # the producer ends them first
            if not waiting:
                return True
            try:
                producer.flush(max(min(deadlines) - self._monotonic(), 0.001))
            except KafkaTimeoutError:
                with self._wake:
                    self._end_overdue(*waiting)
                if all(append.future.done() for append in waiting):
                    return False
            else:
                with self._wake:  # what the answers call runs in the producer's thread
                    return self._wake.wait_for(
                        lambda: not any(a.unanswered and not a.future.done() for a in group),
                        GRACE_S,
                    )

    def _end_overdue(self, *sent: _Append) -> None:
        """End what has waited for longer than it may, of these and of all that is queued."""
        now = self._monotonic()
        late = [a for a in sent if now > a.deadline + GRACE_S]
        late += [a for a in self._again if now > a.deadline]
        self._again = deque(a for a in self._again if now <= a.deadline)
        while self._queue and now > self._queue[0].deadline:  # the queue is in order of deadlines
            late.append(self._queue.popleft())
        for append in late:
            beside = f"topic {append.topic} refused records beside these until their time was over"
            self._end(append, LogUnavailable(beside if append.again else SILENT))

    def _send(self, producer: KafkaProducer, append: _Append) -> None:
        append.again, append.unanswered = False, len(append.records)
        if not append.records:
            self._end(append, None)
        for record in append.records:
            sent = producer.send(
                append.topic,
                value=record.value,
                key=record.key or None,
                timestamp_ms=record.time_ms,
            )
            sent.add_callback(lambda _: self._answered(append))
            sent.add_errback(self._refused, append)

    def _refused(self, append: _Append, error: Exception) -> None:
        if type(error) is KafkaError:
            # It was in one batch with a record that the broker refused, and was not stored for it.
            append.again = True
        else:
            self._end(append, self._unavailable(f"topic {append.topic} took no record", error))
        self._answered(append)

    def _answered(self, append: _Append) -> None:
        """One more record is stored, refused, or must be sent again; the last one ends the append
        or queues it up anew."""
        with self._wake:
            append.unanswered -= 1
            if append.unanswered:
                return
            if append.again and not append.future.done():
                self._again.append(append)
            else:
                self._end(append, None)
            self._wake.notify_all()

    def _fail_topic(self, topic: str, group: Sequence[_Append], error: LogUnavailable) -> None:
        """The topic cannot be reached: what has queued up for it would wait for nothing."""
        with self._wake:
            queued = [w for w in (*group, *self._again, *self._queue) if w.topic == topic]
            self._again = deque(w for w in self._again if w.topic != topic)
            self._queue = deque(w for w in self._queue if w.topic != topic)
        for waiting in queued:
            self._end(waiting, error)

    def _end(self, append: _Append, error: LogUnavailable | None) -> None:
        """Resolve an append's future, once, and free its place under the bound."""
        with self._wake:
            if append.future.done():
                return
            self._add_pending(-len(append.records))
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

    def _unavailable(self, what: str, error: Exception) -> LogUnavailable:
        if isinstance(error, LogUnavailable):
            return error
        return LogUnavailable(f"{what} at {','.join(self._bootstrap)}: {error!r}")
