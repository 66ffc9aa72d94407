"""One batch holds the jobs of several models and users: nobody's failure is another's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1.features_pb2 import UserContext
from services.common.model_service.model_queue import ModelQueue, outcomes_of
from services.common.model_service.model_slot import ModelSlot
from services.common.rpc import Refusal
from services.common.settings import ReplicaSettings
from tests.artifacts import publish_items, small_items

BROKEN = 13


class Job(NamedTuple):
    user: UserContext
    model: str
    number: int


class Unhurried:
    """A call without a deadline."""

    def time_remaining(self) -> None:
        return None


class Answering:
    """Doubles numbers, model by model; waits at the gate, where the first batch is held."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.started, self.go = threading.Event(), threading.Event()

    def __call__(self, model: str, jobs: Sequence[Job]) -> list[int]:
        self.batches.append((model, [job.number for job in jobs]))
        self.started.set()
        assert self.go.wait(10)
        if model == "broken" or any(job.number == BROKEN for job in jobs):
            raise RuntimeError(f"{model} raises")
        return [2 * job.number for job in jobs]


@contextmanager
def queue(folder: Path, *, published: Sequence[str] = ("control", "broken")):
    """A queue of two models with what answers for them; the model thread is let go at the end."""
    for name in published:
        publish_items(folder, name, small_items())
    slots = {
        name: ModelSlot(name, folder, lambda _, name=name: name, lambda loaded, recent: None)
        for name in ("control", "broken")
    }
    for slot in slots.values():
        slot.refresh()
    answering = Answering()
    limits = ReplicaSettings(max_batch_rows=100, max_queue_rows=1000)
    subject = ModelQueue("test", slots, answering, lambda response: response < 100, limits)
    yield subject, answering, slots
    answering.go.set()
    subject.close()


async def in_one_batch(subject, answering, jobs: Sequence[tuple[str, int]]) -> list[object]:
    """The outcomes of jobs (model, number) that were queued while the model thread was busy."""

    def ask(model: str, number: int):
        job = Job(UserContext(), model, number)
        return asyncio.create_task(subject.submit(job, 1, Unhurried()))

    answering.go.clear()
    answering.started.clear()
    first = ask("control", 0)
    await asyncio.get_running_loop().run_in_executor(None, answering.started.wait, 10)
    answering.batches.clear()
    asked = [ask(*job) for job in jobs]
    await asyncio.sleep(0)  # each task runs up to its wait
    answering.go.set()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    await first
    return [str(o) if isinstance(o, Exception) else o for o in outcomes]


async def test_a_model_that_raises_takes_no_other_models_requests_with_it(tmp_path):
    with queue(tmp_path) as (subject, answering, _):
        jobs = [("control", 1), ("broken", 2), ("control", 3), ("broken", 4)]
        for _ in range(2):
            assert await in_one_batch(subject, answering, jobs) == [
                2, "broken raises", 6, "broken raises",
            ]  # fmt: skip
        # The second time nobody looks for a culprit among its requests.
        assert sorted(answering.batches) == [("broken", [2, 4]), ("control", [1, 3])]


async def test_a_request_that_makes_the_model_raise_fails_alone(tmp_path):
    with queue(tmp_path) as (subject, answering, _):
        jobs = [("control", n) for n in (1, 2, BROKEN, 4, 5, 6, 7, 8)]
        for _ in range(2):
            assert await in_one_batch(subject, answering, jobs) == [
                2, 4, "control raises", 8, 10, 12, 14, 16,
            ]  # fmt: skip
        assert len(answering.batches) <= 1 + 2 * 3


async def test_only_what_was_answered_well_warms_the_next_version(tmp_path):
    with queue(tmp_path) as (subject, answering, slots):
        await in_one_batch(subject, answering, [("", 1), ("", BROKEN), ("", 50), ("broken", 3)])
        assert [job.number for job in slots["control"].recent] == [0, 1]  # 2 x 50 is not sound
        assert not slots["broken"].recent


async def test_a_model_without_a_version_is_refused_and_the_others_are_served(tmp_path):
    with queue(tmp_path, published=["control"]) as (subject, answering, _):
        answering.go.set()
        with pytest.raises(Refusal, match="broken has no version") as refused:
            await subject.submit(Job(UserContext(), "broken", 1), 1, Unhurried())
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        assert await subject.submit(Job(UserContext(), "", 1), 1, Unhurried()) == 2


@given(
    poisoned=st.lists(st.booleans(), min_size=1, max_size=70),
    halvings=st.integers(0, 300),
)
def test_every_job_gets_its_own_outcome_and_the_search_is_bounded(poisoned, halvings):
    calls: list[int] = []

    def answer(jobs: Sequence[int]) -> list[int]:
        calls.append(len(jobs))
        if any(poisoned[job] for job in jobs):
            raise ValueError(str(list(jobs)))
        return list(jobs)

    outcomes = outcomes_of(answer, range(len(poisoned)), halvings)
    assert len(calls) <= 1 + 2 * halvings
    for job, (bad, outcome) in enumerate(zip(poisoned, outcomes, strict=True)):
        if isinstance(outcome, ValueError):
            assert str(job) in str(outcome)
        else:
            assert outcome == job
            assert not bad
    if halvings >= len(poisoned) or (
        sum(poisoned) == 1 and halvings >= (len(poisoned) - 1).bit_length()
    ):
        assert [isinstance(outcome, ValueError) for outcome in outcomes] == poisoned
        assert sum(poisoned) > 1 or sum(calls) <= 3 * len(poisoned)
