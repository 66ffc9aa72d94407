"""The way of a Recommend request: assign, hydrate, retrieve, filter, rank, rerank, respond.

Where a condition of a running experiment looks at the user, hydrate comes before assign.

Every stage gets its own limit or what is left of the request's budget, whichever is smaller, and
may fail or be late: the answer still comes and says what was degraded.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import structlog

from feature_store.codec import RowStatus
from models.schema import HISTORY, PROFILE, item_key
from protos.tandem.v1.recommender_pb2 import RecommendRequest, RecommendResponse
from protos.tandem.v1.records_pb2 import ABANDONED, FAILED, Degradation
from services.common.packed import U8
from services.common.telemetry import REQUEST_ID
from services.experiments.assign.assignment import Assigner
from services.experiments.declare.targeting import NOTHING, Context
from services.router import metrics
from services.router.exposure import exposure_of
from services.router.filter import filter_candidates
from services.router.hydrate import hydrate, seen_keys, user_features
from services.router.interleave import interleave
from services.router.rank import rank
from services.router.request import UNASSIGNED, Budget, RequestState
from services.router.rerank import rerank
from services.router.respond import respond
from services.router.retrieve import retrieve, user_context
from services.router.surroundings import Surroundings

log = structlog.get_logger()

_random = random.Random(os.urandom(32))  # request ids: unique, not secret

_USER_FIRST = ("hydrate", "assign", *metrics.STAGES[2:])

_STAGE_SECONDS = {stage: metrics.STAGE_SECONDS.labels(stage) for stage in metrics.STAGES}
_FEATURE_AGE = {group.name: metrics.FEATURE_AGE.labels(group.name) for group in (PROFILE, HISTORY)}
_FEATURE_STATUS = {
    group.name: [metrics.FEATURE_STATUS.labels(group.name, s.name.lower()) for s in RowStatus]
    for group in (PROFILE, HISTORY)
}


class StageTimer:
    """Laps of one request: each `lap` books the ms since the last one to a stage."""

    __slots__ = ("_laps_ms", "_since", "_stages")

    def __init__(self, laps_ms: dict[str, float], stages: Sequence[str]) -> None:
        """`stages`: all of them, in the order in which they come."""
        self._laps_ms = laps_ms
        self._stages = stages
        self._since = time.perf_counter()

    def abandoned(self) -> None:
        """Count what was timed of a request that gets no answer, the open stage included.

        Such requests are often the slow ones: leaving them out would flatter every stage.
        """
        if len(self._laps_ms) < len(self._stages):
            self.lap(self._stages[len(self._laps_ms)])
        _observe(self._laps_ms)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._laps_ms[stage] = (now - self._since) * 1000.0
        self._since = now


async def recommend(
    request: RecommendRequest,
    budget_s: float,
    around: Surroundings,
    unanswered: Callable[[RequestState], None] | None = None,
) -> tuple[RecommendResponse, RequestState]:
    """Answer a checked request; its stages may take `budget_s` together.

    Also returns the state, which the decision record is written from. `unanswered` gets the state
    of a request that fails or is abandoned after it was assigned its arms.
    """
    settings = around.settings
    assigner = around.assigner()
    # Conditions on the user's features wait for them; otherwise assignment does not.
    user_first = assigner.needs_user
    stage_ms: dict[str, float] = {}
    timer = StageTimer(stage_ms, _USER_FIRST if user_first else metrics.STAGES)
    items = around.items()
    state = RequestState(
        request,
        f"{_random.getrandbits(128):032x}",
        int(around.clock() * 1000),
        Budget(budget_s),
        assigner=assigner,
        stage_ms=stage_ms,
    )
    REQUEST_ID.set(state.request_id)
    try:
        if not user_first:
            _assign(state, assigner, NOTHING)
            timer.lap("assign")
        await hydrate(state, around.store, around.recent, settings.hydrate_ms / 1000.0)
        state.excluded = _excluded(state)
        timer.lap("hydrate")
        if user_first:
            _assign(state, assigner, user_features(state.profile.row))
            timer.lap("assign")
        user = user_context(state)
        if state.decision.interleaved is not None:
            await interleave(state, state.decision.interleaved, user, around, items, timer.lap)
        else:
            blocked = around.blocked()
            await retrieve(
                state,
                user,
                around.candidate_generation,
                items,
                len(blocked),
                settings.retrieve_ms / 1000.0,
            )
            timer.lap("retrieve")
            filter_candidates(state, items, blocked)
            timer.lap("filter")
            await rank(state, user, around.ranking, settings.rank_ms / 1000.0)
            timer.lap("rank")
            rerank(state, items)
            timer.lap("rerank")
        response = respond(state)
        timer.lap("respond")
    except BaseException as error:
        timer.abandoned()
        if unanswered is not None:
            _hand_over(state, error, unanswered)
        raise
    return response, state


def _assign(state: RequestState, assigner: Assigner, user: Context) -> None:
    request = state.request
    state.decision = assigner.assign(
        request.user_id,
        request.session_id,
        now_ms=state.now_ms,
        surface=request.surface,
        context=request.context,
        unit_ids=request.unit_ids,
        user=user,
    )
    state.parameters = state.decision.parameters


def _hand_over(
    state: RequestState, error: BaseException, unanswered: Callable[[RequestState], None]
) -> None:
    """Say how a request ended whose arms are known; whatever happens here, `error` goes on."""
    if state.decision is UNASSIGNED:
        return
    if isinstance(error, asyncio.CancelledError):
        state.outcome = ABANDONED
    elif isinstance(error, Exception):
        state.outcome = FAILED
    else:
        return  # the process is ending
    try:
        unanswered(state)
    except Exception:
        metrics.DECISIONS_LOST.inc()
        log.exception("decision_not_recorded", request_id=state.request_id)


def _excluded(state: RequestState) -> bytes:
    """Packed keys that this user must not be shown: seen, or excluded by the caller."""
    seen = seen_keys(state.history.row)
    if not state.request.exclude_item_ids:
        return seen
    keys = [item_key(item_id) for item_id in state.request.exclude_item_ids]
    return seen + np.array(keys, U8).tobytes()


_DEGRADATION_NAMES = {value: name for name, value in Degradation.items() if value}
_DEGRADATION_COUNTS = {
    value: metrics.DEGRADATIONS.labels(name.lower()) for value, name in _DEGRADATION_NAMES.items()
}
# A replica of a newer version may know kinds that this one does not.
_UNKNOWN_DEGRADATION = metrics.DEGRADATIONS.labels("unknown")


def _observe(stage_ms: Mapping[str, float]) -> None:
    for stage, ms in stage_ms.items():
        _STAGE_SECONDS[stage].observe(ms / 1000.0)


def count_answer(state: RequestState) -> None:
    """Metrics of one answer. Called after it has gone out, and after the pipeline's last stage."""
    state.cut()
    _observe(state.stage_ms)
    for name, served in (("profile", state.profile), ("history", state.history)):
        _FEATURE_STATUS[name][served.status].value += 1
        if served.row:
            _FEATURE_AGE[name].observe(served.age_s)
    for counter in exposure_of(state).counters:
        counter.value += 1
    candidates = state.candidates
    assert candidates is not None
    source_of = candidates.source.tobytes()
    for i, source in enumerate(candidates.sources):
        metrics.ITEMS.labels(source).value += source_of.count(i)
    if state.degradations:
        for degradation in state.degradations:
            _DEGRADATION_COUNTS.get(degradation, _UNKNOWN_DEGRADATION).inc()
        log.debug(
            "degraded",
            request_id=state.request_id,
            kinds=[_DEGRADATION_NAMES.get(d, str(d)) for d in state.degradations],
        )
