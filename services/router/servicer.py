"""Recommender over gRPC: the front door. A plain grpc.aio servicer."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc

from protos.tandem.v1 import recommender_pb2 as pb
from protos.tandem.v1 import recommender_pb2_grpc
from services.common.batcher import REJECTED, Overloaded
from services.common.rpc import Refusal, check_readable, rpc_method, time_left
from services.common.validate import check_recommend
from services.event_log.interface import EventLog
from services.feedback.ingest import Ingest
from services.router import metrics
from services.router.admission import Admission
from services.router.decisions import DecisionLog
from services.router.pipeline import begin, recommend
from services.router.request import RequestState
from services.router.reserve import Reserve
from services.router.surroundings import Surroundings

SERVICE = "tandem.v1.Recommender"


class RecommenderServicer(recommender_pb2_grpc.RecommenderServicer):
    """Recommend runs the pipeline; feedback goes to the event log."""

    def __init__(self, around: Surroundings, event_log: EventLog, ingest: Ingest) -> None:
        settings = around.settings
        self._around = around
        no_calls = settings.model_copy(update={"retrieve_ms": 0.0, "rank_ms": 0.0})
        self._without_models = replace(around, settings=no_calls)
        self._decisions = DecisionLog(event_log)
        self._ingest = ingest
        self._surfaces = around.value_model.surfaces
        self._deadline_s = settings.deadline_ms / 1000.0
        self._retrieve_ms, self._rank_ms = settings.retrieve_ms, settings.rank_ms
        self._reserve = Reserve(settings.respond_reserve_ms / 1000.0, self._deadline_s)
        self._admission = Admission(settings.max_in_flight)
        metrics.RESERVE_SECONDS.set_function(lambda: self._reserve.seconds)
        metrics.AT_WORK.set_function(lambda: self._admission.at_work)
        metrics.SECONDS_PER_REQUEST.set_function(lambda: self._admission.per_request_s)

    @rpc_method("recommender")
    async def Recommend(
        self, request: pb.RecommendRequest, context: grpc.aio.ServicerContext
    ) -> pb.RecommendResponse:
        check_recommend(request, self._surfaces, self._around.rows.context)
        left_s = time_left(context)
        if left_s <= 0:
            raise Refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline was over before the work began"
            )
        began_s = time.monotonic()
        ends_s = began_s + min(left_s, self._deadline_s)
        budget_s = ends_s - began_s - self._reserve.seconds
        try:
            at_work = self._admission.enter(budget_s)
        except Overloaded as overloaded:
            if overloaded.reason != "deadline" or not self._models_hang(began_s):
                raise _refusal(overloaded) from None
            # Those at work will be late whoever is refused: so nobody is.
            response, _ = await self._recommend(request, budget_s, self._without_models)
        else:
            took_s = None
            try:
                response, state = await self._recommend(request, budget_s, self._around)
                took_s = self._took_s(state, budget_s, time.monotonic() - began_s)
            except asyncio.CancelledError:
                if time_left(context) <= 0:
                    took_s = math.inf
                    if budget_s > 0:
                        self._reserve.answered(0.0)
                raise
            finally:
                self._admission.leave(budget_s, at_work, took_s)
        if budget_s > 0:
            self._reserve.answered(ends_s - time.monotonic())
        return response

    async def _recommend(
        self, request: pb.RecommendRequest, budget_s: float, around: Surroundings
    ) -> tuple[pb.RecommendResponse, RequestState]:
        """Answered, failed or given up: every request goes to the decision log in the end."""
        state = begin(request, budget_s, around)
        try:
            return await recommend(state, around), state
        finally:
            self._decisions.write(state)

    def _took_s(self, state: RequestState, allowed_s: float, answered_s: float) -> float:
        """How long an answer took, for admission: a stage counts by its own limit."""
        if state.request.budget.ran_out:
            return math.inf
        stage_ms = state.stage_ms
        share = max(stage_ms["retrieve"] / self._retrieve_ms, stage_ms["rank"] / self._rank_ms)
        return max(answered_s, share * allowed_s)

    def _models_hang(self, now_s: float) -> bool:
        around = self._around
        return around.candidate_generation.hangs(now_s) or around.ranking.hangs(now_s)

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
                check_readable(request)
                recorded += await self._record(request)
                batch += 1
        except Refusal as refusal:
            context.set_trailing_metadata((("tandem-recorded-events", str(recorded)),))
            raise Refusal(
                refusal.code, f"batch {batch}: {refusal.message}", refusal.retry_s
            ) from None
        return pb.RecordFeedbackResponse(recorded=recorded)

    async def _record(self, request: pb.RecordFeedbackRequest) -> int:
        """Make a batch durable; from the acknowledgement on its events count in every answer."""
        recorded = await self._ingest.record(request.events, int(self._around.clock() * 1000))
        self._around.recent.add(request.events)
        return recorded

    def close(self) -> None:
        """Write the last decision records to the log; after the last answer, before its close."""
        self._decisions.flush()


def _refusal(overloaded: Overloaded) -> Refusal:
    REJECTED.labels("recommender", overloaded.reason).inc()
    retry_s = overloaded.retry_s * random.uniform(0.5, 1.5)  # not all at once
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{overloaded}; retry in {retry_s * 1e3:.0f} ms or at another router",
        retry_s,
    )
