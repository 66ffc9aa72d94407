"""Load on a gRPC server, and latencies that cannot flatter it.

`open_loop` sends at times drawn beforehand (Poisson arrivals), whether or not earlier answers have
come, and counts each latency from the moment the request was due: a server that stalls is charged
for every request that the stall held up (no coordinated omission). `closed_loop` keeps a number of
requests in flight and so finds the capacity; its latencies describe only itself.

A call that fails counts as its whole timeout, so that fast errors never improve a percentile.
`LoadProcess` runs either in a process of its own, which shares no interpreter lock with a server.
Times come from the running event loop's clock, so that tests drive them without sleeping.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import selectors
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from hdrh.histogram import HdrHistogram

from services.common.channels import CHANNEL_OPTIONS

MAX_US = 600_000_000
MAX_REQUESTS = 1_000_000
OK = "OK"
REFUSED = "RESOURCE_EXHAUSTED"
# What is timed of requests: the answer since it was due; how long after that it was sent, which is
# the generator's own share; and from there how long until it was REFUSED.
TIMES = LATENCY, LATENESS, REFUSAL = "latency", "lateness", "refusal"

Call = Callable[[int], Awaitable[str]]  # performs request i; returns what came of it
Load = Callable[[Call], Coroutine[Any, Any, "LoadResult"]]
Traffic = Callable[[int], tuple[str, bytes]]  # request i: full method name, serialized message
Judge = Callable[[str, bytes], str]  # method and serialized answer -> a name to count it under


class CallFailed(Exception):
    """A request that got no answer; the message is its gRPC status."""


@dataclass(frozen=True)
class LoadResult:
    """What one run saw. `times` are encoded hdrhistograms in µs, by TIMES; `cpu_s` is the
    generator's processor time."""

    seconds: float
    cpu_s: float
    outcomes: Counter[str]
    failed: int
    times: Mapping[str, bytes]

    @property
    def requests(self) -> int:
        return self.outcomes.total()

    @property
    def per_second(self) -> float:
        """Answered requests per second, failures not counted."""
        return (self.requests - self.failed) / self.seconds

    def percentile_ms(self, percent: float, of: str = LATENCY) -> float:
        """0 where there was none."""
        return HdrHistogram.decode(self.times[of]).get_value_at_percentile(percent) / 1000.0


class Recorder:
    """Counts one run's outcomes and times."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._outcomes: Counter[str] = Counter()
        self._failed = 0
        self._cpu_start = time.process_time()
        self._times = {name: HdrHistogram(1, MAX_US, 3) for name in TIMES}

    async def run(self, call: Call, i: int, due: float) -> None:
        """Perform request i, which was due at `due` on the loop's clock."""
        clock = asyncio.get_running_loop().time
        sent = clock()
        self._times[LATENESS].record_value(_us(sent - due))
        try:
            outcome = await call(i)
        except CallFailed as failed:
            outcome = str(failed)
            self._failed += 1
            if outcome == REFUSED:
                self._times[REFUSAL].record_value(_us(clock() - sent))
            latency_s = max(clock() - due, self._timeout_s)
        else:
            latency_s = clock() - due
        self._outcomes[outcome] += 1
        self._times[LATENCY].record_value(_us(latency_s))

    def result(self, seconds: float) -> LoadResult:
        return LoadResult(
            seconds,
            time.process_time() - self._cpu_start,
            self._outcomes,
            self._failed,
            {name: histogram.encode() for name, histogram in self._times.items()},
        )


def _us(seconds: float) -> int:
    return min(max(round(seconds * 1e6), 1), MAX_US)


def poisson_arrivals(rate_per_s: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due: independent exponential gaps."""
    draw = random.Random(seed)
    due = 0.0
    while True:
        due += draw.expovariate(rate_per_s)
        yield due


async def open_loop(
    call: Call,
    rate_per_s: float,
    *,
    seconds: float,
    max_requests: int = MAX_REQUESTS,
    timeout_s: float,
    seed: int = 0,
) -> LoadResult:
    """Send at `rate_per_s` for `seconds` (at most `max_requests`), then wait for the answers."""
    loop = asyncio.get_running_loop()
    recorder = Recorder(timeout_s)
    start = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for i, offset in enumerate(poisson_arrivals(rate_per_s, seed)):
            if offset >= seconds or i >= max_requests:
                break
            wait = start + offset - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.create_task(recorder.run(call, i, start + offset))
    return recorder.result(loop.time() - start)


async def closed_loop(
    call: Call,
    in_flight: int,
    *,
    seconds: float,
    max_requests: int = MAX_REQUESTS,
    timeout_s: float,
) -> LoadResult:
    """Keep `in_flight` requests going for `seconds` (at most `max_requests`)."""
    loop = asyncio.get_running_loop()
    recorder = Recorder(timeout_s)
    start = loop.time()
    numbers = iter(range(max_requests))

    async def worker() -> None:
        while loop.time() - start < seconds:
            i = next(numbers, None)
            if i is None:
                return
            await recorder.run(call, i, loop.time())

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return recorder.result(loop.time() - start)


def answered(method: str, answer: bytes) -> str:
    """The judge that is content with any answer."""
    return OK


@dataclass(frozen=True)
class Target:
    """Where the requests go and what they are. Picklable: the functions are module-level ones."""

    address: str
    traffic: Traffic
    timeout_s: float = 2.0
    judge: Judge = answered


async def on_target(target: Target, load: Load) -> LoadResult:
    """Run `load` with a call that goes over one connection to the target."""
    async with grpc.aio.insecure_channel(
        target.address,
        options=(
            *CHANNEL_OPTIONS,
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
        ),
    ) as channel:
        await channel.channel_ready()
        methods: dict[str, Any] = {}

        async def call(i: int) -> str:
            method, request = target.traffic(i)
            if method not in methods:
                methods[method] = channel.unary_unary(method)  # bytes in, bytes out
            try:
                answer = await methods[method](request, timeout=target.timeout_s)
            except grpc.aio.AioRpcError as error:
                raise CallFailed(error.code().name) from None
            return target.judge(method, answer)

        return await load(call)


def run_load(target: Target, load: Load) -> LoadResult:
    """Run `load` on `target` in this process, on an event loop of its own."""
    # select() waits to the microsecond where epoll rounds up to the next millisecond, which would
    # send every request up to a millisecond late.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(on_target(target, load))


class LoadProcess(ProcessPoolExecutor):
    """A process that generates load; a context manager. Calls block until the run is over."""

    def __init__(self) -> None:
        super().__init__(1, mp_context=multiprocessing.get_context("spawn"))

    def open_loop(
        self, target: Target, rate_per_s: float, *, seconds: float, seed: int = 0
    ) -> LoadResult:
        """As the function of that name, on `target`."""
        load = partial(
            open_loop, rate_per_s=rate_per_s, seconds=seconds, timeout_s=target.timeout_s, seed=seed
        )
        return self.submit(run_load, target, load).result()

    def closed_loop(
        self, target: Target, in_flight: int, *, seconds: float, max_requests: int = MAX_REQUESTS
    ) -> LoadResult:
        """As the function of that name, on `target`."""
        load = partial(
            closed_loop,
            in_flight=in_flight,
            seconds=seconds,
            max_requests=max_requests,
            timeout_s=target.timeout_s,
        )
        return self.submit(run_load, target, load).result()
