"""Metrics of any domain's events and values: the definition once more, in plain Python, and laws.

The domain, its metrics and the traffic are drawn; `plainly` counts one unit at a time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.schema.declaration import SERVING, Amount, Count, Declaration, Event, Field, Vocabulary
from protos.tandem.v1.records_pb2 import ANSWERED, FAILED, DecisionRecord, FeedbackEvent
from services.common.ids import hash_of
from services.event_log.whole_log import SKEW_MS
from services.experiments.declare.config import Experiment
from services.experiments.declare.metrics import (
    Events,
    Goal,
    Having,
    Metric,
    Plan,
    allowed_of,
    events_of,
)
from services.experiments.measure.fold import UNKNOWN_VALUE
from services.experiments.measure.measure import measured
from services.experiments.measure.observations import CAP_UNITS
from services.experiments.measure.results import Measured
from services.experiments.report.comparisons import Comparisons
from services.experiments.statistics.moments import LARGEST, Moments, moments_of
from services.experiments.statistics.quantiles import GroupedHistogram
from tests.unit.experiments.measure.measuring import ARMS, EXPERIMENT, LATER, plain
from tests.unit.experiments.measure.shopping import SHOP, revenue, shoppers
from tests.unit.experiments.messages import (
    T0,
    Message,
    decision,
    event,
    folded,
    kept,
    known_before,
)

OBSERVE_S = 1000
STEPS = 10**6  # of the grid, in 1
WHERE = (
    (),
    (Having("coupon", (True,)),),
    (Having("coupon", (False,)), Having("channel", ("app", "web"))),
    (Having("channel", ("web",)),),
)
NAMES = ("shown", "open", "buy", "watch", "refund", "give_back")


@st.composite
def domains(draw: st.DrawFn) -> Events:
    """Events of any ids, some with values, some counted and summed of users."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    ids = draw(st.lists(st.integers(1, 255), min_size=len(names), max_size=len(names), unique=True))
    amounts = st.sampled_from([None, Amount(unit="EUR"), Amount(unit="s", low=-50, high=1e6)])
    channels = Vocabulary(source="values", size=2, values=("app", "web"))
    default = draw(st.sampled_from([None, "web"]))
    properties = (
        Field(name="coupon", type="flag", default=draw(st.booleans())),
        Field(name="channel", type="category", vocabulary=channels, default=default),
    )
    declared = tuple(
        Event(
            name=n,
            id=i,
            impression=n == "shown",
            history=n != "shown",
            value=draw(amounts),
            properties=properties,
        )
        for n, i in zip(names, ids, strict=True)
    )
    counts = tuple(
        Count(event=e.name, of_value=of_value, half_life_s=draw(st.sampled_from([60.0, math.inf])))
        for e in declared
        for of_value in (False, True)
        if (e.value or not of_value) and draw(st.booleans())
    )
    return events_of(Declaration(events=declared, user_counts=counts, tasks=(), formula="1"))


@st.composite
def metrics(draw: st.DrawFn, events: Events) -> tuple[Metric, ...]:
    """One of every kind, and of everything that it may be of."""
    found = []
    for kind in ("binary", "mean", "ratio", "quantile"):
        of = draw(st.sampled_from([n for n in allowed_of(kind, events) if n != "latency"] or [""]))
        if kind == "quantile" and any(
            e.value and e.value.low < 0 and of == f"{e.name}.value" for e in events.declared
        ):
            of = ""  # which the reader refuses
        if not of:
            continue
        per = [*(n for n in events.sources if n != of), "request"]
        metric = Metric(
            kind, kind, of, "higher", window_s=draw(st.sampled_from([20.0, 100.0])), events=events
        )
        if of in events.sources:
            metric = replace(metric, where=draw(st.sampled_from(WHERE)))
        if kind == "ratio":
            metric = replace(metric, per=draw(st.sampled_from(per)))
        if kind == "binary":
            metric = replace(metric, at_least=draw(st.sampled_from([None, 0.5, 2.0, 30.0])))
        if kind == "mean":
            metric = replace(metric, winsorise=draw(st.sampled_from([None, 0.5, 0.9, 0.99])))
        found.append(metric)
    return tuple(found)


