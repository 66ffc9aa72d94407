"""The fold of decisions and feedback that experiment metrics are computed from.

It is a set: each decision once by its request id, each event once by its user and event id, as
narrow columns. Equal sets of messages give equal folds to the bit, in whatever order and however
often they were delivered, before or after a restart, in one process or merged from several. All
that depends on order (who was exposed first, what is late) is decided in `measure`, by event time.

What is delivered twice with different content is an error of its sender; the least of the contents
counts, so that even then the order does not matter.

MEMORY. 49 bytes per decision and 25 per event, for all that was added and not told to forget.
A million decisions with three events each take 124 MB; sorting takes as much again, and measuring
two to three times as much. Ids are 64-bit hashes: among a million of them two that collide have
odds of one in 37 million.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protos.tandem.v1 import records_pb2
from services.experiments.analysis.moments import LARGEST, on_grid
from services.feedback.join_memory import hash_of

UNKNOWN_LATENCY = -1
NO_UNIT = 0  # the hash of an empty id, which is no unit

DECISION = np.dtype(
    [
        ("request", "<i8"),
        ("time_ms", "<i8"),
        ("user", "<i8"),
        ("session", "<i8"),
        ("arms", "<i8"),  # hash of the combination of arms
        ("latency", "<i8"),  # grid steps of a millisecond, or UNKNOWN_LATENCY
        ("degraded", "?"),
    ]
)
EVENT = np.dtype([("event", "<i8"), ("request", "<i8"), ("time_ms", "<i8"), ("type", "i1")])

_FLUSH = 4096  # rows that wait as Python objects
_COMPACT = 1 << 17  # rows beyond the last sorting before duplicates are taken out again

Rows: TypeAlias = NDArray[np.void]


class Exposure(NamedTuple):
    """An arm that was in force for a decision, not by the allow-list."""

    experiment: str
    arm: str


Combination: TypeAlias = tuple[Exposure, ...]


@dataclass(frozen=True)
class Settled:
    """A fold's set at one moment, ready to be measured."""

    decisions: Rows  # (d,) of DECISION, ascending by request
    events: Rows  # (e,) of EVENT, ascending by event
    decision_of: NDArray[np.int64]  # (e,) row of the event's decision; -1: there is none
    combinations: dict[int, Combination]

    @property
    def unmatched(self) -> int:
        """Events that quote a request of which there is no decision."""
        return int((self.decision_of < 0).sum())


