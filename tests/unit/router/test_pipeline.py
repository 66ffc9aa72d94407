"""The pipeline as a whole: the order of its stages, and what is left of requests without answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from models.catalogue import ItemTable
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.records_pb2 import (
    ABANDONED,
    CLICK,
    DEFAULT_FEATURES,
    FAILED,
    UNRANKED,
    DecisionRecord,
    FeedbackEvent,
    Outcome,
)
from services.common.balancer import NoReplica
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import config_reader
from services.experiments.declare.targeting import NOTHING
from services.router.decisions import DecisionLog
from services.router.metrics import STAGES, count
from services.router.pipeline import begin, recommend
from services.router.record import decision_record
from tests.domains import FILMS
from tests.unit.experiments.messages import known_before
from tests.unit.router.models import (
    IN_NO_EXPERIMENT,
    NOW_MS,
    FixedAssigner,
    Models,
    Store,
    Stuck,
    answer_to,
    decision_of,
    surroundings,
)
from tests.unit.router.test_decisions import Log

SHIPPED = Path(__file__).parents[3] / "experiments.yaml"


def observed() -> dict[str, float]:
    name = "tandem_router_stage_seconds_count"
    return {s: REGISTRY.get_sample_value(name, {"stage": s}) or 0.0 for s in STAGES}


def shipped() -> Assigner:
    return Assigner(config_reader.load(SHIPPED, FILMS))


REQUEST = RecommendRequest(user_id="u", surface="home", num_items=5)


async def test_a_cancelled_request_counts_the_stages_that_it_took_and_the_open_one(
    items: ItemTable,
) -> None:
    before = observed()
    await unanswered(items, Stuck(), shipped())
    grown = {stage for stage, count in observed().items() if count == before[stage] + 1}
    assert grown == {"assign", "hydrate", "retrieve"}


async def test_a_failed_request_counts_its_stages_too(items: ItemTable) -> None:
    before = observed()
    await unanswered(items, Stuck(ArithmeticError("a bug")), shipped())
    grown = {stage for stage, count in observed().items() if count == before[stage] + 1}
    assert grown == {"assign", "hydrate", "retrieve"}


async def test_an_answered_request_counts_every_stage_once(items: ItemTable) -> None:
    before = observed()
    around = surroundings(items, Stuck(NoReplica("nobody")), shipped())
    _, state = await answer_to(REQUEST, around)
    assert observed() == before  # nothing is counted before the answer is out
    count(state)
    assert observed() == {stage: count + 1 for stage, count in before.items()}


async def test_arms_are_assigned_before_anything_is_read_unless_a_condition_needs_it(
    items: ItemTable,
) -> None:
    for needs_user, first in ((False, ["assign", "hydrate"]), (True, ["hydrate", "assign"])):
        assigner = FixedAssigner(IN_NO_EXPERIMENT, needs_user=needs_user)
        around = surroundings(items, Stuck(NoReplica("nobody")), assigner)
        _, state = await answer_to(REQUEST, around)
        assert list(state.stage_ms) == [*first, *STAGES[2:]]


async def test_assignment_is_told_the_users_counts_where_it_needs_them(items: ItemTable) -> None:
    store = Store({"u": (9, 4, 1)})
    for needs_user, told in (
        (False, NOTHING),
        (True, {"impression": 9, "click": 4, "like": 1}),
    ):
        assigner = FixedAssigner(IN_NO_EXPERIMENT, needs_user=needs_user)
        around = surroundings(items, Stuck(NoReplica("nobody")), assigner, store)
        await answer_to(REQUEST, around)
        assert [asked["user"] for asked in assigner.asked] == [told]
    assert store.reads == 2  # one read per request, as ever


@pytest.mark.parametrize("store", [Store({}), Store(None)], ids=["unknown user", "outage"])
async def test_of_a_user_whose_profile_cannot_be_read_nothing_is_known(
    items: ItemTable, store: Store
) -> None:
    assigner = FixedAssigner(IN_NO_EXPERIMENT, needs_user=True)
    around = surroundings(items, Stuck(NoReplica("nobody")), assigner, store)
    response, _ = await answer_to(REQUEST, around)
    assert [asked["user"] for asked in assigner.asked] == [NOTHING]
    assert (DEFAULT_FEATURES in response.degradations) == (store.counts is None)
    assert len(response.items) == 5


async def test_in_an_outage_what_a_user_just_did_is_excluded_but_is_not_all_that_he_ever_did(
    items: ItemTable,
) -> None:
    assigner = FixedAssigner(IN_NO_EXPERIMENT, needs_user=True)
    around = surroundings(items, Stuck(NoReplica("nobody")), assigner, Store(None))
    shown = [item.item_id for item in (await answer_to(REQUEST, around))[0].items]
    click = FeedbackEvent(
        event_id="e", user_id="u", item_id=shown[0], event_type=CLICK, event_time_ms=NOW_MS - 1
    )
    around.recent.add([click])
    response, state = await answer_to(REQUEST, around)
    assert shown[0] not in [item.item_id for item in response.items]
    assert [asked["user"] for asked in assigner.asked] == [NOTHING, NOTHING]
    assert not decision_record(state).HasField("before")


async def test_further_units_are_assigned_by(items: ItemTable) -> None:
    assigner = FixedAssigner(IN_NO_EXPERIMENT)
    request = RecommendRequest(
        user_id="u", session_id="s", surface="home", num_items=5, unit_ids={"household": "h"}
    )
    await answer_to(request, surroundings(items, Stuck(NoReplica("nobody")), assigner))
    (asked,) = assigner.asked
    assert dict(asked["unit_ids"]) == {"household": "h"}
    assert (asked["user_id"], asked["session_id"]) == ("u", "s")


async def unanswered(
    items: ItemTable, replicas: Stuck, assigner: Assigner, store: Store | None = None
) -> list[DecisionRecord]:
    """The records of a request that is cancelled when its retrieval hangs, or that fails."""
    log = Log()
    decisions = DecisionLog(log)  # type: ignore[arg-type]
    around = surroundings(items, replicas, assigner, store)
    state = begin(REQUEST, 1.0, around)
    call = asyncio.create_task(recommend(state, around))
    if replicas.error is None:
        await asyncio.wait_for(replicas.asked.wait(), 10)
        call.cancel()
    expected = asyncio.CancelledError if replicas.error is None else type(replicas.error)
    with pytest.raises(expected):
        await call
    decisions.write(state)
    decisions.flush()
    return [DecisionRecord.FromString(r.value) for append in log.appends for r in append]


def exposed() -> float:
    family = next(f for f in REGISTRY.collect() if f.name == "tandem_router_exposures")
    return sum(sample.value for sample in family.samples)


@pytest.mark.parametrize(
    ("replicas", "outcome"),
    [(Stuck(), ABANDONED), (Stuck(ArithmeticError("a bug")), FAILED)],
    ids=["abandoned", "failed"],
)
async def test_an_abandoned_request_leaves_a_record_of_its_arms(
    items: ItemTable, replicas: Stuck, outcome: Outcome
) -> None:
    before, counted = exposed(), observed()
    text = """\
