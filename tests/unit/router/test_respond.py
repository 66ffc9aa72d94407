"""The answer's items are joined from encoded parts: they must be what protobuf itself encodes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.tandem.v1.recommender_pb2 import RecommendedItem, RecommendResponse
from services.router import respond
from services.router.respond import encoded_items

ITEMS = st.lists(st.tuples(st.text(max_size=64), st.floats(width=32)), max_size=30)


@given(ITEMS)
def test_joined_items_are_read_as_the_messages_that_they_stand_for(
    items: list[tuple[str, float]],
) -> None:
    scores = np.array([score for _, score in items], np.float32)
    joined = RecommendResponse.FromString(encoded_items([i for i, _ in items], scores))
    assert [item.item_id for item in joined.items] == [i for i, _ in items]
    np.testing.assert_array_equal([item.score for item in joined.items], scores)
    written = RecommendResponse(items=[RecommendedItem(item_id=i, score=s) for i, s in items])
    if scores.all():  # of a score of 0 protobuf writes nothing
        assert joined.SerializeToString() == written.SerializeToString()


@pytest.mark.parametrize("scores", [1, 3])
def test_ids_and_scores_must_be_as_many(scores: int) -> None:
    with pytest.raises(struct.error):
        encoded_items(["a", "b"], np.zeros(scores, np.float32))


def test_a_score_that_is_not_the_end_of_an_encoded_item_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(respond, "ENCODED_SCORE", struct.pack(">f", respond.SOME_SCORE))
    with pytest.raises(AssertionError, match="last four bytes"):
        encoded_items(["an item that was never encoded before"], np.ones(1, np.float32))
