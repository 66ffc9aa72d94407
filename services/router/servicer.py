"""Recommender over gRPC: the front door. A plain grpc.aio servicer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import grpc

from protos.tandem.v1 import recommender_pb2 as pb
from protos.tandem.v1 import recommender_pb2_grpc
from services.common.rpc import Refusal, rpc_method, time_left
from services.event_log.interface import EventLog
from services.feedback.ingest import Ingest
from services.router.decisions import DecisionLog
from services.router.pipeline import recommend
from services.router.surroundings import Surroundings
from services.router.validate import check_recommend

SERVICE = "tandem.v1.Recommender"


class RecommenderServicer(recommender_pb2_grpc.RecommenderServicer):
    """Recommend runs the pipeline; feedback goes to the event log."""

    def __init__(
        self,
        around: Surroundings,
        event_log: EventLog,
        ingest: Ingest,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._around = around
        self._decisions = DecisionLog(event_log)
        self._ingest = ingest
        self._clock = clock
        self._surfaces = frozenset(around.settings.surfaces)
        self._max_in_flight = around.settings.max_in_flight
        self._in_flight = 0

    @rpc_method("recommender")
    async def Recommend(
        self, request: pb.RecommendRequest, context: grpc.aio.ServicerContext
    ) -> pb.RecommendResponse:
        check_recommend(request, self._surfaces)
        left_s = time_left(context)
        if left_s <= 0:
            raise Refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline was over before the work began"
            )
        if self._in_flight >= self._max_in_flight:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._in_flight} requests are at work, at most {self._max_in_flight}"
                " (router.max_in_flight); retry later or at another router",
            )
        self._in_flight += 1
        try:
            response, state = await recommend(
                request, left_s, self._around, unanswered=self._decisions.write
            )
        finally:
            self._in_flight -= 1
        self._decisions.write(state)
        return response

    @rpc_method("recommender")
    async def RecordFeedback(
        self, request: pb.RecordFeedbackRequest, context: grpc.aio.ServicerContext
    ) -> pb.RecordFeedbackResponse:
        return pb.RecordFeedbackResponse(recorded=await self._record(request))

    @rpc_method("recommender")
    async def RecordFeedbackStream(
        self,
        request_iterator: AsyncIterator[pb.RecordFeedbackRequest],
        context: grpc.aio.ServicerContext,
    ) -> pb.RecordFeedbackResponse:
        recorded = 0
        batch = 0
        try:
            async for request in request_iterator:
                recorded += await self._record(request)
                batch += 1
        except Refusal as refusal:
            context.set_trailing_metadata((("tandem-recorded-events", str(recorded)),))
            raise Refusal(refusal.code, f"batch {batch}: {refusal.message}") from None
        return pb.RecordFeedbackResponse(recorded=recorded)

    async def _record(self, request: pb.RecordFeedbackRequest) -> int:
        """Make a batch durable; from the acknowledgement on its events count in every answer."""
        recorded = await self._ingest.record(request.events, int(self._clock() * 1000))
        self._around.recent.add(request.events)
        return recorded

    def close(self) -> None:
        """Write the last decision records to the log; after the last answer, before its close."""
        self._decisions.flush()
