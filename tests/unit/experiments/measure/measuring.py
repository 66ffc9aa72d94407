"""Experiments of every kind, and measuring them from messages."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

from services.experiments.changes.state import Epoch
from services.experiments.declare.config import Arm, Experiment
from services.experiments.declare.metrics import Goal, Guardrail, Metric, Plan
from services.experiments.measure.measure import measured
from services.experiments.measure.results import DAY_MS, Measured
from services.experiments.statistics.moments import Moments
from tests.unit.experiments.messages import (
    T0,
    Message,
    folded,
)

LIKED = Metric("liked", "binary", "like", "higher", window_s=50)
CLICKS = Metric("clicks", "mean", "click", "higher", window_s=100)
CTR = Metric("ctr", "ratio", "click", "higher", per="impression", window_s=100)
DEGRADED = Metric("degraded", "ratio", "degraded", "lower", per="request")
LATENCY = Metric("latency", "ratio", "latency", "lower", per="request")
P50 = Metric("p50", "quantile", "latency", "lower", quantile=0.5)
PLAN = Plan(
    Goal(CTR, 0.02),
    (Goal(LIKED, 0.02), Goal(CLICKS, 0.02)),
    (  # observed as long as the goals
        Guardrail(DEGRADED, 0.01, absolute=True, observe_s=1000),
        Guardrail(LATENCY, 0.1, observe_s=1000),
        Guardrail(P50, 0.1, observe_s=1000),
    ),
    observe_s=1000,
)
ARMS = (Arm("control", 0, 5000, 10_000, {}), Arm("treatment", 5000, 10_000, 10_000, {}))
EXPERIMENT = Experiment("e", "e", "user", (0, 10_000), ARMS, {}, True, plan=PLAN)
LATER = T0 + 10 * DAY_MS
ERRORS = Metric("errors", "mean", "error", "lower")
SEEN = Metric("seen", "ratio", "impression", "higher", per="request", window_s=70)
WATCHED = replace(
    EXPERIMENT,
    plan=replace(PLAN, guardrails=(
        *PLAN.guardrails, Guardrail(ERRORS, 0.1, True, 60), Guardrail(SEEN, 0.1, observe_s=400)
    )),
)  # fmt: skip
BY_DEVICE = replace(EXPERIMENT, name="dev", unit="device")
MIXED_ARMS = (Arm("old", 0, 0, 10_000, {}), Arm("new", 0, 0, 10_000, {}))
MIXED = replace(
    EXPERIMENT,
    name="mix",
    arms=MIXED_ARMS,
    interleave="team_draft",
    plan=Plan(observe_s=1000, preference_window_s=100),
)
STOPS = (
    Epoch(-math.inf),
    Epoch(T0 + 500_000.0, frozenset({"treatment"})),
    Epoch(T0 + 1_200_000.0),
    Epoch(T0 + 86_500_000.0, frozenset({"treatment"})),
)


def measure(
    messages: Sequence[Message],
    as_of_ms: float = LATER,
    experiment: Experiment = EXPERIMENT,
    epochs: Sequence[Epoch] = (),
) -> Measured:
    return measured(folded(messages).settled(), experiment, as_of_ms, epochs)


def columns(result: Measured, arm: str, metric: str) -> Moments:
    found = result.of_arm(arm).statistics[metric]
    assert isinstance(found, Moments)
    return found


def plain(result: Measured) -> str:
    """All of it, exactly: histograms themselves are compared by identity only."""
    return json.dumps(result.to_json(), allow_nan=False, sort_keys=True)
