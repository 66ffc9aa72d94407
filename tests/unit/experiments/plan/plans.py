"""An experiment to plan, and what is known of its metrics by hand."""

from __future__ import annotations

from dataclasses import replace

from services.experiments.declare.config import Arm, Experiment, Ramp
from services.experiments.declare.metrics import Goal, Guardrail, Metric, Plan
from services.experiments.measure.results import DAY_MS
from services.experiments.plan import planning
from services.experiments.plan.baseline import Baseline
from services.experiments.plan.planning import (
    Forecast,
    forecast,
)

CLICKS = Metric("clicks", "mean", "click", "higher", window_s=100)
LIKED = Metric("liked", "binary", "like", "higher", window_s=100)
DEGRADED = Metric("degraded", "ratio", "degraded", "lower", per="request")
PLAN = Plan(
    Goal(CLICKS, 0.05), (Goal(LIKED, 0.1),), (Guardrail(DEGRADED, 0.01, True),), observe_s=1000
)
T0 = 20_000 * DAY_MS
LATER = T0 + 90 * DAY_MS


def experiment(
    plan: Plan = PLAN, weights: tuple[int, ...] = (50, 50), **more: object
) -> Experiment:
    arms, first = [], 0
    for name, weight in zip(("control", "b", "c"), weights, strict=False):
        arms.append(Arm(name, first * 100, (first + weight) * 100, 10_000, {}))
        first += weight
    made = Experiment("e", "e", "user", (0, 10_000), tuple(arms), {}, True, plan=plan)
    return replace(made, **more)  # type: ignore[arg-type]


def by_hand(correlation: float | None = None) -> dict[planning.Key, Baseline]:
    return {
        ("clicks", 1000): Baseline(metric=CLICKS, mean=2.0, sd=3.0, correlation=correlation),
        ("liked", 1000): Baseline(metric=LIKED, mean=0.2, sd=0.4),
        ("degraded", 60): Baseline(metric=DEGRADED, mean=0.0, sd=0.1),
    }


def planned(own: Experiment | None = None, arriving: tuple[float, ...] = (500.0,)) -> Forecast:
    return forecast(own or experiment(), by_hand(), arriving)


def ramp(*percent: float, hold_days: float = 2, min_units: int = 0) -> Ramp:
    return Ramp(tuple(round(p * 100) for p in percent), hold_days * 86_400, min_units)
