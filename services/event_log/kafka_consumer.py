"""Reading the event log on Kafka: one member of a consumer group."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kafka import KafkaConsumer, TopicPartition

from services.event_log.interface import Lag, LogRecord
from services.event_log.kafka_reader import CONSUMER_TIMEOUT_MS, DecodingConsumer, KafkaReading

SESSION_TIMEOUT_MS, HEARTBEAT_MS = 10_000, 1_000
PEEK_S = 1.0  # what `lag` may take to look at the next records


class KafkaLogConsumer(KafkaReading):
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
        super().__init__(
            bootstrap,
            topic,
            group,
            monotonic,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
        )
        self._bootstrap = bootstrap
        self._check_topic = check_topic
        self._clock = clock
        self._assigned: frozenset[int] = frozenset()
        self._dealt_anew = False
        self._peeker: KafkaConsumer | None = None
        self._consumer.subscribe([topic])

    def poll(self, max_records: int, timeout_s: float) -> list[LogRecord]:
        if self._dealt_anew and self._went_back is None:
            self._check_topic()
            self._dealt_anew = False
        batches, is_there = self._read(max_records, timeout_s)
        before = self._assigned
        self._assigned = frozenset(p.partition for p in self._consumer.assignment())
        self._dealt_anew = bool(before) and before != self._assigned
        return self._records(batches, is_there)

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
            ends = self._ends(partitions) if partitions else {}
            positions = {p: self._position(p) for p in ends}
            behind = {p: positions[p] for p, end in ends.items() if end > positions[p]}
            oldest_ms = self._oldest_ms(behind) if behind else None
        age_s = 0.0 if oldest_ms is None else max(0.0, self._clock() - oldest_ms / 1000)
        return Lag(sum(ends[p] - position for p, position in behind.items()), age_s)

    def close(self) -> None:
        super().close()
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
