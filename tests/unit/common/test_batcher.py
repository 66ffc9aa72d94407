"""Batching is work-conserving, admission is arithmetic, and nobody's failure is another's."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import services.common.batcher
from services.common.batcher import Batcher, Overloaded, ServiceTime, admit


class Model:
    """Doubles numbers; each batch waits until the test lets it go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, requests: list[int]) -> list[int]:
        self.batches.append(list(requests))
        self.started.release()
        assert self.go.acquire(timeout=10)
        if 13 in requests:
            raise RuntimeError("unlucky batch")
        return [2 * r for r in requests]


class Clock:
    """Stands for the module `time`."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.monotonic = self.perf_counter = now_s


def batcher(model: Model, max_batch_rows: int = 10, max_queue_rows: int = 100) -> Batcher[int, int]:
    return Batcher("test", model, max_batch_rows=max_batch_rows, max_queue_rows=max_queue_rows)


async def started(model: Model) -> None:
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, model.started.acquire, True, 10)


async def test_a_free_model_takes_a_lone_request_at_once_and_then_everything_queued():
    model = Model()
    subject = batcher(model)
    first = asyncio.create_task(subject.submit(1, 1, math.inf))
    await started(model)  # running alone: nothing was waited for
    others = [asyncio.create_task(subject.submit(i, 1, math.inf)) for i in (2, 3, 4)]
    await asyncio.sleep(0)  # each task runs up to its wait
    assert subject._backlog_rows == 4
    model.go.release(2)
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8]
    assert model.batches == [[1], [2, 3, 4]]
    subject.close()


async def test_a_batch_is_bounded_in_rows_but_never_empty():
    model = Model()
    subject = batcher(model, max_batch_rows=10)
    first = asyncio.create_task(subject.submit(1, 1, math.inf))
    await started(model)
    tasks = [asyncio.create_task(subject.submit(n, n, math.inf)) for n in (6, 4, 25, 3)]
    await asyncio.sleep(0)  # each task runs up to its wait
    assert subject._backlog_rows == 39
    model.go.release(10)
    await asyncio.gather(first, *tasks)
    assert model.batches == [[1], [6, 4], [25], [3]]
    subject.close()


async def test_a_failing_batch_fails_its_requests_only():
    model = Model()
    model.go.release(10)
    subject = batcher(model)
    with pytest.raises(RuntimeError, match="unlucky batch"):
        await subject.submit(13, 1, math.inf)
    assert await subject.submit(4, 1, math.inf) == 8
    subject.close()


async def test_a_response_that_is_an_exception_fails_its_request_alone_in_one_batch():
    def run(requests: list[int]) -> list[int | Exception]:
        batches.append(len(requests))
        assert go.acquire(timeout=10)
        return [RuntimeError(f"{r} is odd") if r % 2 else r for r in requests]

    batches, go = [], threading.Semaphore(0)
    subject = Batcher("test", run, max_batch_rows=10, max_queue_rows=100)
    tasks = [asyncio.create_task(subject.submit(i, 1, math.inf)) for i in range(5)]
    await asyncio.sleep(0)  # each task runs up to its wait
    go.release(10)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [o if isinstance(o, int) else str(o) for o in outcomes] == [
        0, "1 is odd", 2, "3 is odd", 4,
    ]  # fmt: skip
    assert max(batches) > 1
    subject.close()


async def test_a_caller_that_went_away_is_not_computed():
    model = Model()
    subject = batcher(model)
    first = asyncio.create_task(subject.submit(1, 1, math.inf))
    await started(model)
    gone = asyncio.create_task(subject.submit(2, 1, math.inf))
    stays = asyncio.create_task(subject.submit(3, 1, math.inf))
    await asyncio.sleep(0)  # each task runs up to its wait
    assert subject._backlog_rows == 3
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    model.go.release(10)
    assert await asyncio.gather(first, stays) == [2, 6]
    assert model.batches == [[1], [3]]
    assert subject._backlog_rows == 0
    subject.close()


async def test_what_is_late_when_its_turn_comes_is_refused_and_not_computed(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(services.common.batcher, "time", Clock(lambda: now_s))
    model = Model()
    subject = batcher(model)
    first = asyncio.create_task(subject.submit(1, 1, math.inf))
    await started(model)
    late = asyncio.create_task(subject.submit(2, 1, 0.2))
    timely = asyncio.create_task(subject.submit(3, 1, 0.3))
    await asyncio.sleep(0)  # each task runs up to its wait
    now_s = 0.25
    model.go.release(10)
    assert await asyncio.gather(first, timely) == [2, 6]
    with pytest.raises(Overloaded, match="was over when its turn came"):
        await late
    assert model.batches == [[1], [3]]
    assert subject._backlog_rows == 0
    subject.close()


async def test_close_finishes_what_is_queued():
    model = Model()
    model.go.release(10)
    subject = batcher(model)
    tasks = [asyncio.create_task(subject.submit(i, 1, math.inf)) for i in range(3)]
    await asyncio.sleep(0)
    await asyncio.get_running_loop().run_in_executor(None, subject.close)
    assert await asyncio.gather(*tasks) == [0, 2, 4]


BATCHES = st.lists(st.tuples(st.integers(1, 5000), st.floats(1e-4, 1.0)), min_size=1)


def learned(batches: list[tuple[int, float]]) -> ServiceTime:
    subject = ServiceTime()
    for rows, seconds in batches:
        subject.observe(rows, seconds)
    return subject


@given(rows=st.integers(1, 10_000), batches=BATCHES, left=st.floats(1e-9, 10), late=st.floats(0, 9))
def test_an_empty_queue_admits_whatever_has_time_left(rows, batches, left, late):
    admit(0, rows, 100, 10, learned(batches), left, late)


@given(backlog=st.integers(0, 10), left=st.floats(-10, 0))
def test_nothing_is_admitted_after_its_deadline(backlog, left):
    with pytest.raises(Overloaded, match="was over when the request came"):
        admit(backlog, 1, 100, 10, ServiceTime(), left)


@given(
    backlog=st.integers(1, 1000),
    rows=st.integers(1, 1000),
    batches=BATCHES,
    left=st.floats(1e-9, 1),
    late=st.floats(0, 1),
)
def test_a_request_is_refused_iff_its_predicted_completion_is_late(
    backlog, rows, batches, left, late
):
    time = learned(batches)
    all_rows = backlog + rows
    predicted = (1 + -(-all_rows // 64)) * time.per_batch_s + all_rows * time.per_row_s
    if predicted + late > left:
        with pytest.raises(Overloaded, match="exceed"):
            admit(backlog, rows, 10_000, 64, time, left, late)
    else:
        assert admit(backlog, rows, 10_000, 64, time, left, late) == predicted


def test_a_refusal_tells_the_arithmetic():
    time = learned([(200, 0.025), (400, 0.045)])  # 5 ms a batch and 100 us a row
    words = (
        r"3 batches x 5\.0 ms \+ \(900 rows queued \+ 200\) x 100\.0 us \+ 7\.0 ms of overrun"
        r" = 132\.0 ms exceed the 130\.0 ms left"
    )
    with pytest.raises(Overloaded, match=words):
        admit(900, 200, 10_000, 1000, time, 0.13, 0.007)
    with pytest.raises(Overloaded, match=r"900 rows queued \+ 200 exceed the limit 1000"):
        admit(900, 200, 1000, 1000, time, math.inf)


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=2, max_size=50),
    fixed=st.floats(0, 0.1),
    per_row=st.floats(1e-6, 1e-3),
)
def test_two_sizes_tell_what_a_batch_costs_from_what_a_row_costs(sizes, fixed, per_row):
    assume(abs(sizes[0] - sizes[1]) > 0.2 * sizes[0])  # enough to read a slope from
    time = learned([(rows, fixed + per_row * rows) for rows in sizes])
    largest_s = fixed + per_row * max(sizes)
    assert time.per_row_s == pytest.approx(per_row, rel=1e-3)
    assert time.per_batch_s == pytest.approx(fixed, abs=1e-3 * largest_s)


def test_a_burst_behind_lone_requests_is_admitted_once_a_larger_batch_was_seen():
    alone = [(1, 0.002)] * 100
    with pytest.raises(Overloaded):  # as far as is known a row takes 2 ms
        admit(59, 1, 1024, 64, learned(alone), 0.1)
    admit(59, 1, 1024, 64, learned([*alone, (20, 0.003), *alone]), 0.1)


@given(BATCHES)
def test_the_service_time_is_between_none_and_all_of_it_for_the_rows(batches):
    time = learned(batches)
    rows = [rows for rows, _ in batches]
    seconds = [seconds for _, seconds in batches]
    assert 0 <= time.per_row_s <= max(seconds) / min(rows) * (1 + 1e-9)
    assert 0 <= time.per_batch_s <= max(seconds) * (1 + 1e-9)


def test_without_a_batch_nothing_is_predicted():
    assert admit(999, 1, 1000, 10, ServiceTime(), 1e-9) == 0.0
