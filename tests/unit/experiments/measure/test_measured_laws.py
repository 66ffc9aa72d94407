"""What is measured of a fold, over random traffic: laws, and the definition once more."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.tandem.v1.records_pb2 import (
    ANSWERED,
    CLICK,
    IMPRESSION,
    LIKE,
    DecisionRecord,
    FeedbackEvent,
)
from services.common.ids import hash_of
from services.event_log.whole_log import SKEW_MS
from services.experiments.changes.state import Epoch
from services.experiments.declare.config import INTERLEAVED, Experiment
from services.experiments.lists.interleaving import A, B
from services.experiments.measure.fold import Fold
from services.experiments.measure.measure import measured
from services.experiments.measure.results import DAY_MS, ArmDay, Measured
from services.experiments.statistics.moments import Moments, moments_of
from tests.unit.experiments.measure.measuring import (
    BY_DEVICE,
    LATER,
    MIXED,
    STOPS,
    WATCHED,
    measure,
    plain,
)
from tests.unit.experiments.messages import (
    T0,
    Message,
    Traffic,
    folded,
    known_before,
    traffic,
)

AS_OF = st.sampled_from([T0, T0 + 700_000, T0 + 1_500_000, T0 + 2_000_000, LATER])
OWN = st.sampled_from([WATCHED, BY_DEVICE, MIXED])
EPOCHS = st.sampled_from([(), STOPS, STOPS[1:]])


@settings(max_examples=100)
@given(traffic(), OWN, AS_OF, EPOCHS, st.randoms(use_true_random=False), st.integers(0, 60))
def test_order_duplicates_restarts_and_replays_change_nothing(
    made: Traffic,
    own: Experiment,
    as_of_ms: int,
    epochs: Sequence[Epoch],
    rng: random.Random,
    cut: int,
) -> None:
    expected = plain(measure(made.messages, as_of_ms, own, epochs))
    again = [*made.messages, *made.messages[:cut]]
    rng.shuffle(again)
    restarted = Fold.from_bytes(folded(again[:cut]).to_bytes())
    folded([*again[cut // 2 :], *again], restarted)
    assert plain(measured(restarted.settled(), own, as_of_ms, epochs)) == expected


@settings(max_examples=60)
@given(traffic(), OWN, AS_OF, EPOCHS)
def test_statistics_survive_json_exactly(
    made: Traffic, own: Experiment, as_of_ms: int, epochs: Sequence[Epoch]
) -> None:
    result = measure(made.messages, as_of_ms, own, epochs)
    read = Measured.from_json(json.loads(plain(result)))
    assert plain(read) == plain(result)
    assert read.epochs == result.epochs


def counted_plainly(
    messages: Sequence[Message], as_of_ms: int, observe_ms: int, window_ms: int
) -> dict[ArmDay, dict[str, Any]]:
    """The definition once more for WATCHED and STOPS, one unit at a time, in dictionaries."""
    carrying = [
        m
        for m in messages
        if isinstance(m, DecisionRecord)
        and m.assignments[0].experiment == "e"
        and not m.assignments[0].unread
        and m.event_time_ms <= as_of_ms
    ]
    mine = [m for m in carrying if not m.assignments[0].overridden]
    overridden = [m for m in carrying if m.assignments[0].overridden]

    def split_of(m: DecisionRecord) -> str:
        return "1:10" if m.assignments[0].split in ("1:10", "2:20") else "1:1"

    starts: list[int] = []  # of the stretches of one split
    turn_of: dict[str, int] = {}  # of each request
    last = ""
    for m in sorted(carrying, key=lambda m: (m.event_time_ms, split_of(m))):
        if split_of(m) != last:
            starts.append(m.event_time_ms)
        last = split_of(m)
        turn_of[m.request_id] = len(starts) - 1
    cells: dict[ArmDay, dict[str, Any]] = {}
    for user in sorted({m.user_id for m in mine}):
        own = [m for m in mine if m.user_id == user]
        first = min(own, key=lambda m: (m.event_time_ms, hash_of(m.request_id)))
        start = first.event_time_ms
        if any(m.user_id == user and m.event_time_ms <= start for m in overridden):
            continue
        turn = turn_of[first.request_id]
        came = [
            m.event_time_ms
            for m in messages
            if isinstance(m, DecisionRecord) and m.user_id == user and m.event_time_ms >= starts[0]
        ]
        if turn and min(came) < starts[turn]:
            continue
        cut = any(at < start + observe_ms for at in starts[turn + 1 :])
        epoch, until = (
            sum(at >= e.start_ms for e in STOPS) - 1 for at in (start, start + observe_ms - 1)
        )
        arm = first.assignments[0].arm
        key = ArmDay(arm, start // DAY_MS, epoch, until, split_of(first), cut)
        cell = cells.setdefault(key, {"exposed": 0, "rows": []})
        cell["exposed"] += 1
        if start + observe_ms + window_ms > as_of_ms:
            continue
        counted = [m for m in own if m.event_time_ms < start + observe_ms]
        answered = [m for m in counted if m.outcome == ANSWERED]
        times = {m.request_id: m.event_time_ms for m in answered}
        after = [
            (e.event_type, e.event_time_ms - times[e.request_id])
            for e in messages
            if isinstance(e, FeedbackEvent) and e.request_id in times
        ]

        def events(kind: int, window_s: int, after: Sequence[tuple[int, int]] = after) -> int:
            return sum(k == kind and -SKEW_MS <= a <= window_s * 1000 for k, a in after)

        degraded = sum(bool(m.degradations) for m in answered)
        errors = len(counted) - len(answered)
        before = [known_before(first, source) for source in (IMPRESSION, CLICK, LIKE)]
        cell["rows"].append(
            {
                "ctr": (events(CLICK, 100), events(IMPRESSION, 100), math.log1p(before[1])),
                "clicks": (events(CLICK, 100), math.log1p(before[1])),
                "liked": (events(LIKE, 50) > 0, math.log1p(before[2])),
                "seen": (events(IMPRESSION, 70), len(counted), math.log1p(before[0])),
                "degraded": (degraded, len(counted)),
                "errors": (errors,),
                "segments": set(first.segments),
                "served": len(answered) > 0,
                "undegraded": not (degraded or errors),
                "joined": any(-SKEW_MS <= a <= window_ms for _, a in after),
            }
        )
    return cells


@settings(max_examples=150)
@given(traffic(), AS_OF)
def test_the_statistics_are_those_of_a_plain_count_by_unit(made: Traffic, as_of_ms: int) -> None:
    result = measure(made.messages, as_of_ms, WATCHED, STOPS)
    goals = ("ctr", "clicks", "liked", "degraded")
    for cells, observe_ms, window_ms, metrics in (
        (result.cells, 1_000_000, 100_000, goals),
        (result.watched.get(60_000, {}), 60_000, 0, ("errors",)),
        (result.watched.get(400_000, {}), 400_000, 70_000, ("seen",)),
    ):
        expected = counted_plainly(made.messages, as_of_ms, observe_ms, window_ms)
        assert {k: c.exposed for k, c in cells.items()} == {
            k: c["exposed"] for k, c in expected.items()
        }
        for key, cell in cells.items():
            rows = expected[key]["rows"]
            assert cell.final == len(rows)
            for name in ("served", "undegraded", "joined"):
                assert getattr(cell, name) == sum(row[name] for row in rows)
            clean = [row for row in rows if row["undegraded"]]
            for name in metrics:
                assert cell.statistics[name] == of_rows(rows, name, cell.statistics[name])
                found = cell.undegraded_statistics[name]
                assert found == of_rows(clean, name, found)
            in_segments = {
                name: [row for row in rows if name in row["segments"]] for name in ("mobile", "new")
            }
            assert {name: part.units for name, part in cell.segments.items()} == {
                name: len(members)
                for name, members in in_segments.items()
                if members and observe_ms == 1_000_000
            }
            for name, part in cell.segments.items():
                assert part.statistic == of_rows(in_segments[name], "ctr", part.statistic)


def of_rows(rows: Sequence[dict[str, Any]], name: str, like: object) -> Moments:
    assert isinstance(like, Moments)
    values = np.array([row[name] for row in rows], float).reshape(-1, like.columns)
    return moments_of(*values.T)


@settings(max_examples=100)
@given(traffic(), AS_OF)
def test_preferences_are_those_of_the_rules_on_whole_lists(made: Traffic, as_of_ms: int) -> None:
    window_ms = 100_000
    by_user: dict[str, list[float]] = {}
    starts: dict[str, int] = {}
    decisions = [m for m in made.messages if isinstance(m, DecisionRecord)]
    own = [m for m in decisions if any(a.experiment == "mix" for a in m.assignments)]
    for m in own:
        starts[m.user_id] = min(starts.get(m.user_id, m.event_time_ms), m.event_time_ms)
    for m in own:
        late = m.event_time_ms >= starts[m.user_id] + 1_000_000
        early = starts[m.user_id] + 1_000_000 + window_ms > as_of_ms
        if late or early or m.outcome != ANSWERED or m.interleaving.method != "team_draft":
            continue
        clicked = {
            e.item_id
            for e in made.messages
            if isinstance(e, FeedbackEvent)
            and e.request_id == m.request_id
            and e.event_type in (CLICK, LIKE)  # the events of the history
            and -SKEW_MS <= e.event_time_ms - m.event_time_ms <= window_ms
        }
        by_user.setdefault(m.user_id, []).append(preference_by_hand(m, clicked))
    result = measure(made.messages, as_of_ms, MIXED).of_arm(INTERLEAVED)
    values = [float(np.mean(each)) for each in by_user.values()]
    assert (result.preference.n, result.lists) == (
        len(values), sum(len(each) for each in by_user.values())
    )  # fmt: skip
    assert result.preference.sums[0] / 10**6 == pytest.approx(sum(values), abs=1e-5)


def preference_by_hand(record: DecisionRecord, clicked: set[str]) -> float:
    teams = zip(record.item_ids, record.interleaving.teams, strict=True)
    clicks = Counter(team for item, team in teams if item in clicked)
    return float((clicks[B] > clicks[A]) - (clicks[B] < clicks[A]))
