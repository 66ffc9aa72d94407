"""The way of a Recommend request: assign, hydrate, retrieve, filter, rank, rerank, respond.

Where a condition of a running experiment looks at the user, hydrate comes before assign.

Every stage gets its own limit or what is left of the request's budget, whichever is smaller, and
may fail or be late: the answer still comes and says what was degraded.

An interleaved request has two sets of parameters, which go through retrieve, filter and rank side
by side and within the same limits; what they have in common is done once.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence

from protos.tandem.v1.recommender_pb2 import RecommendRequest, RecommendResponse
from protos.tandem.v1.records_pb2 import ABANDONED, ANSWERED, FAILED
from services.common.telemetry import REQUEST_ID
from services.experiments.assign.assignment import Decision
from services.experiments.declare.targeting import NOTHING, Context
from services.router.filter import filter_candidates
from services.router.hydrate import hydrate
from services.router.interleave import interleave, same_model, same_pool
from services.router.metrics import STAGES
from services.router.rank import rank
from services.router.request import Budget, Query, Ranking, Request, RequestState, Shown
from services.router.rerank import rerank
from services.router.respond import respond
from services.router.retrieve import retrieve
from services.router.surroundings import Surroundings
from services.router.user_rows import features_of

_random = random.Random(os.urandom(32))  # request ids: unique, not secret

_USER_FIRST = ("hydrate", "assign", *STAGES[2:])


class StageTimer:
    """Laps of one request: each `lap` books the ms since the last one to a stage."""

    __slots__ = ("_laps_ms", "_since", "_stages")

    def __init__(self, laps_ms: dict[str, float], stages: Sequence[str]) -> None:
        """`stages`: all of them, in the order in which they come."""
        self._laps_ms = laps_ms
        self._stages = stages
        self._since = time.perf_counter()

    def abandon(self) -> None:
        """End the open stage of a request that gets no answer."""
        if len(self._laps_ms) < len(self._stages):
            self.lap(self._stages[len(self._laps_ms)])

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._laps_ms[stage] = (now - self._since) * 1000.0
        self._since = now


def begin(asked: RecommendRequest, budget_s: float, around: Surroundings) -> RequestState:
    """A checked request that has just come; its stages may take `budget_s` together."""
    request = Request(
        asked,
        f"{_random.getrandbits(128):032x}",
        int(around.clock() * 1000),
        Budget(budget_s),
        around.assigner(),
        around.rows.revision,
    )
    return RequestState(request=request)


async def recommend(state: RequestState, around: Surroundings) -> RecommendResponse:
    """Answer a request that has begun. However it ends, the state says how far it came; the
    decision record is written from that."""
    request = state.request
    # Conditions on the user's features wait for them; otherwise assignment does not.
    user_first = request.assigner.needs_user
    timer = StageTimer(state.stage_ms, _USER_FIRST if user_first else STAGES)
    REQUEST_ID.set(request.request_id)
    try:
        if not user_first:
            state.decision = _assigned(request, NOTHING)
            timer.lap("assign")
        limit_s = around.settings.hydrate_ms / 1000.0
        state.user = await hydrate(request, around.rows, around.store, around.recent, limit_s)
        timer.lap("hydrate")
        if user_first:
            state.decision = _assigned(request, features_of(state.user.numbers))
            timer.lap("assign")
        shown = state.shown = await _list(state, around, timer)
        response = respond(state, shown)
        timer.lap("respond")
    except BaseException as error:
        timer.abandon()
        if isinstance(error, asyncio.CancelledError):
            state.outcome = ABANDONED
        elif isinstance(error, Exception):
            state.outcome = FAILED
        raise
    state.outcome = ANSWERED
    return response


def _assigned(request: Request, user: Context) -> Decision:
    asked = request.asked
    return request.assigner.assign(
        asked.user_id,
        asked.session_id,
        now_ms=request.now_ms,
        surface=asked.surface,
        context=asked.context,
        unit_ids=asked.unit_ids,
        user=user,
    )


async def _list(state: RequestState, around: Surroundings, timer: StageTimer) -> Shown:
    """Retrieve, filter, rank and rerank by the parameters of the decision, or by both arms'."""
    query = Query(
        state.request,
        state.user,
        state.decision.parameters,
        around.items(),
        around.value_model,
        around.blocked(),
        state.read,
        around.popular(),
    )
    arms = state.decision.interleaved
    if arms is None:
        sides, one_pool, one_call = [query], True, True
    else:
        sides = [query._replace(parameters=parameters) for parameters in (arms.a, arms.b)]
        one_pool = same_pool(arms.a, arms.b)
        one_call = one_pool and same_model(arms.a, arms.b)

    retrieving = sides[:1] if one_pool else sides
    finding = [retrieve(side, around) for side in retrieving]
    pools = [await finding[0]] if one_pool else await asyncio.gather(*finding)
    if arms is None:
        state.ranking = Ranking(pools[0])
    timer.lap("retrieve")

    pools = list(map(filter_candidates, pools, retrieving))
    timer.lap("filter")

    asking = sides[:1] if one_call else sides
    if len(pools) < len(asking):
        pools *= 2
    judging = [rank(pool, side, around) for pool, side in zip(pools, asking, strict=True)]
    rankings = [await judging[0]] if one_call else await asyncio.gather(*judging)
    timer.lap("rank")

    if arms is None:
        state.ranking = rankings[0]
        shown = rerank(rankings[0], query)
    else:
        shown = interleave(rankings[0], rankings[-1], query, arms)
    timer.lap("rerank")
    return shown