@dataclass(frozen=True)
class World:
    experiment: Experiment
    messages: tuple[Message, ...]
    as_of_ms: int

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(goal.metric for goal in self.experiment.plan.goals)

    def measured(self, messages: Sequence[Message] | None = None) -> Measured:
        """Of all messages, or of these."""
        sent = self.messages if messages is None else messages
        return measured(folded(sent).settled(), self.experiment, self.as_of_ms)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    events = draw(domains())
    goals = tuple(Goal(metric, 0.1) for metric in draw(metrics(events)))
    assume(goals)
    plan = Plan(goals[0], goals[1:], observe_s=OBSERVE_S)
    experiment = replace(EXPERIMENT, plan=plan, events=events, arms=ARMS)
    rng = random.Random(draw(st.integers(0, 10**9)))
    messages: list[Message] = []
    for i in range(draw(st.integers(1, 40))):
        user = rng.randrange(12)
        at = rng.randrange(1500) + rng.choice([0.0, 86_000.0])
        numbers = {each.source: rng.choice([0, 1, 7.5, -3]) for each in events.kept}
        messages.append(
            decision(
                f"r{i}", at, f"u{user}", ARMS[user % 2].name,
                outcome=rng.choice([ANSWERED] * 6 + [FAILED]), degraded=rng.random() < 0.2,
                before=kept(numbers) if rng.random() < 0.8 else None,
            )
        )  # fmt: skip
        for n in range(rng.randrange(5)):
            kind = rng.choice(events.declared)
            value = rng.choice([0.0, 1 / 3, 19.99, 1e6, -7.25, 1e12]) if kind.value else 0.0
            if kind.value and kind.value.low == 0:
                value = abs(value)
            when = at + rng.choice([-61.0, -60.0, 0.0, 20.0, 20.001, 100.0, 100.001])
            sent = event(f"r{i}", when, kind.id, f"u{user}", n, value=value)
            if rng.random() < 0.6:
                sent.properties["coupon"] = rng.choice([0, 1])
            if rng.random() < 0.6:
                sent.properties_text["channel"] = rng.choice(["app", "web", "fax"])
            messages.append(sent)
    return World(experiment, tuple(messages), draw(st.sampled_from([T0 + 1_600_000, LATER])))


def plainly(world: World) -> tuple[dict[str, list[dict[str, Any]]], dict[str, float]]:
    """What each final unit has of every metric, in millionths, by arm, before any capping; and the
    caps."""
    window_s = max((m.window_s for m in world.metrics if m.of_feedback), default=0.0)
    feedback = {(m.user_id, m.event_id): m for m in world.messages if isinstance(m, FeedbackEvent)}
    requests = {m.request_id: m for m in world.messages if isinstance(m, DecisionRecord)}
    events = world.experiment.events
    units: list[tuple[int, int, str, dict[str, Any]]] = []
    for user in {m.user_id for m in requests.values()}:
        own = [m for m in requests.values() if m.user_id == user]
        own = [m for m in own if m.event_time_ms <= world.as_of_ms]
        if not own:
            continue
        first = min(own, key=lambda m: (m.event_time_ms, hash_of(m.request_id)))
        start = first.event_time_ms
        if start + 1000 * (OBSERVE_S + window_s) > world.as_of_ms:
            continue
        counted = {m.request_id: m for m in own if m.event_time_ms < start + 1000 * OBSERVE_S}
        answered = {r for r, m in counted.items() if m.outcome == ANSWERED}

        def of_unit(
            name: str,
            metric: Metric,
            where: tuple[Having, ...] = (),
            counted: Any = counted,
            ok: Any = answered,
        ) -> int:
            if name in SERVING:
                bad = [m for r, m in counted.items() if r in ok and m.degradations]
                return {
                    "request": STEPS * len(counted),
                    "error": STEPS * (len(counted) - len(ok)),
                    "degraded": STEPS * len(bad),
                }[name]
            kind, of_value = name.removesuffix(".value"), name.endswith(".value")
            declared = next(e for e in events.declared if e.name == kind)
            number = declared.id
            mine = [
                e.value if of_value else 1
                for e in feedback.values()
                if e.request_id in ok
                and e.event_type == number
                and all(_has(e, having, declared) for having in where)
                and -SKEW_MS
                <= e.event_time_ms - counted[e.request_id].event_time_ms
                <= metric.window_s * 1000
            ]
            exact = sum(round(value * STEPS) for value in mine)
            return max(-STEPS * int(LARGEST), min(STEPS * int(LARGEST), exact))

        row: dict[str, Any] = {"hash": hash_of(user)}
        for metric in world.metrics:
            values = [of_unit(metric.of, metric, metric.where)]
            if metric.kind == "binary":
                least = metric.at_least
                has = values[0] > 0 if least is None else values[0] >= round(least * STEPS)
                values = [STEPS * has]
            if metric.kind == "ratio":
                values.append(of_unit(metric.per, metric))
            if metric.covariate:
                number = known_before(first, metric.covariate)
                values.append(round(math.copysign(math.log1p(abs(number)), number) * STEPS))
            row[metric.name] = values
        units.append((start, hash_of(user), first.assignments[0].arm, row))
    caps = {}
    for metric in world.metrics:
        if metric.winsorise is not None:
            sizes = [abs(row[metric.name][0]) for *_, row in sorted(units, key=lambda u: u[:2])]
            sizes = sorted([size for size in sizes if size][:CAP_UNITS])
            if sizes:
                caps[metric.name] = sizes[math.ceil(metric.winsorise * len(sizes)) - 1]
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for _, _, arm, row in units:
        by_arm.setdefault(arm, []).append(row)
    return by_arm, caps


