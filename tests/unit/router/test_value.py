"""Lists are in the order of the formula of their surface, by names of tasks and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from models.catalogue import ItemTable
from models.data.worlds.films.schema import FILMS as DECLARED
from models.schema.declaration import Declaration, Surface, Weight
from models.schema.formula import Formula
from protos.tandem.v1.ranking_pb2 import RankResponse
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.records_pb2 import UNRANKED
from services.common.value_model import ValueModel
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import config_reader
from services.experiments.declare.domain import Domain, domain_of
from services.experiments.declare.parameters import Parameters
from services.router.rank import rank
from services.router.record import decision_record
from services.router.request import UNKNOWN, Budget, Query, Ranking, Request
from services.router.rerank import rerank
from tests.domains import production
from tests.unit.models.schema.declarations import declarations
from tests.unit.router.conftest import answered, pool_of
from tests.unit.router.models import NOW_MS, FixedAssigner, Models, answer_to, surroundings

UNIT = st.floats(0, 1, width=32, allow_subnormal=False)
NO_ITEMS = np.zeros(0, np.uint64)

# Films that have a third task, and another formula and weight on their pages.
OWN = replace(
    DECLARED,
    tasks=(*DECLARED.tasks, replace(DECLARED.tasks[0], name="share")),
    weights=(*DECLARED.weights, Weight("share_weight", 2.0, 0.0, 10.0)),
    surfaces=(Surface("home", DECLARED.formula), Surface("detail", "click + share_weight * share")),
)
OWN_MODEL = ValueModel(OWN)


class Ranks:
    """A ranking service with one answer."""

    def __init__(self, answer: RankResponse) -> None:
        self.answer = answer

    async def call(self, method: str, request: object, timeout_s: float) -> RankResponse:
        return self.answer


def asking(items: ItemTable, declared: Declaration, surface: str, parameters: Parameters) -> Query:
    """A query for all of five items."""
    nothing = config_reader.parse(b"version: 1\nlayers: []\n", "none.yaml", domain_of(declared))
    asked = RecommendRequest(user_id="u", surface=surface, num_items=5)
    request = Request(asked, "r", 1_000, Budget(5.0), Assigner(nothing))
    return Query(request, UNKNOWN, parameters, items, ValueModel(declared), NO_ITEMS, set())


async def ranking_of(query: Query, tasks: tuple[str, ...], scores: np.ndarray) -> Ranking:
    packed = scores.astype("<f4").tobytes()
    answer = RankResponse(tasks=tasks, task_scores=packed, model_version="v")
    around = surroundings(query.items, Ranks(answer), query.request.assigner)
    return await rank(pool_of(query.items, range(1, len(scores) + 1)), query, around)


@settings(max_examples=50)
@given(declared=declarations(), data=st.data())
async def test_any_declared_formula_orders_the_list_as_it_is_written(
    items: ItemTable, declared: Declaration, data: st.DataObject
) -> None:
    surface = data.draw(st.sampled_from([*declared.surfaces, Surface("x", declared.formula)]))
    tasks = tuple(data.draw(st.permutations([task.name for task in declared.tasks])))
    scores = data.draw(st_np.arrays(np.float32, (5, len(tasks)), elements=UNIT))
    weights = {w.name: data.draw(st.floats(w.low, w.high)) for w in declared.weights}
    specs = domain_of(declared).parameters
    parameters = specs.with_overrides(
        specs.production, {f"rerank.{name}": value for name, value in weights.items()}
    )
    query = asking(items, declared, surface.name, parameters)
    shown = rerank(await ranking_of(query, tasks, scores), query)
    of = {name: scores[:, i] for i, name in enumerate(tasks)}
    of |= {name: np.float32(weight) for name, weight in weights.items()}
    plain = Formula(surface.formula)(of)
    expected = np.argsort(-plain, kind="stable")
    assert shown.item_ids == [items.ids[1 + position] for position in expected]
    np.testing.assert_array_equal(shown.scores, plain[expected])
    assert decision_record(answered(query, shown)).scores == plain[expected].tobytes()


SCORES = np.array(
    [[0.5, 0.0, 0.1], [0.4, 1.0, 0.0], [0.3, 0.0, 0.9], [0.2, 0.0, 0.0], [0.1, 0.1, 0.1]],
    np.float32,
)  # of click, like and share


@pytest.mark.parametrize(
    ("surface", "weights", "rows"),
    [
        ("home", {}, [2, 1, 3, 4, 5]),
        ("home", {"rerank.like_weight": 0.0, "rerank.share_weight": 10.0}, [1, 2, 3, 4, 5]),
        ("detail", {}, [3, 1, 2, 5, 4]),
        ("detail", {"rerank.share_weight": 0.0, "rerank.like_weight": 100.0}, [1, 2, 3, 4, 5]),
    ],
)
async def test_each_surface_is_ordered_by_its_own_formula_and_weights(
    items: ItemTable, surface: str, weights: Mapping[str, float], rows: list[int]
) -> None:
    specs = domain_of(OWN).parameters
    query = asking(items, OWN, surface, specs.with_overrides(specs.production, weights))
    shown = rerank(await ranking_of(query, ("click", "like", "share"), SCORES), query)
    assert shown.item_ids == [items.ids[row] for row in rows]


@pytest.mark.parametrize(
    ("surface", "tasks", "lacks"),
    [
        ("home", ("click", "share"), "like"),
        ("detail", ("click", "like"), "share"),
        ("home", ("share",), "click"),
        ("detail", (), "click"),
        ("home", ("click", "like"), ""),
        ("detail", ("share", "click"), ""),
    ],
)
async def test_a_ranking_that_lacks_a_task_of_the_formula_leaves_retrievals_order(
    items: ItemTable, surface: str, tasks: tuple[str, ...], lacks: str
) -> None:
    labels = {"stage": "rank", "status": "MALFORMED"}

    def malformed() -> float:
        return REGISTRY.get_sample_value("tandem_router_stage_failures_total", labels) or 0.0

    before = malformed()
    query = asking(items, OWN, surface, domain_of(OWN).parameters.production)
    with capture_logs() as logs:
        ranking = await ranking_of(query, tasks, SCORES[:, : len(tasks)])
    shown = rerank(ranking, query)
    assert shown.degradations == ((UNRANKED,) if lacks else ())
    assert malformed() == before + bool(lacks)
    if lacks:
        assert shown.item_ids == [items.ids[row] for row in range(1, 6)]
        assert not logs or f"no task '{lacks}'" in logs[0]["error"]  # told once for all


@pytest.mark.parametrize(
    ("surface", "weight", "read"),
    [
        ("home", "like_weight", True),
        ("home", "share_weight", False),
        ("detail", "like_weight", False),
        ("detail", "share_weight", True),
    ],
)
async def test_a_request_is_an_exposure_to_the_weights_of_its_surface_alone(
    items: ItemTable, surface: str, weight: str, read: bool
) -> None:
    text = f"""\
