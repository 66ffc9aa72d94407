"""Stage 7: the response and, after it has gone out, the decision record."""

from __future__ import annotations

import numpy as np

from protos.tandem.v1.recommender_pb2 import (
    Explanation,
    Reason,
    RecommendResponse,
)
from protos.tandem.v1.records_pb2 import DecisionRecord, StageTimes
from protos.tandem.v1.records_pb2 import Exploration as ExplorationRecord
from services.experiments.parameters import EPSILON
from services.router.request import RequestState

ONE = np.float32(1).tobytes()


def respond(state: RequestState) -> RecommendResponse:
    """The answer to the product backend; with reasons when it asked for them."""
    assert state.scores is not None
    response = RecommendResponse(
        request_id=state.request_id,
        degradations=state.degradations,
        assignments=state.assignments,
    )
    add = response.items.add  # handed to the constructor, each item would be copied
    for item_id, score in zip(state.item_ids, state.scores.tolist(), strict=True):
        item = add()  # with its fields as arguments it takes half as long again
        item.item_id = item_id
        item.score = score
    if state.request.explain:
        state.cut()
        for i, shown in enumerate(response.items):
            shown.reason.CopyFrom(_reason(state, i))
        response.explanation.CopyFrom(_explanation(state))
    return response


def _reason(state: RequestState, i: int) -> Reason:
    candidates = state.candidates
    assert candidates is not None
    scores = state.task_scores
    return Reason(
        source=candidates.sources[candidates.source[i]],
        interest_index=int(candidates.interest[i]),
        retrieval_score=float(candidates.scores[i]),
        task_scores=(
            {} if scores is None else dict(zip(state.tasks, scores[i].tolist(), strict=True))
        ),
    )


def _explanation(state: RequestState) -> Explanation:
    candidates = state.candidates
    assert candidates is not None
    return Explanation(
        feature_age_s=state.feature_age_s,
        model_versions=state.model_versions,
        stage_ms=state.stage_ms,
        parameters=state.parameters.as_text(),
        retrieved=state.retrieved,
        filtered=state.filtered,
    )


def decision_record(state: RequestState) -> DecisionRecord:
    """What was decided, with what and why: the one record that every later reader uses."""
    state.cut()
    candidates = state.candidates
    assert candidates is not None
    assert state.scores is not None
    versions = state.model_versions
    return DecisionRecord(
        request_id=state.request_id,
        user_id=state.request.user_id,
        session_id=state.request.session_id,
        surface=state.request.surface,
        event_time_ms=state.now_ms,
        assignments=state.assignments,
        parameters=state.overrides,
        item_ids=state.item_ids,
        scores=state.scores.astype("<f4", copy=False).tobytes(),
        propensities=(
            ONE * len(state.item_ids)
            if state.explored is None
            else state.explored.propensities.astype("<f4").tobytes()
        ),
        exploration=_exploration(state),
        sources=candidates.sources,
        source_index=candidates.source.tobytes(),
        interest_index=candidates.interest.tobytes(),
        tasks=state.tasks,
        task_scores=(
            b""
            if state.task_scores is None
            else state.task_scores.astype("<f4", copy=False).tobytes()
        ),
        degradations=state.degradations,
        profile_age_s=state.profile.age_s,
        history_age_s=state.history.age_s,
        candidate_generation_version=versions.get("candidate_generation"),
        ranking_version=versions.get("ranking"),
        stage_ms=StageTimes(**state.stage_ms),
        held_out=state.held_out,
    )


def _exploration(state: RequestState) -> ExplorationRecord | None:
    if state.explored is None:
        return None
    parameters = state.parameters
    by_epsilon = parameters.rerank_exploration == EPSILON
    return ExplorationRecord(
        kind=parameters.rerank_exploration,
        strength=parameters.rerank_epsilon if by_epsilon else parameters.rerank_temperature,
        depth=parameters.rerank_exploration_depth,
        ranked=state.ranked,
        places=state.explored.positions.astype("<u2").tobytes(),
    )
