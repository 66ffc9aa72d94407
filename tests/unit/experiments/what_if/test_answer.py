"""What other parameters would have earned: the log says it rightly."""

from __future__ import annotations

import math
from itertools import permutations
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from load_tests.experiments.explored_world import CANDIDATES, LOGGING, PLACES
from models.schema.declaration import Amount, Event
from protos.tandem.v1.records_pb2 import CLICK, IMPRESSION, FeedbackEvent
from services.experiments.declare.metrics import Events, Having, Metric, MetricKind
from services.experiments.declare.parameters import Value
from services.experiments.lists.exploration import PlackettLuce, rank_logits
from services.experiments.what_if.answer import Choice, WhatIf, check_metric, what_if
from services.experiments.what_if.log import Request
from services.experiments.what_if.off_policy.errors import (
    NotInLog,
    OffPolicyRefused,
    TooFewEffectiveSamples,
)
from services.experiments.what_if.off_policy.weights import Requirements
from services.experiments.what_if.slates import Slates
from tests.domains import FILMS
from tests.unit.experiments.what_if.logs import (
    ANYTHING,
    BEST_FIRST,
    CLICK_RATE,
    CLICKED,
    CLICKS,
    LIKED_MORE,
    WORLD,
    Traffic,
    answer,
    collected,
    logged,
    seen,
)


def rewards_by_place(traffic: Traffic, kind: int) -> dict[int, list[float]]:
    """Counts by place, by event time of the request (each has its own second)."""
    return {
        record.event_time_ms: [
            sum(e.item_id == item and e.event_type == kind for e in events)
            for item in record.item_ids
        ]
        for record, events in traffic
    }


def rips_by_a_loop(requests: list[Request], rewards: dict[int, list[float]]) -> float:
    value = 0.0
    target = Slates(requests).target
    for k in range(PLACES):
        top = bottom = 0.0
        for i, request in enumerate(requests):
            weight = math.prod(target[i, j] / request.propensities[j] for j in range(k + 1))
            top += weight * rewards[request.time_ms][k]
            bottom += weight
        value += top / bottom
    return value


def item_position_by_a_loop(requests: list[Request], rewards: dict[int, list[float]]) -> float:
    """Marginals as frequencies of all lists by their probabilities."""
    lists = np.array(list(permutations(range(CANDIDATES), PLACES)))
    chance = PlackettLuce(1.0, CANDIDATES).propensities(lists, rank_logits(CANDIDATES)).prod(axis=1)
    marginal = np.zeros((PLACES, CANDIDATES))
    for one, p in zip(lists, chance, strict=True):
        marginal[np.arange(PLACES), one] += p
    value = 0.0
    for k in range(PLACES):
        top = bottom = 0.0
        for request in requests:
            place = int(request.places[k])
            rank = request.order.tolist().index(place)
            weight = marginal[k, rank] / marginal[k, place]
            top += weight * rewards[request.time_ms][k]
            bottom += weight
        value += top / bottom
    return value


def test_estimates_from_the_log_equal_plain_loops() -> None:
    traffic = logged()
    requests = collected(traffic, LIKED_MORE).requests()
    rewards = rewards_by_place(traffic, CLICK)
    made = answer(traffic, LIKED_MORE, "rips")
    assert made.target.value == pytest.approx(rips_by_a_loop(requests, rewards), rel=1e-6)
    assert made.logged.value == pytest.approx(np.mean([sum(r) for r in rewards.values()]))
    made = answer(traffic, LIKED_MORE, "item_position")
    assert made.target.value == pytest.approx(item_position_by_a_loop(requests, rewards), rel=1e-6)


