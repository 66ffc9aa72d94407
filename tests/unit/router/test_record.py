"""The decision record: two parts that read as one, and what it says of who asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store import codec
from models.catalogue import ItemTable
from models.data.worlds.films.schema import PROFILE, SCHEMA
from models.schema.compiled import compiled
from models.schema.declaration import Amount, Count, Declaration, Event
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.records_pb2 import (
    ANSWERED,
    CLICK,
    FAILED,
    Before,
    DecisionRecord,
    FeedbackEvent,
    Outcome,
)
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import config_reader
from services.experiments.declare.parameters import EPSILON
from services.experiments.declare.targeting import NOTHING
from services.router.hydrate import read_features
from services.router.recent_feedback import RecentFeedback
from services.router.record import decision_record, record_bytes
from services.router.request import Query, Ranking, RequestState, Shown
from services.router.rerank import rerank
from services.router.user_rows import UserRows, features_of
from tests.domains import FILMS, production
from tests.unit.experiments.messages import known_before
from tests.unit.router import conftest
from tests.unit.router.conftest import pool_of
from tests.unit.router.models import (
    IN_NO_EXPERIMENT,
    NOW_MS,
    FixedAssigner,
    Models,
    Store,
    answer_to,
    decision_of,
    profile_row,
    surroundings,
)

ROWS = UserRows(SCHEMA)

COUNT32 = st.integers(0, 2**32 - 1)
EXPERIMENT = """\
version: 1
layers:
  - name: value
    parameters: [rerank.like_weight]
    experiments:
      - name: like_weight
        arms:
          - {name: control, weight: 50, parameters: {rerank.like_weight: 2.0}}
          - {name: treatment, weight: 50, parameters: {rerank.like_weight: 3.0}}