version: 1
layers:
  - name: value
    parameters: [rerank.{weight}]
    experiments:
      - name: weighing
        arms:
          - {{name: control, weight: 50}}
          - {{name: treatment, weight: 50, parameters: {{rerank.{weight}: 3}}}}
"""
    domain: Domain = domain_of(OWN)
    decision = Assigner(config_reader.parse(text.encode(), "e", domain)).assign("u", now_ms=NOW_MS)
    models = Models(
        items,
        {"ssl_two_tower": range(1, 21)},
        {"masknet": {}},
        tasks={"masknet": ("click", "like", "share")},
    )
    around = surroundings(items, models, FixedAssigner(decision), value_model=OWN_MODEL)
    asked = RecommendRequest(user_id="u", surface=surface, num_items=5)
    _, state = await answer_to(asked, around)
    assert [a.unread for a in decision_record(state).assignments] == [not read]


async def test_two_arms_that_differ_in_a_weight_interleave_their_orders(items: ItemTable) -> None:
    assert production(weights={"like_weight": 3.0}) != production()
    one, other = (production(weights={"like_weight": w}) for w in (0.0, 100.0))
    query = asking(items, DECLARED, "home", one)
    ranking = await ranking_of(query, ("click", "like"), SCORES[:, :2])
    first = [rerank(ranking, query._replace(parameters=p)).item_ids[0] for p in (one, other)]
    assert first == [items.ids[1], items.ids[2]]
