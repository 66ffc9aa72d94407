"""What may not be shown is not shown, and the list is short only when the catalogue is."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.tandem.v1.records_pb2 import FEWER_ITEMS
from services.router.filter import filter_candidates
from services.router.request import Pool
from services.router.retrieve import POPULAR
from tests.domains import production
from tests.unit.router.conftest import candidates_of, pool_of, without

ROWS = st.lists(st.integers(0, 40), unique=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, excluded=ROWS, blocked=ROWS, wanted=st.integers(1, 45), screened=st.booleans())
def test_the_list_is_eligible_unique_in_order_and_never_short_without_need(
    items, query, rows, excluded, blocked, wanted, screened
):
    query.request.asked.num_items = wanted
    query = without(query, items.keys[[r for r in excluded if r]])
    query = query._replace(blocked=np.sort(items.keys[[r for r in blocked if r]]))
    if screened:
        rows = [r for r in rows if r and r not in excluded]
    found = candidates_of(items, rows)._replace(screened=screened)
    pool = filter_candidates(Pool(found, len(rows)), query)
    kept = pool.candidates.rows.tolist()
    allowed = set(range(1, 41)) - set(excluded) - set(blocked)
    assert set(kept) <= allowed
    assert len(set(kept)) == len(kept)
    retrieved = [r for r in rows if r in allowed]
    assert kept[: len(retrieved)] == retrieved
    assert len(kept) >= min(wanted, len(allowed))
    assert (FEWER_ITEMS in pool.degradations) == (len(allowed) < wanted)
    scores = pool.candidates.scores
    assert (scores[:-1] >= scores[1:]).all()


def test_the_refill_is_the_most_popular_and_says_its_source(items, query):
    query = without(query, items.keys[[2]])
    candidates = filter_candidates(pool_of(items, [7, 1]), query).candidates
    assert candidates.rows.tolist() == [7, 1, 3, 4, 5]
    sources = [candidates.sources[s] for s in candidates.source]
    assert sources == ["model", "model", POPULAR, POPULAR, POPULAR]


def test_no_more_candidates_are_kept_than_are_worth_ranking(items, query):
    query = without(query, items.keys[[40, 38]])._replace(
        parameters=production(retrieval_num_candidates=10), blocked=items.keys[[39]]
    )
    pool = filter_candidates(pool_of(items, range(40, 0, -1)), query)
    assert pool.candidates.rows.tolist() == list(range(37, 27, -1))
    assert pool.filtered == 3
