"""Decisions and feedback for tests of the fold and of what is measured of it."""

from __future__ import annotations

import contextlib
import math
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from protos.tandem.v1.records_pb2 import (
    ABANDONED,
    ANSWERED,
    CLICK,
    FAILED,
    IMPRESSION,
    LIKE,
    UNRANKED,
    Assignment,
    Before,
    DecisionRecord,
    ExperimentChange,
    FeedbackEvent,
    Interleaving,
    StageTimes,
)
from services.experiments.measure.fold import Fold
from services.experiments.measure.results import DAY_MS

T0 = 20_000 * DAY_MS  # midnight
Message = DecisionRecord | FeedbackEvent


def decision(
    request: str,
    at_s: float,
    user: str = "u",
    arm: str = "control",
    *,
    ms: float | None = None,
    degraded: bool = False,
    outcome: int = ANSWERED,
    segments: Sequence[str] = (),
    before: Before | None = None,
    **assignment: object,
) -> DecisionRecord:
    return DecisionRecord(
        request_id=request,
        user_id=user,
        session_id=f"s-{user}",
        event_time_ms=T0 + round(at_s * 1000),
        assignments=[Assignment(**{"layer": "l", "experiment": "e", "arm": arm, "unit": "user"}  # type: ignore[arg-type]
                                | assignment)],
        degradations=[UNRANKED] if degraded else [],
        stage_ms=None if ms is None else StageTimes(retrieve=ms / 4, rank=ms * 3 / 4),
        outcome=outcome,  # type: ignore[arg-type]
        segments=segments,
        before=before,
    )  # fmt: skip


def event(
    request: str,
    at_s: float,
    kind: int,
    user: str = "u",
    n: int = 0,
    item: str = "i",
    value: float = 0.0,
) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=f"{request}-{kind}-{n}",
        request_id=request,
        user_id=user,
        item_id=item,
        event_type=kind,  # type: ignore[arg-type]
        event_time_ms=T0 + round(at_s * 1000),
        value=value,
    )


def interleaving(
    method: str,
    teams: Sequence[int],
) -> Interleaving:
    return Interleaving(
        experiment="mix", method=method, arm_a="old", arm_b="new", teams=bytes(teams)
    )


def folded(messages: Sequence[Message], into: Fold | None = None) -> Fold:
    fold = into or Fold()
    for message in messages:
        if isinstance(message, DecisionRecord):
            fold.on_decision(message)
        else:
            fold.on_feedback(message)
    return fold


@dataclass(frozen=True)
class Traffic:
    messages: tuple[Message, ...]


@st.composite
def traffic(draw: st.DrawFn) -> Traffic:
    """Requests of six users in three experiments: `e` of users, `dev` of their devices and the
    interleaved `mix`; answered and not, with and without a profile, in and out of segments. In half
    of it an arm's traffic was edited on the way, and one router in ten is late to hear of it."""
    rng = random.Random(draw(st.integers(0, 10**9)))
    edited_at = [rng.choice([300, 900, 86_700])] * rng.randrange(2) + [rng.choice([1000, 87_000])]
    edits = draw(st.booleans())
    messages: list[Message] = []
    for i in range(draw(st.integers(0, 25))):
        user = f"u{rng.randrange(6)}"
        at = rng.choice([0.0, 1.0, 86_000.0]) + rng.randrange(1500)
        arm = "treatment" if rng.random() < 0.1 or int(user[1]) % 2 else "control"
        made = decision(
            f"r{i}",
            at,
            user,
            arm,
            ms=rng.choice([None, rng.random() * 100]),
            degraded=rng.random() < 0.2,
            outcome=rng.choice([ANSWERED] * 8 + [FAILED, ABANDONED]),
            segments=[name for name in ("new", "mobile") if rng.random() < 0.5],
            before=_before(rng) if rng.random() < 0.7 else None,
            overridden=i % 9 == 8,
            unread=rng.random() < 0.1,
            split=_split(rng, edits and sum(at >= when for when in edited_at) % 2 == 1),
        )
        if i % 7 == 6:
            del made.assignments[:]
        device = f"{user}-{rng.randrange(2)}"
        made.assignments.add(experiment="dev", arm=f"d{device[-1]}", unit="device")
        if rng.random() < 0.9:
            made.unit_ids["device"] = device
        made.item_ids.extend(f"i{n}" for n in rng.sample(range(9), rng.randrange(7)))
        if rng.random() < 0.8:
            made.assignments.add(experiment="mix", arm="interleaved", unit="user")
            method = rng.choice(["team_draft"] * 4 + ["balanced"])  # that there was once
            teams = [rng.randrange(2) for _ in made.item_ids]
            made.interleaving.CopyFrom(interleaving(method, teams))
        messages.append(made)
        for n in range(rng.randrange(6)):
            kind = rng.choice([IMPRESSION, CLICK, CLICK, LIKE])
            quoted = f"r{i}" if rng.random() < 0.9 else f"lost{i}"
            when = at + rng.choice([-80.0, 1.0, 49.0, 50.0, 51.0, 100.0, 101.0])
            messages.append(event(quoted, when, kind, user, n, f"i{rng.randrange(9)}"))
    return Traffic(tuple(messages))


