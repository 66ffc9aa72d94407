"""Stage 7: the response; the decision record follows when it has gone out (record.py)."""

from __future__ import annotations

from protos.tandem.v1.recommender_pb2 import (
    Explanation,
    Reason,
    RecommendResponse,
)
from services.router.exposure import exposure_of
from services.router.request import RequestState


def respond(state: RequestState) -> RecommendResponse:
    """The answer to the product backend; with reasons when it asked for them."""
    assert state.scores is not None
    response = RecommendResponse.FromString(exposure_of(state).answer)
    response.request_id = state.request_id
    if state.degradations:
        response.degradations.extend(state.degradations)
    if state.interleaving is not None:
        response.interleaving.CopyFrom(state.interleaving)
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
