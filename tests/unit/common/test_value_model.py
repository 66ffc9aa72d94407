"""The value model orders, and diversity spreads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from models.data.worlds.films.schema import FILMS
from models.schema.declaration import Declaration, Surface, Weight
from models.schema.formula import Formula
from services.common.value_model import (
    PARTITION_FROM,
    ValueModel,
    diversified,
    top,
)
from tests.domains import VALUE_MODEL
from tests.unit.models.schema.declarations import declarations

UNIT = st.floats(0, 1, width=32, allow_subnormal=False)
SCORES = st_np.arrays(np.float32, st.integers(1, 60), elements=UNIT)
# As many as are not sorted whole, with ties at every place of the cut.
MANY = st_np.arrays(
    np.float32, st.integers(PARTITION_FROM, 700), elements=UNIT | st.sampled_from([0.25, 0.5])
)
ANY_SCORE = st.floats(-(2.0**39), 2.0**39, width=32) | UNIT  # up to LARGEST_SCORE


def scores_of(tasks: int, elements: st.SearchStrategy[float] = UNIT) -> st.SearchStrategy:
    shapes = st.tuples(st.integers(1, 30), st.just(tasks))
    return st_np.arrays(np.float32, shapes, elements=elements)


@given(declarations(), st.data())
def test_a_declared_formula_is_evaluated_as_it_is_written_on_every_surface(
    declared: Declaration, data: st.DataObject
) -> None:
    tasks = tuple(data.draw(st.permutations([*(t.name for t in declared.tasks), "another"])))
    scores = data.draw(scores_of(len(tasks), ANY_SCORE))
    weights = {w.name: data.draw(st.floats(w.low, w.high)) for w in declared.weights}
    of = {name: scores[:, i] for i, name in enumerate(tasks)}
    of |= {name: np.float32(value) for name, value in weights.items()}
    model = ValueModel(declared)
    for surface in (*declared.surfaces, Surface("not declared", declared.formula)):
        value = model.of(surface.name)
        plain = Formula(surface.formula)(of)
        assert {*value.tasks, *value.weights} == set(Formula(surface.formula).names)
        assert set(value.tasks) <= set(model.tasks)
        found = value(tasks, scores, weights)
        assert found.dtype == np.float32
        finite = np.isfinite(plain)
        np.testing.assert_array_equal(found[finite], plain[finite])
        assert (found[~finite] == plain[finite].min(initial=0.0)).all()
        assert value.lacking(tasks) == ()
        assert value.lacking(("another",)) == value.tasks


@given(scores_of(2), st.floats(0, 100))
def test_the_films_values_are_those_of_their_closed_form_to_the_last_bit(
    scores: np.ndarray, like_weight: float
) -> None:
    """What the router computed before formulas were declared."""
    expected = scores[:, 1] * np.float32(like_weight)
    expected += 1.0
    expected *= scores[:, 0]
    for surface in ("home", "detail", ""):
        found = VALUE_MODEL.of(surface)(("click", "like"), scores, {"like_weight": like_weight})
        assert found.tobytes() == expected.tobytes()


@given(scores_of(2), st.floats(0, 100), st.integers(1, 30))
def test_other_words_make_the_same_order(scores: np.ndarray, weight: float, depth: int) -> None:
    other = replace(
        FILMS,
        tasks=(replace(FILMS.tasks[0], name="seen"), replace(FILMS.tasks[1], name="bought")),
        formula="seen * (1 + worth * bought)",
        weights=(Weight("worth", 1, 0, 100),),
        surfaces=(),
    )
    films = VALUE_MODEL.of("home")(("click", "like"), scores, {"like_weight": weight})
    shop = ValueModel(other).of("home")(("bought", "seen"), scores[:, ::-1], {"worth": weight})
    assert top(shop, depth).tolist() == top(films, depth).tolist()


def test_a_surface_has_its_own_formula_or_the_general_one() -> None:
    own = (Surface("home", FILMS.formula), Surface("detail", "like - click"))
    model = ValueModel(replace(FILMS, surfaces=own))
    scores = np.array([[0.5, 0.0], [0.4, 1.0]], np.float32)
    of = {s: model.of(s)(("click", "like"), scores, {"like_weight": 3.0}) for s in ("home", "x")}
    np.testing.assert_allclose(of["home"], [0.5, 1.6])
    np.testing.assert_array_equal(of["home"], of["x"])
    assert model.of("detail").weights == ()
    np.testing.assert_allclose(model.of("detail")(("click", "like"), scores, {}), [-0.5, 0.6])


@pytest.mark.parametrize("formula", ["click / like", "click / (like - like_weight)"])
def test_an_item_whose_value_is_no_number_stands_last(formula: str) -> None:
    value = ValueModel(replace(FILMS, formula=formula, surfaces=())).of("")
    scores = np.array([[0.5, 0.0], [0.2, 0.5], [0.0, 0.0], [0.4, 0.5]], np.float32)
    found = value(("click", "like"), scores, {"like_weight": 0.0})
    assert top(found, 4).tolist() == [3, 1, 0, 2]


@given(scores=SCORES | MANY, count=st.integers(1, 60))
def test_top_equals_a_stable_sort(scores, count):
    count = min(count, len(scores))
    expected = sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
    assert top(scores, count).tolist() == expected


@given(scores=SCORES, count=st.integers(1, 60))
def test_without_similarity_diversity_changes_nothing(scores, count):
    flat = np.zeros((len(scores), 3), np.float32)
    assert (
        diversified(scores, flat, 0.7, count).tolist()
        == np.argsort(-scores, kind="stable")[:count].tolist()
    )


@pytest.mark.parametrize("shift", [0.0, -2.0])  # a formula may subtract
def test_diversity_alternates_equal_items_of_two_kinds(shift):
    kinds = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 1, 1]]
    scores = np.array([1, 0.99, 0.98, 0.97, 0.96, 0.95], np.float32) + np.float32(shift)
    assert diversified(scores, kinds, 0.5, 4).tolist() == [0, 3, 1, 4]
