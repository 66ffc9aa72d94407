"""Work-conserving batching in front of a model, with admission by predicted completion.

One thread owns the model. Whenever it is free it takes what is queued, up to `max_batch_rows`, and
runs it as one batch; it never waits for a batch to fill. Batches are counted in rows, because a
request of 500 candidates costs what five of 100 do. A request that would miss its deadline behind
the current backlog is refused at once with the arithmetic, so that the caller can try another
replica or answer degraded while there is still time. One whose deadline is over when its turn comes
is not computed: it would only make the next ones late.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from services.common.rpc import RETRY_S
from services.common.telemetry import LATENCY_BUCKETS

BATCH_ROWS = Histogram(
    "tandem_batch_rows",
    "Rows per model call; mostly 1 request's worth means the replica is not the bottleneck.",
    ["service"],
    buckets=(1, 8, 32, 64, 128, 200, 256, 512, 1024, 2048, 4096, 8192),
)
BATCH_SECONDS = Histogram(
    "tandem_batch_seconds",
    "Time of one model call; its share of the request time decides between model and server work.",
    ["service"],
    buckets=LATENCY_BUCKETS,
)
QUEUE_ROWS = Gauge(
    "tandem_queue_rows",
    "Rows waiting or running; steadily above one batch means that more replicas are needed.",
    ["service"],
)
REJECTED = Counter(
    "tandem_admission_rejected_total",
    "Requests refused because they would have missed their deadline or the queue was full.",
    ["service", "reason"],
)

Request = TypeVar("Request")
Response = TypeVar("Response")


class Overloaded(Exception):
    """Refused at the door; the message holds the arithmetic, `retry_s` when there may be room."""

    def __init__(self, reason: str, message: str, retry_s: float = RETRY_S) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_s = retry_s


class ServiceTime:
    """What a batch takes, as fixed seconds and seconds per row: the line through recent batches.

    Least squares with weights that fall by a factor of 1 - WEIGHT per batch. As long as all batches
    have been of one size, every second counts as a row's, which refuses rather too much; a first
    batch of another size tells the two apart.
    """

    WEIGHT = 0.1
    SPREAD = 1e-3  # variance of the rows, over their mean squared, that a slope can be read from

    def __init__(self) -> None:
        self._rows = 0.0  # weighted means ...
        self._seconds = 0.0
        self._variance = 0.0  # ... of the rows, and their covariance with the seconds
        self._covariance = 0.0
        self._slope = math.inf  # the last one that could be read

    def observe(self, rows: int, seconds: float) -> None:
        """Take in a batch; `rows` >= 1."""
        if not self._rows:
            self._rows, self._seconds = float(rows), seconds
            return
        d_rows, d_seconds = rows - self._rows, seconds - self._seconds
        self._rows += self.WEIGHT * d_rows
        self._seconds += self.WEIGHT * d_seconds
        kept = 1 - self.WEIGHT
        self._variance = kept * (self._variance + self.WEIGHT * d_rows**2)
        self._covariance = kept * (self._covariance + self.WEIGHT * d_rows * d_seconds)
        if self._variance > self.SPREAD * self._rows**2:
            self._slope = self._covariance / self._variance

    @property
    def per_row_s(self) -> float:
        """Between 0 and what it would be if a batch had no fixed time; 0 before the first batch."""
        return min(max(self._slope, 0.0), self._seconds / self._rows) if self._rows else 0.0

    @property
    def per_batch_s(self) -> float:
        """The fixed time of a batch, at least 0."""
        return max(self._seconds - self.per_row_s * self._rows, 0.0)


def admit(
    backlog_rows: int,
    rows: int,
    max_queue_rows: int,
    max_batch_rows: int,
    service_time: ServiceTime,
    left_s: float,
    overrun_s: float = 0.0,
) -> float:
    """When a request of `rows` will be done, in seconds from now. Raises Overloaded if that is not
    within `left_s`, or if it does not fit.

    `backlog_rows` are the rows queued or running before it; `overrun_s` is what answers have lately
    taken beyond their prediction. An empty queue always admits what has any time left: then the
    prediction is the model's own time, and a refusal would never let it be measured anew.
    """
    if left_s <= 0:
        raise Overloaded("deadline", "the deadline was over when the request came")
    if backlog_rows and backlog_rows + rows > max_queue_rows:
        raise Overloaded(
            "queue_full", f"{backlog_rows} rows queued + {rows} exceed the limit {max_queue_rows}"
        )
    # One batch runs already, whatever its size; the others will be as full as they can be.
    batches = 1 + math.ceil((backlog_rows + rows) / max_batch_rows)
    fixed_s, per_row_s = service_time.per_batch_s, service_time.per_row_s
    predicted_s = batches * fixed_s + (backlog_rows + rows) * per_row_s
    if backlog_rows and predicted_s + overrun_s > left_s:
        raise Overloaded(
            "deadline",
            f"{batches} batches x {fixed_s * 1e3:.1f} ms"
            f" + ({backlog_rows} rows queued + {rows}) x {per_row_s * 1e6:.1f} us"
            f" + {overrun_s * 1e3:.1f} ms of overrun = {(predicted_s + overrun_s) * 1e3:.1f} ms"
            f" exceed the {left_s * 1e3:.1f} ms left",
        )
    return predicted_s


@dataclass
class _Pending(Generic[Request, Response]):
    request: Request
    rows: int
    due_s: float  # on the monotonic clock
    future: asyncio.Future[Response]


class Batcher(Generic[Request, Response]):
    """Runs `run(requests) -> responses` (same length and order) on its own thread.

    A response that is an exception fails its request alone; an exception that `run` raises fails
    every request of that batch. A request whose caller went away before its batch started is not
    computed. Made and used on one event loop.
    """

    def __init__(
        self,
        service: str,
        run: Callable[[Sequence[Request]], Sequence[Response | Exception]],
        *,
        max_batch_rows: int,
        max_queue_rows: int,
    ) -> None:
        self._run = run
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._service_time = ServiceTime()
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Pending[Request, Response]] = deque()
        self._backlog_rows = 0  # waiting and running
        self._overrun_s = 0.0  # smoothed as the service time; of the event loop mostly
        self._closed = False
        self._wake = threading.Condition()
        self._rows_metric = BATCH_ROWS.labels(service)
        self._seconds_metric = BATCH_SECONDS.labels(service)
        self._queue_metric = QUEUE_ROWS.labels(service)
        self._rejected = {
            reason: REJECTED.labels(service, reason) for reason in ("queue_full", "deadline")
        }
        self._thread = threading.Thread(target=self._work, name=f"{service}-model", daemon=True)
        self._thread.start()

    async def submit(self, request: Request, rows: int, left_s: float) -> Response:
        """The response, once its batch has run. Raises Overloaded, or what `run` raised."""
        came_s = time.monotonic()
        with self._wake:
            try:
                predicted_s = admit(
                    self._backlog_rows,
                    rows,
                    self._max_queue_rows,
                    self._max_batch_rows,
                    self._service_time,
                    left_s,
                    self._overrun_s,
                )
            except Overloaded as overloaded:
                self._rejected[overloaded.reason].inc()
                raise
            pending: _Pending[Request, Response] = _Pending(
                request, rows, came_s + left_s, self._loop.create_future()
            )
            self._waiting.append(pending)
            self._backlog_rows += rows
            self._wake.notify()
        response = await pending.future
        overrun_s = max(time.monotonic() - came_s - predicted_s, 0.0)
        self._overrun_s += ServiceTime.WEIGHT * (overrun_s - self._overrun_s)
        return response

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or running."""
        return not self._backlog_rows

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _take(self) -> list[_Pending[Request, Response]]:
        """What runs next: queued requests in order while they fit, at least one; [] at the end.

        Passes over those whose caller went away, and those whose deadline is over.
        """
        with self._wake:
            while True:
                self._wake.wait_for(lambda: self._waiting or self._closed)
                batch: list[_Pending[Request, Response]] = []
                rows = 0
                while self._waiting and (
                    not batch or rows + self._waiting[0].rows <= self._max_batch_rows
                ):
                    pending = self._waiting.popleft()
                    if pending.future.cancelled() or pending.due_s <= time.monotonic():
                        self._backlog_rows -= pending.rows
                        self._loop.call_soon_threadsafe(self._expire, pending)
                        continue
                    batch.append(pending)
                    rows += pending.rows
                if batch or self._closed:
                    return batch

    def _expire(self, pending: _Pending[Request, Response]) -> None:
        if not pending.future.done():
            self._rejected["deadline"].inc()
            pending.future.set_exception(
                Overloaded("deadline", "the deadline was over when its turn came")
            )

    def _work(self) -> None:
        while batch := self._take():
            rows = sum(pending.rows for pending in batch)
            self._queue_metric.set(self._backlog_rows)
            started = time.perf_counter()
            outcomes: Sequence[Response | Exception]
            try:
                outcomes = self._run([pending.request for pending in batch])
            except Exception as error:  # handed to the callers, who log or answer it
                outcomes = [error] * len(batch)
            seconds = time.perf_counter() - started
            with self._wake:
                self._backlog_rows -= rows
                self._service_time.observe(rows, seconds)
            self._rows_metric.observe(rows)
            self._seconds_metric.observe(seconds)
            self._queue_metric.set(self._backlog_rows)
            self._loop.call_soon_threadsafe(_deliver, batch, outcomes)


def _deliver(
    batch: Sequence[_Pending[Request, Response]],
    outcomes: Sequence[Response | Exception],
) -> None:
    """Resolve a batch's futures on the event loop; callers that went away are passed over."""
    for pending, outcome in zip(batch, outcomes, strict=True):
        if pending.future.done():
            continue
        if isinstance(outcome, Exception):
            pending.future.set_exception(outcome)
        else:
            pending.future.set_result(outcome)
