"""The target's ranking of the logged items, and its probabilities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from load_tests.experiments.explored_world import CANDIDATES, PLACES
from models.data.worlds.films.schema import FILMS as DECLARED
from models.schema.declaration import Surface
from protos.tandem.v1.records_pb2 import DecisionRecord
from services.common.value_model import ValueModel
from services.experiments.declare.parameters import Value
from services.experiments.what_if.answer import ASSUMES, what_if
from services.experiments.what_if.log import Request, Target, usable
from services.experiments.what_if.off_policy.errors import InvalidLog
from services.experiments.what_if.slates import Slates
from tests.domains import FILMS
from tests.unit.experiments.what_if.logs import (
    ANYTHING,
    BEST_FIRST,
    CLICKS,
    LIKED_MORE,
    WORLD,
    collected,
    logged,
)


def test_what_was_served_is_estimated_as_it_was() -> None:
    """Law: under the logged parameters the ranking is the logged one and every weight is 1."""
    traffic = logged(100)
    log = collected(traffic, {})
    for request in log.requests():
        assert request.order.tolist() == list(range(CANDIDATES))
    for choice in ASSUMES:
        same = what_if(log, CLICKS, choice, ANYTHING)
        assert same.target.value == pytest.approx(same.logged.value, rel=1e-6)
        assert same.difference.standard_error == pytest.approx(0, abs=1e-6)
        assert same.target.effective_sample_size == pytest.approx(100, rel=1e-6)


def by_the_definition(
    scores: np.ndarray, genres: np.ndarray, like_weight: float, diversity: float
) -> list[int]:
    """The docstring of rerank, one item after the other."""
    values = [float(c) * (1 + like_weight * float(li)) for c, li in scores]
    chosen: list[int] = []
    while len(chosen) < len(values):
        left = [i for i in range(len(values)) if i not in chosen]

        def gain(i: int) -> float:
            similar = [float(genres[i] @ genres[j]) for j in chosen]
            return values[i] / max(values) - diversity * (sum(similar) / max(len(similar), 1))

        chosen.append(max(left, key=gain))
    return chosen


@pytest.mark.parametrize(("like_weight", "diversity"), [(5.0, 0.0), (0.0, 0.3), (3.0, 0.9)])
def test_the_target_ranks_the_logged_items_by_the_definition(
    like_weight: float, diversity: float
) -> None:
    overrides = {"rerank.like_weight": like_weight, "rerank.diversity": diversity}
    traffic = logged(30)
    requests = {r.request: r for r in collected(traffic, overrides).requests()}  # type: ignore[arg-type]
    moved = 0
    for record, _ in traffic:
        how = record.exploration
        (request,) = [
            r
            for r in requests.values()
            if r.time_ms == record.event_time_ms  # each has its own second
        ]
        scores = np.frombuffer(how.task_scores, "<f4").reshape(-1, 2)
        rows = WORLD.items.index_of(np.frombuffer(how.item_keys, "<u8"))
        expected = by_the_definition(
            scores, WORLD.items.unit_values("genres", rows), like_weight, diversity
        )
        assert request.order.tolist() == expected
        moved += expected != list(range(CANDIDATES))
    assert moved > 30


@pytest.mark.parametrize("overrides", [LIKED_MORE, BEST_FIRST])
def test_the_targets_probabilities_are_those_of_its_own_draw(overrides: dict[str, Value]) -> None:
    """By hand: weights 1 / rank among those that are left, or the best that is left."""
    requests = collected(logged(30), overrides).requests()
    found = Slates(requests).target
    for request, row in zip(requests, found, strict=True):
        ranks = {place: rank for rank, place in enumerate(request.order.tolist(), 1)}
        left = dict(ranks)
        possible = True
        for place, probability in zip(request.places.tolist(), row.tolist(), strict=True):
            if overrides is BEST_FIRST:
                expected = float(
                    possible and bool(left) and place == min(left, key=left.__getitem__)
                )
                possible = bool(expected)
            else:
                expected = (1 / left[place]) / sum(1 / rank for rank in left.values())
            assert probability == pytest.approx(expected, rel=1e-6)
            left.pop(place, None)


def test_an_arm_gives_the_experiments_parameters_and_leaves_the_others() -> None:
    record = DecisionRecord(
        parameters={
            "rerank.like_weight": "7.0",
            "rerank.diversity": "0.4",
            "rerank.exploration": "epsilon",
            "ranking.model": "masknet",
        }
    )
    record.exploration.kind, record.exploration.strength, record.exploration.depth = (
        "epsilon",
        0.25,
        9,
    )
    arm = Target(
        {"rerank.diversity": 0.1},
        FILMS.parameters,
        frozenset({"rerank.diversity", "rerank.like_weight"}),
    )
    before, after = arm.parameters(record)
    assert (before.weights["like_weight"], before.rerank_diversity) == (7.0, 0.4)
    assert (after.weights["like_weight"], after.rerank_diversity) == (1.0, 0.1)
    assert (after.rerank_exploration, after.rerank_epsilon) == ("epsilon", 0.25)
    assert after.rerank_exploration_depth == 9
    _, only = Target({"rerank.diversity": 0.1}, FILMS.parameters).parameters(record)
    assert only.weights["like_weight"] == 7.0


def test_wrong_propensities_of_all_requests_are_caught_by_the_weights() -> None:
    """Even where a record agrees with itself: too small propensities make too large weights."""
    log = collected(logged(400), LIKED_MORE)
    wrong = [r._replace(propensities=r.propensities * 0.9) for r in log.requests()]
    with pytest.raises(InvalidLog, match="too small"):
        Slates(wrong).estimate("rips", ANYTHING, np.zeros((len(wrong), PLACES)))


def test_the_target_ranks_by_the_formula_of_the_requests_surface() -> None:
    surfaces = (Surface("home", DECLARED.formula), Surface("detail", "like - click"))
    model = ValueModel(replace(DECLARED, surfaces=surfaces))
    record, _ = logged(1)[0]
    how = record.exploration
    scores = np.frombuffer(how.task_scores, "<f4").reshape(-1, 2)
    expected = {
        "home": np.argsort(-(scores[:, 0] * (1 + 5 * scores[:, 1])), kind="stable"),
        "detail": np.argsort(scores[:, 0] - scores[:, 1], kind="stable"),
    }
    assert expected["home"].tolist() != expected["detail"].tolist()
    for surface, order in expected.items():
        asked = DecisionRecord()
        asked.CopyFrom(record)
        asked.surface = surface
        target = Target(LIKED_MORE, FILMS.parameters)
        found = usable(asked, target, WORLD.items, model, lambda record: True)
        assert isinstance(found, Request)
        assert found.order.tolist() == order.tolist()
