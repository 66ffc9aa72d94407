"""The generator's laws, on a virtual clock: an event loop whose waits take no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from itertools import islice, pairwise
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.serving.generator import (
    LATENESS,
    OK,
    REFUSAL,
    REFUSED,
    CallFailed,
    LoadResult,
    Target,
    closed_loop,
    on_target,
    open_loop,
    poisson_arrivals,
)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Waiting moves the clock instead of passing time."""

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self._now = 0.0
        select = self._selector.select
        self._selector.select = lambda timeout=None: self._advance(select, timeout)

    def _advance(self, select: Any, timeout: float | None) -> Any:
        ready = select(0)
        if not ready and timeout:
            self._now += timeout
        return ready

    def time(self) -> float:
        return self._now


def run(load: Coroutine[Any, Any, LoadResult]) -> LoadResult:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(load)


class Server:
    """Answers one request after the other, `service_s` each; nothing between two stall times."""

    def __init__(self, service_s: float, stall: tuple[float, float] = (0.0, 0.0)) -> None:
        self._service_s = service_s
        self._stall = stall
        self._free_at = 0.0
        self.in_flight = self.most_in_flight = 0

    async def __call__(self, i: int) -> str:
        loop = asyncio.get_running_loop()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        start = max(loop.time(), self._free_at)
        if self._stall[0] <= start < self._stall[1]:
            start = self._stall[1]
        self._free_at = start + self._service_s
        await asyncio.sleep(self._free_at - loop.time())
        self.in_flight -= 1
        return OK


@given(st.integers(0, 2**32), st.floats(1, 10_000))
def test_arrivals_are_the_seeds_alone_and_ascend(seed: int, rate: float) -> None:
    first = list(islice(poisson_arrivals(rate, seed), 50))
    assert first == list(islice(poisson_arrivals(rate, seed), 50))
    assert first == sorted(first)
    assert first[0] > 0


def test_gaps_are_exponential_with_the_given_rate() -> None:
    gaps = [b - a for a, b in pairwise(islice(poisson_arrivals(200.0, 7), 20_001))]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 200, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.05)  # the mark of an exponential
    assert sum(g > mean for g in gaps) / len(gaps) == pytest.approx(0.3679, abs=0.01)


def test_a_stall_is_charged_to_every_request_it_held_up() -> None:
    server = Server(service_s=0.0001, stall=(5.0, 6.0))
    result = run(open_loop(server, 100.0, seconds=10.0, timeout_s=2.0))
    # A tenth of the requests fall into the stall and wait half a second on average.
    assert result.percentile_ms(50) < 1
    assert 300 < result.percentile_ms(95) < 700
    assert 900 < result.percentile_ms(99.9) <= 1001


def test_a_closed_loop_hides_the_same_stall() -> None:
    server = Server(service_s=0.01, stall=(5.0, 6.0))
    result = run(closed_loop(server, 1, seconds=10.0, timeout_s=2.0))
    assert result.percentile_ms(99) < 11


def test_overload_makes_latency_grow_with_the_backlog() -> None:
    result = run(open_loop(Server(service_s=0.02), 100.0, seconds=4.0, timeout_s=60.0))
    # 400 requests of 20 ms arrive in 4 s: the last one waits about 4 s.
    assert result.percentile_ms(50) > 1000
    assert result.seconds == pytest.approx(result.requests * 0.02, rel=0.02)


def test_requests_are_sent_when_they_are_due_whatever_the_server_does() -> None:
    result = run(open_loop(Server(service_s=1.0), 100.0, seconds=1.0, timeout_s=600.0))
    assert result.percentile_ms(100, LATENESS) < 0.01


def test_a_late_generator_charges_its_own_delay() -> None:
    async def blocked() -> LoadResult:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        async def call(i: int) -> str:
            if i == 0:
                loop._now += 0.5  # the generator's process was held up
            return OK

        return await open_loop(call, 100.0, seconds=0.4, timeout_s=2.0)

    result = run(blocked())
    assert result.percentile_ms(50) > 100
    assert result.percentile_ms(50, LATENESS) > 100


@given(
    st.integers(1, 50), st.floats(1, 500), st.floats(0.05, 3), st.integers(0, 9), st.integers(0, 9)
)
def test_count_and_time_are_bounded(
    most: int, rate: float, seconds: float, seed: int, service_ms: int
) -> None:
    server = Server(service_ms / 1000)
    result = run(
        open_loop(server, rate, seconds=seconds, max_requests=most, timeout_s=60.0, seed=seed)
    )
    due = [t for t in islice(poisson_arrivals(rate, seed), most) if t < seconds]
    assert result.requests == len(due)


@given(st.integers(1, 20))
def test_a_closed_loop_keeps_its_number_in_flight(in_flight: int) -> None:
    server = Server(service_s=0.01)
    result = run(closed_loop(server, in_flight, seconds=1.0, timeout_s=10.0))
    assert server.most_in_flight == in_flight
    assert result.per_second == pytest.approx(100, rel=0.02)


def test_a_closed_loop_ends_after_its_number_of_requests() -> None:
    result = run(closed_loop(Server(0.001), 8, seconds=1000.0, max_requests=37, timeout_s=1.0))
    assert result.requests == 37


def test_a_failed_request_counts_as_its_whole_timeout() -> None:
    async def call(i: int) -> str:
        if i % 10 == 0:
            raise CallFailed("UNAVAILABLE")
        await asyncio.sleep(0.001)
        return OK if i % 10 != 1 else "degraded"

    result = run(closed_loop(call, 1, seconds=1000.0, max_requests=100, timeout_s=2.0))
    assert result.outcomes == {OK: 80, "degraded": 10, "UNAVAILABLE": 10}
    assert result.percentile_ms(89) < 1.1
    assert result.percentile_ms(91) == pytest.approx(2000, rel=0.001)


def test_a_refusal_is_timed_from_sending_and_still_counts_as_its_whole_timeout() -> None:
    async def call(i: int) -> str:
        await asyncio.sleep(0.003)
        raise CallFailed(REFUSED if i % 2 else "UNAVAILABLE")

    result = run(closed_loop(call, 1, seconds=1000.0, max_requests=100, timeout_s=2.0))
    assert result.percentile_ms(1, REFUSAL) == pytest.approx(3, rel=0.001)
    assert result.percentile_ms(100, REFUSAL) == pytest.approx(3, rel=0.001)
    assert result.percentile_ms(50) == pytest.approx(2000, rel=0.001)


async def test_over_grpc_answers_are_judged_and_failures_named() -> None:
    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            if details.method != "/test/Echo":
                return None  # UNIMPLEMENTED

            async def echo(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
                return request

            return grpc.unary_unary_rpc_method_handler(echo)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        target = Target(
            f"127.0.0.1:{port}",
            lambda i: ("/test/Echo" if i % 2 else "/test/None", str(i).encode()),
            judge=lambda method, answer: f"{method} {int(answer) % 4}",
        )
        result = await on_target(
            target,
            lambda call: closed_loop(call, 3, seconds=60.0, max_requests=40, timeout_s=2.0),
        )
    finally:
        await server.stop(None)
    assert result.outcomes == {"UNIMPLEMENTED": 20, "/test/Echo 1": 10, "/test/Echo 3": 10}
