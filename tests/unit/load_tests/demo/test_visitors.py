"""The visitors' behaviour without any server: who comes, what is looked at, what is clicked."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.demo.visitors import EXAMINATION_SLOPE, holds, reactions, requests_of, visitors
from models.catalogue import item_key
from models.data.backfill import Interaction
from protos.tandem.v1.recommender_pb2 import Explanation, RecommendResponse

ITEMS = [f"m{i}" for i in range(20)]


def interaction(user_id: str, item_id: str, like: bool = False) -> Interaction:
    return Interaction(user_id, item_id, item_key(item_id), 1_000, like)


def answer(profile_age_s: float) -> RecommendResponse:
    return RecommendResponse(explanation=Explanation(feature_age_s={"profile": profile_age_s}))


def test_first_visitors_are_the_users_themselves_and_later_ones_are_copies() -> None:
    futures = {u: [interaction(u, "m1")] for u in ("10", "2")}
    found = visitors(futures, 5)
    assert [v.user_id for v in found] == ["2", "10", "2~1", "10~1", "2~2"]
    assert found[2].future is futures["2"]


@given(st.integers(1, 400), st.integers(1, 30))
def test_visitor_ids_are_distinct_and_fewer_visitors_are_a_prefix(count: int, users: int) -> None:
    futures = {str(u): [interaction(str(u), "m1")] for u in range(users)}
    ids = [v.user_id for v in visitors(futures, count)]
    assert len(set(ids)) == count
    assert ids[: count // 2] == [v.user_id for v in visitors(futures, count // 2)]


@given(st.integers(), st.dictionaries(st.sampled_from(ITEMS), st.booleans()))
def test_a_click_needs_an_item_the_user_really_chose(seed: int, wanted: dict[str, bool]) -> None:
    for reaction in reactions(ITEMS, wanted, random.Random(seed)):
        assert reaction.clicked == (reaction.item_id in wanted)
        assert reaction.liked == wanted.get(reaction.item_id, False)


@given(st.integers())
def test_the_first_place_is_always_examined_and_order_is_kept(seed: int) -> None:
    seen = [r.item_id for r in reactions(ITEMS, {}, random.Random(seed))]
    assert seen[0] == ITEMS[0]
    assert seen == [item for item in ITEMS if item in seen]


def test_the_same_seed_examines_the_same_places() -> None:
    once, again = (reactions(ITEMS, {"m3": True}, random.Random("1/a")) for _ in range(2))
    assert once == again


def test_examination_falls_with_the_place_as_declared() -> None:
    n = 4_000
    counts = dict.fromkeys(ITEMS, 0)
    draw = random.Random(5)
    for _ in range(n):
        for reaction in reactions(ITEMS, {}, draw):
            counts[reaction.item_id] += 1
    for place, item in enumerate(ITEMS):
        p = 1 / (1 + EXAMINATION_SLOPE * place)
        assert counts[item] / n == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5)


@given(st.integers())
def test_every_visit_has_one_to_four_requests(seed: int) -> None:
    assert 1 <= requests_of(random.Random(seed)) <= 4


@pytest.mark.parametrize(
    ("age_s", "expected"),
    [
        (0.5, True),  # the row is as old as the event
        (0.2, True),  # the row has a later event still
        (0.6, False),  # the row ends before the event
        (-1.0, False),  # no row
    ],
)
def test_features_hold_an_event_when_their_age_reaches_no_further_back(
    age_s: float, expected: bool
) -> None:
    assert holds(answer(age_s), event_ms=1_000, now_ms=1_500) is expected
