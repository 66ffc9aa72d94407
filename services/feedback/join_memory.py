"""What the joiner remembers, on disk: decisions, events that wait, ids already counted.

A join window holds as many decisions as the router answers in half an hour, and units are counted
for as long as the log is retained. In Python objects both grow the process; here they lie in a
SQLite file of which a small page cache is all that is in memory. The file has no name once it is
open: it holds nothing that the log does not (a joiner reads the log anew when it starts), and the
kernel frees it however the process ends. For the same reason nothing is synced or journalled.

Size: some 20 bytes per decision and per event, of the join window in the long run; but a start
reads the whole retained log before it may forget (`Joiner.report`), and needs room for it until
then.

Ids are 64-bit hashes (services/common/ids.py).
"""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path
from typing import Any

_CACHE_KIB = 2_000

_SCHEMA = """
CREATE TABLE decisions (request INTEGER PRIMARY KEY, time_ms INTEGER, arms INTEGER);
CREATE TABLE seen (event INTEGER PRIMARY KEY, time_ms INTEGER);
CREATE TABLE waiting (
    request INTEGER, event INTEGER, time_ms INTEGER, type INTEGER, PRIMARY KEY (request, event)
) WITHOUT ROWID;
CREATE TABLE units (arm INTEGER, unit INTEGER, PRIMARY KEY (arm, unit)) WITHOUT ROWID;
"""


class JoinMemory:
    """Used by one thread at a time. Methods raise sqlite3.Error when the disk fails or is full."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` takes the file; without one it is the system's for temporary files."""
        with tempfile.NamedTemporaryFile(prefix="joiner-", dir=folder) as file:
            self._db = sqlite3.connect(file.name, isolation_level=None, check_same_thread=False)
            self._execute = self._db.execute
            self._execute("PRAGMA auto_vacuum = INCREMENTAL")  # `forget` gives space back
            self._execute("PRAGMA locking_mode = EXCLUSIVE")
            self._execute("PRAGMA journal_mode = OFF")
            self._execute("PRAGMA synchronous = OFF")
            self._execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._db.executescript(_SCHEMA)  # opens the file, whose name goes away here
        self._execute("BEGIN")
        self.waiting_events = 0

    def checkpoint(self) -> None:
        """Hand what was changed to the kernel: once per batch of messages."""
        self._execute("COMMIT")
        self._execute("BEGIN")

    def add_decision(self, request: int, time_ms: int, arms: int) -> bool:
        """Remember a decision and the number of its combination of arms; False: it is known."""
        return self._added(
            "INSERT OR IGNORE INTO decisions VALUES (?, ?, ?)", request, time_ms, arms
        )

    def decision(self, request: int) -> tuple[int, int] | None:
        """(time_ms, arms) of a remembered decision."""
        found: tuple[int, int] | None = self._execute(
            "SELECT time_ms, arms FROM decisions WHERE request = ?", (request,)
        ).fetchone()
        return found

    def add_event(self, event: int, time_ms: int) -> bool:
        """Remember an event's id; False: it is known."""
        return self._added("INSERT OR IGNORE INTO seen VALUES (?, ?)", event, time_ms)

    def add_unit(self, arm: int, unit: int) -> bool:
        """Remember that an arm was shown to a unit; False: it is known."""
        return self._added("INSERT OR IGNORE INTO units VALUES (?, ?)", arm, unit)

    def wait(self, request: int, event: int, time_ms: int, event_type: int) -> None:
        """Keep an event for the decision that it quotes.

        It may be there already, with another time: its id in `seen` is forgotten before it is.
        """
        row = (request, event, time_ms, event_type)
        if self._added("INSERT OR IGNORE INTO waiting VALUES (?, ?, ?, ?)", *row):
            self.waiting_events += 1
        else:
            self._execute("REPLACE INTO waiting VALUES (?, ?, ?, ?)", row)

    def take_waiting(self, request: int) -> list[tuple[int, int]]:
        """(time_ms, type) of the events that wait for this decision, which then do no longer."""
        found = self._execute(
            "SELECT time_ms, type FROM waiting WHERE request = ?", (request,)
        ).fetchall()
        if found:
            self._execute("DELETE FROM waiting WHERE request = ?", (request,))
            self.waiting_events -= len(found)
        return found

    def forget(self, *, decisions_before: int, events_before: int, waiting_before: int) -> int:
        """Drop what is older (ms); returns how many events waited in vain. Reads every row."""
        self._execute("DELETE FROM decisions WHERE time_ms < ?", (decisions_before,))
        self._execute("DELETE FROM seen WHERE time_ms < ?", (events_before,))
        gone = self._execute("DELETE FROM waiting WHERE time_ms < ?", (waiting_before,)).rowcount
        self.waiting_events -= gone
        # As a script: a single statement would give one page back. It commits first.
        self._db.executescript("PRAGMA incremental_vacuum; BEGIN")
        return gone

    def bytes_on_disk(self) -> int:
        pages: int = self._execute("PRAGMA page_count").fetchone()[0]
        size: int = self._execute("PRAGMA page_size").fetchone()[0]
        return pages * size

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        """Everything in a table, ascending: to compare memories."""
        return sorted(self._execute(f"SELECT * FROM {table}").fetchall())

    def close(self) -> None:
        self._db.close()

    def _added(self, insert: str, *values: int) -> bool:
        return self._execute(insert, values).rowcount == 1
