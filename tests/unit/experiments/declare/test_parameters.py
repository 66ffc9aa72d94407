"""Parameters: typed, named, with a production default, checked before a request can see them."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.schema.declaration import Weight
from models.schema.reader.outcome import TAKEN
from services.experiments.declare.parameters import (
    IN_EVERY_DOMAIN,
    OF_WEIGHTS,
    ParameterError,
    ParameterSpec,
    ParameterSpecs,
    value_text,
)
from tests.domains import FILMS, production

SPECS = FILMS.parameters
BY_NAME = SPECS.by_name


@pytest.mark.parametrize("spec", BY_NAME.values(), ids=lambda s: s.name)
def test_the_production_default_is_a_value_that_the_parameter_accepts(spec: ParameterSpec) -> None:
    assert spec.check(spec.default) == spec.default
    assert production().as_text()[spec.name] == value_text(spec.default)
    assert spec.meaning
    assert "genre" not in spec.meaning


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retrieval.model", "Two-Tower"),
        ("retrieval.model", ""),
        ("retrieval.model", 7),
        ("retrieval.num_candidates", 9),
        ("retrieval.num_candidates", 5_001),
        ("retrieval.num_candidates", 200.0),
        ("retrieval.num_candidates", True),
        ("ranking.enabled", 1),
        ("ranking.enabled", "true"),
        ("rerank.like_weight", -0.1),
        ("rerank.like_weight", True),
        ("rerank.like_weight", "3"),
        ("rerank.diversity", 1.01),
        ("rerank.diversity", float("nan")),
        ("rerank.diversity", float("inf")),
        ("rerank.diversity", None),
        ("rerank.exploration", "thompson"),
        ("rerank.exploration", 1),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ParameterError, match="is not"):
        BY_NAME[name].check(value)


def test_a_whole_number_is_accepted_where_a_number_is_expected() -> None:
    value = BY_NAME["rerank.like_weight"].check(3)
    assert value == 3.0
    assert isinstance(value, float)


def test_overrides_change_a_copy_and_nothing_else() -> None:
    before = production()
    new = {"rerank.diversity": 0.5, "ranking.enabled": False, "rerank.like_weight": 3}
    changed = SPECS.with_overrides(before, new)
    weights = {"like_weight": 3.0}
    assert changed == production(rerank_diversity=0.5, ranking_enabled=False, weights=weights)
    assert before == production()
    assert SPECS.with_overrides(before, {}).weights is before.weights


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("rerank.divers", "Write `rerank.diversity`"),
        ("rerank.like_wait", "Write `rerank.like_weight`, or declare it in schema.yaml"),
        ("like_weight", "Write `rerank.like_weight`."),
        ("rank.diversity", "Write `rerank.diversity`."),
        ("retrival.model", "Write `retrieval.model`."),
        ("rankin.modell", "Write `ranking.model`."),
        ("rerank.buy_what", "Use one of retrieval.model, .*, or declare it in schema.yaml"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, fix: str) -> None:
    with pytest.raises(ParameterError, match=fix):
        SPECS.with_overrides(production(), {name: 0.5})


def test_parameters_cannot_be_changed_by_a_reader() -> None:
    with pytest.raises(FrozenInstanceError):
        production().rerank_diversity = 1.0  # type: ignore[misc]


@given(st.floats(0, 100))
def test_the_text_of_a_number_reads_back_exactly(value: float) -> None:
    assert float(value_text(value)) == value


def test_the_text_form_has_every_parameter_once() -> None:
    assert production().as_text() == {
        "retrieval.model": "ssl_two_tower",
        "retrieval.num_candidates": "200",
        "ranking.model": "masknet",
        "ranking.enabled": "true",
        "rerank.like_weight": "1.0",
        "rerank.diversity": "0.0",
        "rerank.exploration": "none",
        "rerank.epsilon": "0.05",
        "rerank.temperature": "0.2",
        "rerank.exploration_depth": "50",
    }


def test_a_declared_weight_is_a_parameter_with_its_default_and_bounds() -> None:
    weights = (Weight("worth", 1.5, -1.0, 20.0), Weight("other", 0.0, 0.0, 0.5))
    specs = ParameterSpecs(weights)
    assert list(specs.by_name) == [*IN_EVERY_DOMAIN, "rerank.worth", "rerank.other"]
    assert specs.production.weights == {"worth": 1.5, "other": 0.0}
    for value in (-1, 20, 0.1):
        changed = specs.with_overrides(specs.production, {"rerank.worth": value})
        assert changed.weights == {"worth": value, "other": 0.0}
    for text in ("-1.01", "21", "nan", "much"):
        with pytest.raises(ParameterError, match="a number from -1 to 20"):
            specs.value_of("rerank.worth", text)
    with pytest.raises(ParameterError, match=r"no parameter 'rerank\.like_weight'"):
        specs.spec_of("rerank.like_weight")


def test_no_weight_can_take_the_name_of_a_parameter_of_every_domain() -> None:
    of_every = {n.removeprefix(OF_WEIGHTS) for n in IN_EVERY_DOMAIN if n.startswith(OF_WEIGHTS)}
    assert of_every == set(TAKEN)


def test_no_weight_is_read_at_a_step_of_another_parameter() -> None:
    others = {step for spec in IN_EVERY_DOMAIN.values() for step in spec.read_in}
    assert others.isdisjoint(BY_NAME["rerank.like_weight"].read_in)
