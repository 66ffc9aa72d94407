"""The fold of decisions and feedback that experiment metrics are computed from.

It is a set: each decision once by its request id, each event once by its user and event id, as
narrow columns. Equal sets of messages give equal folds to the bit, in whatever order and however
often they were delivered, before or after a restart. All that depends on order (who was exposed
first, what is late) is decided in `measure`, by event time.

What is delivered twice with different content is an error of its sender; the least of the contents
counts, so that even then the order does not matter.

EXPOSURES. An assignment flagged `unread` (no parameter of the experiment served the request) is
none, and the decision does not carry its experiment. One flagged `overridden` (the allow-list, a
stopped arm) is none either, but it is kept, under no arm: `exposures` leaves out the units that
were overridden before they were exposed. A decision without an answer (`outcome`) exposes like any
other: it is an error of the arm that the unit is in. It has no latency, no degradation and no list.

What cannot be meant (`poison`) is dropped; it is in no set.

MEMORY, for all that was added and not told to forget: 59 bytes per decision, 41 bytes per event, 16
bytes per property of an event (`properties`), 16 bytes per number that was kept of the user and is
not 0 (`before`), of decisions that expose to anything, 16 bytes per decision and unit of another
kind than user and session by which an experiment assigns (`unit_ids`), 17 bytes per item of an
interleaved list. A million decisions with three events each take 182 MB, and 170 MB more if all of
them are interleaved lists of ten; sorting takes as much again. Ids are 64-bit hashes: among a
million of them two that collide have odds of one in 37 million.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.schema.declaration import LARGEST_ID
from protos.tandem.v1 import records_pb2
from services.common.ids import hash_of
from services.event_log.topics import DECISIONS, FEEDBACK
from services.experiments.changes import poison
from services.experiments.declare.config import SESSION, USER
from services.experiments.declare.fingerprints import known_fingerprint
from services.experiments.declare.splits import well_formed
from services.experiments.measure.sorted_rows import Rows, SortedRows, rows_of
from services.experiments.statistics.moments import LARGEST, on_grid

UNKNOWN_LATENCY = -1
# Of events that were saved before there were values: above all values, so that of this row and the
# one that the log gives again the least is the one with the value (`SortedRows`).
UNKNOWN_VALUE = np.iinfo(np.int64).max
OVERRIDDEN = ""  # in place of an arm
NO_UNIT = 0  # the hash of an empty id, which is no unit

DECISION = np.dtype(
    [
        ("request", "<i8"),
        ("time_ms", "<i8"),
        ("user", "<i8"),
        ("session", "<i8"),
        ("arms", "<i8"),  # hash of the combination of arms
        ("segments", "<i8"),  # hash of the combination of segments
        ("latency", "<i8"),  # grid steps of a millisecond, or UNKNOWN_LATENCY
        ("degraded", "?"),
        ("unanswered", "?"),
        ("drafted", "?"),  # its list from two rankings, so that choices from it say a preference
    ]
)
EVENT = np.dtype(
    [
        ("event", "<i8"),
        ("request", "<i8"),
        ("time_ms", "<i8"),
        ("place", "<i8"),  # hash of request and item: finds its place in an interleaved list
        ("value", "<i8"),  # that came with it, in grid steps, or UNKNOWN_VALUE
        ("type", "u1"),  # id of the event
    ]
)
UNIT = np.dtype([("request", "<i8"), ("unit", "<i8")])
BEFORE = np.dtype([("request", "<i8"), ("number", "<f8")])
# A flag or number in grid steps, or the hash of a category's text.
PROPERTY = np.dtype([("event", "<i8"), ("value", "<i8")])
PLACE = np.dtype(
    [
        ("place", "<i8"),
        ("request", "<i8"),
        ("team", "u1"),  # 0: contributed by the first arm, 1: by the second
    ]
)

# What the counts were of in records and rows of before other events were counted, too: the ids of
# the films' events, which were the only domain. A build between counted the events of these names,
# whatever their ids: where a domain gave them others, the number stands for another event. It is
# still one of before the exposure, so that CUPED takes out less noise by it and adds no bias.
_BEFORE = {"impressions": 1, "clicks": 2, "likes": 3}


class RecordedExposure(NamedTuple):
    """An arm that was in force for a decision and that made a difference to it; or OVERRIDDEN."""

    experiment: str
    arm: str
    salt: str = ""  # the experiment's, by which units were dealt; empty: an older router's record
    split: str = ""  # the arms' sizes then (`splits`); empty: not known, or interleaved
    fingerprint: str = ""  # of what the arms set then (`fingerprints`); empty: not known


Combination: TypeAlias = tuple[RecordedExposure, ...]
Segments: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A fold's set at one moment, ready to be measured."""

    decisions: Rows  # (d,) of DECISION, ascending by request
    events: Rows  # (e,) of EVENT, ascending by event
    decision_of: NDArray[np.int64]  # (e,) row of the event's decision; -1: there is none
    combinations: dict[int, Combination]
    segments: dict[int, Segments] = field(default_factory=dict)
    units: dict[str, Rows] = field(default_factory=dict)  # kind -> UNIT, ascending by request
    places: Rows = field(default_factory=lambda: np.empty(0, PLACE))  # ascending by place
    # Source (`metrics`) -> BEFORE, ascending by request: numbers of the user that are not 0.
    before: dict[int, Rows] = field(default_factory=dict)
    # `property_key` -> PROPERTY, ascending by event.
    properties: dict[str, Rows] = field(default_factory=dict)

    @property
    def unmatched(self) -> int:
        """Events that quote a request of which there is no decision."""
        return int((self.decision_of < 0).sum())


