"""The way of a Recommend request: assign, hydrate, retrieve, filter, rank, rerank, respond.

Every stage gets its own limit or what is left of the request's budget, whichever is smaller, and
may fail or be late: the answer still comes and says what was degraded.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import structlog

from feature_store.codec import RowStatus
from feature_store.interface import FeatureStore
from models.catalogue import ItemTable
from models.schema import HISTORY, PROFILE, item_key
from protos.tandem.v1.recommender_pb2 import RecommendRequest, RecommendResponse
from protos.tandem.v1.records_pb2 import Degradation
from services.common.balancer import ReplicaSet
from services.common.settings import RouterSettings
from services.common.telemetry import REQUEST_ID
from services.experiments.assignment import Assigner
from services.router import metrics
from services.router.filter import filter_candidates
from services.router.hydrate import hydrate, seen_keys
from services.router.rank import rank
from services.router.request import Budget, RequestState
from services.router.rerank import rerank
from services.router.respond import respond
from services.router.retrieve import retrieve, user_context

log = structlog.get_logger()

_random = random.Random(os.urandom(32))  # request ids: unique, not secret

_STAGE_SECONDS = {stage: metrics.STAGE_SECONDS.labels(stage) for stage in metrics.STAGES}
_FEATURE_AGE = {group.name: metrics.FEATURE_AGE.labels(group.name) for group in (PROFILE, HISTORY)}
_FEATURE_STATUS = {
    group.name: [metrics.FEATURE_STATUS.labels(group.name, s.name.lower()) for s in RowStatus]
    for group in (PROFILE, HISTORY)
}


@dataclass(frozen=True)
class Surroundings:
    """What the pipeline works with. The callables give what is in force at this moment."""

    store: FeatureStore
    candidate_generation: ReplicaSet
    ranking: ReplicaSet
    items: Callable[[], ItemTable]
    blocked: Callable[[], np.ndarray]  # uint64 keys, ascending, of items nobody is shown
    assigner: Callable[[], Assigner]
    settings: RouterSettings
    clock: Callable[[], float] = time.time


class StageTimer:
    """Laps of one request: each `lap` books the ms since the last one to a stage."""

    __slots__ = ("_laps_ms", "_since")

    def __init__(self, laps_ms: dict[str, float]) -> None:
        self._laps_ms = laps_ms
        self._since = time.perf_counter()

    def abandoned(self) -> None:
        """Count what was timed of a request that gets no answer, the open stage included.

        Such requests are often the slow ones: leaving them out would flatter every stage.
        """
        if len(self._laps_ms) < len(metrics.STAGES):
            self.lap(metrics.STAGES[len(self._laps_ms)])
        _observe(self._laps_ms)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._laps_ms[stage] = (now - self._since) * 1000.0
        self._since = now


async def recommend(
    request: RecommendRequest, left_s: float, around: Surroundings
) -> tuple[RecommendResponse, RequestState]:
    """Answer a checked request within `left_s` (the client's) or the settings' deadline.

    Also returns the state, which the decision record is written from.
    """
    settings = around.settings
    total_s = min(left_s, settings.deadline_ms / 1000.0) - settings.respond_reserve_ms / 1000.0
    stage_ms: dict[str, float] = {}
    timer = StageTimer(stage_ms)
    items = around.items()
    now_ms = int(around.clock() * 1000)
    decision = around.assigner().assign(
        request.user_id,
        request.session_id,
        now_ms=now_ms,
        surface=request.surface,
        context=request.context,
    )
    state = RequestState(
        request,
        f"{_random.getrandbits(128):032x}",
        now_ms,
        Budget(total_s),
        decision.parameters,
        decision.messages,
        decision.overrides,
        decision.held_out,
        stage_ms=stage_ms,
    )
    REQUEST_ID.set(state.request_id)
    timer.lap("assign")
    try:
        await hydrate(state, around.store, settings.hydrate_ms / 1000.0)
        state.excluded = _excluded(state)
        timer.lap("hydrate")
        user = user_context(state)
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
    except BaseException:
        timer.abandoned()
        raise
    return response, state


def _excluded(state: RequestState) -> bytes:
    """Packed keys that this user must not be shown: seen, or excluded by the caller."""
    seen = seen_keys(state.history.row)
    if not state.request.exclude_item_ids:
        return seen
    keys = [item_key(item_id) for item_id in state.request.exclude_item_ids]
    return seen + np.array(keys, "<u8").tobytes()


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
    for assignment in state.assignments:
        if not assignment.overridden:
            metrics.EXPOSURES.labels(assignment.experiment, assignment.arm).value += 1
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
