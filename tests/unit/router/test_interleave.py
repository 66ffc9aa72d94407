"""Two rankings as one list: whose items they are, and when it is not one of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogue import ItemTable
from protos.tandem.v1.recommender_pb2 import RecommendRequest, RecommendResponse
from protos.tandem.v1.records_pb2 import (
    FEWER_ITEMS,
    POPULAR_FALLBACK,
    UNRANKED,
    DecisionRecord,
)
from services.experiments.assign.assignment import InterleavedArms
from services.experiments.declare.parameters import PLACKETT_LUCE, Parameters
from services.router.interleave import same_model, same_pool
from services.router.metrics import STAGES
from services.router.record import decision_record
from services.router.request import RequestState
from tests.domains import production
from tests.unit.router.models import FixedAssigner, Models, answer_to, decision_of, surroundings

COUNT = 6
REQUEST = RecommendRequest(user_id="u", surface="home", num_items=COUNT, explain=True)
ROWS = list(range(1, 21))
UP = {row: row / 100 for row in ROWS}  # ranks the last row first
DOWN = {row: (50 - row) / 100 for row in ROWS}

EXPERIMENT = """\
version: 1
layers:
  - name: models
    parameters: [ranking.model, retrieval.model]
    experiments:
      - name: side_by_side
        arms:
          - {name: up, weight: 50, parameters: {ranking.model: up}}
          - {name: down, weight: 50, parameters: {ranking.model: down}}