class Fold:
    """Used by one thread."""

    def __init__(self) -> None:
        self._decisions = _Column(DECISION)
        self._events = _Column(EVENT)
        self._combinations: dict[int, Combination] = {}

    def on_decision(self, record: records_pb2.DecisionRecord) -> None:
        """Add a decision."""
        combination = tuple(
            sorted({Exposure(a.experiment, a.arm) for a in record.assignments if not a.overridden})
        )
        key = hash_of(*(part for exposure in combination for part in exposure))
        self._combinations[key] = combination
        self._decisions.append(
            (
                hash_of(record.request_id),
                record.event_time_ms,
                _unit(record.user_id),
                _unit(record.session_id),
                key,
                _latency(record),
                bool(record.degradations),
            )
        )

    def on_feedback(self, event: records_pb2.FeedbackEvent) -> None:
        """Add an event. One that quotes no request belongs to no decision and is not kept."""
        if not event.request_id:
            return
        self._events.append(
            (
                hash_of(event.user_id, event.event_id),  # unique per sender, not in the world
                hash_of(event.request_id),
                event.event_time_ms,
                event.event_type,
            )
        )

    def merge(self, other: Fold) -> None:
        """Add all that another fold holds."""
        self._decisions.extend(other._decisions.settled())
        self._events.extend(other._events.settled())
        self._combinations |= other._combinations

    def settled(self) -> Settled:
        """The set so far."""
        decisions, events = self._decisions.settled(), self._events.settled()
        return Settled(
            decisions,
            events,
            _rows_of(events["request"], decisions["request"]),
            dict(self._combinations),
        )

    def forget(self, before_ms: float, experiments: Collection[str]) -> None:
        """Drop the decisions before an instant that carry none of these experiments, with their
        events, and the events before it that have no decision."""
        settled = self.settled()
        wanted = [
            key
            for key, combination in self._combinations.items()
            if any(exposure.experiment in experiments for exposure in combination)
        ]
        d, e = settled.decisions, settled.events
        stays = (d["time_ms"] >= before_ms) | np.isin(d["arms"], np.array(wanted, np.int64))
        matched = settled.decision_of >= 0
        kept = e["time_ms"] >= before_ms
        kept[matched] = stays[settled.decision_of[matched]]
        self._decisions.replace(d[stays])
        self._events.replace(e[kept])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, duplicates included that are not taken out yet."""
        return self._decisions.nbytes + self._events.nbytes

    def to_bytes(self) -> bytes:
        """As bytes that `from_bytes` reads back; equal sets give equal bytes."""
        settled = self.settled()
        combinations = json.dumps(sorted(settled.combinations.values()))
        file = io.BytesIO()
        np.savez(
            file,
            decisions=settled.decisions,
            events=settled.events,
            combinations=np.frombuffer(combinations.encode(), np.uint8),
        )
        return file.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Fold:
        """ValueError when the bytes are not of `to_bytes`."""
        fold = Fold()
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                for rows, column in (
                    (arrays["decisions"], fold._decisions),
                    (arrays["events"], fold._events),
                ):
                    if rows.dtype != column.dtype or rows.ndim != 1:
                        raise ValueError(f"rows of {rows.dtype}")
                    column.extend(rows)
                written = json.loads(arrays["combinations"].tobytes())
        except Exception as error:  # numpy raises a dozen kinds for bytes that are not its own
            raise ValueError(f"this is no fold ({error!r}). Read the event log anew.") from error
        for exposures in written:
            combination = tuple(Exposure(*exposure) for exposure in exposures)
            fold._combinations[hash_of(*(p for e in combination for p in e))] = combination
        return fold


class _Column:
    """Rows by their key, the first field: a sorted part without duplicates, and what came since."""

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self.dtype = dtype
        self._sorted: Rows = np.empty(0, dtype)
        self._since: list[Rows] = []
        self._rows: list[tuple[int, ...]] = []
        self._length = 0  # of _since

    @property
    def nbytes(self) -> int:
        rows = len(self._sorted) + self._length + len(self._rows)
        return rows * self.dtype.itemsize

    def append(self, row: tuple[int, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _FLUSH:
            self._flush()

    def extend(self, rows: Rows) -> None:
        self._since.append(rows)
        self._length += len(rows)
        if self._length > max(_COMPACT, len(self._sorted)):
            self.settled()

    def replace(self, rows: Rows) -> None:
        """Hold these rows only, which are part of `settled`."""
        self._sorted = rows

    def settled(self) -> Rows:
        """All rows, ascending by key, each key once."""
        self._flush()
        if self._since:
            self._sorted = _distinct(np.concatenate([self._sorted, *self._since]))
            self._since, self._length = [], 0
        return self._sorted

    def _flush(self) -> None:
        if self._rows:
            rows, self._rows = np.array(self._rows, self.dtype), []
            self.extend(rows)


def _distinct(rows: Rows) -> Rows:
    """Rows (n,) ascending by their first field, of several with the same one the least."""
    names = rows.dtype.names
    assert names is not None
    rows = rows[np.argsort(rows[names[0]], kind="stable")]
    keys = rows[names[0]]
    again = np.zeros(len(rows), bool)
    again[1:] = keys[1:] == keys[:-1]
    if not again.any():
        return rows
    involved = again.copy()
    involved[:-1] |= again[1:]
    repeated = rows[involved]
    # Only these need all fields in order: a whole sort by seven keys takes several times as long.
    rows[involved] = repeated[np.lexsort([repeated[name] for name in reversed(names)])]
    return rows[~again]


def _rows_of(keys: NDArray[np.int64], ascending: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each key (n,) stands in `ascending`; -1 where it does not."""
    if not len(ascending):
        return np.full(len(keys), -1, np.int64)
    places = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    return np.where(ascending[places] == keys, places, -1)


def _unit(name: str) -> int:
    return hash_of(name) if name else NO_UNIT


def _latency(record: records_pb2.DecisionRecord) -> int:
    """Sum of the stage times in grid steps of a millisecond."""
    if not record.HasField("stage_ms"):
        return UNKNOWN_LATENCY
    s = record.stage_ms
    stages: Sequence[float] = (
        s.assign, s.hydrate, s.retrieve, s.filter, s.rank, s.rerank, s.respond
    )  # fmt: skip
    total = math.fsum(stages) if all(map(math.isfinite, stages)) else -1.0
    return on_grid(total) if 0 <= total <= LARGEST else UNKNOWN_LATENCY
