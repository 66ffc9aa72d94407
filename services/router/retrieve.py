"""Stage 3: candidates from candidate generation; popular items when it is down or late."""

from __future__ import annotations

import math
from functools import lru_cache

import grpc
import numpy as np
import structlog

from models.catalogue import ItemTable
from protos.tandem.v1.candidate_generation_pb2 import RetrieveRequest, RetrieveResponse
from protos.tandem.v1.features_pb2 import UserContext
from protos.tandem.v1.records_pb2 import POPULAR_FALLBACK
from services.common.balancer import NoReplica, ReplicaSet
from services.common.packed import F4, U4, U8
from services.router.metrics import STAGE_FAILURES
from services.router.request import POPULAR, Budget, Candidates, RequestState

log = structlog.get_logger()

MAX_CANDIDATES = 5_000  # that candidate generation accepts
MIN_CALL_S = 0.001  # with less than this left a call could not even be sent
MISFIT = "the packed fields differ in length"
NOT_FINITE = "a score is NaN or infinite"
TOO_BUSY = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED})


def user_context(state: RequestState) -> UserContext:
    """What both model services need of the user."""
    request = state.request
    return UserContext(
        user_id=request.user_id,
        surface=request.surface,
        now_ms=state.now_ms,
        profile_row=state.profile.row,
        history_row=state.history.row,
        context=request.context or None,
        request_id=state.request_id,
    )


async def retrieve(
    state: RequestState,
    user: UserContext,
    replicas: ReplicaSet,
    items: ItemTable,
    blocked_count: int,
    limit_s: float,
) -> None:
    """Fill the candidates. The user's excluded keys travel along, so that the answer is full."""
    # Blocked items are the router's to remove: a long list must not travel with every request.
    asked = state.wanted + min(blocked_count, state.wanted)
    timeout_s = state.budget.stage(limit_s)
    if timeout_s >= MIN_CALL_S:
        try:
            response = await replicas.call(
                "Retrieve",
                RetrieveRequest(
                    user=user,
                    num_candidates=min(asked, MAX_CANDIDATES),
                    model=state.parameters.retrieval_model,
                    exclude_item_keys=state.excluded,
                ),
                timeout_s,
            )
            state.candidates = _unpacked(response, items)
        except (NoReplica, grpc.aio.AioRpcError, Malformed) as error:
            note_failure("retrieve", error, state.budget)
        else:
            state.model_versions["candidate_generation"] = response.model_version
            state.retrieved = len(state.candidates.rows)
            return
    else:
        state.budget.ran_out = True
    state.degrade(POPULAR_FALLBACK)
    state.candidates = popular(items, asked + len(state.excluded) // 8 + blocked_count)
    state.retrieved = len(state.candidates.rows)


def _unpacked(response: RetrieveResponse, items: ItemTable) -> Candidates:
    """The candidates of an answer. Raises Malformed."""
    packed_keys, packed_scores = response.item_keys, response.scores
    packed_source, packed_interest = response.source_index, response.interest_index
    sources, count = tuple(response.sources[:]), len(packed_source)
    if not (len(packed_keys) == 8 * count == 2 * len(packed_scores) == 8 * len(packed_interest)):
        raise _malformed(response, MISFIT)
    scores = np.frombuffer(packed_scores, F4)
    if not finite(scores):
        raise _malformed(response, NOT_FINITE)
    source = np.frombuffer(packed_source, np.uint8)
    # Mostly all are of the first one, which is told in a tenth of the time.
    last = 0 if packed_source == bytes(count) else int(source.max())
    if count and last >= len(sources):
        raise _malformed(response, "a source has no name")
    keys = np.frombuffer(packed_keys, U8)
    packed_rows = response.item_rows
    same_table = response.catalogue == items.fingerprint and len(packed_rows) == 4 * count
    if same_table:
        rows = np.frombuffer(packed_rows, U4)
        # A fifth of the time of `min` and `max`.
        if count and not 0 < rows.item(rows.argmin()) <= rows.item(rows.argmax()) <= len(items):
            raise _malformed(response, "a row is of no item")
    else:
        rows = items.index_of(keys)
    return Candidates(
        rows,
        keys,
        scores,
        source,
        np.frombuffer(packed_interest, np.uint8),
        sources,
        screened=same_table or bool(rows.all()),
    )


def _malformed(response: RetrieveResponse, reason: str) -> Malformed:
    return Malformed(response.model_version, reason)


def finite(scores: np.ndarray) -> bool:
    """Whether none of float32[n] is NaN or infinite, or so large (1e18) that its square may be.

    A third of the time that a look at each takes.
    """
    return math.isfinite(scores.dot(scores))


class Malformed(ValueError):
    """A model service's answer that cannot be used: of a broken version or a foreign replica."""

    def __init__(self, version: str, reason: str) -> None:
        super().__init__(f"version {version or 'without a name'}: {reason}")


def note_failure(
    stage: str, error: NoReplica | grpc.aio.AioRpcError | Malformed, budget: Budget
) -> None:
    """Count a model service's failure by status; the answer itself goes on degraded."""
    if isinstance(error, grpc.aio.AioRpcError):
        status = error.code().name
        budget.ran_out |= error.code() in TOO_BUSY
    else:
        status = "NO_REPLICA" if isinstance(error, NoReplica) else "MALFORMED"
    STAGE_FAILURES.labels(stage, status).inc()
    if isinstance(error, Malformed):
        _tell(stage, str(error))
    else:
        log.debug("stage_failed", stage=stage, status=status, error=str(error))


@lru_cache(1_000)  # once for each version and reason: a line per request would bury the others
def _tell(stage: str, error: str) -> None:
    log.error("answer_refused", stage=stage, error=error)


def popular(items: ItemTable, count: int) -> Candidates:
    """The most clicked items of the training window; the table is in that order."""
    rows = np.arange(1, min(count, len(items)) + 1)
    clicks = items.features["train_clicks"][rows].astype(np.float32)
    total = float(items.features["train_clicks"].sum()) or 1.0
    zeros = np.zeros(len(rows), np.uint8)
    return Candidates(rows, items.keys[rows], clicks / total, zeros, zeros, (POPULAR,))
