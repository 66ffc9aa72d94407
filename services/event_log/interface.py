"""The contract of an event log: durable, partitioned, read by consumer groups.

`log://` (embedded) and `kafka://` implement it (`services/event_log/connect.py` chooses by URL);
the contract suite `tests/contract/test_event_log.py` says what every backend must hold:

* an append is acknowledged only when the record is durable (fsynced; Kafka: acks=all);
* records of one key keep their order and live in one partition;
* a consumer group sees every record at least once: what was not committed is delivered again
  after a crash, so effects must be idempotent by (partition, offset) or event id;
* un-acknowledged appends are bounded: past the bound `append` raises LogSaturated at once;
* offsets only grow, for as long as a topic has one identity. A log for which that ceases to be true
  while it is read (its topic made anew, a backup put in its place) says so with LogWentBack;
* a compacted topic (`topics.py` says which are) keeps the last record of every key for ever and may
  lose a record once a later one of its key is durable. It has one partition, so that its records
  have one order; offsets never change, and have gaps where records are gone. An empty value is a
  value like any other. In all other topics every record is kept, until it expires.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

MAX_RECORD_BYTES = 1_000_000  # key and value of one record together; Kafka's default is 1 MiB


class LogUnavailable(Exception):
    """The log could not be written or read (disk full, broker down); the message says why."""


class LogCorrupt(LogUnavailable):
    """Records that were once durable cannot be read; the message names the place, and what to do.
    Nothing is skipped: until somebody does it, every attempt to read on ends here."""


class TopicUnfit(LogUnavailable):
    """A topic is configured so that records in it would be lost (it is compacted and must not be,
    or the other way round) or have no order; the message says what to do. Trying again finds it
    altered."""


class LogSaturated(Exception):
    """More appends wait for their acknowledgement than the settings allow; retry later."""


class LogWentBack(Exception):
    """The topic that somebody reads is no longer the one that was read: it ends before the reader's
    position, or it was made anew. The message says what happened and what to do.

    Trying again does not help, so this is no LogUnavailable. Who keeps nothing of the log across
    restarts begins anew with a new consumer; who does must judge what it keeps first.
    """


class Record(NamedTuple):
    """A record to append. `key` chooses the partition (empty: any, and refused in a compacted
    topic); `time_ms` is 0 or more."""

    key: bytes
    value: bytes
    time_ms: int


class LogRecord(NamedTuple):
    """A record as read. `offset` counts from 0 within its partition, with gaps in a compacted topic
    alone; `time_ms` is never negative, whoever wrote it."""

    partition: int
    offset: int
    time_ms: int
    key: bytes
    value: bytes


@dataclass(frozen=True)
class Lag:
    """How far a consumer is behind, per assigned partition summed: events (in a compacted topic
    perhaps with some that are gone), and seconds of age of the oldest record not yet delivered to
    it (0 when it has caught up)."""

    events: int
    seconds: float


class Consumer(Protocol):
    """One member of a consumer group. Used by one thread.

    `poll`, `commit`, `rewind` and `lag` raise LogUnavailable, and LogWentBack: `poll` before it
    returns anything of another log than the one that it joined, and from then on every time. The
    consumer can only be closed then. A group whose stored position lies beyond the end (of a log
    restored without its groups) meets it in its first `poll`; `EventLog.forget_groups` ends that.
    """

    def poll(self, max_records: int, timeout_s: float) -> list[LogRecord]:
        """Records after the position, in offset order within each partition; empty on timeout.
        The position moves; only `commit` makes the move outlive this process."""

    def commit(self) -> None:
        """Store the position of every assigned partition for the group, durably."""

    def rewind(self) -> None:
        """Go back to the committed positions: the records since then are delivered again."""

    def assigned(self) -> frozenset[int]:
        """Partitions this member reads now; changes only inside `poll`."""

    def lag(self) -> Lag: ...

    def close(self) -> None:
        """Leave the group; nothing is committed implicitly."""


class TopicReader(Protocol):
    """Reads all partitions of a topic, outside any group. Used by one thread.

    It stores nothing in the log and disturbs nobody who reads it. All but `close` raise
    LogUnavailable, and LogWentBack as a Consumer's do: when the topic is another one, and when it
    ends before the start or before what was returned; then for ever.
    """

    def poll(self, max_records: int, timeout_s: float) -> list[LogRecord]:
        """Records after the position, in offset order within each partition, as soon as they are
        durable; empty on timeout. The position moves."""

    def positions(self) -> dict[int, int]:
        """The offset of the next record that is wanted, by partition: a start for another reader,
        to go on where this one is. The record itself may be gone, or not there yet."""

    def caught_up(self) -> bool:
        """Whether every record that is durable now was returned. Asks the log."""

    def close(self) -> None:
        """Release everything. Idempotent."""


class EventLog(Protocol):
    """Topics of partitions. Topics are created on first use with the settings' partition count (a
    compacted one has one partition)."""

    def append(self, topic: str, records: Sequence[Record]) -> Future[None]:
        """Start appending; the future ends when every record is durable, or with LogUnavailable.
        It cannot be cancelled: what was accepted is being written.

        Thread-safe, never blocks for long. Raises LogSaturated when the bound is reached, and
        ValueError for a record over MAX_RECORD_BYTES, a time that is none, a topic that cannot be a
        name, or a record without a key in a compacted topic. The records of one call and key stay
        together and in order; a failed append may still have stored some of them (idempotence is
        the reader's). What one append is refused for fails no other."""

    def consumer(self, topic: str, group: str) -> Consumer:
        """Join `group` on `topic`: the group's live members share its partitions between them."""

    def reader(self, topic: str, start: Mapping[int, int] | None = None) -> TopicReader:
        """Read all partitions without a group, each from its offset in `start`, or from the
        earliest record that is kept where it is not named. Where the record at a start has expired,
        or is gone by compaction, the next one that is kept is the first. Raises LogUnavailable, and
        ValueError for a start that cannot be an offset."""

    def forget_groups(self, topic: str, prefix: str) -> int:
        """Delete the groups of `topic` whose names begin with `prefix`, with their positions; how
        many. Groups with live members stay as they are.

        For groups that are used once: who makes one forgets it after closing its consumers, and
        forgets at its start what others that were killed left behind. Raises LogUnavailable.
        """

    def partitions(self, topic: str) -> int:
        """Number of partitions of the topic (creating it when it does not exist)."""

    def identity(self, topic: str) -> str:
        """Names the topic (creating it when it does not exist) for as long as it exists: another
        log's, or one that was deleted and made anew, has another. "" where it is not known.
        Asked of the log each time. Raises LogUnavailable."""

    def end_offsets(self, topic: str) -> list[int]:
        """The offset of the next record, by partition (creating the topic when it does not exist).

        Whoever remembers what it has read across restarts compares: a log that ends before that has
        lost records (a restored backup). Asked of the log each time. Raises LogUnavailable."""

    def start_offsets(self, topic: str) -> list[int]:
        """The offset of the oldest record that is kept, by partition; the end where there is none.
        In a compacted topic it may lie before that record. As `end_offsets` otherwise."""

    def positions(self, topic: str, group: str) -> dict[int, int]:
        """The offset that the group has committed, by partition: where its next member goes on.

        Without the partitions of which it has committed none. Raises LogUnavailable."""

    def close(self) -> None:
        """Wait for pending appends, then release everything. Idempotent."""