"""


def declaring(text: str) -> Assigner:
    """The experiments of EXPERIMENT, and what else the file declares."""
    return Assigner(config_reader.parse(f"{EXPERIMENT}{text}".encode(), "test.yaml", FILMS))


async def answered(
    items: ItemTable,
    assigner: Assigner,
    store: Store | None = None,
    **changes: object,
) -> RequestState:
    request = RecommendRequest(
        **{"user_id": "u", "surface": "home", "num_items": 5, **changes}  # type: ignore[arg-type]
    )
    models = Models(items, {"ssl_two_tower": list(range(1, 21))}, {"masknet": {}})
    _, state = await answer_to(request, surroundings(items, models, assigner, store))
    return state


def shown_by(state: RequestState) -> Shown:
    assert state.shown is not None
    return state.shown


def assigner_of(text: str = EXPERIMENT) -> FixedAssigner:
    return FixedAssigner(decision_of(text))


async def test_both_parts_of_a_record_read_as_one(items: ItemTable) -> None:
    state = await answered(items, assigner_of(), session_id="s")
    record = decision_record(state)
    assert (record.request_id, record.user_id, record.session_id) == (
        state.request.request_id,
        "u",
        "s",
    )
    assert record.surface == "home"
    assert record.schema_revision == SCHEMA.layout.revision
    assert list(record.assignments) == list(state.decision.messages)
    assert dict(record.parameters) == state.decision.overrides
    assert list(record.item_ids) == list(shown_by(state).item_ids)
    assert list(record.sources) == ["ssl_two_tower"]
    assert list(record.tasks) == ["click", "like"]
    assert record.ranking_version == "masknet-1"
    assert record.candidate_generation_version == "ssl_two_tower-1"
    assert len(record.task_scores) == 5 * 2 * 4
    stages = {field.name: value for field, value in record.stage_ms.ListFields()}
    assert stages == pytest.approx(state.stage_ms)
    assert DecisionRecord.FromString(record.SerializeToString()) == record


@pytest.mark.parametrize("outcome", [ANSWERED, FAILED])
async def test_no_field_is_in_both_parts(items: ItemTable, outcome: Outcome) -> None:
    ids = {"household": "h"}
    text = EXPERIMENT.replace("version: 1", "version: 1\nunits: [household]")
    assigner = Assigner(config_reader.parse(text.encode(), "test.yaml", FILMS))
    state = await answered(
        items, assigner, Store({"u": (3, 2, 1)}), session_id="s", unit_ids=ids, explain=True
    )
    state.outcome = outcome
    whole = record_bytes(state)
    (head,) = state.exposure.heads.values()
    assert whole.startswith(head)
    parts = [DecisionRecord.FromString(part) for part in (head, whole[len(head) :])]
    first, second = ({field.name for field, _ in part.ListFields()} for part in parts)
    assert first >= {"surface", "assignments", "parameters", "ranking_version"}
    assert second >= {"request_id", "unit_ids"}
    assert first & second == {"before"}
    first, second = ({field.name for field, _ in part.before.ListFields()} for part in parts)
    assert (first, second) == ({"sources"}, {"numbers"})


async def test_what_requests_share_is_told_apart_where_it_differs(items: ItemTable) -> None:
    assigner = assigner_of()
    home = decision_record(await answered(items, assigner))
    detail = decision_record(await answered(items, assigner, surface="detail"))
    again = decision_record(await answered(items, assigner))
    assert [r.surface for r in (home, detail, again)] == ["home", "detail", "home"]
    held_out = FixedAssigner(replace(IN_NO_EXPERIMENT, held_out=True))
    record = decision_record(await answered(items, held_out))
    assert record.held_out
    assert not record.assignments
    assert not home.held_out


async def test_encoding_a_request_again_gives_the_same_bytes(items: ItemTable) -> None:
    state = await answered(items, assigner_of(), Store({"u": (3, 2, 1)}))
    assert record_bytes(state) == record_bytes(state)


@given(impressions=COUNT32, clicks=COUNT32, likes=COUNT32)
def test_the_counts_of_a_profile_row_are_those_that_were_written(
    impressions: int, clicks: int, likes: int
) -> None:
    numbers = ROWS.numbers(profile_row(impressions, clicks, likes))
    assert features_of(numbers) == {"impression": impressions, "click": clicks, "like": likes}
    assert features_of(ROWS.numbers(b"")) == NOTHING


SHOP = compiled(
    Declaration(
        events=(Event(name="like", id=3), Event(name="buy", id=6, value=Amount(unit="EUR"))),
        user_counts=(
            Count(event="like", half_life_s=60.0),
            Count(event="buy"),
            Count(event="like", half_life_s=3600.0),
            Count(event="buy", of_value=True, half_life_s=60.0),
            Count(event="buy", of_value=True),
        ),
        tasks=(),
        formula="1",
    )
)


@given(st.integers(0, 2**32 - 1), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_covariates_are_the_counts_and_sums_that_are_kept_longest(
    bought: int, liked: float, spent: float
) -> None:
    profile = SHOP.layout.profile
    row = profile.defaults()
    for column, number in (("count_6", bought), ("count_3_3600s", liked), ("sum_6", spent)):
        row[column] = number
    for column in ("count_3_60s", "sum_6_60s"):
        row[column] = 7.0
    numbers = UserRows(SHOP).numbers(codec.encode(profile, row, NOW_MS, 1))
    assert numbers is not None
    packed = numbers.kept.packed.pack(*numbers.values)
    record = DecisionRecord(before=Before(sources=numbers.kept.sources, numbers=packed))
    assert [known_before(record, source) for source in (6, -6, 3, -3)] == [bought, spent, liked, 0]
    assert features_of(numbers) == {
        "buy": bought,
        "buy.value": spent,
    }  # what fades is no count of now


async def test_features_are_read_alone_for_who_only_asks_for_arms(items: ItemTable) -> None:
    known: Any = Store({"u": (9, 4, 1)})
    recent = RecentFeedback(SCHEMA, lambda: items)
    expected = {"impression": 9, "click": 4, "like": 1}
    assert await read_features(ROWS, known, recent, "u", NOW_MS, 1.0) == expected
    assert await read_features(ROWS, known, recent, "stranger", NOW_MS, 1.0) == NOTHING
    much_later = NOW_MS + int(PROFILE.ttl_s * 1000) + 1
    assert await read_features(ROWS, known, recent, "u", much_later, 1.0) == NOTHING
    down: Any = Store(None)
    assert await read_features(ROWS, down, recent, "u", NOW_MS, 1.0) == NOTHING
    recent.add([FeedbackEvent(event_id="e", user_id="u", item_id="m1", event_type=CLICK)])
    assert (await read_features(ROWS, known, recent, "u", NOW_MS, 1.0))["click"] == 5


async def test_covariates_are_absent_for_the_unknown_and_zero_for_the_idle(
    items: ItemTable,
) -> None:
    store = Store({"busy": (7, 3, 2), "idle": (0, 0, 0)})
    records = {
        user: decision_record(await answered(items, assigner_of(), store, user_id=user))
        for user in ("busy", "idle", "unknown")
    }
    assert [known_before(records["busy"], source) for source in (1, 2, 3)] == [7, 3, 2]
    assert records["idle"].HasField("before")
    assert [known_before(records["idle"], source) for source in (1, 2, 3)] == [0, 0, 0]
    assert not records["unknown"].HasField("before")


async def test_only_declared_units_are_recorded(items: ItemTable) -> None:
    ids = {"household": "h1", "stranger": "x"}
    state = await answered(items, declaring("units: [household, device]\n"), unit_ids=ids)
    assert dict(decision_record(state).unit_ids) == {"household": "h1"}
    nobody = await answered(items, declaring(""), unit_ids=ids)
    assert not decision_record(nobody).unit_ids


async def test_segments_are_those_of_the_request_and_its_user(items: ItemTable) -> None:
    assigner = declaring("""\
