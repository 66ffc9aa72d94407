"""What was imported beside what the event log holds: which imported events count, and whether
something is missing between the two.

One event is one user, item, kind of event and time (ms). One that is in both is the log's: it has
an id there, by which a sender's retry is known. So an import may overlap with the log in any way.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import polars as pl

from models.data.own.tables import OwnTables
from protos.tandem.v1.records_pb2 import FeedbackEvent
from services.event_log.interface import EventLog, LogRecord
from services.event_log.topics import FEEDBACK
from services.event_log.whole_log import WholeTopics

READER = "features-rebuild"
ONE_EVENT = {"user_id": pl.String, "item_id": pl.String, "event": pl.String, "time_ms": pl.Int64}
CHUNK = 100_000  # events as Python objects


class History(NamedTuple):
    """Imported tables of which only those events are left that the log does not hold."""

    own: OwnTables
    in_both: int = 0  # events
    beside: int = 0  # events from the log's time on that it does not hold
    until_ms: int | None = None  # the newest imported event
    logged_from_ms: int | None = None  # the oldest that the log retains

    @property
    def sentences(self) -> list[str]:
        """What its owner should know of it."""
        found = []
        if self.in_both:
            found.append(f"{self.in_both:,} imported events are in the event log, too: once each.")
        if self.until_ms is None or self.logged_from_ms is None:
            return found
        until, since = _utc(self.until_ms), _utc(self.logged_from_ms)
        if self.beside:
            found.append(
                f"{self.beside:,} imported events are as late as the event log's, which begin at"
                f" {since}, and not among them: they count, too. If they are the same with other"
                f" times, import again what was before {since} alone."
            )
        if self.until_ms < self.logged_from_ms:
            found.append(
                f"Nothing is known of what happened between {until}, where the imported events"
                f" end, and {since}, where those of the event log begin: if there was something,"
                " `tandem import events FILE` and run `tandem features rebuild` again."
            )
        return found


def history_of(own: OwnTables, event_log: EventLog, poll_records: int) -> History:
    """The imported events without those that the log retains. Reads the log once; raises what it
    raises."""
    events = own.events.collect()
    until = events["time_ms"].max()
    if until is None:
        return History(own)
    assert isinstance(until, int)
    logged = _Logged({event.id: event.name for event in own.schema.declaration.events}, until)
    reader = WholeTopics(event_log, READER, poll_records, {FEEDBACK: logged.take})
    with contextlib.closing(reader):
        reader.read_all()
    left = events.join(logged.frame(), on=list(ONE_EVENT), how="anti", maintain_order="left")
    since = logged.first_ms
    return History(
        replace(own, events=left.lazy()),
        len(events) - len(left),
        0 if since is None else left.filter(pl.col("time_ms") >= since).height,
        until,
        since,
    )


class _Logged:
    """Events of the log until `until_ms`, and when the first of all happened."""

    def __init__(self, names: dict[int, str], until_ms: int) -> None:
        self.first_ms: int | None = None
        self._names, self._until_ms = names, until_ms
        self._rows: list[tuple[str, str, str, int]] = []
        self._frames = [pl.DataFrame(schema=ONE_EVENT)]

    def take(self, record: LogRecord) -> None:
        event = FeedbackEvent.FromString(record.value)
        name, time_ms = self._names.get(event.event_type), event.event_time_ms
        if name is None or time_ms <= 0:
            return  # a dead letter of the updater's
        self.first_ms = time_ms if self.first_ms is None else min(self.first_ms, time_ms)
        if time_ms <= self._until_ms:
            self._rows.append((event.user_id, event.item_id, name, time_ms))
        if len(self._rows) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._frames.append(pl.DataFrame(self._rows, ONE_EVENT, orient="row"))
        self._rows = []

    def frame(self) -> pl.DataFrame:
        self._flush()
        return pl.concat(self._frames)


def _utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
