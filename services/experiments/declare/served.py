"""What the experiments ask of the installation, and whether it is there: models, and what
schema.yaml declares.

A parameter that names a model which nobody serves would cost every answer of its arm: candidate
generation and ranking refuse the call (NOT_FOUND), and the router goes on without them. A condition
on a surface that no request may name would never hold. `tandem experiments validate` refuses both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from models.schema.declaration import TEXTS, Declaration
from models.yaml_reader.problems import Problem
from services.common.settings import Settings
from services.experiments.declare.config import (
    Arm,
    Experiment,
    ExperimentsConfig,
    Layer,
    Segment,
)
from services.experiments.declare.parameters import IN_EVERY_DOMAIN
from services.experiments.declare.targeting import Condition

DIVERSITY = "rerank.diversity"
# Parameter -> the section of the settings whose `models` lists what is served.
SECTIONS = {"retrieval.model": "candidate_generation", "ranking.model": "ranking"}


class ArmModels(NamedTuple):
    """An arm and the models behind its answers, by parameter."""

    layer: str
    experiment: str
    arm: str
    models: Mapping[str, str]


def served(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Parameter -> the models that the settings make the replicas serve."""
    return {name: getattr(settings, section).models for name, section in SECTIONS.items()}


def arm_models(config: ExperimentsConfig) -> list[ArmModels]:
    """The models of every arm of the enabled experiments; two interleaved arms both count.

    Without stopped arms, whose units get control's; without those that another layer may change at
    the same time, which are not the arm's own; and without a ranking model where the arm does not
    rank.
    """
    owner = {parameter: layer.name for layer in config.layers for parameter in layer.parameters}
    return [
        ArmModels(
            layer.name,
            experiment.name,
            arm.name,
            {
                name: str(arm.parameters.get(name, IN_EVERY_DOMAIN[name].default))
                for name in SECTIONS
                if owner.get(name, layer.name) == layer.name
                and (name != "ranking.model" or arm.parameters.get("ranking.enabled", True))
            },
        )
        for layer, experiment in _enabled(config)
        for arm in _live(experiment)
    ]


def unserved(config: ExperimentsConfig, models: Mapping[str, Sequence[str]]) -> list[Problem]:
    """A problem for each arm, and each default that requests can meet, of an unserved model.

    `models`: parameter -> served models. Switched-off experiments and stopped arms may name what
    they like: so a model can be taken from the replicas and its arm stays as a record.
    """
    found = []
    for layer, experiment in _enabled(config):
        for arm in _live(experiment):
            for name in SECTIONS.keys() & arm.parameters.keys():
                if (model := str(arm.parameters[name])) not in models[name]:
                    where = f"layer {layer.name}, experiment {experiment.name}, arm {arm.name}"
                    line = arm.lines.get(name, experiment.line)
                    found.append(
                        _problem(
                            line, f"{where}: {name}", model, name, models[name], experiment.file
                        )
                    )
    for name in SECTIONS:
        default = str(IN_EVERY_DOMAIN[name].default)
        if default not in models[name] and not (
            config.holdout.buckets == 0
            and any(_replaces(layer, experiment, name) for layer, experiment in _enabled(config))
        ):
            path = f"{name} of requests without an arm that sets it"
            found.append(_problem(1, path, default, name, models[name]))
    return sorted(found, key=lambda problem: (problem.file, problem.line))


def undeclared(config: ExperimentsConfig, declaration: Declaration) -> list[Problem]:
    """A problem for each surface that a condition names, each text of the context that it compares
    with numbers, and each diversity that an arm sets, where schema.yaml has no such thing.

    Of segments, too. Switched-off experiments may name what they like. (Events, weights and numbers
    of users are looked at when the file is read. A context value need not be declared: requests may
    bring others, which no model reads.)
    """
    surfaces = declaration.surface_names
    texts = [each.name for each in declaration.context if each.type in TEXTS]
    found = []
    for owner, place, condition in _conditions(config):
        path = f"{place}: where.{condition.subject}"
        if condition.of_surface:
            reason = f"surfaces in schema.yaml has [{', '.join(surfaces)}]"
            fix = "Declare it there, or name a surface that is listed"
            found += [
                Problem(owner.line, path, f"no request may name the surface {value!r}: {reason}",
                        fix, owner.file)
                for value in condition.operands
                if value not in surfaces
            ]  # fmt: skip
        elif not condition.of_user and condition.name in texts:
            reason = (
                "is a text in schema.yaml, and conditions compare numbers: this one never holds"
            )
            fix = "Send what you need as a number, too (a flag is 0 or 1), and name that"
            found.append(Problem(owner.line, path, f"{condition.name} {reason}", fix, owner.file))
    if not declaration.diversity:
        found += [
            Problem(
                arm.lines.get(DIVERSITY, experiment.line),
                f"layer {layer.name}, experiment {experiment.name}, arm {arm.name}: {DIVERSITY}",
                "there is no field of items by which lists could be made diverse",
                "Name one in schema.yaml (diversity), or do not set it",
                experiment.file,
            )
            for layer, experiment in _enabled(config)
            for arm in experiment.arms
            if DIVERSITY in arm.parameters
        ]
    return found


def _conditions(
    config: ExperimentsConfig,
) -> Iterator[tuple[Experiment | Segment, str, Condition]]:
    """Every condition of the experiments that are switched on and of the segments, with who has it
    and where that is."""
    owners: list[tuple[Experiment | Segment, str]] = [
        (experiment, f"layer {layer.name}, experiment {experiment.name}")
        for layer, experiment in _enabled(config)
    ]
    owners += [(segment, f"segment {segment.name}") for segment in config.segments]
    for owner, place in owners:
        for condition in owner.where:
            yield owner, place, condition


def _problem(
    line: int, path: str, model: str, name: str, models: Sequence[str], file: str = ""
) -> Problem:
    key = f"{SECTIONS[name]}.models"
    return Problem(
        line,
        path,
        f"{model!r} is not served: {key} is [{', '.join(models)}]",
        f"Train it and add it to {key} in the settings, or name a model that is listed",
        file,
    )


def _replaces(layer: Layer, experiment: Experiment, name: str) -> bool:
    """Whether the experiment gives every user a value of its own, at any time and whatever the
    request carries."""
    control = next(arm for arm in experiment.arms if arm.name == experiment.control)
    return (
        experiment.spans_layer
        and not experiment.bounded
        and not experiment.where
        and experiment.unit == "user"
        and name in layer.parameters
        and all(
            name in (control if arm.stopped else arm).parameters and arm.traffic == 100
            for arm in experiment.dealt_arms
        )
    )


def _live(experiment: Experiment) -> Iterable[Arm]:
    return (arm for arm in experiment.arms if not arm.stopped)


def _enabled(config: ExperimentsConfig) -> Iterable[tuple[Layer, Experiment]]:
    return ((layer, e) for layer, e in config.experiments() if e.enabled)
