"""Parameters: typed, named, with a production default, checked before a request can see them."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.experiments.declare.parameters import (
    PARAMETERS,
    ParameterError,
    Parameters,
    ParameterSpec,
    value_text,
)

SPECS = list(PARAMETERS.values())


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_the_production_default_is_a_value_that_the_parameter_accepts(spec: ParameterSpec) -> None:
    assert spec.check(spec.default) == spec.default == getattr(Parameters(), spec.attribute)
    assert spec.meaning


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
        PARAMETERS[name].check(value)


def test_a_whole_number_is_accepted_where_a_number_is_expected() -> None:
    value = PARAMETERS["rerank.like_weight"].check(3)
    assert value == 3.0
    assert isinstance(value, float)


def test_overrides_change_a_copy_and_nothing_else() -> None:
    changed = Parameters().with_overrides({"rerank.diversity": 0.5, "ranking.enabled": False})
    assert changed == Parameters(rerank_diversity=0.5, ranking_enabled=False)
    assert Parameters().ranking_enabled is True


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ParameterError, match=r"rerank\.diversity"):
        Parameters().with_overrides({"rerank.divers": 0.5})


def test_parameters_cannot_be_changed_by_a_reader() -> None:
    with pytest.raises(FrozenInstanceError):
        Parameters().rerank_diversity = 1.0  # type: ignore[misc]


@given(st.floats(0, 100))
def test_the_text_of_a_number_reads_back_exactly(value: float) -> None:
    assert float(value_text(value)) == value


def test_the_text_form_has_every_parameter_once() -> None:
    assert Parameters().as_text() == {
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
