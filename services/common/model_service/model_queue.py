"""What the model services share between an RPC and a model: choice of model, admission, batching.

Jobs that are queued when the model thread is free run as one batch per model. The version is taken
once per batch, so one answer never mixes two versions. Models fail one by one: an arm's model that
raises takes no other arm's requests with it, and of its own only those that make it raise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import grpc

from protos.tandem.v1.features_pb2 import UserContext
from services.common.batcher import Batcher, Overloaded
from services.common.current_version import Loaded
from services.common.model_service.model_slot import ModelSlot
from services.common.rpc import Refusal, time_left
from services.common.settings import ReplicaSettings
from services.common.telemetry import REQUEST_ID


class ModelJob(Protocol):
    @property
    def user(self) -> UserContext: ...

    @property
    def model(self) -> str:
        """Name of the served model; empty: the first one."""


Job = TypeVar("Job", bound=ModelJob)
Response = TypeVar("Response")


class ModelQueue(Generic[Job, Loaded, Response]):
    """Jobs of one service for the models in `slots`; made and used on one event loop."""

    def __init__(
        self,
        service: str,
        slots: Mapping[str, ModelSlot[Loaded, Job]],
        answer: Callable[[Loaded, Sequence[Job]], Sequence[Response]],
        sound: Callable[[Response], bool],
        limits: ReplicaSettings,
    ) -> None:
        """`answer` computes one batch with one version; jobs whose response is `sound` are kept to
        warm the next version with."""
        self._slots = slots
        self._default = next(iter(slots))
        self._answer = answer
        self._sound = sound
        self._broken: set[str] = set()  # models that answered none of several jobs the last time
        self._batcher: Batcher[Job, Response] = Batcher(
            service,
            self._run,
            max_batch_rows=limits.max_batch_rows,
            max_queue_rows=limits.max_queue_rows,
        )

    async def submit(self, job: Job, rows: int, context: grpc.aio.ServicerContext) -> Response:
        """The job's response. Raises what the model raised for it, or Refusal: NOT_FOUND (unknown
        model), UNAVAILABLE (none of its versions can be served), RESOURCE_EXHAUSTED."""
        slot = self._slots.get(self._name(job))
        if slot is None:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                f"model: {job.model!r} is not served here; served: {', '.join(self._slots)}",
            )
        if not slot.in_force:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE,
                f"model: {slot.name} has no version that can be served: see the replica's log",
            )
        REQUEST_ID.set(job.user.request_id)
        try:
            response = await self._batcher.submit(job, rows, time_left(context))
        except Overloaded as overloaded:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, str(overloaded)) from None
        if self._sound(response):
            slot.recent.append(job)
        return response

    def idle(self) -> bool:
        """Whether nothing is queued or computed."""
        return self._batcher.idle

    def close(self) -> None:
        """Finish what is queued and end the model thread."""
        self._batcher.close()

    def _name(self, job: Job) -> str:
        return job.model or self._default

    def _run(self, jobs: Sequence[Job]) -> list[Response | Exception]:
        outcomes: dict[int, Response | Exception] = {}
        for name in {self._name(job) for job in jobs}:
            at = [i for i, job in enumerate(jobs) if self._name(job) == name]
            outcomes.update(zip(at, self._answers(name, [jobs[i] for i in at]), strict=True))
        return [outcomes[i] for i in range(len(jobs))]

    def _answers(self, name: str, jobs: Sequence[Job]) -> Sequence[Response | Exception]:
        loaded = self._slots[name].loaded
        # Enough to find one culprit, which takes as long as two batches. A model that fails all
        # that it is given must not cost the others even that.
        halvings = 0 if name in self._broken else len(jobs).bit_length()
        outcomes = outcomes_of(lambda some: self._answer(loaded, some), jobs, halvings)
        if any(not isinstance(outcome, Exception) for outcome in outcomes):
            self._broken.discard(name)
        elif len(jobs) > 1:
            self._broken.add(name)
        return outcomes


def outcomes_of(
    answer: Callable[[Sequence[Job]], Sequence[Response]], jobs: Sequence[Job], halvings: int
) -> list[Response | Exception]:
    """Each job's response, or what was raised for it, in order.

    Jobs that fail together are halved and tried again, until those that fail are alone or groups
    have been halved `halvings` times: the rest fails with its group.
    """
    outcomes: list[Response | Exception] = []
    groups = [jobs]  # the next one last
    while groups:
        group = groups.pop()
        try:
            outcomes += answer(group)
        except Exception as error:  # theirs, not that of the others
            if len(group) == 1 or not halvings:
                outcomes += [error] * len(group)
            else:
                halvings -= 1
                half = len(group) // 2
                groups += [group[half:], group[:half]]
    return outcomes