class Fold:
    """Used by one thread."""

    def __init__(self) -> None:
        self._decisions = SortedRows(DECISION)
        self._events = SortedRows(EVENT)
        self._places = SortedRows(PLACE)
        self._units = defaultdict[str, SortedRows](partial(SortedRows, UNIT))  # by kind
        self._before = defaultdict[int, SortedRows](partial(SortedRows, BEFORE))  # by source
        self._properties = defaultdict[str, SortedRows](partial(SortedRows, PROPERTY))  # by key
        self._combinations: dict[int, Combination] = {}
        self._segments: dict[int, Segments] = {}

    def on_decision(self, record: records_pb2.DecisionRecord) -> bool:
        """Add a decision; False if it was dropped (`poison`)."""
        if reason := poison.of_decision(record):
            poison.drop(DECISIONS, reason, record.request_id)
            return False
        exposing = [a for a in record.assignments if not a.unread]
        segments = tuple(sorted(set(record.segments)))
        request = hash_of(record.request_id)
        answered = record.outcome == records_pb2.ANSWERED
        self._decisions.append(
            (
                request,
                record.event_time_ms,
                _unit(record.user_id),
                _unit(record.session_id),
                self._combined(
                    RecordedExposure(
                        a.experiment,
                        OVERRIDDEN if a.overridden else a.arm,
                        a.salt,
                        well_formed(a.split),
                        known_fingerprint(a.fingerprint),
                    )
                    for a in exposing
                ),
                self._segmented(segments),
                _latency(record) if answered else UNKNOWN_LATENCY,
                answered and bool(record.degradations),
                not answered,
                answered and self._add_places(request, record),
            )
        )
        for kind in {a.unit for a in exposing} - {USER, SESSION, ""}:
            if name := record.unit_ids.get(kind, ""):
                self._units[kind].append((request, _unit(name)))
        if exposing and record.HasField("before"):
            for source, number in _numbers(record.before):
                self._before[source].append((request, number))
        return True

    def on_feedback(self, event: records_pb2.FeedbackEvent) -> bool:
        """Add an event; False if it was dropped. One that quotes no request belongs to no decision
        and is not kept."""
        if reason := poison.of_feedback(event):
            poison.drop(FEEDBACK, reason, event.event_id)
            return False
        if not event.request_id:
            return True
        own = hash_of(event.user_id, event.event_id)  # unique per sender, not in the world
        if event.properties or event.properties_text:
            for name, stored in _properties(event):
                self._properties[property_key(event.event_type, name)].append((own, stored))
        self._events.append(
            (
                own,
                hash_of(event.request_id),
                event.event_time_ms,
                hash_of(event.request_id, event.item_id),
                on_grid(min(max(value, -LARGEST), LARGEST)) if (value := event.value) else 0,
                event.event_type,
            )
        )
        return True

    def settled(self) -> Settled:
        """The set so far."""
        decisions, events = self._decisions.settled(), self._events.settled()
        return Settled(
            decisions=decisions,
            events=events,
            decision_of=rows_of(events["request"], decisions["request"]),
            combinations=dict(self._combinations),
            segments=dict(self._segments),
            units={kind: column.settled() for kind, column in self._units.items()},
            places=self._places.settled(),
            before={source: column.settled() for source, column in self._before.items()},
            properties={key: column.settled() for key, column in self._properties.items()},
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
        for column in (self._places, *self._units.values(), *self._before.values()):
            rows = column.settled()
            column.replace(rows[rows_of(rows["request"], d["request"][stays]) >= 0])
        for column in self._properties.values():
            rows = column.settled()
            column.replace(rows[rows_of(rows["event"], e["event"][kept]) >= 0])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, duplicates included that are not taken out yet."""
        columns = self._columns(self._units, self._before, self._properties)
        return sum(column.nbytes for column in columns.values())

    def to_bytes(self) -> bytes:
        """As bytes that `from_bytes` reads back; equal sets give equal bytes."""
        kinds = sorted(kind for kind, column in self._units.items() if len(column.settled()))
        sources = sorted(s for s, column in self._before.items() if len(column.settled()))
        properties = sorted(k for k, column in self._properties.items() if len(column.settled()))
        names = {
            "combinations": sorted(self._combinations.values()),
            "segments": sorted(self._segments.values()),
            "units": kinds,
            "before": sources,
            "properties": properties,
        }
        columns = self._columns(kinds, sources, properties)
        arrays: dict[str, Any] = {name: column.settled() for name, column in columns.items()}
        file = io.BytesIO()
        np.savez(file, names=np.frombuffer(json.dumps(names).encode(), np.uint8), **arrays)
        return file.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Fold:
        """ValueError when the bytes are not of `to_bytes`."""
        fold = Fold()
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                saved = dict(arrays)
                names = json.loads(saved.pop("names").tobytes())
                fold._read(*_as_now(names, saved))
        except Exception as error:  # numpy raises a dozen kinds for bytes that are not its own
            raise ValueError(f"this is no fold ({error!r}). Read the event log anew.") from error
        return fold

    def _read(self, names: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        for exposures in names["combinations"]:
            self._combined(RecordedExposure(*exposure) for exposure in exposures)
        for segments in names["segments"]:
            self._segmented(tuple(segments))
        kept = names["units"], names["before"], names["properties"]
        for name, column in self._columns(*kept).items():
            rows = arrays[name]
            if rows.dtype != column.dtype or rows.ndim != 1:
                raise ValueError(f"{name} are rows of {rows.dtype}")
            column.extend(rows)

    def _combined(self, exposures: Iterable[RecordedExposure]) -> int:
        """The hash of a combination, which is remembered."""
        combination = tuple(sorted(set(exposures)))
        # As before there were fingerprints and splits: rows that were saved then have that hash.
        key = hash_of(*(part for exposure in combination for part in _parts(exposure)))
        self._combinations[key] = combination
        return key

    def _segmented(self, segments: Segments) -> int:
        key = hash_of(*segments)
        self._segments[key] = segments
        return key

    def _columns(
        self, kinds: Iterable[str], sources: Iterable[int], properties: Iterable[str]
    ) -> dict[str, SortedRows]:
        """By what they are called where they are saved; `kinds` of units, `sources` of what users
        did before, and `properties` of events, in their order."""
        units = {f"unit{i}": self._units[kind] for i, kind in enumerate(kinds)}
        units |= {f"before{i}": self._before[source] for i, source in enumerate(sources)}
        units |= {f"property{i}": self._properties[key] for i, key in enumerate(properties)}
        own = {"decisions": self._decisions, "events": self._events, "places": self._places}
        return own | units

    def _add_places(self, request: int, record: records_pb2.DecisionRecord) -> bool:
        """Whether the list was drafted from two rankings; then its places are added. One that
        nobody can be credited by (`poison`) is dropped: the decision counts without a list."""
        if not record.HasField("interleaving"):
            return False
        if reason := poison.of_interleaving(record):
            poison.drop(DECISIONS, reason, record.request_id)
            return False
        for item, team in zip(record.item_ids, record.interleaving.teams, strict=True):
            self._places.append((hash_of(record.request_id, item), request, team))
        return True


def _as_now(
    names: dict[str, Any], saved: dict[str, NDArray[Any]]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What earlier versions saved, too. The first one numbered methods of interleaving, of which
    the first is left, and kept of a list what the others needed; others had three types of events,
    without values and properties, and three counts of what users did before."""
    decisions, places, events = saved["decisions"], saved["places"], saved["events"]
    columns = decisions.dtype.names or ()
    if "method" in columns:
        decisions["method"] = decisions["method"] == 1
        drafted = decisions["request"][decisions["method"] == 1]
        kept = places[np.isin(places["request"], drafted)]
        saved["places"] = kept[["place", "request", "team"]].astype(PLACE)
    names.setdefault("properties", [])
    if "before" not in names:
        names["before"] = list(_BEFORE.values())
        for i, name in enumerate(_BEFORE):
            own = decisions[decisions[name] > 0]
            saved[f"before{i}"] = own[["request", name]].astype(BEFORE)
        own_columns = [name for name in columns if name not in _BEFORE]
        saved["decisions"] = decisions[own_columns].astype(DECISION)
        valued = np.empty(len(events), EVENT)
        for name in EVENT.names or ():
            valued[name] = UNKNOWN_VALUE if name == "value" else events[name]
        saved["events"] = valued
    return names, saved


def property_key(event: int, name: str) -> str:
    """What a property of an event, by its id, is called in a fold."""
    return f"{event}.{name}"


def _properties(event: records_pb2.FeedbackEvent) -> Iterator[tuple[str, int]]:
    """Names and values of an event's properties; what nobody can mean is left out."""
    for name, number in event.properties.items():
        if poison.is_word(name) and abs(number) <= LARGEST:  # NaN is not
            yield name, on_grid(number)
    for name, text in event.properties_text.items():
        if poison.is_word(name):
            yield name, hash_of(text)


def _numbers(before: records_pb2.Before) -> list[tuple[int, float]]:
    """What a record says of the user, by source; what nobody can mean is left out."""
    found: Iterable[tuple[int, float]]
    if packed := before.sources:
        sources, reader = _numbers_of(packed)
        numbers = before.numbers
        if len(numbers) != reader.size:
            return []
        found = zip(sources, reader.unpack(numbers), strict=True)
    else:
        found = ((source, float(getattr(before, name))) for name, source in _BEFORE.items())
    return [(s, number) for s, number in found if s and number and math.isfinite(number)]


@lru_cache(64)  # a domain has one or two
def _numbers_of(packed: bytes) -> tuple[tuple[int, ...], struct.Struct]:
    """The sources of a record's numbers, 0 in place of one that cannot be, and what reads these."""
    count = len(packed) // 2
    sources = struct.unpack(f"<{count}h", packed[: 2 * count])
    return tuple(s if abs(s) <= LARGEST_ID else 0 for s in sources), struct.Struct(f"<{count}d")


def _parts(exposure: RecordedExposure) -> tuple[str, ...]:
    """What is hashed of an exposure: all but what is not known of the last two."""
    if exposure.fingerprint:
        return exposure
    return exposure[:4] if exposure.split else exposure[:3]


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
    if not all(0 <= stage <= LARGEST for stage in stages):  # NaN is not either
        return UNKNOWN_LATENCY
    total = math.fsum(stages)
    return on_grid(total) if total <= LARGEST else UNKNOWN_LATENCY
