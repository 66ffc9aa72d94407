"""What may not be shown is not shown, and the list is short only when the catalogue is."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.catalogue import ItemTable
from protos.tandem.v1.records_pb2 import FEWER_ITEMS
from services.experiments.declare.parameters import Parameters
from services.router.filter import filter_candidates
from services.router.request import POPULAR
from tests.unit.router.conftest import candidates_of


def packed(items: ItemTable, rows: list[int]) -> bytes:
    return items.keys[np.array(rows, int)].tobytes()


ROWS = st.lists(st.integers(0, 40), unique=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, excluded=ROWS, blocked=ROWS, wanted=st.integers(1, 45), screened=st.booleans())
def test_the_list_is_eligible_unique_in_order_and_never_short_without_need(
    items, state, rows, excluded, blocked, wanted, screened
):
    state.degradations.clear()
    state.request.num_items = wanted
    state.excluded = packed(items, [r for r in excluded if r])
    if screened:
        rows = [r for r in rows if r and r not in excluded]
    state.candidates = candidates_of(items, rows)._replace(screened=screened)
    filter_candidates(state, items, np.sort(items.keys[[r for r in blocked if r]]))
    kept = state.candidates.rows.tolist()
    allowed = set(range(1, 41)) - set(excluded) - set(blocked)
    assert set(kept) <= allowed
    assert len(set(kept)) == len(kept)
    retrieved = [r for r in rows if r in allowed]
    assert kept[: len(retrieved)] == retrieved
    assert len(kept) >= min(wanted, len(allowed))
    assert (FEWER_ITEMS in state.degradations) == (len(allowed) < wanted)
    scores = state.candidates.scores
    assert (scores[:-1] >= scores[1:]).all()


def test_the_refill_is_the_most_popular_and_says_its_source(items, state):
    state.candidates = candidates_of(items, [7, 1])
    state.excluded = packed(items, [2])
    filter_candidates(state, items, np.zeros(0, np.uint64))
    assert state.candidates.rows.tolist() == [7, 1, 3, 4, 5]
    sources = [state.candidates.sources[s] for s in state.candidates.source]
    assert sources == ["model", "model", POPULAR, POPULAR, POPULAR]


def test_no_more_candidates_are_kept_than_are_worth_ranking(items, state):
    state.parameters = Parameters(retrieval_num_candidates=10)
    state.candidates = candidates_of(items, list(range(40, 0, -1)))
    state.excluded = packed(items, [40, 38])
    filter_candidates(state, items, items.keys[[39]])
    assert state.candidates.rows.tolist() == list(range(37, 27, -1))
    assert state.filtered == 3
