"""The global holdout: some users are in no experiment at all, and nobody else notices."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from services.experiments.assign.assignment import Assigner, xxh3_64
from services.experiments.declare.config import (
    BUCKETS,
    Arm,
    Experiment,
    ExperimentsConfig,
    Holdout,
    Layer,
    moving_changes,
)
from tests.domains import FILMS, production

USERS = [f"user-{i}" for i in range(2_000)]
HALVES = (Arm("a", 0, 5_000, BUCKETS, {}), Arm("b", 5_000, BUCKETS, BUCKETS, {}))
BY_USER = Experiment("e", "e", "user", (0, BUCKETS), HALVES, {"user-1": "a", "user-2": "b"}, True)
BY_SESSION = replace(BY_USER, name="s", salt="s", unit="session", allow_list={})


def config(buckets: int, salt: str = "holdout", *experiments: Experiment) -> ExperimentsConfig:
    layers = tuple(
        Layer(f"layer-{e.name}", f"layer-{e.name}", (), (e,))
        for e in experiments or (BY_USER, BY_SESSION)
    )
    return ExperimentsConfig(layers, Holdout(salt, buckets), specs=FILMS.parameters)


def arms_by_user(of: ExperimentsConfig) -> dict[str, tuple[tuple[str, str], ...]]:
    assigner = Assigner(of)
    decisions = {user: assigner.assign(user, f"s-{user}", now_ms=0) for user in USERS}
    return {
        user: tuple((a.experiment, a.arm) for a in d.assignments) for user, d in decisions.items()
    }


def test_a_held_out_user_is_in_no_experiment_of_any_unit_and_gets_production() -> None:
    assigner = Assigner(config(5_000))
    out = [u for u in USERS if xxh3_64(f"holdout:{u}") % BUCKETS < 5_000]
    decisions = {user: assigner.assign(user, f"s-{user}", now_ms=0) for user in USERS}
    assert 900 < len(out) < 1_100
    assert [u for u, d in decisions.items() if d.held_out] == out
    (held_out,) = {id(d): d for d in map(decisions.get, out)}.values()  # one for all of them
    assert (held_out.assignments, held_out.messages, held_out.overrides) == ((), (), {})
    assert held_out.parameters == production()
    assert all(len(d.assignments) == 2 for u, d in decisions.items() if not d.held_out)


def test_not_even_the_allow_list_takes_a_held_out_user_in() -> None:
    listed = Assigner(config(0)).assign("user-1", now_ms=0)
    assert [a.overridden for a in listed.assignments] == [True]
    assert Assigner(config(BUCKETS)).assign("user-1", now_ms=0).held_out


def test_a_request_without_a_user_is_held_out_of_nothing() -> None:
    decision = Assigner(config(BUCKETS)).assign("", "session-1", now_ms=0)
    assert not decision.held_out
    assert [a.experiment for a in decision.assignments] == ["s"]


@given(st.integers(0, BUCKETS), st.integers(0, BUCKETS))
@settings(max_examples=10)
def test_growing_the_holdout_takes_users_out_and_moves_nobody(one: int, other: int) -> None:
    small, large = sorted((one, other))
    before, after = arms_by_user(config(small)), arms_by_user(config(large))
    assert all(after[u] in (before[u], ()) for u in USERS)
    assert moving_changes(config(small), config(large)) == []
    assert moving_changes(config(large), config(small)) == []


def test_the_holdout_is_independent_of_the_arms() -> None:
    users = [str(i) for i in range(40_000)]
    everybody, held = Assigner(config(0, "holdout", BY_USER)), Assigner(config(2_500))
    table = np.zeros((2, 2))
    for user in users:
        (assignment,) = everybody.assign(user, now_ms=0).assignments
        table[int(assignment.arm == "a"), int(held.assign(user, now_ms=0).held_out)] += 1
    assert table[:, 1].sum() / len(users) == pytest.approx(0.25, abs=0.01)
    assert chi2_contingency(table).pvalue > 0.001


def test_another_salt_is_refused_while_an_experiment_goes_on() -> None:
    (problem,) = moving_changes(config(500), config(500, "other"))
    assert "held out" in problem.reason
    assert "salt: holdout" in problem.fix
    assert arms_by_user(config(500)) != arms_by_user(config(500, "other"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (config(0), config(500, "other")),  # nobody was held out
        (config(500), config(0, "other")),  # nobody will be
        (config(500), config(500, "other", replace(BY_USER, salt="afresh"))),  # nothing goes on
    ],
)
def test_another_salt_is_allowed_where_it_exchanges_nobody(
    before: ExperimentsConfig, after: ExperimentsConfig
) -> None:
    assert moving_changes(before, after) == []
