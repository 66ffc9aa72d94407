"""The value model orders, and diversity spreads."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from services.common.value_model import PARTITION_FROM, diversified, top, values

UNIT = st.floats(0, 1, width=32, allow_subnormal=False)
SCORES = st_np.arrays(np.float32, st.integers(1, 60), elements=UNIT)
# As many as are not sorted whole, with ties at every place of the cut.
MANY = st_np.arrays(
    np.float32, st.integers(PARTITION_FROM, 700), elements=UNIT | st.sampled_from([0.25, 0.5])
)


@given(scores=SCORES | MANY, count=st.integers(1, 60))
def test_top_equals_a_stable_sort(scores, count):
    count = min(count, len(scores))
    expected = sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
    assert top(scores, count).tolist() == expected


@given(scores=SCORES, count=st.integers(1, 60))
def test_without_genres_diversity_changes_nothing(scores, count):
    flat = np.zeros((len(scores), 3), np.float32)
    assert (
        diversified(scores, flat, 0.7, count).tolist()
        == np.argsort(-scores, kind="stable")[:count].tolist()
    )


def test_diversity_alternates_equal_items_of_two_genres():
    genres = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 1]]
    scores = np.array([1, 0.99, 0.98, 0.97, 0.96, 0.95], np.float32)
    assert diversified(scores, genres, 0.5, 4).tolist() == [0, 3, 1, 4]


def test_a_like_is_worth_what_the_parameter_says():
    scores = np.array([[0.5, 0.0], [0.4, 1.0]], np.float32)
    np.testing.assert_allclose(values(("click", "like"), scores, 3.0), [0.5, 1.6])
    np.testing.assert_allclose(values(("click",), scores[:, :1], 3.0), [0.5, 0.4])
