"""Start and stop: nobody is in outside of them, and every process agrees on the instant."""

import math
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.experiments.assign.assignment import Assigner
from services.experiments.declare.config import (
    BUCKETS,
    Arm,
    Experiment,
    ExperimentsConfig,
    Layer,
    State,
    moving_changes,
)

USERS = [f"user-{i}" for i in range(300)]
HALVES = (Arm("a", 0, 5_000, BUCKETS, {}), Arm("b", 5_000, BUCKETS, BUCKETS, {}))
ALWAYS = Experiment("e", "e", "user", (0, BUCKETS), HALVES, {"user-1": "a"}, True)


def one_layer(*experiments: Experiment) -> ExperimentsConfig:
    return ExperimentsConfig((Layer("layer", "layer", (), experiments),))


def arms_at(config: ExperimentsConfig, now_ms: float) -> dict[str, tuple[str, str, bool]]:
    assigner = Assigner(config)
    return {
        user: (a.experiment, a.arm, a.overridden)
        for user in USERS
        for a in assigner.assign(user, now_ms=now_ms).assignments
    }


@pytest.mark.parametrize(
    ("now_ms", "state", "inside"),
    [
        (999, "scheduled", False),
        (1_000, "running", True),
        (1_999, "running", True),
        (2_000, "ended", False),
    ],
)
def test_an_experiment_has_everybody_from_its_start_and_nobody_from_its_stop(
    now_ms: int, state: State, inside: bool
) -> None:
    bounded = replace(ALWAYS, start_ms=1_000, stop_ms=2_000)
    assert bounded.state(now_ms) == state
    expected = arms_at(one_layer(ALWAYS), 0) if inside else {}
    assert arms_at(one_layer(bounded), now_ms) == expected
    assert arms_at(one_layer(replace(bounded, enabled=False)), now_ms) == {}
    assert replace(bounded, enabled=False).state(now_ms) == "off"


@pytest.mark.parametrize(
    ("bounds", "inside"),
    [
        ((1_000, math.inf), {999: False, 1_000: True, 10**15: True}),
        ((-math.inf, 1_000), {0: True, 999: True, 1_000: False}),
        ((-math.inf, math.inf), {0: True, 10**15: True}),
    ],
)
def test_a_bound_that_is_not_there_does_not_bound(
    bounds: tuple[float, float], inside: dict[int, bool]
) -> None:
    experiment = replace(ALWAYS, start_ms=bounds[0], stop_ms=bounds[1])
    assert {now: bool(arms_at(one_layer(experiment), now)) for now in inside} == inside


# Three on overlapping buckets; each starts in the instant in which the one before it stops.
FIRST = replace(ALWAYS, name="first", salt="first", stop_ms=1_000, buckets=(0, 6_000))
SECOND = replace(ALWAYS, name="second", salt="second", start_ms=1_000, stop_ms=2_000)
THIRD = replace(ALWAYS, name="third", salt="third", start_ms=2_000, buckets=(3_000, 9_000))


@pytest.mark.parametrize("now_ms", [0, 999, 1_000, 1_500, 1_999, 2_000, 3_000])
def test_equal_instants_leave_one_experiment_whatever_the_order_in_the_file(now_ms: int) -> None:
    running = [e for e in (FIRST, SECOND, THIRD) if e.start_ms <= now_ms < e.stop_ms]
    assert len(running) == 1
    alone = arms_at(one_layer(replace(running[0], start_ms=-math.inf, stop_ms=math.inf)), now_ms)
    assert {name for name, _, _ in alone.values()} == {running[0].name}
    for order in permutations((FIRST, SECOND, THIRD)):
        assert arms_at(one_layer(*order), now_ms) == alone


@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=8))
def test_an_instant_decides_alone_and_not_the_way_to_it(instants: list[int]) -> None:
    assigner = Assigner(one_layer(SECOND, FIRST, THIRD))
    for now_ms in instants:
        fresh = Assigner(one_layer(FIRST, SECOND, THIRD))
        for user in USERS[:20]:
            got, wanted = (each.assign(user, now_ms=now_ms) for each in (assigner, fresh))
            assert [m.arm for m in got.messages] == [m.arm for m in wanted.messages]


def test_moving_start_or_stop_moves_nobody_between_arms() -> None:
    bounded = replace(ALWAYS, start_ms=1_000, stop_ms=2_000)
    longer = replace(bounded, start_ms=0, stop_ms=9_000)
    assert moving_changes(one_layer(bounded), one_layer(longer)) == []
    assert arms_at(one_layer(bounded), 1_500) == arms_at(one_layer(longer), 1_500)