def _split(rng: random.Random, edited: bool) -> str:
    """1:10 if edited, else what is 1:1 in a file that says so."""
    if edited and rng.random() < 0.9:
        return rng.choice(["1:10", "2:20"])
    return rng.choice(["", "1:1", "5:5", "0:0", "1:2:3", "1:-1", "x"])


def _before(rng: random.Random) -> Before:
    """As routers write it, or as they did when it was of three events alone."""
    counts = rng.randrange(500), rng.randrange(50), rng.randrange(5)
    if rng.random() < 0.5:
        return Before(impressions=counts[0], clicks=counts[1], likes=counts[2])
    return kept(dict(enumerate(counts, 1)))


def kept(numbers: Mapping[int, float]) -> Before:
    """Numbers of the user's by their sources."""
    return Before(
        sources=struct.pack(f"<{len(numbers)}h", *numbers),
        numbers=struct.pack(f"<{len(numbers)}d", *numbers.values()),
    )


def known_before(record: DecisionRecord, source: int) -> float:
    """What a record says that was kept of the user; 0 if nothing."""
    before = record.before
    if not before.sources:
        return {1: before.impressions, 2: before.clicks, 3: before.likes}.get(source, 0)
    sources = [number for (number,) in struct.iter_unpack("<h", before.sources)]
    numbers = [number for (number,) in struct.iter_unpack("<d", before.numbers)]
    return dict(zip(sources, numbers, strict=True)).get(source, 0.0)


def dropped(topic: str, reason: str) -> float:
    labels = {"topic": topic, "reason": reason}
    return REGISTRY.get_sample_value("tandem_experiments_records_dropped_total", labels) or 0.0


# Anything that may stand in the log.

Sent = TypeVar("Sent", DecisionRecord, FeedbackEvent, ExperimentChange)
INTS = st.sampled_from(
    [0, 1, -1, 3, 7, 128, 255, 256, 65_535, 2**31 - 1, -(2**31), 2**32, T0, 10**12 - 1,
     253_402_300_800_000, 2**62, 2**63 - 1, -(2**63)]
)  # fmt: skip
TEXTS = st.sampled_from(
    ["", "e", "b", "s", "mix", "user", "device", "\0", "e\0control\0s", "a b", "x" * 65,
     "x" * 100_000, "\x1b[31m", "\u202e", "-1:1", "9" * 5000, "team_draft", "balanced"]
)  # fmt: skip
BYTES = st.one_of(st.binary(max_size=9), st.sampled_from([b"\0" * 70_000, b"\0\0\xc0\x7f" * 2]))
FLOATS = st.sampled_from([0.0, -1.0, 5.0, 1e30, math.nan, math.inf, -math.inf])


def fields(message: Any) -> list[tuple[Any, Any]]:
    """Every field that can be set, of the message and of those in it."""
    found = []
    for field in message.DESCRIPTOR.fields:
        found.append((message, field))
        value = getattr(message, field.name)
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for child in (
            value if field.is_repeated else [value] if message.HasField(field.name) else []
        ):
            found += fields(child)
    return found


@st.composite
def poisoned(draw: st.DrawFn, message: Sent) -> Sent | None:
    """With some fields set to anything, or some bytes of it changed; None: it is no message."""
    made = type(message).FromString(message.SerializeToString())
    for _ in range(draw(st.integers(0, 3))):
        owner, field = draw(st.sampled_from(fields(made)))
        if field.message_type is not None:
            if draw(st.booleans()):
                owner.ClearField(field.name)
            continue
        kinds = {field.TYPE_STRING: TEXTS, field.TYPE_BYTES: BYTES, field.TYPE_FLOAT: FLOATS}
        value = draw(kinds.get(field.type, INTS))
        with contextlib.suppress(ValueError):  # that number does not fit the field
            if field.is_repeated:
                getattr(owner, field.name).append(value)
            else:
                setattr(owner, field.name, bool(value) if field.type == field.TYPE_BOOL else value)
    data = bytearray(made.SerializeToString())
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    try:
        return type(message).FromString(bytes(data))
    except DecodeError:
        return None