def _has(sent: FeedbackEvent, having: Having, declared: Event) -> bool:
    default = next(field.default for field in declared.properties if field.name == having.name)
    value = sent.properties_text.get(having.name) or sent.properties.get(having.name, default)
    return value in having.values


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_a_metric_of_counts_or_values_is_that_of_a_plain_recount(world: World) -> None:
    result = world.measured()
    by_arm, caps = plainly(world)
    assert result.caps.get(OBSERVE_S * 1000, {}) == {n: cap / STEPS for n, cap in caps.items()}
    for arm in (arm.name for arm in ARMS):
        cell, rows = result.of_arm(arm), by_arm.get(arm, [])
        assert cell.final == len(rows)
        for metric in world.metrics if rows else ():
            found = cell.statistics[metric.name]
            values = [row[metric.name] for row in rows]
            if metric.kind == "quantile":
                hashes = [row["hash"] % 2**64 for row in rows]
                expected = GroupedHistogram.of([value / STEPS for (value,) in values], hashes)
                assert isinstance(found, GroupedHistogram)
                assert found.to_json() == expected.to_json()
                continue
            if metric.name in caps:
                cap = caps[metric.name]
                values = [[max(-cap, min(cap, own)), *others] for own, *others in values]
            columns = list(zip(*values, strict=True))
            sums = tuple(map(sum, columns))
            products = tuple(
                sum(a * b for a, b in zip(left, right, strict=True))
                for left, right in combinations_with_replacement(columns, 2)
            )
            assert found == Moments(len(values), sums, products)


