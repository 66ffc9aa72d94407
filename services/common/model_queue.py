"""What the model services share between an RPC and a model: choice of model, admission, batching.

Jobs that are queued when the model thread is free run as one batch per model. The version is taken
once per batch, so one answer never mixes two versions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import grpc

from protos.tandem.v1.features_pb2 import UserContext
from services.common.batcher import Batcher, Overloaded
from services.common.model_slot import Loaded, ModelSlot
from services.common.rpc import Refusal, time_left
from services.common.telemetry import REQUEST_ID


class ModelJob(Protocol):
    @property
    def user(self) -> UserContext: ...

    @property
    def model(self) -> str:
        """Name of the served model; empty: the first one."""
        ...


Job = TypeVar("Job", bound=ModelJob)
Response = TypeVar("Response")


class ModelQueue(Generic[Job, Loaded, Response]):
    """Jobs of one service for the models in `slots`; made and used on one event loop."""

    def __init__(
        self,
        service: str,
        slots: Mapping[str, ModelSlot[Loaded]],
        answer: Callable[[Loaded, Sequence[Job]], Sequence[Response]],
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        recent: deque[Job],
    ) -> None:
        """`answer` computes one batch with one version; `recent` records jobs to warm up with."""
        self._slots = slots
        self._default = next(iter(slots))
        self._answer = answer
        self._recent = recent
        self._batcher: Batcher[Job, Response] = Batcher(
            service, self._run, max_batch_rows=max_batch_rows, max_queue_rows=max_queue_rows
        )

    async def submit(self, job: Job, rows: int, context: grpc.aio.ServicerContext) -> Response:
        """The job's response. Raises Refusal: NOT_FOUND (unknown model), RESOURCE_EXHAUSTED."""
        if self._name(job) not in self._slots:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                f"model: {job.model!r} is not served here; served: {', '.join(self._slots)}",
            )
        REQUEST_ID.set(job.user.request_id)
        self._recent.append(job)
        try:
            return await self._batcher.submit(job, rows, time_left(context))
        except Overloaded as overloaded:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, str(overloaded)) from None

    def close(self) -> None:
        """Finish what is queued and end the model thread."""
        self._batcher.close()

    def _name(self, job: Job) -> str:
        return job.model or self._default

    def _run(self, jobs: Sequence[Job]) -> list[Response]:
        responses: dict[int, Response] = {}
        for name in {self._name(job) for job in jobs}:
            at = [i for i, job in enumerate(jobs) if self._name(job) == name]
            answers = self._answer(self._slots[name].loaded, [jobs[i] for i in at])
            responses.update(zip(at, answers, strict=True))
        return [responses[i] for i in range(len(jobs))]
