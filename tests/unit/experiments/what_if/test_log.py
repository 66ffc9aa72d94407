"""Which requests and feedback of a log can be used, in whatever order they come."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import permutations

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
)
from protos.tandem.v1.records_pb2 import (
    ABANDONED,
    LIKE,
    UNRANKED,
    DecisionRecord,
    FeedbackEvent,
    Interleaving,
)
from services.event_log.whole_log import SKEW_MS
from services.experiments.declare.parameters import Value
from services.experiments.lists.exploration import EpsilonGreedy, PlackettLuce
from services.experiments.what_if.answer import what_if
from services.experiments.what_if.log import IN_ORDER, LeftOut, Policy, Target, WhatIfLog, supported
from services.experiments.what_if.off_policy.errors import InvalidLog, MissingSupport, NotInLog
from tests.domains import FILMS, VALUE_MODEL
from tests.unit.experiments.messages import poisoned
from tests.unit.experiments.what_if.logs import (
    ANYTHING,
    CLICKS,
    LIKED_MORE,
    UNTIL_MS,
    WORLD,
    Traffic,
    answer,
    changed,
    collected,
    event_of,
    logged,
    seen,
)


def test_order_and_repetition_of_messages_change_nothing() -> None:
    traffic = seen(logged(60))
    first = answer(traffic, LIKED_MORE).to_json()
    messages: list[DecisionRecord | FeedbackEvent] = []
    for record, events in traffic:
        messages += [record, *events]
    for seed in range(3):
        again = messages + messages[::2]
        random.Random(seed).shuffle(again)
        log = WhatIfLog(
            Target(LIKED_MORE, FILMS.parameters), WORLD.items, VALUE_MODEL, START_MS, UNTIL_MS
        )
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


def of_tasks(record: DecisionRecord, *tasks: str) -> DecisionRecord:
    whole = without(record, "tasks")
    whole.tasks.extend(tasks)
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
        (lambda r: of_tasks(r, "click", "other"), LeftOut.OTHER_TASKS),
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


@cache
def requests_without_one() -> int:
    traffic = logged()
    del traffic[5]
    return answer(traffic, LIKED_MORE).requests


@settings(max_examples=60)
@given(poisoned(logged()[5][0]), poisoned(event_of(logged()[5][0], 0)))
def test_no_record_raises_anything_or_takes_another_one_out(
    record: DecisionRecord | None, sent: FeedbackEvent | None
) -> None:
    traffic = logged()
    del traffic[5]
    log = collected(traffic, LIKED_MORE)
    if record is not None:
        log.on_decision(record)
    if sent is not None:
        log.on_feedback(sent)
    found = what_if(log, CLICKS, "auto", ANYTHING)
    assert found.requests - requests_without_one() in (0, 1)


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