@settings(max_examples=30, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_order_and_duplicates_change_no_value(world: World, rng: random.Random) -> None:
    again = [*world.messages, *world.messages[: len(world.messages) // 2]]
    rng.shuffle(again)
    assert plain(world.measured(again)) == plain(world.measured())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**9), st.floats(0.5, 0.999), st.integers(1, 400))
def test_a_cap_bounds_every_unit_and_stands_still_once_enough_have_a_value(
    seed: int, quantile: float, more: int
) -> None:
    """It is that of the first CAP_UNITS with a value, whoever comes later and whatever they do."""
    rng = np.random.default_rng(seed)
    spends = np.where(rng.random(1000) < 0.5, rng.lognormal(3, 2, 1000), 0.0)
    arms = rng.integers(0, 2, 1000)
    buyers = np.flatnonzero(spends)[:CAP_UNITS]
    enough = int(buyers[-1]) + 1
    later = [*spends[:enough], *(1e9 for _ in range(more))]
    experiment = revenue(quantile)

    def at(values: Sequence[float]) -> Measured:
        messages = shoppers(values, [*arms[:enough], *(1 for _ in range(more))][: len(values)])
        return measured(folded(messages).settled(), experiment, LATER)

    early, late = at(list(spends[:enough])), at(later)
    cap = early.caps[1000]["revenue"]
    assert late.caps == early.caps
    assert cap == pytest.approx(np.quantile(spends[buyers], quantile, method="inverted_cdf"), 1e-6)
    known = late.of_arm("treatment").statistics["revenue"]
    own = [min(s, cap) for s, arm in zip(spends[:enough], arms, strict=False) if arm == 1]
    assert known == moments_of(*np.array([[*own, *[cap] * more], [0.0] * (len(own) + more)]))


def test_a_value_that_is_not_known_adds_nothing() -> None:
    """Of events that a worker saved before there were values, and the log has no more."""
    settled = folded(shoppers([1e-9, 20.0], [0, 1])).settled()
    events = settled.events.copy()
    assert sorted(events["value"].tolist()) == [0, 20 * STEPS]
    events["value"][events["value"] == 0] = UNKNOWN_VALUE
    unknown = replace(settled, events=events)
    assert plain(measured(unknown, revenue(), LATER)) == plain(measured(settled, revenue(), LATER))


def test_of_a_quantile_a_sum_below_0_that_an_older_schema_allowed_is_0() -> None:
    metric = Metric("median", "quantile", "buy.value", "higher", events=SHOP)
    experiment = replace(revenue(), plan=Plan(Goal(metric, 0.05), observe_s=1))
    below, none = (
        measured(folded(shoppers([first, 20.0], [1, 1])).settled(), experiment, LATER)
        for first in (-10.0, 1e-9)
    )
    assert plain(below) == plain(none)


def compared(messages: Sequence[Message], winsorise: float | None = None) -> Any:
    experiment = revenue(winsorise)
    result = measured(folded(messages).settled(), experiment, LATER)
    (goal,) = Comparisons(experiment, result, 2000).goals("primary", [experiment.plan.primary])  # type: ignore[list-item]
    return goal


def test_the_users_own_sum_takes_noise_out_of_revenue_and_leaves_its_effect() -> None:
    """Over assignments of the same users, estimates with and without CUPED are both around the
    truth, and those with it scatter less."""
    rng = np.random.default_rng(7)
    past = rng.lognormal(3, 1, 600)
    spends = past * rng.lognormal(0, 0.5, 600)
    plain_effects, adjusted = [], []
    for _ in range(40):
        arms = rng.integers(0, 2, 600)
        lifted = spends * np.where(arms == 1, 1.2, 1.0)
        goal = compared(shoppers(lifted, arms, dict(enumerate(past))))
        assert goal.covariate_correlation > 0.5
        plain_effects.append(goal.all_units.effect)
        adjusted.append(goal.cuped.effect)
        widths = [e.fixed.high - e.fixed.low for e in (goal.cuped, goal.all_units)]
        assert widths[0] < 0.9 * widths[1]
    truth = 0.2 * spends.mean()
    for effects in (plain_effects, adjusted):
        assert abs(np.mean(effects) - truth) < 4 * np.std(effects) / math.sqrt(len(effects))
    assert np.var(adjusted) < 0.7 * np.var(plain_effects)


def test_an_arm_in_which_nobody_bought_is_as_uncertain_as_prices_are_high() -> None:
    """No sale among n users may still have been one of the price that others pay, whatever the
    currency: in cents the interval is a hundred times as wide, and the verdict is the same."""
    arms = [i % 2 for i in range(600)]
    euros, cents = (
        compared(shoppers([price * (i % 20 == 0) for i in range(600)], arms))
        for price in (30.0, 3000.0)
    )
    assert euros.verdict == cents.verdict
    width, hundredfold = (g.judged.sequence.high - g.judged.sequence.low for g in (euros, cents))
    assert hundredfold == pytest.approx(100 * width, rel=1e-3)
