"""An item that the ranking model does not know stands behind all that it knows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.common.value_model import top
from services.ranking.unknown import unknown_last
from tests.domains import VALUE_MODEL

TASKS = ("click", "like")
PROBABILITY = st.floats(2**-20, 1.0, width=32)
SLATES = st.lists(
    st.tuples(st.integers(0, 3), PROBABILITY, PROBABILITY), min_size=1, max_size=20
)  # row, and what the model says: row 0 may get the highest probabilities there are


@given(SLATES, st.floats(0.0, 10.0))
def test_no_unknown_item_stands_above_a_known_one(
    slate: list[tuple[int, float, float]], like_weight: float
) -> None:
    rows = np.array([row for row, _, _ in slate])
    said = np.array([scores for _, *scores in slate], np.float32)
    scores = said.copy()
    assert unknown_last(scores, rows == 0).tolist() == np.flatnonzero(rows == 0).tolist()
    order = top(VALUE_MODEL.of("home")(TASKS, scores, {"like_weight": like_weight}), len(rows))
    known = rows[order] > 0
    assert (np.diff(known.astype(int)) <= 0).all()  # the known ones first
    assert (np.diff(order[~known]) > 0).all()  # the others as retrieval has them
    np.testing.assert_array_equal(scores[rows > 0], said[rows > 0])
    assert (scores.any(axis=1) == (rows > 0)).all()  # by which the router tells them
