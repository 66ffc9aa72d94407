"""The pipeline as a whole: what is counted of requests that get no answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from models.catalogue import ItemTable
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from services.common.settings import RouterSettings
from services.experiments import config_reader
from services.experiments.assignment import Assigner
from services.router.metrics import STAGES
from services.router.pipeline import count_answer, recommend
from services.router.surroundings import Surroundings

SHIPPED = Path(__file__).parents[3] / "experiments.yaml"


class Store:
    """A feature store that knows nobody."""

    async def read_async(self, keys: list[Any], timeout_s: float) -> list[None]:
        return [None for _ in keys]


class Replicas:
    """A model service that never answers, or fails in a way that nobody foresaw."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked = asyncio.Event()
        self.error = error

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        self.asked.set()
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()


def observed() -> dict[str, float]:
    name = "tandem_router_stage_seconds_count"
    return {s: REGISTRY.get_sample_value(name, {"stage": s}) or 0.0 for s in STAGES}


def surroundings(items: ItemTable, replicas: Replicas) -> Surroundings:
    assigner = Assigner(config_reader.load(SHIPPED))
    return Surroundings(
        Store(), replicas, replicas,  # type: ignore[arg-type]
        items=lambda: items, blocked=lambda: np.zeros(0, np.uint64),
        assigner=lambda: assigner, settings=RouterSettings(),
    )  # fmt: skip


REQUEST = RecommendRequest(user_id="u", surface="home", num_items=5)


async def test_a_cancelled_request_counts_the_stages_that_it_took_and_the_open_one(
    items: ItemTable,
) -> None:
    replicas, before = Replicas(), observed()
    call = asyncio.create_task(recommend(REQUEST, 1.0, surroundings(items, replicas)))
    await asyncio.wait_for(replicas.asked.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    grown = {stage for stage, count in observed().items() if count == before[stage] + 1}
    assert grown == {"assign", "hydrate", "retrieve"}


async def test_a_failed_request_counts_its_stages_too(items: ItemTable) -> None:
    replicas, before = Replicas(ArithmeticError("a bug")), observed()
    with pytest.raises(ArithmeticError):
        await recommend(REQUEST, 1.0, surroundings(items, replicas))
    grown = {stage for stage, count in observed().items() if count == before[stage] + 1}
    assert grown == {"assign", "hydrate", "retrieve"}


async def test_an_answered_request_counts_every_stage_once(items: ItemTable) -> None:
    from services.common.balancer import NoReplica

    before = observed()
    around = surroundings(items, Replicas(NoReplica("nobody")))  # type: ignore[arg-type]
    _, state = await recommend(REQUEST, 1.0, around)
    assert observed() == before  # nothing is counted before the answer is out
    count_answer(state)
    assert observed() == {stage: count + 1 for stage, count in before.items()}
