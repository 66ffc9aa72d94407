"""Conditions: who is in for this request; never which arm."""

import operator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1.recommender_pb2 import RecommendRequest
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import targeting
from services.experiments.declare.config import (
    BUCKETS,
    Arm,
    Experiment,
    ExperimentsConfig,
    Layer,
    moving_changes,
)
from services.experiments.declare.targeting import Condition

USERS = [f"user-{i}" for i in range(300)]
HALVES = (Arm("a", 0, 5_000, BUCKETS, {}), Arm("b", 5_000, BUCKETS, BUCKETS, {}))
FOR_ALL = Experiment("e", "e", "user", (0, 5_000), HALVES, {"user-1": "a"}, True)
EVENING = (
    Condition("", "in", ("home", "detail")),
    Condition("hour", "at_least", (18.0,)),
    Condition("hour", "below", (22.5,)),
)

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-2, 2).map(float)


def holds(
    condition: Condition,
    surface: str = "",
    context: dict[str, float] | None = None,
    user: dict[str, float] | None = None,
) -> bool:
    return targeting.hold(targeting.compiled((condition,)), surface, context or {}, user or {})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("equals", operator.eq),
        ("not_equals", operator.ne),
        ("below", operator.lt),
        ("at_most", operator.le),
        ("above", operator.gt),
        ("at_least", operator.ge),
    ],
)
@given(value=numbers, operand=numbers)
def test_a_comparison_has_the_value_on_its_left(name, expected, value, operand) -> None:  # type: ignore[no-untyped-def]
    condition = Condition("x", name, (operand,))
    assert holds(condition, context={"x": value}) == expected(value, operand)


@given(numbers, st.lists(numbers, min_size=1))
def test_membership_and_its_opposite(value: float, members: list[float]) -> None:
    inside = any(value == member for member in members)
    assert holds(Condition("x", "in", tuple(members)), context={"x": value}) == inside
    assert holds(Condition("x", "not_in", tuple(members)), context={"x": value}) != inside


@pytest.mark.parametrize("name", targeting.NUMBER_OPERATORS)
def test_what_a_request_does_not_carry_fulfils_nothing(name: str) -> None:
    assert not holds(Condition("x", name, (1.0,)), context={"y": 1.0})


@pytest.mark.parametrize(
    ("surface", "inside", "outside"),
    [("home", True, False), ("basket", False, True), ("", False, False)],
)
def test_conditions_on_the_surface(surface: str, inside: bool, outside: bool) -> None:
    members = ("home", "detail")
    assert holds(Condition("", "in", members), surface) == inside
    assert holds(Condition("", "not_in", members), surface) == outside


@pytest.mark.parametrize(
    ("surface", "hour", "expected"),
    [
        ("home", 18.0, True),
        ("detail", 22.25, True),
        ("home", 22.5, False),
        ("home", 17.9, False),
        ("basket", 20.0, False),
    ],
)
def test_all_conditions_must_hold(surface: str, hour: float, expected: bool) -> None:
    assert targeting.hold(targeting.compiled(EVENING), surface, {"hour": hour}, {}) == expected


def test_looking_at_a_protobuf_map_adds_nothing_to_the_request() -> None:
    request = RecommendRequest(context={"x": 1.0})
    tests = targeting.compiled((Condition("y", "equals", (0.0,)),))
    assert not targeting.hold(tests, "", request.context, {})
    assert dict(request.context) == {"x": 1.0}


def test_a_condition_reads_as_it_is_written_in_the_file() -> None:
    assert [c.text for c in EVENING] == [
        "surface in [home, detail]",
        "context.hour at_least 18",
        "context.hour below 22.5",
    ]


@given(numbers)
def test_the_text_of_an_operand_reads_back_exactly(value: float) -> None:
    (text,) = Condition("x", "equals", (value,)).operands
    assert float(text) == value


def arms_of(
    config: ExperimentsConfig, surface: str = "home", hour: float = 20.0
) -> dict[str, tuple[str, str, bool]]:
    assigner = Assigner(config)
    return {
        user: (a.experiment, a.arm, a.overridden)
        for user in USERS
        for a in assigner.assign(
            user, now_ms=0, surface=surface, context={"hour": hour}
        ).assignments
    }


def one_layer(*experiments: Experiment) -> ExperimentsConfig:
    return ExperimentsConfig((Layer("layer", "layer", (), experiments),))


TARGETED = replace(FOR_ALL, where=EVENING)
BESIDE = replace(FOR_ALL, name="beside", salt="beside", buckets=(5_000, BUCKETS), allow_list={})


def test_who_matches_gets_the_arm_that_no_condition_would_have_changed() -> None:
    assert arms_of(one_layer(TARGETED)) == arms_of(one_layer(FOR_ALL))
    assert arms_of(one_layer(TARGETED), hour=23) == {}
    assert moving_changes(one_layer(TARGETED), one_layer(FOR_ALL)) == []


def test_the_buckets_of_who_does_not_match_go_to_nobody_else() -> None:
    both = arms_of(one_layer(TARGETED, BESIDE), hour=23)
    assert set(both.values()) == {("beside", "a", False), ("beside", "b", False)}
    outside = arms_of(one_layer(BESIDE), hour=23)
    assert both == outside


def test_the_allow_list_beats_the_hash_and_not_the_conditions() -> None:
    assert arms_of(one_layer(TARGETED))["user-1"] == ("e", "a", True)
    assert "user-1" not in arms_of(one_layer(TARGETED), hour=23)
