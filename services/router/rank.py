"""Stage 5: task probabilities from ranking; retrieval order when it is down, late or knows none.

A ranking model that knows none of the candidates has nothing to say of them: its catalogue is
another one than retrieval's. Those that it does not know among others come back with zeros.
"""

from __future__ import annotations

import grpc
import numpy as np

from protos.tandem.v1.features_pb2 import UserContext
from protos.tandem.v1.ranking_pb2 import RankRequest
from protos.tandem.v1.records_pb2 import UNRANKED
from services.common.balancer import NoReplica, ReplicaSet
from services.common.packed import F4
from services.router.request import RequestState
from services.router.retrieve import (
    MIN_CALL_S,
    MISFIT,
    NOT_FINITE,
    Malformed,
    finite,
    note_failure,
)


async def rank(
    state: RequestState, user: UserContext, replicas: ReplicaSet, limit_s: float
) -> None:
    """Fill tasks and task scores, or leave them empty and say UNRANKED."""
    parameters = state.parameters
    candidates = state.candidates
    assert candidates is not None
    if not parameters.ranking_enabled or not len(candidates.rows):
        return
    timeout_s = state.budget.stage(limit_s)
    if timeout_s < MIN_CALL_S:
        state.budget.ran_out = True
        state.degrade(UNRANKED)
        return
    state.asked_ranking = True
    try:
        response = await replicas.call(
            "Rank",
            RankRequest(
                user=user, item_keys=candidates.keys.tobytes(), model=parameters.ranking_model
            ),
            timeout_s,
        )
        tasks, version = tuple(response.tasks[:]), response.model_version
        packed = response.task_scores
        if "click" not in tasks:
            raise Malformed(version, "there is no task 'click', by which lists are ordered")
        if len(packed) != 4 * len(candidates.rows) * len(tasks):
            raise Malformed(version, MISFIT)
        scores = np.frombuffer(packed, F4)
        if not finite(scores):
            raise Malformed(version, NOT_FINITE)
    except (NoReplica, grpc.aio.AioRpcError, Malformed) as error:
        note_failure("rank", error, state.budget)
        state.degrade(UNRANKED)
        return
    if response.unknown_items == len(candidates.rows):
        state.degrade(UNRANKED)
        return
    state.tasks = tasks
    state.task_scores = scores.reshape(len(candidates.rows), len(tasks))
    state.model_versions["ranking"] = version
    if response.degradations:
        for degradation in response.degradations:
            state.degrade(degradation)
