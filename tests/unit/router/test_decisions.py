"""Decision records go out in groups, and what is lost is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.records_pb2 import DecisionRecord
from services.event_log.interface import MAX_RECORD_BYTES, LogSaturated, LogUnavailable, Record
from services.event_log.limits import check_append
from services.experiments.assign.assignment import Decision
from services.router.decisions import MAX_GROUP, DecisionLog
from services.router.request import Query, Ranking, RequestState, Shown
from tests.domains import production
from tests.unit.router import conftest
from tests.unit.router.conftest import pool_of


class Log:
    """An event log that keeps its appends; `failure` is what it answers."""

    def __init__(self, failure: Exception | None = None, refuse: bool = False) -> None:
        self.appends: list[Sequence[Record]] = []
        self.failure, self.refuse = failure, refuse
        self.written = asyncio.Event()

    def append(self, topic: str, records: Sequence[Record]) -> Future[None]:
        if self.refuse:
            raise LogSaturated("full")
        check_append(topic, records)  # as every backend does
        self.appends.append(records)
        self.written.set()
        future: Future[None] = Future()
        if self.failure is None:
            future.set_result(None)
        else:
            future.set_exception(self.failure)
        return future

    def users(self) -> list[str]:
        return [DecisionRecord.FromString(r.value).user_id for a in self.appends for r in a]


def served() -> float:
    """Items counted by any source."""
    family = next(f for f in REGISTRY.collect() if f.name == "tandem_router_items")
    return sum(sample.value for sample in family.samples)


def lost() -> float:
    return REGISTRY.get_sample_value("tandem_router_decisions_lost_total") or 0.0


@pytest.fixture
def answered(query: Query) -> RequestState:
    three = pool_of(query.items, [1, 2, 3])
    shown = Shown(
        ranking=Ranking(three),
        parameters=production(),
        positions=np.arange(3),
        scores=np.ones(3, np.float32),
        item_ids=["1", "2", "3"],
    )
    assigned = Decision(assignments=(), messages=(), parameters=production(), overrides={})
    return replace(conftest.answered(query, shown), decision=assigned)


def another(state: RequestState, user: str, **changes: Any) -> RequestState:
    """The same answer to another user; `changes`: of what was shown."""
    asked = RecommendRequest()
    asked.CopyFrom(state.request.asked)
    asked.user_id = user
    assert state.shown is not None
    return replace(
        state, request=state.request._replace(asked=asked), shown=state.shown._replace(**changes)
    )


async def test_answers_of_one_moment_are_one_append(answered: RequestState) -> None:
    log = Log()
    decisions = DecisionLog(log)  # type: ignore[arg-type]
    for i in range(3):
        decisions.write(another(answered, f"u{i}"))
    assert log.appends == []
    await asyncio.wait_for(log.written.wait(), 10)
    assert log.users() == ["u0", "u1", "u2"]
    assert len(log.appends) == 1


async def test_a_full_group_is_encoded_at_once_and_appended_with_the_others(
    answered: RequestState,
) -> None:
    log, before = Log(), served()
    decisions = DecisionLog(log)  # type: ignore[arg-type]
    for i in range(MAX_GROUP):
        decisions.write(another(answered, f"u{i}"))
    await asyncio.sleep(0)
    assert served() == before + 3 * MAX_GROUP
    decisions.write(another(answered, "last"))
    await asyncio.wait_for(log.written.wait(), 10)
    assert [len(append) for append in log.appends] == [MAX_GROUP + 1]
    assert log.users()[-1] == "last"


async def test_a_record_that_the_log_cannot_store_costs_no_other_one(
    answered: RequestState,
) -> None:
    log, before = Log(), lost()
    decisions = DecisionLog(log)  # type: ignore[arg-type]
    huge = another(answered, "huge", item_ids=["x" * (MAX_RECORD_BYTES + 1)])
    for state in (another(answered, "u0"), huge, another(answered, "u1")):
        decisions.write(state)
    decisions.flush()
    assert log.users() == ["u0", "u1"]
    assert lost() == before + 1


async def test_an_answer_that_cannot_be_recorded_costs_no_other_one(answered: RequestState) -> None:
    log, before = Log(), lost()
    decisions = DecisionLog(log)  # type: ignore[arg-type]
    broken = another(answered, "broken", positions=np.array([99]))
    for state in (another(answered, "u0"), broken, another(answered, "u1")):
        decisions.write(state)
    decisions.flush()
    assert log.users() == ["u0", "u1"]
    assert lost() == before + 1


async def test_a_degradation_of_a_newer_version_is_recorded_and_counted_as_unknown(
    answered: RequestState,
) -> None:
    def unknown() -> float:
        labels = {"kind": "unknown"}
        return REGISTRY.get_sample_value("tandem_router_degradations_total", labels) or 0.0

    log, before = Log(), unknown()
    decisions = DecisionLog(log)  # type: ignore[arg-type]
    decisions.write(another(answered, "u", degradations=[99]))
    decisions.flush()
    assert log.users() == ["u"]
    assert unknown() == before + 1


@pytest.mark.parametrize(
    "log", [Log(refuse=True), Log(failure=LogUnavailable("disk full"))], ids=["full", "broken"]
)
async def test_what_the_log_does_not_take_is_counted(answered: RequestState, log: Log) -> None:
    before = lost()
    decisions = DecisionLog(log)  # type: ignore[arg-type]
    decisions.write(another(answered, "u0"))
    decisions.write(another(answered, "u1"))
    decisions.flush()
    decisions.flush()
    assert lost() == before + 2


def test_a_record_that_cannot_be_taken_hides_neither_the_answer_nor_why_there_is_none(
    answered: RequestState,
) -> None:
    before = lost()
    decisions = DecisionLog(Log())  # type: ignore[arg-type]
    decisions.write(answered)  # outside of any event loop
    assert lost() == before + 1