segments:
  - {name: evening, where: {context: {hour: {at_least: 18}}}}
  - {name: clickers, where: {user: {click: {above: 2}}}}
  - {name: at_home, where: {surface: {in: [home]}}}
""")
    assert not assigner.needs_user  # segments are for the record and hold up no request
    store = Store({"busy": (7, 3, 2), "idle": (7, 2, 2)})

    async def segments(user: str, hour: float) -> list[str]:
        context = {"hour": hour}
        state = await answered(items, assigner, store, user_id=user, context=context)
        return list(decision_record(state).segments)

    assert await segments("busy", 20) == ["evening", "clickers", "at_home"]
    assert await segments("busy", 3) == ["clickers", "at_home"]
    assert await segments("idle", 3) == ["at_home"]
    assert await segments("unknown", 3) == ["at_home"]


def test_an_explored_list_is_recorded_with_all_that_could_have_been_drawn(
    items: ItemTable, query: Query
) -> None:
    parameters = production(
        rerank_exploration=EPSILON, rerank_epsilon=1.0, rerank_exploration_depth=12
    )
    scores = np.stack([np.linspace(0, 1, 20), np.linspace(0.5, 0, 20)], axis=1, dtype=np.float32)
    ranking = Ranking(pool_of(items, range(1, 21)), ("click", "like"), scores)
    shown = rerank(ranking, query._replace(parameters=parameters), np.random.default_rng(3))
    record = decision_record(conftest.answered(query, shown))
    explored = record.exploration
    assert explored.ranked == 12
    pool = np.frombuffer(explored.item_keys, "<u8")
    task_scores = np.frombuffer(explored.task_scores, "<f4").reshape(12, 2)
    value = task_scores[:, 0] * (1 + task_scores[:, 1])
    assert (np.diff(value) <= 0).all()  # best first
    assert {items.ids[row] for row in items.index_of(pool)} >= set(record.item_ids)
    # What is shown stands in the pool where `places` says.
    places = np.frombuffer(explored.places, "<u2")
    assert [items.ids[row] for row in items.index_of(pool[places])] == list(record.item_ids)
    np.testing.assert_array_equal(
        task_scores[places].ravel(), np.frombuffer(record.task_scores, "<f4")
    )


async def test_a_list_that_was_not_drawn_has_no_pool(items: ItemTable) -> None:
    state = await answered(items, assigner_of())
    assert shown_by(state).draw is None
    assert not decision_record(state).HasField("exploration")