version: 1
layers:
  - name: models
    parameters: [retrieval.num_candidates, rerank.like_weight]
    experiments:
      - {name: pool, buckets: [0, 10000], arms: [{name: more, weight: 100,
         parameters: {retrieval.num_candidates: 300}}]}
"""
    (record,) = await unanswered(
        items, replicas, FixedAssigner(decision_of(text)), Store({"u": (5, 2, 1)})
    )
    assert record.outcome == outcome
    assert [(a.experiment, a.arm, a.unread) for a in record.assignments] == [
        ("pool", "more", False)
    ]
    assert (record.user_id, record.surface) == ("u", "home")
    assert record.request_id
    assert record.event_time_ms
    assert known_before(record, CLICK) == 2
    assert not record.item_ids
    assert not record.scores
    assert not record.propensities
    assert not record.degradations
    assert exposed() == before  # the metric counts answers
    # Of a request without answer the stages are counted, and nothing else.
    assert sum(observed().values()) == sum(counted.values()) + 3


async def test_a_request_that_ended_before_reading_a_parameter_is_no_exposure_to_it(
    items: ItemTable,
) -> None:
    (record,) = await unanswered(items, Stuck(), shipped())
    assert [(a.experiment, a.unread) for a in record.assignments] == [("ranking_model", True)]


async def test_a_request_that_never_got_its_arms_leaves_no_record(items: ItemTable) -> None:
    class Broken(FixedAssigner):
        def assign(self, user_id: str, session_id: str = "", **known: Any) -> Any:
            raise ArithmeticError("a bug")

    assert await unanswered(items, Stuck(ArithmeticError()), Broken(IN_NO_EXPERIMENT)) == []


async def test_an_answered_request_is_recorded_as_such(items: ItemTable) -> None:
    models = Models(items, {"ssl_two_tower": [1, 2, 3, 4, 5]}, {"masknet": {}, "mc_mlcc": {}})
    _, state = await answer_to(REQUEST, surroundings(items, models, shipped()))
    assert decision_record(state).outcome == 0


async def test_the_reasons_name_the_items_that_ranking_does_not_know(items: ItemTable) -> None:
    models = Models(
        items, {"ssl_two_tower": [1, 2, 3, 4, 5]}, {"masknet": {2: 0.1, 4: 0.3, 5: 0.2}},
        unknown=[1, 3],
    )  # fmt: skip
    asked = RecommendRequest(user_id="u", surface="home", num_items=5, explain=True)
    response, _ = await answer_to(
        asked, surroundings(items, models, FixedAssigner(IN_NO_EXPERIMENT))
    )
    assert [item.item_id for item in response.items] == ["m4", "m5", "m2", "m1", "m3"]
    told = [item.reason.unknown_to_ranking for item in response.items]
    assert told == [False, False, False, True, True]
    assert not response.degradations


async def test_a_ranking_that_knows_no_candidate_is_none_and_the_answer_says_so(
    items: ItemTable,
) -> None:
    """Retrieval is of another catalogue: its order stands, and no probability is shown."""
    found = [7, 3, 9, 1, 5]
    models = Models(items, {"ssl_two_tower": found}, {"masknet": {}}, unknown=found)
    asked = RecommendRequest(user_id="u", surface="home", num_items=5, explain=True)
    around = surroundings(items, models, FixedAssigner(IN_NO_EXPERIMENT))
    response, state = await answer_to(asked, around)
    assert [item.item_id for item in response.items] == [f"m{row}" for row in found]
    assert list(response.degradations) == [UNRANKED]
    assert not any(item.reason.task_scores for item in response.items)
    assert decision_record(state).task_scores == b""
