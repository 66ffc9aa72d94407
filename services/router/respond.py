"""Stage 7: the response; the decision record follows when it has gone out (record.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct

import numpy as np

from protos.tandem.v1.recommender_pb2 import (
    Explanation,
    Reason,
    RecommendedItem,
    RecommendResponse,
)
from services.common.packed import F4
from services.router.exposure import exposure_of
from services.router.request import RequestState

ENCODED_ITEMS = 65_536  # shown items whose bytes are kept: some 15 MB


def respond(state: RequestState) -> RecommendResponse:
    """The answer to the product backend; with reasons when it asked for them."""
    assert state.scores is not None
    # One parse of bytes that are mostly known takes a third of filling in message by message.
    response = RecommendResponse.FromString(
        exposure_of(state).answer + encoded_items(state.item_ids, state.scores)
    )
    response.request_id = state.request_id
    if state.degradations:
        response.degradations.extend(state.degradations)
    if state.interleaving is not None:
        response.interleaving.CopyFrom(state.interleaving)
    if state.request.explain:
        state.cut()
        for i, shown in enumerate(response.items):
            shown.reason.CopyFrom(_reason(state, i))
        response.explanation.CopyFrom(_explanation(state))
    return response


def encoded_items(item_ids: Sequence[str], scores: np.ndarray) -> bytes:
    """The field `items` of an answer as protobuf encodes it, from n ids and float32[n]."""
    count = len(item_ids)
    parts = [b""] * (2 * count)
    parts[::2] = [_UP_TO_SCORE[item_id] for item_id in item_ids]
    parts[1::2] = _fours(count).unpack(scores.astype(F4, copy=False).tobytes())
    return b"".join(parts)


class _UpToScore(dict[str, bytes]):
    """By item id: one encoded item without the four bytes of its score, which come last.

    Used by one thread. A plain dictionary: to keep the order of use costs more than to begin anew.
    """

    def __missing__(self, item_id: str) -> bytes:
        if len(self) >= ENCODED_ITEMS:
            self.clear()
        item = RecommendedItem(item_id=item_id, score=1.0)
        found = self[item_id] = RecommendResponse(items=[item]).SerializeToString()[:-4]
        return found


_UP_TO_SCORE = _UpToScore()


@lru_cache
def _fours(count: int) -> Struct:
    return Struct("4s" * count)


def _reason(state: RequestState, i: int) -> Reason:
    candidates = state.candidates
    assert candidates is not None
    scores = state.task_scores
    tasks = {} if scores is None else dict(zip(state.tasks, scores[i].tolist(), strict=True))
    return Reason(
        source=candidates.sources[candidates.source[i]],
        interest_index=int(candidates.interest[i]),
        retrieval_score=float(candidates.scores[i]),
        task_scores=tasks,
        unknown_to_ranking=bool(tasks) and not any(tasks.values()),
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