@pytest.mark.no_cover
@pytest.mark.parametrize("choice", ["rips", "item_position"])
@pytest.mark.parametrize("metric", [CLICKS, CLICK_RATE])
def test_the_errors_are_those_of_leaving_out_one_user_after_the_other(
    choice: Choice, metric: Metric
) -> None:
    """The jackknife knows nothing of influence values."""
    traffic = seen(logged(60, 3))
    made = answer(traffic, LIKED_MORE, choice, metric)
    users = sorted({record.user_id for record, _ in traffic})
    parts = np.array(
        [
            numbers(
                answer([t for t in traffic if t[0].user_id != user], LIKED_MORE, choice, metric)
            )
            for user in users
        ]
    )
    n = len(users)
    expected = np.sqrt((n - 1) / n * ((parts - parts.mean(axis=0)) ** 2).sum(axis=0))
    assert made.lift is not None
    errors = [part.standard_error for part in (made.target, made.difference, made.lift)]
    np.testing.assert_allclose(errors, expected, rtol=0.06)
    assert made.difference.standard_error < made.target.standard_error


def numbers(made: WhatIf) -> list[float]:
    assert made.lift is not None
    return [made.target.value, made.difference.value, made.lift.value]


def test_a_ratio_divides_sums_and_a_binary_metric_counts_lists() -> None:
    traffic = seen(logged())
    clicks, views = (rewards_by_place(traffic, kind) for kind in (CLICK, IMPRESSION))
    requests = collected(traffic, LIKED_MORE).requests()
    made = answer(traffic, LIKED_MORE, "rips", CLICK_RATE)
    expected = rips_by_a_loop(requests, clicks) / rips_by_a_loop(requests, views)
    assert made.target.value == pytest.approx(expected, rel=1e-6)
    total = sum(map(sum, clicks.values())) / sum(map(sum, views.values()))
    assert made.logged.value == pytest.approx(total)
    made = answer(traffic, LIKED_MORE, "rips", CLICKED)
    first = {  # 1 at the first clicked place
        time_ms: [float(c > 0 and not any(places[:k])) for k, c in enumerate(places)]
        for time_ms, places in clicks.items()
    }
    assert made.target.value == pytest.approx(rips_by_a_loop(requests, first), rel=1e-6)
    assert made.logged.value == pytest.approx(np.mean([any(c) for c in clicks.values()]))


def test_auto_takes_the_weakest_assumption_that_the_log_can_carry() -> None:
    traffic = logged(400)
    near = answer(traffic, LIKED_MORE, requirements=Requirements())
    assert (near.estimator, near.passed_over) == ("rips", "")
    far = answer(traffic, BEST_FIRST, requirements=Requirements())
    assert far.estimator == "item_position"
    assert far.passed_over.startswith("rips: The 800 logged decisions are worth only")
    with pytest.raises(TooFewEffectiveSamples):  # no sum over places: nothing else fits
        answer(traffic, BEST_FIRST, metric=CLICKED, requirements=Requirements())


def test_clipping_says_what_it_may_have_done() -> None:
    traffic = logged(800)
    free = answer(traffic, BEST_FIRST, "rips")
    made = answer(traffic, BEST_FIRST, "rips", requirements=Requirements(10, 0))
    assert made.target.largest_weight == free.target.largest_weight > 10
    assert 0 < made.target.clipped_share < 0.1
    assert free.target.bias_bound == free.target.clipped_share == 0
    truth = WORLD.value(FILMS.parameters.with_overrides(LOGGING, BEST_FIRST))
    low, high = made.target.low, made.target.high
    assert low - made.target.bias_bound < truth < high + made.target.bias_bound
    assert made.difference.bias_bound == made.target.bias_bound


RUNS = 80


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("overrides", "choice"),
    [(LIKED_MORE, "rips"), (BEST_FIRST, "item_position")],
    ids=["explored", "best first"],
)
def test_intervals_cover_the_true_value(overrides: dict[str, Value], choice: Choice) -> None:
    """The whole path from records on. A standard error that is 20 % wrong fails."""
    truth = WORLD.value(FILMS.parameters.with_overrides(LOGGING, overrides))
    gain = truth - WORLD.value(LOGGING)
    z = NormalDist().inv_cdf(0.975)
    logs = [collected(logged(120, 2, seed), overrides) for seed in range(RUNS)]
    made = [what_if(log, CLICKS, choice, ANYTHING) for log in logs]
    errors = (
        [(m.target.value - truth) / m.target.standard_error for m in made],
        [(m.difference.value - gain) / m.difference.standard_error for m in made],
    )
    for scores in map(np.array, errors):
        assert 0.89 <= np.mean(np.abs(scores) <= z) <= 0.99
        assert 0.83 < scores.std() < 1.2
        assert abs(scores.mean()) < 3.5 / math.sqrt(RUNS)


