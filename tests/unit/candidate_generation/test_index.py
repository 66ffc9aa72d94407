"""Exact retrieval equals sorting the whole catalogue."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.candidate_generation.index import search


@given(
    seed=st.integers(0, 2**32 - 1),
    users=st.integers(1, 4),
    interests=st.integers(1, 4),
    items=st.integers(1, 60),
    data=st.data(),
)
def test_search_equals_brute_force(seed, users, interests, items, data):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(items + 1, 8)).astype(np.float32)
    queries = rng.normal(size=(users, interests, 8)).astype(np.float32)
    exclude = [
        np.array(sorted(data.draw(st.sets(st.integers(0, items)))), np.int64) for _ in range(users)
    ]
    counts = [data.draw(st.integers(1, items + 5)) for _ in range(users)]
    hidden = {0, *data.draw(st.sets(st.integers(0, items)))}
    of_all = torch.from_numpy(queries), torch.from_numpy(vectors)
    found = search(*of_all, exclude, counts, torch.tensor(sorted(hidden)))
    for b in range(users):
        scores = torch.matmul(torch.from_numpy(queries[b]), torch.from_numpy(vectors).T).numpy()
        best = scores.max(axis=0)
        allowed = [i for i in range(items + 1) if i not in {*hidden, *exclude[b].tolist()}]
        expected = sorted((best[i] for i in allowed), reverse=True)[: counts[b]]
        rows = found[b].rows
        np.testing.assert_allclose(found[b].scores, expected, rtol=1e-5, atol=1e-6)
        assert len(set(rows.tolist())) == len(rows) == min(counts[b], len(allowed))
        assert set(rows.tolist()) <= set(allowed)
        np.testing.assert_allclose(best[rows], found[b].scores, rtol=1e-5, atol=1e-6)
        winners = scores[found[b].interests, rows]
        np.testing.assert_allclose(winners, best[rows], rtol=1e-5, atol=1e-6)


def test_a_user_whose_whole_catalogue_is_excluded_gets_nothing():
    hidden = torch.zeros(1, dtype=torch.long)
    found = search(torch.ones(1, 1, 2), torch.ones(3, 2), [np.array([1, 2])], [5], hidden)
    assert len(found[0].rows) == 0
