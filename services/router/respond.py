"""Stage 7: the response; the decision record follows when it has gone out (record.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from struct import Struct

import numpy as np

from protos.tandem.v1.recommender_pb2 import Explanation, Reason, RecommendedItem, RecommendResponse
from services.common.packed import F4
from services.router.request import RequestState, Shown

ENCODED_ITEMS = 65_536  # shown items whose bytes are kept: some 15 MB
SOME_SCORE = 1.0  # in place of an item's own; not 0, of which protobuf writes nothing
ENCODED_SCORE = np.array(SOME_SCORE, F4).tobytes()


def respond(state: RequestState, shown: Shown) -> RecommendResponse:
    """The answer to the product backend; with reasons when it asked for them."""
    # One parse of bytes that are mostly known takes a third of filling in message by message.
    response = RecommendResponse.FromString(
        state.exposure.answer + encoded_items(shown.item_ids, shown.scores)
    )
    response.request_id = state.request.request_id
    if shown.degradations:
        response.degradations.extend(shown.degradations)
    if shown.interleaving is not None:
        response.interleaving.CopyFrom(shown.interleaving)
    if state.request.asked.explain:
        for item, reason in zip(response.items, _reasons(shown), strict=True):
            item.reason.CopyFrom(reason)
        response.explanation.CopyFrom(_explanation(state, shown))
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

    Protobuf's own encoder decides where they stand; that it is the end is looked at for each item.
    Used by one thread. A plain dictionary: to keep the order of use costs more than to begin anew.
    """

    def __missing__(self, item_id: str) -> bytes:
        if len(self) >= ENCODED_ITEMS:
            self.clear()
        item = RecommendedItem(item_id=item_id, score=SOME_SCORE)
        encoded = RecommendResponse(items=[item]).SerializeToString()
        if not encoded.endswith(ENCODED_SCORE):
            raise AssertionError("the score of an encoded item is no longer its last four bytes")
        found = self[item_id] = encoded.removesuffix(ENCODED_SCORE)
        return found


_UP_TO_SCORE = _UpToScore()


@lru_cache
def _fours(count: int) -> Struct:
    return Struct("4s" * count)


def _reasons(shown: Shown) -> Iterator[Reason]:
    """Why each item is in the list."""
    ranking, candidates = shown.ranking, shown.ranking.pool.candidates
    scores, source, interest = shown.task_scores, shown.source, shown.interest
    for i, retrieval_score in enumerate(candidates.scores.take(shown.positions).tolist()):
        of_item = [] if scores is None else scores[i].tolist()
        yield Reason(
            source=candidates.sources[source[i]],
            interest_index=int(interest[i]),
            retrieval_score=retrieval_score,
            task_scores=dict(zip(ranking.tasks, of_item, strict=True)),
            unknown_to_ranking=bool(of_item) and not any(of_item),
        )


def _explanation(state: RequestState, shown: Shown) -> Explanation:
    return Explanation(
        feature_age_s=state.user.feature_age_s,
        model_versions=shown.ranking.model_versions,
        stage_ms=state.stage_ms,
        parameters=shown.parameters.as_text(),
        retrieved=shown.ranking.pool.retrieved,
        filtered=shown.ranking.pool.filtered,
    )
