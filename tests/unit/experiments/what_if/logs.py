"""Explored requests of a simulated world, as the log has them, and what is answered from them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np

from load_tests.experiments.explored_world import LOGGING, START_MS, World
from protos.tandem.v1.records_pb2 import CLICK, IMPRESSION, DecisionRecord, FeedbackEvent
from services.experiments.declare.metrics import Metric
from services.experiments.declare.parameters import Value
from services.experiments.what_if.answer import Choice, WhatIf, what_if
from services.experiments.what_if.log import Target, WhatIfLog
from services.experiments.what_if.off_policy.weights import Requirements
from tests.domains import FILMS, VALUE_MODEL

WORLD = World.of(3)
CLICKS = Metric("clicks", "mean", "click", "higher")
CLICKED = Metric("clicked", "binary", "click", "higher")
CLICK_RATE = Metric("click_rate", "ratio", "click", "higher", per="impression")
LIKED_MORE: dict[str, Value] = {"rerank.like_weight": 5.0}
BEST_FIRST: dict[str, Value] = {"rerank.like_weight": 5.0, "rerank.exploration": "none"}
ANYTHING = Requirements(min_effective_sample_size=0)
UNTIL_MS = START_MS + 24 * 3_600_000

Traffic = list[tuple[DecisionRecord, list[FeedbackEvent]]]


@cache
def _logged(users: int, per_user: int, seed: int) -> Traffic:
    return list(WORLD.traffic(LOGGING, users, per_user, np.random.default_rng(seed)))


def logged(users: int = 250, per_user: int = 2, seed: int = 1) -> Traffic:
    """A list of its own, of messages that nobody may change."""
    return list(_logged(users, per_user, seed))


def collected(
    traffic: Iterable[tuple[DecisionRecord, list[FeedbackEvent]]],
    overrides: dict[str, Value],
    until_ms: float = UNTIL_MS,
) -> WhatIfLog:
    log = WhatIfLog(
        Target(overrides, FILMS.parameters), WORLD.items, VALUE_MODEL, START_MS, until_ms
    )
    for record, events in traffic:
        log.on_decision(record)
        for event in events:
            log.on_feedback(event)
    return log


def answer(
    traffic: Traffic,
    overrides: dict[str, Value],
    choice: Choice = "auto",
    metric: Metric = CLICKS,
    requirements: Requirements = ANYTHING,
) -> WhatIf:
    return what_if(collected(traffic, overrides), metric, choice, requirements)


def seen(traffic: Traffic) -> Traffic:
    """With an impression of the places down to the last click, and of the first place."""
    made = []
    for record, events in traffic:
        clicked = [list(record.item_ids).index(e.item_id) for e in events]
        impressions = [
            event_of(record, place, IMPRESSION) for place in range(max([0, *clicked]) + 1)
        ]
        made.append((record, events + impressions))
    return made


def event_of(
    record: DecisionRecord, place: int, kind: int = CLICK, after_ms: int = 1_000, name: str = ""
) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=f"{record.request_id}/{place}/{kind}/{after_ms}/{name}",
        request_id=record.request_id,
        user_id=record.user_id,
        item_id=record.item_ids[place],
        event_type=kind,  # type: ignore[arg-type]
        event_time_ms=record.event_time_ms + after_ms,
    )


def changed(record: DecisionRecord, **fields: object) -> DecisionRecord:
    made = DecisionRecord(**fields)  # type: ignore[arg-type]
    whole = DecisionRecord()
    whole.CopyFrom(record)
    whole.MergeFrom(made)
    return whole