@pytest.mark.no_cover
@pytest.mark.parametrize(("overrides", "choice"), [(LIKED_MORE, "rips"), (BEST_FIRST, "auto")])
def test_an_ab_test_of_the_arm_agrees(overrides: dict[str, Value], choice: Choice) -> None:
    made = answer(logged(3_000, 2, seed=8), overrides, choice)
    parameters = FILMS.parameters.with_overrides(LOGGING, overrides)
    arm = list(WORLD.traffic(parameters, 3_000, 2, np.random.default_rng(9), "b"))
    per_user = np.array([len(events) for _, events in arm]).reshape(-1, 2).sum(axis=1)
    earned = per_user.mean() / 2
    error = per_user.std(ddof=1) / math.sqrt(3_000) / 2
    assert abs(made.target.value - earned) < 3 * math.hypot(made.target.standard_error, error)
    assert abs(made.target.value / earned - 1) < 0.1


def test_a_small_log_is_refused_with_what_to_do() -> None:
    with pytest.raises(TooFewEffectiveSamples, match="Log more or explore more"):
        answer(logged(60), LIKED_MORE, requirements=Requirements())
    with pytest.raises(OffPolicyRefused):
        answer(logged(1, 1), LIKED_MORE, requirements=Requirements())


@pytest.mark.parametrize(
    ("metric", "choice", "sentence"),
    [
        (Metric("p99", "quantile", "latency", "lower"), "auto", "order of a list does not change"),
        (Metric("bad", "ratio", "degraded", "lower", per="request"), "auto", "does not change"),
        (CLICKED, "item_position", "no sum over its places.* Use rips"),
    ],
)
def test_metrics_that_cannot_be_evaluated_are_refused(
    metric: Metric, choice: Choice, sentence: str
) -> None:
    with pytest.raises(NotInLog, match=sentence):
        check_metric(metric, choice)


SHOP = Events(
    (
        Event(name="impression", id=1, impression=True),
        Event(name="click", id=2, value=Amount(unit="EUR", low=-100)),
    ),
    (),
)


def test_a_metric_of_values_adds_up_what_lists_earned() -> None:
    """The logged policy's own value, by plain loops over lists."""
    rng, traffic, sums, counts = np.random.default_rng(4), [], [], []
    for record, events in logged():
        sold = [priced(e, value=rng.integers(-20, 100) / 2) for e in events]
        traffic.append((record, sold))
        sums.append(sum(e.value for e in sold))
        counts.append(len(sold))

    def value(kind: MetricKind, **fields: Any) -> float:
        metric = Metric("m", kind, "click.value", "higher", events=SHOP, **fields)
        return answer(traffic, LIKED_MORE, metric=metric).logged.value

    assert value("mean") == pytest.approx(np.mean(sums))
    assert value("binary") == pytest.approx(np.mean([s > 0 for s in sums]))
    assert value("binary", at_least=20) == pytest.approx(np.mean([s >= 20 for s in sums]))
    assert value("ratio", per="click") == pytest.approx(sum(sums) / sum(counts))


def test_a_metric_of_events_with_a_property_is_not_asked_here() -> None:
    metric = Metric("m", "mean", "click", "higher", where=(Having("coupon", (True,)),))
    with pytest.raises(NotInLog, match="metric of all of them"):
        check_metric(metric)


@pytest.mark.parametrize("fields", [{"kind": "quantile"}, {"kind": "mean", "winsorise": 0.9}])
def test_what_is_made_of_users_is_refused_and_said_to_be(fields: dict[str, Any]) -> None:
    metric = Metric("m", of="click.value", better="higher", events=SHOP, **fields)
    with pytest.raises(NotInLog, match="of what users have of all their lists"):
        check_metric(metric)


def priced(event: FeedbackEvent, value: float) -> FeedbackEvent:
    made = FeedbackEvent()
    made.CopyFrom(event)
    made.value = value
    return made
