"""What may not be shown is not shown, and the list is short only when the catalogue is."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.tandem.v1.records_pb2 import FEWER_ITEMS
from services.router.filter import filter_candidates
from services.router.request import POPULAR
from tests.unit.router.conftest import candidates_of

ROWS = st.lists(st.integers(0, 40), unique=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, excluded=ROWS, wanted=st.integers(1, 45))
def test_the_list_is_eligible_unique_in_order_and_never_short_without_need(
    items, state, rows, excluded, wanted
):
    state.degradations.clear()
    state.request.num_items = wanted
    state.excluded = items.keys[[r for r in excluded if r]]
    state.candidates = candidates_of(items, rows)
    filter_candidates(state, items)
    kept = state.candidates.rows.tolist()
    allowed = set(range(1, 41)) - set(excluded)
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
    state.excluded = items.keys[[2]]
    filter_candidates(state, items)
    assert state.candidates.rows.tolist() == [7, 1, 3, 4, 5]
    sources = [state.candidates.sources[s] for s in state.candidates.source]
    assert sources == ["model", "model", POPULAR, POPULAR, POPULAR]
