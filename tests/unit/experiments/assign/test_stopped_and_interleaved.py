"""Arms that are stopped and arms that are interleaved: who gets what, and what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.experiments.assign.assignment import Assigner, Assignment, Decision
from services.experiments.declare.config import (
    BUCKETS,
    INTERLEAVED,
    Arm,
    Experiment,
    ExperimentsConfig,
    Layer,
    Ramp,
)
from services.experiments.declare.parameters import RERANK
from tests.domains import FILMS, production

USERS = [f"user-{i}" for i in range(600)]


def arm(name: str, first: int, end: int, enrolled: int = BUCKETS, diversity: float = 0.0) -> Arm:
    parameters = {"rerank.diversity": diversity} if diversity else {}
    return Arm(name, first, end, enrolled, parameters)


THIRDS = (
    arm("first", 0, 3_000, 6_000, 0.1),
    arm("control", 3_000, 6_000, 8_000, 0.2),
    arm("third", 6_000, BUCKETS, 10_000, 0.3),
)
SPLIT = Experiment("split", "split", "user", (0, BUCKETS), THIRDS, {}, True)
BOTH = Experiment(
    "both",
    "both",
    "user",
    (0, BUCKETS),
    (arm("plain", 0, 0, 7_000, 0.1), arm("mixed", 0, 0, 7_000, 0.4)),
    {},
    True,
    interleave="team_draft",
    specs=FILMS.parameters,
)
DEPTH = Experiment(
    "depth",
    "depth",
    "user",
    (0, 5_000),
    (Arm("deep", 0, BUCKETS, BUCKETS, {"retrieval.num_candidates": 300}),),
    {},
    True,
)


def config(*experiments: Experiment) -> ExperimentsConfig:
    """Each in a layer of its own."""
    layers = tuple(Layer(e.name, e.name, (), (e,)) for e in experiments)
    return ExperimentsConfig(layers, specs=FILMS.parameters)


def stopped(experiment: Experiment, *names: str) -> Experiment:
    arms = tuple(replace(a, stopped=a.name in names) for a in experiment.arms)
    return replace(experiment, arms=arms)


def decisions(*experiments: Experiment) -> dict[str, Decision]:
    assigner = Assigner(config(*experiments))
    return {user: assigner.assign(user, now_ms=0) for user in USERS}


def of(decision: Decision, name: str) -> Assignment | None:
    return next((a for a in decision.assignments if a.experiment == name), None)


@pytest.mark.parametrize("names", [("first",), ("third",), ("first", "third")])
def test_stopping_arms_gives_their_units_control_and_touches_nobody_else(
    names: tuple[str, ...],
) -> None:
    before, after = decisions(SPLIT), decisions(stopped(SPLIT, *names))
    touched = 0
    for user in USERS:
        then, now = of(before[user], "split"), of(after[user], "split")
        if then is None or then.arm not in names:
            assert (now and now.arm, now and now.overridden) == (then and then.arm, then and False)
            assert after[user].parameters == before[user].parameters
            continue
        touched += 1
        assert now is not None
        assert (now.arm, now.overridden, now.message.overridden) == ("control", True, True)
        assert after[user].parameters == production(rerank_diversity=0.2)
    assert touched > 50


def test_a_resumed_arm_has_the_units_that_it_had() -> None:
    resumed = stopped(stopped(SPLIT, "third"))
    assert arms(decisions(resumed)) == arms(decisions(SPLIT))


def arms(found: dict[str, Decision]) -> dict[str, list[str]]:
    return {user: [a.arm for a in d.assignments] for user, d in found.items()}


def test_control_is_the_first_arm_where_none_has_its_name() -> None:
    plain = replace(SPLIT, arms=(THIRDS[0], replace(THIRDS[1], name="second"), THIRDS[2]))
    given_instead = {
        a.arm
        for d in decisions(stopped(plain, "second")).values()
        for a in d.assignments
        if a.overridden
    }
    assert given_instead == {"first"}


def test_the_allow_list_gives_nobody_a_stopped_arm() -> None:
    listed = replace(SPLIT, allow_list={"user-1": "third", "user-2": "first"})
    found = decisions(stopped(listed, "third"))
    assert [(a.arm, a.overridden) for a in found["user-1"].assignments] == [("control", True)]
    assert [(a.arm, a.overridden) for a in found["user-2"].assignments] == [("first", True)]


def test_who_is_interleaved_has_both_parameter_sets_and_serves_the_first_without_asking() -> None:
    found = decisions(BOTH)
    inside = [d for d in found.values() if d.assignments]
    assert len(inside) / len(USERS) == pytest.approx(0.7, abs=0.06)
    for decision in inside:
        (assignment,) = decision.assignments
        assert (assignment.arm, assignment.overridden) == (INTERLEAVED, False)
        assert decision.messages[0].arm == INTERLEAVED
        both = decision.interleaved
        assert both is not None
        assert (both.experiment, both.method) == ("both", "team_draft")
        assert (both.arm_a, both.arm_b) == ("plain", "mixed")
        assert both.a is decision.parameters
        assert both.a == production(rerank_diversity=0.1)
        assert both.b == production(rerank_diversity=0.4)
        assert decision.overrides == {"rerank.diversity": "0.1"}
    outside = [d for d in found.values() if not d.assignments]
    assert all(d.interleaved is None for d in outside)


def test_what_other_layers_set_holds_for_both_rankings() -> None:
    for order in ((BOTH, DEPTH), (DEPTH, BOTH)):
        found = decisions(*order)
        assert any(len(d.assignments) == 2 for d in found.values())
        for decision in found.values():
            if (both := decision.interleaved) is not None:
                deep = of(decision, "depth") is not None
                assert both.a.retrieval_num_candidates == (300 if deep else 200)
                assert both.b == replace(both.a, rerank_diversity=0.4)


def test_what_only_one_of_the_two_sets_is_the_default_in_the_other() -> None:
    lopsided = replace(BOTH, arms=(arm("plain", 0, 0, diversity=0.1), Arm("mixed", 0, 0, BUCKETS,
        {"rerank.like_weight": 3.0})))  # fmt: skip
    both = decisions(lopsided)["user-1"].interleaved
    assert both is not None
    assert both.a == production(rerank_diversity=0.1)
    assert both.b == production(weights={"like_weight": 3.0})


def test_who_has_the_same_arms_shares_one_decision_interleaved_or_not() -> None:
    assert len({id(d) for d in decisions(BOTH, DEPTH).values()}) == 4


def test_an_interleaving_experiment_asks_its_question_with_the_parameters_of_both_arms() -> None:
    lopsided = replace(BOTH, arms=(arm("plain", 0, 0, diversity=0.1), Arm("mixed", 0, 0, BUCKETS,
        {"rerank.like_weight": 3.0})))  # fmt: skip
    (assignment,) = decisions(lopsided)["user-1"].assignments
    assert assignment.read_in == {RERANK, "rerank.like_weight"}
    assert (assignment.unread_message.unread, assignment.message.unread) == (True, False)
    assert assignment.unread_message.arm == INTERLEAVED
    assert assignment.unread_message.experiment == "both"


def test_while_interleaving_is_stopped_the_same_units_get_the_first_arm_and_are_not_counted() -> (
    None
):
    before, after = decisions(BOTH, DEPTH), decisions(replace(BOTH, stopped=True), DEPTH)
    for user in USERS:
        then, now = of(before[user], "both"), of(after[user], "both")
        assert after[user].interleaved is None
        assert after[user].parameters == before[user].parameters
        assert (then is None) == (now is None)
        if now is not None:
            assert (now.arm, now.overridden) == ("plain", True)
        assert of(before[user], "depth") is None or of(after[user], "depth") is not None


def test_an_arm_named_control_does_not_become_the_first_of_two_interleaved() -> None:
    named = replace(BOTH, arms=(BOTH.arms[0], replace(BOTH.arms[1], name="control")))
    assert named.control == "plain"


@given(st.lists(st.integers(1, BUCKETS), min_size=1, max_size=6, unique=True).map(sorted))
@settings(max_examples=25)
def test_every_step_of_a_ramp_keeps_who_is_in_where_they_are(steps: list[int]) -> None:
    ramp = Ramp(tuple(steps), 60.0, 0)
    for experiment in (SPLIT, BOTH):
        before: dict[str, str] = {}
        for i, step in enumerate(steps):
            at = replace(
                experiment,
                ramp=ramp,
                arms=tuple(replace(a, enrolled=step) for a in experiment.arms),
            )
            assert at.ramp_step == i
            now = {u: a.arm for u, d in decisions(at).items() for a in d.assignments}
            assert before.items() <= now.items()
            before = now


def test_without_a_ramp_the_step_is_the_first() -> None:
    assert SPLIT.ramp_step == 0
