"""What the router makes of the model services' answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from models.catalogue import ItemTable
from models.data.worlds.films.schema import ITEM_DTYPE
from protos.tandem.v1.candidate_generation_pb2 import RetrieveRequest, RetrieveResponse
from protos.tandem.v1.ranking_pb2 import RankResponse
from protos.tandem.v1.records_pb2 import POPULAR_FALLBACK, UNRANKED
from services.common.balancer import NoReplica
from services.experiments.declare.parameters import TO_RANK
from services.router.filter import filter_candidates
from services.router.rank import rank
from services.router.request import Budget, Pool, Query, Ranking
from services.router.rerank import rerank
from services.router.retrieve import retrieve
from tests.domains import production
from tests.unit.router.conftest import pool_of, without
from tests.unit.router.models import surroundings

ROWS = np.array([7, 1, 40], np.uint32)


class Answers:
    """A model service with one answer; keeps what it was asked."""

    def __init__(self, response: RetrieveResponse | RankResponse) -> None:
        self.response = response
        self.asked: list[RetrieveRequest] = []

    async def call(self, method: str, request: RetrieveRequest, timeout_s: float) -> Any:
        self.asked.append(request)
        return self.response


class Nobody:
    """Candidate generation without a replica."""

    async def call(self, method: str, request: RetrieveRequest, timeout_s: float) -> Any:
        raise NoReplica("tandem.v1.CandidateGeneration")


async def retrieved(replicas: Any, query: Query) -> Pool:
    return await retrieve(query, surroundings(query.items, replicas, query.request.assigner))


async def ranked(answer: RankResponse, query: Query, rows: Sequence[int]) -> Ranking:
    around = surroundings(query.items, Answers(answer), query.request.assigner)
    return await rank(pool_of(query.items, rows), query, around)


def response(items: ItemTable, **fields: Any) -> RetrieveResponse:
    return RetrieveResponse(
        item_keys=items.keys[ROWS].tobytes(),
        scores=np.array([3, 2, 1], np.float32).tobytes(),
        interest_index=bytes(3),
        sources=["model"],
        source_index=bytes(3),
        model_version="1",
        **fields,
    )


@pytest.mark.parametrize(
    "rows",
    ["of this catalogue", "of another catalogue", "none", "too few", "later than mine"],
)
async def test_rows_are_those_of_the_routers_own_catalogue(
    items: ItemTable, query: Query, rows: str
) -> None:
    fields: dict[str, Any] = {
        "of this catalogue": {"catalogue": items.fingerprint, "item_rows": ROWS.tobytes()},
        "of another catalogue": {"catalogue": 1, "item_rows": (ROWS + 3).tobytes()},
        "none": {},
        "too few": {"catalogue": items.fingerprint, "item_rows": ROWS[1:].tobytes()},
        "later than mine": {
            "catalogue": items.fingerprint,
            "item_rows": np.array([7, 1, 41], "<u4").tobytes(),
        },
    }[rows]
    answers = Answers(response(items, **fields))
    pool = await retrieved(answers, without(query, items.keys[[5]]))
    assert pool.candidates.rows.tolist() == ROWS.tolist()
    assert pool.candidates.screened
    assert answers.asked[0].exclude_item_keys == items.keys[[5]].tobytes()


def test_two_tables_have_one_fingerprint_only_if_every_row_is_the_same_item() -> None:
    features = np.zeros(2, ITEM_DTYPE)
    same = ItemTable.build(["a", "b"], features)
    swapped = ItemTable.build(["b", "a"], features)
    assert ItemTable.build(["a", "b"], features).fingerprint == same.fingerprint
    assert swapped.fingerprint != same.fingerprint


async def test_an_item_that_this_catalogue_lacks_is_filtered(
    items: ItemTable, query: Query
) -> None:
    answer = response(items)
    answer.item_keys = answer.item_keys[:-8] + np.uint64(12345).tobytes()
    query.request.asked.num_items = 2
    pool = filter_candidates(await retrieved(Answers(answer), query), query)
    assert pool.candidates.rows.tolist() == ROWS[:2].tolist()
    assert (pool.retrieved, pool.filtered) == (3, 1)


async def test_the_fallback_shows_nothing_excluded(items: ItemTable, query: Query) -> None:
    query = without(query, items.keys[[1, 3]])
    pool = filter_candidates(await retrieved(Nobody(), query), query)
    assert pool.candidates.rows.tolist()[:4] == [2, 4, 5, 6]
    assert pool.degradations == (POPULAR_FALLBACK,)


async def test_blocked_items_are_filtered_from_a_screened_answer(
    items: ItemTable, query: Query
) -> None:
    answer = response(items, catalogue=items.fingerprint, item_rows=ROWS.tobytes())
    query = query._replace(blocked=items.keys[[1]])
    pool = filter_candidates(await retrieved(Answers(answer), query), query)
    assert 1 not in pool.candidates.rows.tolist()
    assert len(pool.candidates.rows) == query.num_items


@pytest.mark.parametrize("field", ["item_keys", "scores", "interest_index", "source_index"])
async def test_an_answer_whose_parts_do_not_fit_counts_as_a_failure(
    items: ItemTable, query: Query, field: str
) -> None:
    broken = response(items)
    setattr(broken, field, getattr(broken, field)[:-1])
    pool = await retrieved(Answers(broken), query)
    assert pool.degradations == (POPULAR_FALLBACK,)


NO_SCORE = "a score is NaN, infinite or beyond 1e+12"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scores": np.array([3, np.nan, 1], np.float32).tobytes()}, NO_SCORE),
        ({"scores": np.array([np.inf, 2, 1], np.float32).tobytes()}, NO_SCORE),
        ({"scores": np.array([3, 2, -2e12], np.float32).tobytes()}, NO_SCORE),
        ({"source_index": bytes([0, 1, 0])}, "a source has no name"),
        ({"item_rows": np.array([7, 0, 40], "<u4").tobytes()}, "a row is of no item"),
    ],
)
async def test_candidates_that_cannot_be_right_are_replaced_and_the_answer_says_so(
    items: ItemTable, query: Query, changes: dict[str, bytes], reason: str
) -> None:
    broken = response(items, catalogue=items.fingerprint, item_rows=ROWS.tobytes())
    for field, value in changes.items():
        setattr(broken, field, value)
    broken.model_version = repr(changes)  # of its own, or the log may have told it already
    with capture_logs() as logs:
        pool = await retrieved(Answers(broken), query)
    assert pool.degradations == (POPULAR_FALLBACK,)
    assert np.isfinite(pool.candidates.scores).all()
    assert pool.version is None
    assert [line["error"] for line in logs] == [f"version {broken.model_version}: {reason}"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("count", [30, 600])
async def test_scores_that_are_not_finite_leave_a_whole_list_in_retrievals_order(
    query: Query, count: int, task: int, value: float
) -> None:
    items = ItemTable.build([f"m{i}" for i in range(count)], np.zeros(count, ITEM_DTYPE))
    query = query._replace(items=items, parameters=production(rerank_diversity=0.2))
    scores = np.full((count, 2), 0.5, np.float32)
    scores[count // 2, task] = value
    answer = RankResponse(tasks=["click", "like"], task_scores=scores.tobytes())
    ranking = await ranked(answer, query, range(1, count + 1))
    shown = rerank(ranking, query)
    assert shown.degradations == (UNRANKED,)
    assert list(shown.item_ids) == ["m0", "m1", "m2", "m3", "m4"]
    assert ranking.model_versions == {}


async def test_a_broken_version_is_counted_per_answer_and_told_once(query: Query) -> None:
    def malformed() -> float:
        labels = {"stage": "rank", "status": "MALFORMED"}
        return REGISTRY.get_sample_value("tandem_router_stage_failures_total", labels) or 0.0

    before = malformed()
    with capture_logs() as logs:
        for version in ("told once", "told once", "another"):
            answer = RankResponse(
                tasks=["click"],
                task_scores=np.full(3, np.nan, np.float32).tobytes(),
                model_version=version,
            )
            await ranked(answer, query, [1, 2, 3])
    assert malformed() == before + 3
    assert [line["error"].split(":")[0] for line in logs] == [
        "version told once",
        "version another",
    ]


@pytest.mark.parametrize(
    "answer",
    [
        RankResponse(tasks=["click", "like"], task_scores=bytes(4 * 5)),
        RankResponse(),
    ],
    ids=["too few scores", "nothing"],
)
async def test_a_ranking_that_does_not_fit_leaves_the_list_unranked(
    query: Query, answer: RankResponse
) -> None:
    ranking = await ranked(answer, query, [1, 2, 3])
    assert ranking.degradations == (UNRANKED,)
    assert ranking.task_scores is None


async def test_a_service_that_there_is_no_time_to_ask_is_not_asked(
    items: ItemTable, query: Query
) -> None:
    query = query._replace(request=query.request._replace(budget=Budget(0.0)))
    answers = Answers(response(items))
    pool = await retrieved(answers, query)
    assert pool.degradations == (POPULAR_FALLBACK,)
    assert (await ranked(RankResponse(), query, [1, 2, 3])).degradations == (UNRANKED,)
    assert not answers.asked
    assert query.request.budget.ran_out
    assert query.read == {TO_RANK}  # no parameter of ranking's call
