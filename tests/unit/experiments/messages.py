"""Decisions and feedback for tests of the fold and of what is measured of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

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
    FeedbackEvent,
    Interleaving,
    StageTimes,
)
from services.experiments.fold import Fold
from services.experiments.measure import DAY_MS

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
    request: str, at_s: float, kind: int, user: str = "u", n: int = 0, item: str = "i"
) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=f"{request}-{kind}-{n}",
        request_id=request,
        user_id=user,
        item_id=item,
        event_type=kind,  # type: ignore[arg-type]
        event_time_ms=T0 + round(at_s * 1000),
    )


def interleaving(
    method: str,
    teams: Sequence[int],
    b_probabilities: Sequence[float] = (),
    a_ranks: Sequence[int] = (),
    b_ranks: Sequence[int] = (),
) -> Interleaving:
    return Interleaving(
        experiment="mix",
        method=method,
        arm_a="old",
        arm_b="new",
        teams=bytes(teams),
        b_probabilities=np.array(b_probabilities, "<f4").tobytes(),
        a_ranks=np.array(a_ranks, "<u2").tobytes(),
        b_ranks=np.array(b_ranks, "<u2").tobytes(),
    )


def folded(messages: Sequence[Message]) -> Fold:
    fold = Fold()
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
            made.interleaving.CopyFrom(_interleaving(rng, len(made.item_ids)))
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
    return Before(impressions=rng.randrange(500), clicks=rng.randrange(50), likes=rng.randrange(5))


def _interleaving(rng: random.Random, items: int) -> Interleaving:
    def numbers(below: int) -> list[int]:
        return [rng.randrange(below) for _ in range(items)]

    method = rng.choice(["team_draft", "balanced", "probabilistic"])
    ranks = [[r + 1 if r < 8 else 65_535 for r in numbers(9)] for _ in range(2)]
    return interleaving(
        method,
        numbers(2),
        [rng.random() for _ in range(items)] if method == "probabilistic" else (),
        *(ranks if method == "balanced" else ((), ())),
    )
