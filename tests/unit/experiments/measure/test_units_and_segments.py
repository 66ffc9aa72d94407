"""Declared units, conditions on the user, and segments of requests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1.recommender_pb2 import RecommendRequest
from services.experiments.assign.assignment import Assigner
from services.experiments.declare.config import (
    BUCKETS,
    Arm,
    Experiment,
    ExperimentsConfig,
    Holdout,
    Layer,
    Segment,
)
from services.experiments.declare.targeting import Condition

HALVES = (Arm("a", 0, 5_000, BUCKETS, {}), Arm("b", 5_000, BUCKETS, BUCKETS, {}))
BY_HOUSEHOLD = Experiment("e", "e", "household", (0, BUCKETS), HALVES, {"h-vip": "a"}, True)
BY_USER = replace(BY_HOUSEHOLD, unit="user", allow_list={})
REGULAR = Condition("clicks", "at_least", (10.0,), of_user=True)
EVENING = Condition("hour", "at_least", (18.0,))
HOME = Condition("", "in", ("home",))


def one_layer(experiment: Experiment, holdout: int = 0) -> ExperimentsConfig:
    layer = Layer("layer", "layer", (), (experiment,))
    return ExperimentsConfig((layer,), Holdout("out", holdout))


def with_segments(*segments: Segment) -> Assigner:
    return Assigner(ExperimentsConfig(segments=segments))


def arms_of(assigner: Assigner, user: str, **more: object) -> list[tuple[str, bool]]:
    decision = assigner.assign(user, now_ms=0, **more)  # type: ignore[arg-type]
    return [(a.arm, a.overridden) for a in decision.assignments]


def test_everybody_of_a_household_has_its_arm() -> None:
    assigner = Assigner(one_layer(BY_HOUSEHOLD))
    seen = set()
    for i in range(40):
        ids = {"household": f"h-{i}", "device": "d"}
        arms = [arms_of(assigner, user, unit_ids=ids) for user in ("ann", "bob", "")]
        assert arms[0] == arms[1] == arms[2]
        seen.add(arms[0][0][0])
    assert seen == {"a", "b"}


def test_a_household_is_hashed_as_a_user_of_the_same_id_would_be() -> None:
    by_household, by_user = Assigner(one_layer(BY_HOUSEHOLD)), Assigner(one_layer(BY_USER))
    for name in map(str, range(100)):
        ids = {"household": name}
        assert arms_of(by_household, "u", unit_ids=ids) == arms_of(by_user, name)


@pytest.mark.parametrize("ids", [{}, {"device": "h-1"}, {"household": ""}])
def test_without_the_id_of_its_unit_an_experiment_assigns_nothing(ids: dict[str, str]) -> None:
    assert arms_of(Assigner(one_layer(BY_HOUSEHOLD)), "ann", unit_ids=ids) == []


def test_an_allow_list_names_ids_of_the_experiments_own_unit() -> None:
    assigner = Assigner(one_layer(BY_HOUSEHOLD))
    assert arms_of(assigner, "ann", unit_ids={"household": "h-vip"}) == [("a", True)]
    (listed_as_user,) = arms_of(assigner, "h-vip", unit_ids={"household": "h-1"})
    assert listed_as_user[1] is False


def test_a_held_out_user_is_out_whatever_the_household() -> None:
    assigner = Assigner(one_layer(BY_HOUSEHOLD, BUCKETS))
    ids = {"household": "h-vip"}
    assert assigner.assign("ann", now_ms=0, unit_ids=ids).held_out
    assert not assigner.assign("", now_ms=0, unit_ids=ids).held_out


def test_looking_for_an_id_in_a_protobuf_map_adds_nothing_to_the_request() -> None:
    request = RecommendRequest(unit_ids={"device": "d"})
    assert arms_of(Assigner(one_layer(BY_HOUSEHOLD)), "ann", unit_ids=request.unit_ids) == []
    assert dict(request.unit_ids) == {"device": "d"}


@pytest.mark.parametrize(
    ("user", "inside"),
    [({"clicks": 10}, True), ({"clicks": 9.0}, False), ({"likes": 99.0}, False), ({}, False)],
)
def test_a_condition_on_the_user_looks_at_the_profile_and_at_no_context_of_that_name(
    user: dict[str, float], inside: bool
) -> None:
    assigner = Assigner(one_layer(replace(BY_USER, where=(REGULAR,))))
    context = {"clicks": 0.0 if inside else 99.0}
    decision = assigner.assign("ann", now_ms=0, context=context, user=user)
    assert bool(decision.assignments) is inside


@pytest.mark.parametrize(
    ("experiment", "needed"),
    [
        (BY_USER, False),
        (replace(BY_USER, where=(EVENING, HOME)), False),
        (replace(BY_USER, where=(EVENING, REGULAR)), True),
        (replace(BY_USER, where=(REGULAR,), enabled=False), False),
    ],
)
def test_the_user_is_needed_only_if_a_condition_in_use_looks_at_it(
    experiment: Experiment, needed: bool
) -> None:
    config = one_layer(experiment)
    assert Assigner(config).needs_user is needed
    assert not Assigner(config).segments_need_user
    segments = (Segment("regular", (REGULAR,)),)
    looking = Assigner(replace(config, segments=segments))
    assert (looking.needs_user, looking.segments_need_user) == (needed, True)


def test_a_condition_reads_as_it_is_written_in_the_file() -> None:
    assert [c.text for c in (HOME, EVENING, REGULAR)] == [
        "surface in [home]",
        "context.hour at_least 18",
        "user.clicks at_least 10",
    ]


SEGMENTS = (
    Segment("regular", (REGULAR,)),
    Segment("evening at home", (EVENING, HOME)),
    Segment("evening", (EVENING,)),
)


@given(
    st.sampled_from(["home", "detail", ""]),
    st.dictionaries(st.sampled_from(["hour", "clicks"]), st.integers(0, 24)),
    st.dictionaries(st.sampled_from(["hour", "clicks"]), st.integers(0, 24)),
)
def test_a_request_is_in_every_segment_whose_conditions_hold_in_the_order_of_the_file(
    surface: str, context: dict[str, float], user: dict[str, float]
) -> None:
    evening = context.get("hour", 0) >= 18
    expected = [
        ("regular", user.get("clicks", 0) >= 10),
        ("evening at home", evening and surface == "home"),
        ("evening", evening),
    ]
    found = with_segments(*SEGMENTS).segments_of(surface, context, user)
    assert found == tuple(name for name, inside in expected if inside)
    assert with_segments().segments_of(surface, context, user) == ()
