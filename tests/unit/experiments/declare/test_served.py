"""An arm whose model nobody serves is found before it costs answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from models.data.worlds.films.schema import SCHEMA
from models.schema.declaration import Field, Vocabulary
from services.common.settings import Settings
from services.experiments.declare import config_reader
from services.experiments.declare.config import ExperimentsConfig
from services.experiments.declare.served import (
    arm_models,
    served,
    undeclared,
    unserved,
)
from tests.domains import FILMS

FILE = """\
version: 1
layers:
  - name: models
    parameters: [retrieval.model, ranking.model]
    experiments:
      - name: ranker
        arms:
          - {name: control, weight: 50}
          - name: treatment
            weight: 50
            parameters:
              ranking.model: infnet
"""
SERVED = {"retrieval.model": ("ssl_two_tower",), "ranking.model": ("masknet", "infnet")}


def config(*changes: tuple[str, str]) -> ExperimentsConfig:
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return config_reader.parse(text.encode(), "experiments.yaml", FILMS)


def problems(
    found: ExperimentsConfig, models: Mapping[str, tuple[str, ...]] = SERVED
) -> list[tuple[int, str]]:
    return [(p.line, p.text("f.yaml")) for p in unserved(found, models)]


def test_served_models_are_no_problem() -> None:
    assert problems(config()) == []


def test_an_arm_of_an_unserved_model_is_told_with_its_line_and_the_fix() -> None:
    ((line, text),) = problems(config(("infnet", "mc_mlcc")))
    assert line == 12
    assert text.startswith("f.yaml:12: layer models, experiment ranker, arm treatment:")
    assert "'mc_mlcc' is not served: ranking.models is [masknet, infnet]" in text
    assert "add it to ranking.models" in text


def test_every_unserved_arm_is_told() -> None:
    both = "ranking.model: a_ranker\n              retrieval.model: a_finder"
    lines = [line for line, _ in problems(config(("ranking.model: infnet", both)))]
    assert lines == [12, 13]


def test_a_default_that_requests_can_meet_must_be_served() -> None:
    models = {**SERVED, "ranking.model": ("infnet",)}
    ((line, text),) = problems(config(), models)
    assert line == 1
    assert "'masknet' is not served" in text


@pytest.mark.parametrize(
    ("change", "met"),
    [
        (("    experiments:", "    experiments:"), False),
        (("name: ranker", "name: ranker\n        traffic: 99"), True),
        (("name: ranker", "name: ranker\n        unit: session"), True),
        (("name: ranker", "name: ranker\n        buckets: [0, 9999]"), True),
        (("name: ranker", "name: ranker\n        enabled: false"), True),
        (("name: ranker", "name: ranker\n        start: 2026-12-01T00:00:00Z"), True),
        (("name: ranker", "name: ranker\n        stop: 2026-12-01T00:00:00Z"), True),
        (("name: ranker", "name: ranker\n        where: {surface: {in: [home]}}"), True),
        (("version: 1", "version: 1\nholdout: {percent: 0.01}"), True),
        (("version: 1", "version: 1\nholdout: {percent: 0}"), False),
    ],
)
def test_a_default_is_met_unless_every_user_has_an_arm_that_replaces_it(
    change: tuple[str, str], met: bool
) -> None:
    arm = "{name: control, weight: 50, parameters: {ranking.model: infnet}}"
    found = config(("{name: control, weight: 50}", arm), change)
    assert bool(problems(found, {**SERVED, "ranking.model": ("infnet",)})) == met


def test_a_stopped_arm_may_keep_a_model_that_is_served_no_more() -> None:
    stop = ("name: treatment", "name: treatment\n            stopped: true")
    assert problems(config(("infnet", "mc_mlcc"), stop)) == []
    assert [arm.arm for arm in arm_models(config(stop))] == ["control"]


INTERLEAVED = (
    ("name: ranker", "name: ranker\n        interleave: team_draft"),
    (", weight: 50}", "}"),
    ("            weight: 50\n", ""),
)


def test_both_of_two_interleaved_arms_need_their_models() -> None:
    found = config(*INTERLEAVED, ("infnet", "mc_mlcc"))
    ((line, text),) = problems(found)
    assert line == 12
    assert "arm treatment: ranking.model: 'mc_mlcc' is not served" in text
    assert [arm.models["ranking.model"] for arm in arm_models(found)] == ["masknet", "mc_mlcc"]


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ((), True),  # the first of the two sets no model
        ((("{name: control}", "{name: control, parameters: {ranking.model: infnet}}"),), False),
    ],
)
def test_a_default_is_met_unless_both_interleaved_arms_replace_it(
    changes: tuple[tuple[str, str], ...], met: bool
) -> None:
    found = config(*INTERLEAVED, *changes)
    assert bool(problems(found, {**SERVED, "ranking.model": ("infnet",)})) == met


def test_a_stopped_arms_users_meet_what_control_sets() -> None:
    models = {**SERVED, "ranking.model": ("infnet",)}
    own = "{name: control, weight: 0, parameters: {ranking.model: infnet}}"
    changes = [
        ("{name: control, weight: 50}", "{name: control, weight: 0}"),
        ("            weight: 50", "            weight: 100\n            stopped: true"),
    ]
    assert problems(config(*changes), models)
    assert problems(config(*changes, ("{name: control, weight: 0}", own)), models) == []


DECLARED = SCHEMA.declaration.surfaces
HOME_ALONE = replace(SCHEMA.declaration, surfaces=SCHEMA.declaration.surfaces[:1])


def test_a_segment_on_a_surface_that_no_request_may_name_is_told() -> None:
    segment = "segments: [{name: odd, where: {surface: {in: [hmoe]}}}]"
    (problem,) = undeclared(config(("version: 1", f"version: 1\n{segment}")), HOME_ALONE)
    assert problem.text("f.yaml").startswith("f.yaml:2: segment odd: where.surface: ")


def test_an_experiment_that_is_off_may_name_what_it_likes() -> None:
    off = ("name: ranker", "name: ranker\n        enabled: false")
    assert problems(config(off, ("infnet", "mc_mlcc"))) == []


def test_a_condition_on_a_surface_that_no_request_may_name_is_told() -> None:
    found = config(
        ("name: ranker", "name: ranker\n        where: {surface: {not_in: [home, hmoe]}}")
    )
    (problem,) = undeclared(found, SCHEMA.declaration)
    text = problem.text("f.yaml")
    assert text.startswith("f.yaml:6: layer models, experiment ranker: where.surface: ")
    assert "'hmoe'" in text
    assert "[home, detail]" in text
    both = tuple(replace(s, name=name) for s, name in zip(DECLARED, ("home", "hmoe"), strict=True))
    assert undeclared(found, replace(SCHEMA.declaration, surfaces=both)) == []


def test_without_surfaces_in_the_schema_requests_may_name_home() -> None:
    none = replace(SCHEMA.declaration, surfaces=())
    for surface, problems in (("home", 0), ("detail", 1)):
        where = f"where: {{surface: {{in: [{surface}]}}}}"
        found = config(("name: ranker", f"name: ranker\n        {where}"))
        assert len(undeclared(found, none)) == problems


def test_a_condition_that_compares_a_text_with_a_number_is_told() -> None:
    device = Field(
        name="device", type="category",
        vocabulary=Vocabulary(source="values", size=1, values=("tv",)),
    )  # fmt: skip
    declared = replace(SCHEMA.declaration, context=(device, Field(name="hour", type="number")))
    for name, problems in (("device", 1), ("hour", 0), ("undeclared", 0)):
        where = f"where: {{context: {{{name}: {{equals: 1}}}}}}"
        found = undeclared(config(("name: ranker", f"name: ranker\n        {where}")), declared)
        assert len(found) == problems
        for problem in found:
            text = problem.text("f.yaml")
            assert text.startswith(
                "f.yaml:6: layer models, experiment ranker: where.context.device"
            )
            assert "never holds" in text


def test_the_name_of_a_context_value_is_no_surface_and_what_is_off_is_free() -> None:
    context = "where: {context: {hour: {in: [7]}}}"
    found = config(("name: ranker", f"name: ranker\n        {context}"))
    assert undeclared(found, HOME_ALONE) == []
    off = "name: ranker\n        enabled: false\n        where: {surface: {in: [hmoe]}}"
    assert undeclared(config(("name: ranker", off)), HOME_ALONE) == []


def test_the_models_of_an_arm_are_its_own_or_the_defaults() -> None:
    control, treatment = arm_models(config())
    assert control.models == {"retrieval.model": "ssl_two_tower", "ranking.model": "masknet"}
    assert treatment.models == {"retrieval.model": "ssl_two_tower", "ranking.model": "infnet"}


def test_what_another_layer_may_change_is_not_the_arms() -> None:
    other = "layers:\n  - {name: found, parameters: [retrieval.model], experiments: []}"
    found = config(("layers:", other), ("[retrieval.model, ranking.model]", "[ranking.model]"))
    assert [set(arm.models) for arm in arm_models(found)] == [{"ranking.model"}] * 2


def test_an_arm_that_does_not_rank_has_no_ranking_model() -> None:
    found = config(
        ("ranking.model: infnet", "ranking.enabled: false"),
        ("retrieval.model, ranking.model]", "retrieval.model, ranking.model, ranking.enabled]"),
    )
    assert [set(arm.models) for arm in arm_models(found)] == [
        {"retrieval.model", "ranking.model"},
        {"retrieval.model"},
    ]


def test_served_is_what_the_settings_list() -> None:
    assert served(Settings()) == {
        "retrieval.model": Settings().candidate_generation.models,
        "ranking.model": Settings().ranking.models,
    }


def test_a_diversity_is_told_where_items_have_no_field_for_it() -> None:
    owned = ("[retrieval.model, ranking.model]", "[rerank.diversity]")
    found = config(owned, ("ranking.model: infnet", "rerank.diversity: 0.2"))
    assert undeclared(found, SCHEMA.declaration) == []
    (problem,) = undeclared(found, replace(SCHEMA.declaration, diversity=""))
    assert problem.text("f.yaml").startswith(
        "f.yaml:12: layer models, experiment ranker, arm treatment: rerank.diversity: "
    )
