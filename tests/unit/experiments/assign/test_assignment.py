"""Assignment: nobody moves when traffic grows, arms get their weights, layers are independent."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency

from services.experiments.assign.assignment import MAX_CACHED_DECISIONS, Assigner, xxh3_64
from services.experiments.declare.config import (
    BUCKETS,
    Arm,
    Experiment,
    ExperimentsConfig,
    Layer,
    moving_changes,
)
from services.experiments.declare.parameters import Parameters

USERS = [f"user-{i}" for i in range(2_000)]


def arms_of(weights: list[int], enrolled: list[int]) -> tuple[Arm, ...]:
    """Arms a0, a1, ... with weights and enrolment in buckets."""
    ends = np.cumsum(weights).tolist()
    return tuple(
        Arm(f"a{i}", end - weight, end, traffic, {})
        for i, (end, weight, traffic) in enumerate(zip(ends, weights, enrolled, strict=True))
    )


def experiment(
    arms: tuple[Arm, ...], name: str = "e", buckets: tuple[int, int] = (0, BUCKETS)
) -> Experiment:
    return Experiment(name, name, "user", buckets, arms, {}, True)


def one_layer(*experiments: Experiment, salt: str = "layer") -> ExperimentsConfig:
    return ExperimentsConfig((Layer("layer", salt, (), tuple(experiments)),))


def arms_by_user(config: ExperimentsConfig) -> dict[str, tuple[str, str]]:
    """(experiment, arm) of every user who is in one."""
    assigner = Assigner(config)
    return {
        user: (a.experiment, a.arm)
        for user in USERS
        for a in assigner.assign(user, now_ms=0).assignments
    }


@st.composite
def weights(draw: st.DrawFn) -> list[int]:
    cuts = draw(st.lists(st.integers(0, BUCKETS), min_size=1, max_size=4).map(sorted))
    return [hi - lo for lo, hi in pairwise([0, *cuts, BUCKETS])]


@given(weights(), st.data())
@settings(max_examples=40)
def test_growing_traffic_never_moves_a_user_who_is_in(
    weights: list[int], data: st.DataObject
) -> None:
    enrolled = data.draw(st.lists(st.integers(0, BUCKETS), min_size=len(weights)))[: len(weights)]
    before: dict[str, tuple[str, str]] = {}
    for _ in range(4):
        now = arms_by_user(one_layer(experiment(arms_of(weights, enrolled))))
        assert before.items() <= now.items()
        before = now
        growing = data.draw(st.integers(0, len(weights) - 1))
        enrolled[growing] = data.draw(st.integers(enrolled[growing], BUCKETS))


@given(st.integers(1, BUCKETS - 1), weights(), weights())
@settings(max_examples=20)
def test_an_experiment_on_free_buckets_moves_nobody(
    cut: int, old: list[int], new: list[int]
) -> None:
    first = experiment(arms_of(old, [BUCKETS] * len(old)), buckets=(0, cut))
    second = experiment(arms_of(new, [BUCKETS] * len(new)), "new", buckets=(cut, BUCKETS))
    before = arms_by_user(one_layer(first))
    after = arms_by_user(one_layer(second, first))
    assert before.items() <= after.items()
    assert len(after) == len(USERS)


def test_arm_and_enrolment_buckets_are_uniform_and_independent() -> None:
    hashes = np.array([xxh3_64(f"salt:{i}") for i in range(200_000)], np.uint64)
    arm = (hashes % BUCKETS // 500).astype(int)  # 20 groups of buckets each
    enrolment = ((hashes >> np.uint64(32)) % BUCKETS // 500).astype(int)
    joint = np.zeros((20, 20))
    np.add.at(joint, (arm, enrolment), 1)
    for counts in (joint.sum(0), joint.sum(1), joint.ravel()):
        expected = counts.sum() / counts.size
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert chi2.sf(statistic, counts.size - 1) > 0.001
    assert chi2_contingency(joint).pvalue > 0.001


def test_assignments_of_two_salts_are_independent() -> None:
    joint = np.zeros((20, 20))
    for i in range(100_000):
        joint[xxh3_64(f"one:{i}") % 20, xxh3_64(f"two:{i}") % 20] += 1
    assert chi2_contingency(joint).pvalue > 0.001


def test_arms_get_their_weights_and_their_traffic() -> None:
    config = one_layer(experiment(arms_of([5_000, 2_000, 3_000], [10_000, 5_000, 1_000])))
    arms = [arm for _, arm in arms_by_user(config).values()]
    shares = [arms.count(f"a{i}") / len(USERS) for i in range(3)]
    assert shares == pytest.approx([0.5, 0.1, 0.03], abs=0.025)


def test_a_disabled_experiment_has_nobody_not_even_the_allow_list() -> None:
    off = replace(experiment(arms_of([BUCKETS], [BUCKETS])), allow_list={"user-1": "a0"})
    assert arms_by_user(one_layer(off))
    assert not arms_by_user(one_layer(replace(off, enabled=False)))


def test_the_allow_list_beats_the_hash_and_is_flagged() -> None:
    all_in = experiment(arms_of([BUCKETS], [BUCKETS]), "all", buckets=(0, 9_999))
    invited = replace(
        experiment(arms_of([BUCKETS], [0]), "invited", buckets=(9_999, BUCKETS)),
        allow_list={"user-1": "a0"},
    )
    assigner = Assigner(one_layer(all_in, invited))
    (one,) = assigner.assign("user-1", now_ms=0).assignments
    (two,) = assigner.assign("user-2", now_ms=0).assignments
    assert (one.experiment, one.overridden, one.message.overridden) == ("invited", True, True)
    assert (two.experiment, two.overridden, two.message.overridden) == ("all", False, False)


def test_without_its_unit_an_experiment_assigns_nothing() -> None:
    by_session = replace(experiment(arms_of([BUCKETS], [BUCKETS])), unit="session")
    assigner = Assigner(one_layer(by_session))
    assert assigner.assign("user-1", now_ms=0).assignments == ()
    (assignment,) = assigner.assign("user-1", "session-1", now_ms=0).assignments
    assert assignment.message.unit == "session"


def test_arms_of_different_layers_override_their_own_parameters_together() -> None:
    config = ExperimentsConfig(
        (
            Layer(
                "value",
                "value",
                ("rerank.diversity",),
                (experiment((Arm("a", 0, BUCKETS, BUCKETS, {"rerank.diversity": 0.5}),), "v"),),
            ),
            Layer(
                "depth",
                "depth",
                ("retrieval.num_candidates",),
                (
                    experiment(
                        (Arm("b", 0, BUCKETS, BUCKETS, {"retrieval.num_candidates": 99}),), "d"
                    ),
                ),
            ),
        )
    )
    decision = Assigner(config).assign("user-1", now_ms=0)
    assert decision.parameters == Parameters(rerank_diversity=0.5, retrieval_num_candidates=99)
    assert decision.overrides == {"retrieval.num_candidates": "99", "rerank.diversity": "0.5"}
    assert [(m.layer, m.experiment, m.arm) for m in decision.messages] == [
        ("value", "v", "a"),
        ("depth", "d", "b"),
    ]


def test_without_experiments_production_defaults_are_in_force() -> None:
    decision = Assigner(ExperimentsConfig()).assign("user-1", now_ms=0)
    assert (decision.assignments, decision.parameters) == ((), Parameters())


def test_users_with_the_same_arms_share_one_decision() -> None:
    assigner = Assigner(one_layer(experiment(arms_of([BUCKETS], [BUCKETS]))))
    assert assigner.assign("user-1", now_ms=0) is assigner.assign("user-2", now_ms=0)


def test_the_cache_of_decisions_is_bounded() -> None:
    # 7 layers of 4 arms: 16,384 combinations.
    quarter = [2_500] * 4
    layers = tuple(
        Layer(f"l{i}", f"l{i}", (), (experiment(arms_of(quarter, [BUCKETS] * 4), f"e{i}"),))
        for i in range(7)
    )
    assigner = Assigner(ExperimentsConfig(layers))
    seen = {assigner.assign(str(i), now_ms=0).assignments for i in range(10_000)}
    assert len(seen) > MAX_CACHED_DECISIONS
    assert len(assigner._cache) <= MAX_CACHED_DECISIONS


def test_another_process_decides_the_same() -> None:
    program = (
        "from tests.unit.experiments.assign import test_assignment as t;"
        "print(t.arms_by_user(t.one_layer(t.experiment(t.arms_of([3000, 7000], [5000, 9000])))))"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    mine = arms_by_user(one_layer(experiment(arms_of([3_000, 7_000], [5_000, 9_000]))))
    assert other.stdout.strip() == str(mine)


HALVES = experiment(arms_of([5_000, 5_000], [1_000, 1_000]), buckets=(0, 5_000))


@pytest.mark.parametrize(
    "harmless",
    [
        replace(HALVES, arms=arms_of([5_000, 5_000], [0, 10_000])),
        replace(HALVES, arms=arms_of([5_000, 5_000, 0], [1_000, 1_000, 0])),
        replace(HALVES, buckets=(0, 9_000)),
        replace(HALVES, enabled=False),
        replace(HALVES, name="renamed"),
        replace(HALVES, salt="another", arms=arms_of([9_000, 1_000], [1_000, 1_000])),
    ],
)
def test_a_change_that_moves_nobody_between_arms_is_allowed(harmless: Experiment) -> None:
    assert moving_changes(one_layer(HALVES), one_layer(harmless)) == []


@pytest.mark.parametrize(
    ("moving", "what"),
    [
        (replace(HALVES, arms=arms_of([6_000, 4_000], [1_000, 1_000])), "weights"),
        (replace(HALVES, arms=HALVES.arms[::-1]), "order"),
        (replace(HALVES, arms=(*HALVES.arms[:1], replace(HALVES.arms[1], name="b"))), "names"),
        (replace(HALVES, unit="session"), "unit"),
    ],
)
def test_a_change_that_would_move_users_is_found(moving: Experiment, what: str) -> None:
    (problem,) = moving_changes(one_layer(HALVES), one_layer(moving))
    assert what in problem.reason
    assert "new salt" in problem.fix


def test_another_layer_salt_matters_only_to_an_experiment_on_a_part_of_the_layer() -> None:
    whole = replace(HALVES, buckets=(0, BUCKETS))
    (problem,) = moving_changes(one_layer(HALVES), one_layer(HALVES, salt="other"))
    assert "salt of its layer" in problem.reason
    assert moving_changes(one_layer(whole), one_layer(whole, salt="other")) == []
    assert arms_by_user(one_layer(whole)) == arms_by_user(one_layer(whole, salt="other"))
