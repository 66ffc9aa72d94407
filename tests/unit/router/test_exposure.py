"""A request is an exposure to what it read, and to nothing else."""

from __future__ import annotations

import itertools

import pytest
from prometheus_client import REGISTRY

from models.catalogue import ItemTable
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.records_pb2 import UNRANKED
from services.experiments.declare.parameters import (
    EPSILON,
    EXPLORE,
    NO_EXPLORATION,
    PLACKETT_LUCE,
    RANK,
    RERANK,
    RETRIEVE,
    TO_RANK,
    weights_read,
)
from services.router.metrics import count
from services.router.record import decision_record
from services.router.request import RequestState
from tests.domains import FILMS, VALUE_MODEL
from tests.unit.router.models import FixedAssigner, Models, answer_to, decision_of, surroundings

NOT_ASKED = ""  # of a list that is not to be drawn, an interleaved one
KINDS = (NOT_ASKED, NO_EXPLORATION, EPSILON, PLACKETT_LUCE)
STEPS = (TO_RANK, RANK, RERANK)
SPECS = FILMS.parameters.by_name


def read_on(steps: int, kind: str) -> frozenset[str]:
    """What a request reads that goes so many steps beyond retrieval; `kind`: of exploration."""
    taken = {RETRIEVE, *STEPS[:steps]}
    if RERANK in taken:
        taken |= {*weights_read(VALUE_MODEL.of("home").weights)} | (
            {EXPLORE, kind} if kind else set()
        )
    return frozenset(name for name, spec in SPECS.items() if not taken.isdisjoint(spec.read_in))


WAYS = [read_on(steps, kind) for steps in range(len(STEPS) + 1) for kind in KINDS]
REQUEST = RecommendRequest(user_id="u", surface="home", num_items=5)


def experiment(name: str, parameter: str, value: object) -> str:
    """One experiment whose treatment sets one parameter."""
    return f"""\
version: 1
layers:
  - name: layer_of_{name}
    parameters: [{parameter}]
    experiments:
      - name: {name}
        arms:
          - {{name: control, weight: 50}}
          - {{name: treatment, weight: 50, parameters: {{{parameter}: {value}}}}}
"""


async def served(items: ItemTable, text: str, **down: list[str]) -> RequestState:
    """The state after a request of a user in the experiment."""
    rows = list(range(1, 21))
    models = Models(items, {"ssl_two_tower": rows}, {"masknet": {}, "mc_mlcc": {}}, **down)
    _, state = await answer_to(
        REQUEST, surroundings(items, models, FixedAssigner(decision_of(text)))
    )
    return state


def lost(state: RequestState) -> list[int]:
    assert state.shown is not None
    return list(state.shown.degradations)


def exposures(state: RequestState) -> float:
    """What counting this answer adds to the exposures of its one arm."""
    (assignment,) = state.decision.assignments
    labels = {"experiment": assignment.experiment, "arm": assignment.arm}

    def value() -> float:
        return REGISTRY.get_sample_value("tandem_router_exposures_total", labels) or 0.0

    before = value()
    count(state)
    return value() - before


async def test_an_unread_parameter_is_no_exposure(items: ItemTable) -> None:
    text = experiment("unread", "rerank.like_weight", 3.0)
    state = await served(items, text, down=["masknet"])
    assert lost(state) == [UNRANKED]
    assert [a.unread for a in decision_record(state).assignments] == [True]
    assert exposures(state) == 0


async def test_a_read_parameter_is_an_exposure_whatever_the_arm_sets(items: ItemTable) -> None:
    text = experiment("read", "rerank.like_weight", 3.0)
    state = await served(items, text)
    assert [a.unread for a in decision_record(state).assignments] == [False]
    assert exposures(state) == 1


async def test_a_model_that_was_asked_and_failed_is_an_exposure_to_it(items: ItemTable) -> None:
    text = experiment("asked", "ranking.model", "mc_mlcc")
    state = await served(items, text, down=["masknet", "mc_mlcc"])
    assert lost(state) == [UNRANKED]
    assert [a.unread for a in decision_record(state).assignments] == [False]
    assert exposures(state) == 1


async def test_a_kind_of_exploration_that_is_off_reads_nothing_of_its_strength(
    items: ItemTable,
) -> None:
    state = await served(items, experiment("strength", "rerank.epsilon", 0.2))
    assert [a.unread for a in decision_record(state).assignments] == [True]
    assert exposures(state) == 0


async def test_the_answer_says_what_is_in_force_and_whether_it_counts(items: ItemTable) -> None:
    rows = list(range(1, 21))
    models = Models(items, {"ssl_two_tower": rows}, {"masknet": {}})
    assigner = FixedAssigner(decision_of(experiment("in_force", "rerank.epsilon", 0.2)))
    response, _ = await answer_to(REQUEST, surroundings(items, models, assigner))
    assert [(a.experiment, a.unread) for a in response.assignments] == [("in_force", True)]


async def test_an_experiment_that_changes_nothing_is_always_an_exposure(items: ItemTable) -> None:
    text = """\
version: 1
layers:
  - name: layer
    parameters: [rerank.epsilon]
    experiments:
      - name: same
        arms: [{name: control, weight: 50}, {name: treatment, weight: 50}]
"""
    state = await served(items, text, down=["masknet"])
    assert [a.unread for a in decision_record(state).assignments] == [False]
    assert exposures(state) == 1


async def test_an_overridden_unit_is_counted_nowhere(items: ItemTable) -> None:
    text = experiment("listed", "rerank.like_weight", 3.0) + "        allow_list: {u: treatment}\n"
    state = await served(items, text)
    assert state.decision.assignments[0].overridden
    assert exposures(state) == 0


def test_every_parameter_is_read_on_some_way() -> None:
    assert frozenset().union(*WAYS) == SPECS.keys()


def test_retrieval_is_read_on_every_way() -> None:
    retrieval = {name for name in SPECS if name.startswith("retrieval.")}
    assert all(retrieval <= read for read in WAYS)


@pytest.mark.parametrize("kind", KINDS)
def test_going_further_reads_more(kind: str) -> None:
    reads = [read_on(steps, kind) for steps in range(len(STEPS) + 1)]
    assert all(less < more for less, more in itertools.pairwise(reads))
