"""What other parameters would have earned: the log says it rightly, or says why it cannot."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import permutations
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from load_tests.experiments.explored_world import (
    CANDIDATES,
    LOGGING,
    PLACES,
    START_MS,
    WINDOW_MS,
    World,
)
from protos.tandem.v1.records_pb2 import (
    ABANDONED,
    CLICK,
    IMPRESSION,
    LIKE,
    UNRANKED,
    Assignment,
    DecisionRecord,
    FeedbackEvent,
    Interleaving,
)
from services.event_log.whole_log import SKEW_MS
from services.experiments.declare import config_reader
from services.experiments.declare.metrics import Metric
from services.experiments.declare.parameters import Parameters, Value
from services.experiments.lists.exploration import EpsilonGreedy, PlackettLuce, rank_logits
from services.experiments.what_if.estimate import (
    Choice,
    WhatIf,
    check_metric,
    check_overrides,
    concerned,
    what_if,
)
from services.experiments.what_if.log import (
    IN_ORDER,
    LeftOut,
    Policy,
    Request,
    Target,
    WhatIfLog,
    supported,
)
from services.experiments.what_if.off_policy.errors import (
    InvalidLog,
    MissingSupport,
    NotInLog,
    OffPolicyRefused,
    TooFewEffectiveSamples,
)
from services.experiments.what_if.off_policy.logs import Requirements
from services.experiments.what_if.slates import Slates, exact_moments
from tests.unit.experiments.messages import poisoned

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
    log = WhatIfLog(Target(overrides), WORLD.items, START_MS, until_ms)
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


# The target's ranking and its probabilities.


def test_what_was_served_is_estimated_as_it_was() -> None:
    """Law: under the logged parameters the ranking is the logged one and every weight is 1."""
    traffic = logged(100)
    log = collected(traffic, {})
    for request in log.requests():
        assert request.order.tolist() == list(range(CANDIDATES))
    for choice in ("rips", "item_position", "pseudo_inverse", "snips", "ips"):
        same = what_if(log, CLICKS, choice, ANYTHING)  # type: ignore[arg-type]
        assert same.target.value == pytest.approx(same.logged.value, rel=1e-6)
        assert same.difference.standard_error == pytest.approx(0, abs=1e-6)
        assert same.target.effective_sample_size == pytest.approx(100, rel=1e-6)


def by_the_definition(
    scores: np.ndarray, genres: np.ndarray, like_weight: float, diversity: float
) -> list[int]:
    """The docstring of rerank, one item after the other."""
    values = [float(c) * (1 + like_weight * float(li)) for c, li in scores]
    chosen: list[int] = []
    while len(chosen) < len(values):
        left = [i for i in range(len(values)) if i not in chosen]

        def gain(i: int) -> float:
            similar = [float(genres[i] @ genres[j]) for j in chosen]
            return values[i] / max(values) - diversity * (sum(similar) / max(len(similar), 1))

        chosen.append(max(left, key=gain))
    return chosen


@pytest.mark.parametrize(("like_weight", "diversity"), [(5.0, 0.0), (0.0, 0.3), (3.0, 0.9)])
def test_the_target_ranks_the_logged_items_by_the_definition(
    like_weight: float, diversity: float
) -> None:
    overrides = {"rerank.like_weight": like_weight, "rerank.diversity": diversity}
    traffic = logged(30)
    requests = {r.request: r for r in collected(traffic, overrides).requests()}  # type: ignore[arg-type]
    moved = 0
    for record, _ in traffic:
        how = record.exploration
        (request,) = [
            r
            for r in requests.values()
            if r.time_ms == record.event_time_ms  # each has its own second
        ]
        scores = np.frombuffer(how.task_scores, "<f4").reshape(-1, 2)
        rows = WORLD.items.index_of(np.frombuffer(how.item_keys, "<u8"))
        expected = by_the_definition(scores, WORLD.items.unit_genres[rows], like_weight, diversity)
        assert request.order.tolist() == expected
        moved += expected != list(range(CANDIDATES))
    assert moved > 30


@pytest.mark.parametrize("overrides", [LIKED_MORE, BEST_FIRST])
def test_the_targets_probabilities_are_those_of_its_own_draw(overrides: dict[str, Value]) -> None:
    """By hand: weights 1 / rank among those that are left, or the best that is left."""
    requests = collected(logged(30), overrides).requests()
    found = Slates(requests).target
    for request, row in zip(requests, found, strict=True):
        ranks = {place: rank for rank, place in enumerate(request.order.tolist(), 1)}
        left = dict(ranks)
        possible = True
        for place, probability in zip(request.places.tolist(), row.tolist(), strict=True):
            if overrides is BEST_FIRST:
                expected = float(
                    possible and bool(left) and place == min(left, key=left.__getitem__)
                )
                possible = bool(expected)
            else:
                expected = (1 / left[place]) / sum(1 / rank for rank in left.values())
            assert probability == pytest.approx(expected, rel=1e-6)
            left.pop(place, None)


def test_an_arm_gives_the_experiments_parameters_and_leaves_the_others() -> None:
    record = DecisionRecord(
        parameters={
            "rerank.like_weight": "7.0",
            "rerank.diversity": "0.4",
            "rerank.exploration": "epsilon",
            "ranking.model": "masknet",
        }
    )
    record.exploration.kind, record.exploration.strength, record.exploration.depth = (
        "epsilon",
        0.25,
        9,
    )
    arm = Target({"rerank.diversity": 0.1}, frozenset({"rerank.diversity", "rerank.like_weight"}))
    before, after = arm.parameters(record)
    assert (before.rerank_like_weight, before.rerank_diversity) == (7.0, 0.4)
    assert (after.rerank_like_weight, after.rerank_diversity) == (1.0, 0.1)
    assert (after.rerank_exploration, after.rerank_epsilon) == ("epsilon", 0.25)
    assert after.rerank_exploration_depth == 9
    _, only = Target({"rerank.diversity": 0.1}).parameters(record)
    assert only.rerank_like_weight == 7.0


# The estimates.


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
    made = answer(traffic, LIKED_MORE, "snips", CLICKED)
    weights = Slates(requests).target.prod(axis=1) / [r.propensities.prod() for r in requests]
    some = np.array([any(clicks[r.time_ms]) for r in requests])
    assert made.target.value == pytest.approx(weights @ some / weights.sum(), rel=1e-6)
    assert made.logged.value == pytest.approx(some.mean())
    # RIPS of the first clicked place is the same quantity with another error.
    by_rips = answer(traffic, LIKED_MORE, "rips", CLICKED)
    assert abs(by_rips.target.value - made.target.value) < 4 * made.target.standard_error
    assert by_rips.target.standard_error < made.target.standard_error


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
    free = answer(traffic, BEST_FIRST, "ips")
    made = answer(traffic, BEST_FIRST, "ips", requirements=Requirements(10, 0))
    assert made.target.largest_weight == free.target.largest_weight > 10
    assert 0 < made.target.clipped_share < 0.1
    assert free.target.bias_bound == free.target.clipped_share == 0
    truth = WORLD.value(LOGGING.with_overrides(BEST_FIRST))
    assert made.target.high < truth  # clipping takes value away here: the interval alone is wrong
    assert made.target.high + made.target.bias_bound > truth
    assert made.difference.bias_bound == made.target.bias_bound


RUNS = 80


@pytest.mark.parametrize(
    ("overrides", "choices"),
    [(LIKED_MORE, ("rips", "dr")), (BEST_FIRST, ("item_position",))],
    ids=["explored", "best first"],
)
def test_intervals_cover_the_true_value(
    overrides: dict[str, Value], choices: tuple[Choice, ...]
) -> None:
    """The whole path from records on. A standard error that is 20 % wrong fails."""
    truth = WORLD.value(LOGGING.with_overrides(overrides))
    gain = truth - WORLD.value(LOGGING)
    z = NormalDist().inv_cdf(0.975)
    logs = [collected(logged(120, 2, seed), overrides) for seed in range(RUNS)]
    for choice in choices:
        made = [what_if(log, CLICKS, choice, ANYTHING) for log in logs]
        errors = (
            [(m.target.value - truth) / m.target.standard_error for m in made],
            [(m.difference.value - gain) / m.difference.standard_error for m in made],
        )
        for scores in map(np.array, errors):
            assert 0.89 <= np.mean(np.abs(scores) <= z) <= 0.99
            assert 0.83 < scores.std() < 1.2
            assert abs(scores.mean()) < 3.5 / math.sqrt(RUNS)


@pytest.mark.parametrize(("overrides", "choice"), [(LIKED_MORE, "rips"), (BEST_FIRST, "auto")])
def test_an_ab_test_of_the_arm_agrees(overrides: dict[str, Value], choice: Choice) -> None:
    made = answer(logged(3_000, 2, seed=8), overrides, choice)
    parameters = LOGGING.with_overrides(overrides)
    arm = list(WORLD.traffic(parameters, 3_000, 2, np.random.default_rng(9), "b"))
    per_user = np.array([len(events) for _, events in arm]).reshape(-1, 2).sum(axis=1)
    earned = per_user.mean() / 2
    error = per_user.std(ddof=1) / math.sqrt(3_000) / 2
    assert abs(made.target.value - earned) < 3 * math.hypot(made.target.standard_error, error)
    assert abs(made.target.value / earned - 1) < 0.1


# The set of messages.


def test_order_and_repetition_of_messages_change_nothing() -> None:
    traffic = seen(logged(60))
    first = answer(traffic, LIKED_MORE).to_json()
    messages: list[DecisionRecord | FeedbackEvent] = []
    for record, events in traffic:
        messages += [record, *events]
    for seed in range(3):
        again = messages + messages[::2]
        random.Random(seed).shuffle(again)
        log = WhatIfLog(Target(LIKED_MORE), WORLD.items, START_MS, UNTIL_MS)
        for message in again:
            if isinstance(message, DecisionRecord):
                log.on_decision(message)
            else:
                log.on_feedback(message)
        assert what_if(log, CLICKS, "auto", ANYTHING).to_json() == first


def test_of_two_records_of_one_request_the_same_one_counts_in_any_order() -> None:
    traffic = logged(60)
    other = logged(60, seed=2)  # the same request ids with other lists
    both = [t for pair in zip(traffic, other, strict=True) for t in pair]
    one = answer(both, LIKED_MORE).to_json()
    assert answer(both[::-1], LIKED_MORE).to_json() == one
    assert one["requests"] == 120


def test_feedback_counts_within_the_window_only() -> None:
    traffic = [(record, []) for record, _ in logged(60)]
    record = traffic[7][0]
    assert answer(traffic, LIKED_MORE).logged.value == 0
    for after_ms, counts in (
        (0, True),
        (WINDOW_MS, True),
        (WINDOW_MS + 1, False),
        (-SKEW_MS, True),
        (-SKEW_MS - 1, False),
    ):
        event = event_of(record, 1, after_ms=after_ms)
        made = answer([*traffic, (record, [event])], LIKED_MORE)
        assert made.logged.value == (1 / 120 if counts else 0)
        assert made.feedback == ((1, 0, 0) if counts else (0, 1, 0))
    short = replace(CLICKS, window_s=10.0)
    event = event_of(record, 1, after_ms=10_001)
    assert answer([*traffic, (record, [event])], LIKED_MORE, metric=short).logged.value == 0


def test_feedback_on_what_the_list_did_not_show_is_said_and_not_counted() -> None:
    traffic = [(record, []) for record, _ in logged(60)]
    record = traffic[7][0]
    event = event_of(record, 0)
    event.item_id = "another"
    made = answer([*traffic, (record, [event])], LIKED_MORE)
    assert made.logged.value == 0
    assert made.feedback == (0, 0, 1)
    liked = event_of(record, 0, LIKE)
    made = answer([*traffic, (record, [liked])], LIKED_MORE)
    assert made.logged.value == 0  # it is no click


def test_a_request_counts_when_its_window_is_over() -> None:
    traffic = logged(60)
    last = traffic[-1][0].event_time_ms
    log = collected(traffic, LIKED_MORE, until_ms=last + WINDOW_MS)
    assert what_if(log, CLICKS, "rips", ANYTHING).left_out == {}
    log = collected(traffic, LIKED_MORE, until_ms=last + WINDOW_MS - 1)
    made = what_if(log, CLICKS, "rips", ANYTHING)
    assert made.left_out == {LeftOut.OPEN: 1}
    assert made.requests == 119


# What is left out, and what is refused.


def changed(record: DecisionRecord, **fields: object) -> DecisionRecord:
    made = DecisionRecord(**fields)  # type: ignore[arg-type]
    whole = DecisionRecord()
    whole.CopyFrom(record)
    whole.MergeFrom(made)
    return whole


def without(record: DecisionRecord, *names: str) -> DecisionRecord:
    whole = DecisionRecord()
    whole.CopyFrom(record)
    for name in names:
        message = whole
        *path, last = name.split(".")
        for part in path:
            message = getattr(message, part)
        message.ClearField(last)  # type: ignore[arg-type]
    return whole


def unknown_item(record: DecisionRecord) -> DecisionRecord:
    """Another name for an item that was ranked and not shown."""
    whole = changed(record)
    keys = np.frombuffer(whole.exploration.item_keys, "<u8").copy()
    places = np.frombuffer(whole.exploration.places, "<u2")
    keys[min(set(range(CANDIDATES)) - set(places.tolist()))] = 12345
    whole.exploration.item_keys = keys.tobytes()
    return whole


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: changed(r, outcome=ABANDONED), LeftOut.UNANSWERED),
        (lambda r: changed(r, interleaving=Interleaving(experiment="e")), LeftOut.INTERLEAVED),
        (lambda r: changed(r, degradations=[UNRANKED]), LeftOut.DEGRADED),
        (lambda r: without(r, "task_scores"), LeftOut.UNRANKED),
        (lambda r: without(r, "exploration"), LeftOut.UNEXPLORED),
        (lambda r: without(r, "exploration.strength"), LeftOut.UNEXPLORED),
        (lambda r: without(r, "exploration.item_keys"), LeftOut.NO_RANKING),
        (lambda r: changed(r, parameters={"rerank.gone": "1"}), LeftOut.OLD_PARAMETERS),
        (unknown_item, LeftOut.UNKNOWN_ITEMS),
    ],
)
def test_requests_that_say_nothing_are_left_out_and_counted(
    change: Callable[[DecisionRecord], DecisionRecord], why: LeftOut
) -> None:
    traffic = logged(60)
    expected = answer(traffic[3:], LIKED_MORE).to_json()
    mixed = [(change(record), events) for record, events in traffic[:3]] + traffic[3:]
    made = answer(mixed, LIKED_MORE)
    assert made.left_out == {why: 3}
    assert made.to_json() == expected | {"left_out": {why.name.lower(): 3}}
    with pytest.raises(NotInLog, match=r"None of 3 requests .* 3 the reason is"):
        answer(mixed[:3], LIKED_MORE)


def test_requests_of_another_model_are_left_out_when_the_target_names_one() -> None:
    traffic = logged(60)
    by_other = [
        (changed(record, parameters={"ranking.model": "infnet"}), events)
        for record, events in traffic[:5]
    ]
    made = answer(by_other + traffic[5:], LIKED_MORE | {"ranking.model": "masknet"})
    assert made.left_out == {LeftOut.OTHER_MODELS: 5}
    assert answer(by_other + traffic[5:], LIKED_MORE).left_out == {}


def test_a_period_without_requests_says_so() -> None:
    with pytest.raises(NotInLog, match="no request of this time"):
        answer([], LIKED_MORE)


def mutated(name: str) -> Callable[[DecisionRecord], DecisionRecord]:
    def change(record: DecisionRecord) -> DecisionRecord:
        whole = changed(record)
        how = whole.exploration
        match name:
            case "propensity":
                p = np.frombuffer(whole.propensities, "<f4").copy()
                p[1] *= np.float32(1.01)
                whole.propensities = p.tobytes()
            case "no propensity":
                whole.propensities = np.zeros(PLACES, "<f4").tobytes()
            case "places":
                places = np.frombuffer(how.places, "<u2").copy()
                how.places = places[::-1].tobytes()
            case "beyond":
                how.places = np.array([0, 1, CANDIDATES], "<u2").tobytes()
            case "twice":
                how.places = np.array([0, 0, 1], "<u2").tobytes()
            case "keys":
                how.item_keys = np.frombuffer(how.item_keys, "<u8")[::-1].tobytes()
            case "ranked":
                how.ranked += 1
            case "scores":
                how.task_scores = how.task_scores[:-4]
            case "strength":
                how.strength *= 1.05
            case "kind":
                how.kind = "epsilon"
            case "shown":
                whole.item_ids[0], whole.item_ids[1] = whole.item_ids[1], whole.item_ids[0]
        return whole

    return change


@pytest.mark.parametrize(
    "name",
    ["propensity", "no propensity", "places", "beyond", "twice", "keys", "ranked", "scores",
     "strength", "kind", "shown"],
)  # fmt: skip
def test_a_record_whose_propensities_are_not_those_of_its_draw_is_caught(name: str) -> None:
    traffic = logged(60)
    record, events = traffic[5]
    traffic[5] = mutated(name)(record), events
    with pytest.raises(InvalidLog, match=rf"1 requests contradict .*\({record.request_id} is one"):
        answer(traffic, LIKED_MORE)


def test_one_record_in_hundreds_that_contradicts_itself_is_left_out_and_refuses_nobody() -> None:
    traffic = logged()
    expected = answer([*traffic[:5], *traffic[6:]], LIKED_MORE)
    traffic[5] = mutated("propensity")(traffic[5][0]), []
    found = answer(traffic, LIKED_MORE)
    assert found.left_out == {LeftOut.CONTRADICTORY: 1}
    assert found.target == expected.target


@settings(max_examples=60)
@given(poisoned(logged()[5][0]), poisoned(event_of(logged()[5][0], 0)))
def test_no_record_raises_anything_or_takes_another_one_out(
    record: DecisionRecord | None, sent: FeedbackEvent | None
) -> None:
    traffic = logged()
    del traffic[5]
    expected = answer(traffic, LIKED_MORE)
    log = collected(traffic, LIKED_MORE)
    if record is not None:
        log.on_decision(record)
    if sent is not None:
        log.on_feedback(sent)
    found = what_if(log, CLICKS, "auto", ANYTHING)
    assert found.requests - expected.requests in (0, 1)


def test_wrong_propensities_of_all_requests_are_caught_by_the_weights() -> None:
    """Even where a record agrees with itself: too small propensities make too large weights."""
    log = collected(logged(400), LIKED_MORE)
    wrong = [r._replace(propensities=r.propensities * 0.9) for r in log.requests()]
    with pytest.raises(InvalidLog, match="too small"):
        Slates(wrong).estimate("rips", ANYTHING, np.zeros((len(wrong), PLACES)))


def shallow(depth: int, count: int = 100) -> Traffic:
    parameters = replace(LOGGING, rerank_exploration_depth=depth)
    return list(WORLD.traffic(parameters, count, 1, np.random.default_rng(4)))


def test_a_target_that_draws_from_deeper_than_was_logged_is_refused() -> None:
    deeper: dict[str, Value] = {"rerank.exploration_depth": 6}
    with pytest.raises(MissingSupport, match=r"100 of 100 requests .*exploration_depth up to"):
        answer(shallow(5), deeper)
    assert answer(shallow(6), deeper).requests == 100
    # All candidates were in the ranking: there is nothing deeper.
    assert answer(shallow(CANDIDATES + 5), {"rerank.exploration_depth": 400}).requests == 100


def test_few_requests_without_support_are_left_out_and_more_are_refused() -> None:
    deeper: dict[str, Value] = {"rerank.exploration_depth": 6}
    few = [*shallow(6), *renamed(shallow(5, 5))]
    assert answer(few, deeper).left_out == {LeftOut.UNSUPPORTED: 5}
    with pytest.raises(MissingSupport):
        answer([*shallow(6), *renamed(shallow(5, 6))], deeper)


def renamed(traffic: Traffic) -> Traffic:
    made = []
    for record, _ in traffic:
        whole = changed(record)
        whole.request_id += "'"
        made.append((whole, []))
    return made


def test_below_the_explored_places_only_the_logged_order_is_supported() -> None:
    logging = Policy(PlackettLuce(1.0, 2), 4)
    for order, count, expected in (
        ([1, 0, 2, 3], 4, True),
        ([0, 1, 3, 2], 4, False),
        ([0, 2, 1, 3], 4, False),
        ([0, 1, 3, 2], 2, True),
    ):
        assert supported(logging, Policy(IN_ORDER, 4), np.array(order), count) == expected
    assert not supported(logging, Policy(EpsilonGreedy(0.5, 3), 4), np.arange(4), 4)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_support_means_that_no_list_of_the_target_was_impossible(
    depth: int, count: int, target_depth: int, rng: random.Random
) -> None:
    """Against all lists, with candidates enough that the ranking is as long as is asked."""
    length = max(depth, count)
    order = list(range(length))
    rng.shuffle(order)
    logging = Policy(PlackettLuce(1.0, depth), length)
    ranking = np.array(order[: max(count, target_depth)])
    target = Policy(EpsilonGreedy(0.5, target_depth), len(ranking))
    lists = np.array(list(permutations(range(len(ranking)), count)))
    could = target.propensities(lists).prod(axis=1) > 0
    was = logging.propensities(ranking[lists]).prod(axis=1) > 0
    expected = bool((was | ~could).all()) and max(count, target_depth) <= length
    if supported(logging, target, ranking, count):
        assert expected
    elif expected:  # refused though possible only where the pool itself is deeper
        assert target_depth > depth


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"ranking.model": "mc_mlcc"}, "ranking.model = mc_mlcc cannot .* interleaving"),
        ({"retrieval.num_candidates": 400}, "scores that it would have made were not logged"),
        ({"ranking.enabled": False}, "cannot be evaluated"),
    ],
)
def test_what_other_models_would_do_is_refused(overrides: dict[str, Value], sentence: str) -> None:
    with pytest.raises(NotInLog, match=sentence):
        check_overrides(overrides)
    check_overrides({"ranking.model": Parameters().ranking_model, "rerank.diversity": 1.0})


@pytest.mark.parametrize(
    ("metric", "choice", "sentence"),
    [
        (Metric("p99", "quantile", "latency", "lower"), "auto", "order of a list does not change"),
        (Metric("bad", "ratio", "degraded", "lower", per="request"), "auto", "does not change"),
        (CLICKED, "item_position", "no sum over its places"),
        (CLICKED, "pseudo_inverse", "Use rips"),
    ],
)
def test_metrics_that_cannot_be_evaluated_are_refused(
    metric: Metric, choice: Choice, sentence: str
) -> None:
    with pytest.raises(NotInLog, match=sentence):
        check_metric(metric, choice)


def test_the_pseudo_inverse_is_refused_where_not_all_lists_can_be_known() -> None:
    with pytest.raises(NotInLog, match=r"3\.7e\+16 .* Use item_position"):
        exact_moments(Policy(PlackettLuce(1.0, 50), 50), 10)
    exact_moments(Policy(PlackettLuce(1.0, 2), 10), 10)  # two lists


def test_a_small_log_is_refused_with_what_to_do() -> None:
    with pytest.raises(TooFewEffectiveSamples, match="Log more or explore more"):
        answer(logged(60), LIKED_MORE, requirements=Requirements())
    with pytest.raises(OffPolicyRefused):
        answer(logged(1, 1), LIKED_MORE, requirements=Requirements())


EXPERIMENT = """\
version: 1
layers:
  - name: value
    parameters: [rerank.diversity]
    experiments:
      - name: mix
        where: {surface: {in: [home]}%s}
        arms:
          - {name: control, weight: 50}
          - {name: mixed, weight: 50, parameters: {rerank.diversity: 0.5}}
"""


def test_an_experiment_is_about_the_requests_that_fulfil_its_conditions() -> None:
    def about(conditions: str) -> Callable[[DecisionRecord], bool]:
        config = config_reader.parse((EXPERIMENT % conditions).encode(), "e")
        ((_, experiment),) = config.experiments()
        return concerned(experiment)

    home, detail = DecisionRecord(surface="home"), DecisionRecord(surface="detail")
    carried = DecisionRecord(surface="home", assignments=[Assignment(experiment="mix")])
    by_surface = about("")
    assert [by_surface(r) for r in (home, detail, carried)] == [True, False, True]
    assert not by_surface(DecisionRecord(surface="home", held_out=True))
    by_context = about(", context: {hour: {at_least: 18}}")
    assert [by_context(r) for r in (home, carried)] == [False, True]