"""
BY_MODEL = (production(ranking_model="up"), production(ranking_model="down"))
BY_POOL = (
    production(retrieval_model="low", ranking_model="up"),
    production(retrieval_model="high", ranking_model="up"),
)


def models_of(items: ItemTable, **how: Any) -> Models:
    found = {"ssl_two_tower": ROWS, "low": ROWS[:12], "high": ROWS[8:]}
    return Models(items, found, {"up": UP, "down": DOWN}, **how)


async def ask(
    items: ItemTable,
    models: Models,
    sides: tuple[Parameters, Parameters] = BY_MODEL,
    request: RecommendRequest = REQUEST,
) -> tuple[RecommendResponse, RequestState, DecisionRecord]:
    arms = InterleavedArms("side_by_side", "team_draft", "up", "down", *sides)
    decision = replace(decision_of(EXPERIMENT), interleaved=arms, parameters=sides[0])
    around = surroundings(items, models, FixedAssigner(decision))
    response, state = await answer_to(request, around)
    return response, state, decision_record(state)


def teams(record: DecisionRecord) -> list[int]:
    return list(record.interleaving.teams)


@pytest.mark.parametrize("sides", [BY_MODEL, BY_POOL], ids=["by model", "by pool"])
async def test_teams_are_parallel_to_the_list(
    items: ItemTable, sides: tuple[Parameters, Parameters]
) -> None:
    response, _, record = await ask(items, models_of(items), sides)
    assert len(record.item_ids) == len(set(record.item_ids)) == COUNT
    assert list(record.item_ids) == [item.item_id for item in response.items]
    assert record.interleaving == response.interleaving
    assert (record.interleaving.arm_a, record.interleaving.arm_b) == ("up", "down")
    assert record.interleaving.method == "team_draft"
    assert len(record.interleaving.teams) == COUNT
    assert set(teams(record)) <= {0, 1}
    scores = np.frombuffer(record.scores, "<f4")
    tasks = np.frombuffer(record.task_scores, "<f4").reshape(COUNT, 2)
    np.testing.assert_allclose(tasks[:, 0], scores)
    sources = [record.sources[i] for i in record.source_index]
    for i, (item_id, team) in enumerate(zip(record.item_ids, teams(record), strict=True)):
        row, side = int(item_id[1:]), sides[team]
        expected = (UP if side.ranking_model == "up" else DOWN)[row]
        assert scores[i] == np.float32(expected)
        assert sources[i] == side.retrieval_model
        assert response.items[i].reason.source == side.retrieval_model
    assert not [a for a in record.assignments if a.unread]
    assert not record.degradations


async def test_each_team_contributes_its_best_items_in_its_order(items: ItemTable) -> None:
    _, _, record = await ask(items, models_of(items))
    rows = [int(item_id[1:]) for item_id in record.item_ids]
    by = {
        team: [r for r, t in zip(rows, teams(record), strict=True) if t == team] for team in (0, 1)
    }
    assert by == {0: [20, 19, 18], 1: [1, 2, 3]}


async def test_the_side_that_begins_is_drawn_anew_for_each_request(items: ItemTable) -> None:
    models = models_of(items)
    first = Counter([teams((await ask(items, models))[2])[0] for _ in range(64)])
    assert set(first) == {0, 1}  # one of 2 ** 63 runs fails


async def test_what_the_sides_have_in_common_is_asked_for_once(items: ItemTable) -> None:
    models = models_of(items)
    await ask(items, models)
    assert models.calls[0] == ("Retrieve", "ssl_two_tower")
    assert sorted(models.calls[1:]) == [("Rank", "down"), ("Rank", "up")]
    models.calls.clear()
    weights = (production(ranking_model="up"), production(ranking_model="up",
               weights={"like_weight": 3.0}))  # fmt: skip
    await ask(items, models, weights)
    assert models.calls == [("Retrieve", "ssl_two_tower"), ("Rank", "up")]
    models.calls.clear()
    await ask(items, models, BY_POOL)
    assert Counter(models.calls) == {
        ("Retrieve", "low"): 1, ("Retrieve", "high"): 1, ("Rank", "up"): 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lost", "side", "degradation"),
    [("up", 1, UNRANKED), ("down", 0, UNRANKED)],
)
async def test_a_side_that_is_degraded_ends_the_interleaving(
    items: ItemTable, lost: str, side: int, degradation: int
) -> None:
    response, state, record = await ask(items, models_of(items, down=[lost]))
    healthy = (UP, DOWN)[side]
    best = sorted(ROWS, key=lambda row: -healthy[row])[:COUNT]
    assert [int(item_id[1:]) for item_id in record.item_ids] == best
    assert not response.HasField("interleaving")
    assert not record.HasField("interleaving")
    assert list(response.degradations) == list(record.degradations) == [degradation]
    assert [(a.experiment, a.unread) for a in record.assignments] == [("side_by_side", True)]
    assert response.assignments[0].unread
    assert record.ranking_version == f"{BY_MODEL[side].ranking_model}-1"
    assert state.shown is not None
    assert state.shown.parameters == BY_MODEL[side]
    assert np.frombuffer(record.propensities, "<f4").tolist() == [1.0] * COUNT


async def test_a_pool_that_is_a_fallback_ends_the_interleaving(items: ItemTable) -> None:
    response, _, record = await ask(items, models_of(items, down=["low"]), BY_POOL)
    assert list(record.degradations) == [POPULAR_FALLBACK]
    assert not record.HasField("interleaving")
    assert set(record.sources) == {"high"}
    assert record.assignments[0].unread
    assert len(response.items) == COUNT


async def test_without_a_healthy_side_the_list_is_as_first_arm_without_interleaving(
    items: ItemTable,
) -> None:
    _, state, record = await ask(items, models_of(items, down=["up", "down"]))
    assert [int(item_id[1:]) for item_id in record.item_ids] == ROWS[:COUNT]
    assert list(record.degradations) == [UNRANKED]
    assert record.assignments[0].unread
    assert state.shown is not None
    assert state.shown.parameters == BY_MODEL[0]


async def test_a_side_that_is_unranked_on_purpose_is_a_ranking_like_any_other(
    items: ItemTable,
) -> None:
    sides = (production(ranking_enabled=False), production(ranking_model="up"))
    _, _, record = await ask(items, models_of(items), sides)
    assert not record.degradations
    assert record.HasField("interleaving")
    first = [int(i[1:]) for i, t in zip(record.item_ids, teams(record), strict=True) if t == 0]
    assert first == ROWS[: len(first)]
    assert not record.task_scores
    assert not record.tasks


async def test_task_scores_of_different_tasks_are_left_out(items: ItemTable) -> None:
    models = models_of(items, tasks={"down": ("click", "like", "share")})
    response, _, record = await ask(items, models)
    assert record.HasField("interleaving")
    assert not record.tasks
    assert not record.task_scores
    assert not any(item.reason.task_scores for item in response.items)


async def test_an_interleaved_list_is_not_explored_and_has_no_propensities(
    items: ItemTable,
) -> None:
    sides = tuple(
        replace(side, rerank_exploration=PLACKETT_LUCE, rerank_temperature=10.0)
        for side in BY_MODEL
    )
    _, _, record = await ask(items, models_of(items), sides)  # type: ignore[arg-type]
    rows = [int(i[1:]) for i, t in zip(record.item_ids, teams(record), strict=True) if t == 0]
    assert rows == [20, 19, 18]
    assert not record.HasField("exploration")
    assert not record.propensities


async def test_versions_of_two_models_are_both_said(items: ItemTable) -> None:
    response, _, record = await ask(items, models_of(items))
    assert record.ranking_version == "up-1 down-1"
    assert record.candidate_generation_version == "ssl_two_tower-1"
    assert response.explanation.model_versions["ranking"] == "up-1 down-1"


async def test_the_list_is_full_when_the_pools_are_short(items: ItemTable) -> None:
    models = Models(items, {"low": [3, 4], "high": [4, 5]}, {"up": UP})
    response, _, record = await ask(items, models, BY_POOL)
    assert len({item.item_id for item in response.items}) == COUNT
    assert len(record.interleaving.teams) == COUNT
    assert "popular" in record.sources


async def test_a_list_longer_than_the_catalogue_is_as_long_as_that(items: ItemTable) -> None:
    request = RecommendRequest(user_id="u", surface="home", num_items=100)
    response, _, record = await ask(items, models_of(items), request=request)
    assert len({item.item_id for item in response.items}) == 40
    assert len(record.interleaving.teams) == 40


@pytest.mark.parametrize("sides", [BY_MODEL, BY_POOL])
async def test_where_nothing_may_be_shown_the_list_is_empty(
    items: ItemTable, sides: tuple[Parameters, Parameters]
) -> None:
    request = RecommendRequest(
        user_id="u", surface="home", num_items=5, explain=True, exclude_item_ids=items.ids[1:]
    )
    found: dict[str, list[int]] = {"ssl_two_tower": [], "low": [], "high": []}
    models = Models(items, found, {"up": UP, "down": DOWN})
    response, _, record = await ask(items, models, sides, request)
    assert not response.items
    assert not record.item_ids
    assert FEWER_ITEMS in record.degradations
    assert (record.interleaving.method, record.interleaving.teams) == ("team_draft", b"")


async def test_an_item_that_a_model_names_twice_is_shown_once(items: ItemTable) -> None:
    twice = [row for row in ROWS for _ in range(2)]
    found = {"low": twice, "high": twice}
    response, _, record = await ask(items, Models(items, found, {"up": UP}), BY_POOL)
    assert len({item.item_id for item in response.items}) == COUNT
    assert record.HasField("interleaving")


async def test_every_stage_of_an_interleaved_request_is_timed_once(items: ItemTable) -> None:
    _, state, _ = await ask(items, models_of(items))
    assert tuple(state.stage_ms) == STAGES


MODELS: Sequence[str] = ("one", "two")
PARAMETERS = st.builds(
    Parameters,
    retrieval_model=st.sampled_from(MODELS),
    retrieval_num_candidates=st.sampled_from([100, 200]),
    ranking_model=st.sampled_from(MODELS),
    ranking_enabled=st.booleans(),
)


@given(a=PARAMETERS, b=PARAMETERS)
def test_only_equal_work_is_shared(a: Parameters, b: Parameters) -> None:
    assert same_pool(a, b) == same_pool(b, a)
    assert same_model(a, b) == same_model(b, a)
    assert same_pool(a, a)
    assert same_model(a, a)
    if same_pool(a, b):
        assert a.retrieval_model == b.retrieval_model
        assert a.retrieval_num_candidates == b.retrieval_num_candidates
    if same_model(a, b) and a.ranking_enabled:
        assert b.ranking_enabled
        assert a.ranking_model == b.ranking_model
