"""A shop and what its users spend, for tests of metrics of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from models.schema.declaration import Amount, Count, Declaration, Event
from services.experiments.declare.config import Experiment
from services.experiments.declare.metrics import Goal, Metric, Plan, events_of
from tests.unit.experiments.measure.measuring import ARMS, EXPERIMENT
from tests.unit.experiments.messages import Message, decision, event, kept

SHOP = events_of(
    Declaration(
        events=(
            Event(name="seen", id=1, impression=True),
            Event(name="buy", id=6, history=True, value=Amount(unit="EUR")),
        ),
        user_counts=(Count(event="buy", of_value=True),),
        tasks=(),
        formula="1",
    )
)


def revenue(winsorise: float | None = None) -> Experiment:
    metric = Metric("revenue", "mean", "buy.value", "higher", events=SHOP, winsorise=winsorise)
    plan = Plan(Goal(metric, 0.05), observe_s=1)
    return replace(EXPERIMENT, plan=plan, events=SHOP)


def shoppers(
    spends: Sequence[float], arms: Sequence[int], before: Mapping[int, float] | None = None
) -> list[Message]:
    """One request of each user, a second apart, and what it spent."""
    messages: list[Message] = []
    for i, (spent, arm) in enumerate(zip(spends, arms, strict=True)):
        known = None if before is None else kept({-6: before[i]})
        messages.append(decision(f"r{i}", i, f"u{i}", ARMS[arm].name, before=known))
        if spent:
            messages.append(event(f"r{i}", i, 6, f"u{i}", value=spent))
    return messages
