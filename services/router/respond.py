"""Stage 7: the response and, after it has gone out, the decision record."""

from __future__ import annotations

import numpy as np

from models.catalogue import ItemTable
from protos.tandem.v1.recommender_pb2 import (
    Explanation,
    Reason,
    RecommendResponse,
)
from protos.tandem.v1.records_pb2 import DecisionRecord
from services.router.request import RequestState


def respond(state: RequestState, items: ItemTable) -> RecommendResponse:
    """The answer to the product backend; with reasons when it asked for them."""
    candidates = state.candidates
    assert candidates is not None
    assert state.scores is not None
    ids = items.ids
    response = RecommendResponse(
        request_id=state.request_id,
        degradations=state.degradations,
        assignments=state.assignments,
    )
    add = response.items.add  # handed to the constructor, each item would be copied
    for row, score in zip(candidates.rows.tolist(), state.scores.tolist(), strict=True):
        add(item_id=ids[row], score=score)
    if state.request.explain:
        for i, item in enumerate(response.items):
            item.reason.CopyFrom(_reason(state, i))
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


def decision_record(state: RequestState, items: ItemTable) -> DecisionRecord:
    """What was decided, with what and why: the one record that every later reader uses."""
    candidates = state.candidates
    assert candidates is not None
    assert state.scores is not None
    count = len(candidates.rows)
    ids = items.ids
    return DecisionRecord(
        request_id=state.request_id,
        user_id=state.request.user_id,
        session_id=state.request.session_id,
        surface=state.request.surface,
        event_time_ms=state.now_ms,
        assignments=state.assignments,
        parameters=state.overrides,
        item_ids=[ids[row] for row in candidates.rows.tolist()],
        scores=state.scores.astype("<f4").tobytes(),
        propensities=np.ones(count, "<f4").tobytes(),  # the list is deterministic
        sources=candidates.sources,
        source_index=candidates.source.tobytes(),
        interest_index=candidates.interest.tobytes(),
        tasks=state.tasks,
        task_scores=(
            b"" if state.task_scores is None else state.task_scores.astype("<f4").tobytes()
        ),
        feature_age_s=state.feature_age_s,
        model_versions=state.model_versions,
        stage_ms=state.stage_ms,
        degradations=state.degradations,
    )
