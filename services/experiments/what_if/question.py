"""What `tandem experiments what-if` asks, and reading the catalogue and the log for it.

The whole retained log is read, of which the period is kept; nothing in it changes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from models.catalogue import ItemTable
from protos.tandem.v1 import records_pb2
from services.common.value_model import ValueModel
from services.event_log.interface import EventLog
from services.event_log.whole_log import WholeLog
from services.experiments.declare.config import Experiment, ExperimentsConfig
from services.experiments.declare.metrics import Metric
from services.experiments.declare.parameters import (
    ParameterError,
    ParameterSpecs,
    Value,
    value_text,
)
from services.experiments.declare.targeting import NOTHING, compiled, hold
from services.experiments.what_if.log import NOT_LOGGED, Concerns, Target, WhatIfLog
from services.experiments.what_if.off_policy.errors import NotInLog

READER = "what-if"
POLL_S = 0.1
POLL_RECORDS = 1000

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class CannotAsk(ValueError):
    """The question has no meaning; the message says how to ask."""


class Question(NamedTuple):
    """A target, the requests that it is about, and what it is called."""

    target: Target
    concerns: Concerns
    title: str


def question(
    specs: ParameterSpecs, experiment: Experiment | None, arm: str, settings: Sequence[str]
) -> Question:
    """An arm of an experiment, or parameters NAME=VALUE, or both. Raises CannotAsk and
    OffPolicyRefused."""
    overrides: dict[str, Value] = {}
    if experiment is not None:
        arms = {a.name: a for a in experiment.arms}
        if arm not in arms:
            raise CannotAsk(
                f"say which arm of {experiment.name} by --arm: one of {', '.join(arms)}"
            )
        overrides |= arms[arm].parameters
    elif arm:
        raise CannotAsk("--arm is of an experiment: give its name before the options")
    elif not settings:
        raise CannotAsk("name an experiment with --arm, or parameters with --set NAME=VALUE")
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise CannotAsk(f"write {text!r} as NAME=VALUE")
        try:
            overrides[name] = specs.value_of(name, value)
        except ParameterError as error:
            raise CannotAsk(f"{name}: {error}") from error
    check_overrides(specs, overrides)
    asked = _asked(overrides)
    if experiment is None:
        return Question(Target(overrides, specs), lambda record: True, f"What if {asked}?")
    return Question(
        Target(overrides, specs, experiment.questions),
        concerned(experiment),
        f"What if everybody got {arm} of {experiment.name} ({asked})?",
    )


def _asked(overrides: Mapping[str, Value]) -> str:
    asked = ", ".join(f"{name} = {value_text(value)}" for name, value in overrides.items())
    return asked or "production's parameters"


def check_overrides(specs: ParameterSpecs, overrides: Mapping[str, Value]) -> None:
    """Refuse a target that other models or candidates would make. Raises NotInLog."""
    for name, value in overrides.items():
        spec = specs.spec_of(name)
        if spec.attribute in NOT_LOGGED and value != spec.default:
            raise NotInLog(
                f"{name} = {value} cannot be evaluated from the log: the scores that it would have "
                "made were not logged. Run an A/B test or an interleaving experiment."
            )


def concerned(experiment: Experiment) -> Concerns:
    """Which requests an arm of the experiment is about, as far as a record tells.

    Its conditions on the surface are checked. Where it has others, of which records hold nothing,
    only requests that carry the experiment are known to fulfil them.
    """
    of_surface = tuple(c for c in experiment.where if c.of_surface)
    tests = compiled(of_surface)
    must_carry = len(of_surface) < len(experiment.where)

    def concerns(record: records_pb2.DecisionRecord) -> bool:
        if record.held_out or not hold(tests, record.surface, NOTHING, NOTHING):
            return False
        return not must_carry or any(a.experiment == experiment.name for a in record.assignments)

    return concerns


def metric_of(config: ExperimentsConfig, experiment: Experiment | None, name: str) -> Metric:
    """The named metric of the file; without a name the experiment's primary one, or the first of
    the file that is of feedback. Raises CannotAsk."""
    if name:
        for metric in config.metrics:
            if metric.name == name:
                return metric
        names = ", ".join(metric.name for metric in config.metrics) or "those that you declare"
        raise CannotAsk(f"there is no metric {name!r} in the experiments file. Use one of {names}")
    if experiment is not None and experiment.plan.primary is not None:
        return experiment.plan.primary.metric
    for metric in config.metrics:
        if metric.source and metric.kind != "quantile" and not (metric.winsorise or metric.where):
            return metric
    raise CannotAsk("declare a metric of an event in the experiments file")


def duration_ms(text: str) -> float:
    """ms of 90s, 90m, 24h or 7d. Raises CannotAsk."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise CannotAsk(f"{text!r} is no time. Write --last like 90m, 24h or 7d")
    return float(found[1]) * _MS[found[2]]


def read(
    event_log: EventLog,
    asked: Question,
    items: ItemTable,
    value_model: ValueModel,
    from_ms: float,
    until_ms: float,
) -> WhatIfLog:
    """The period of a log. Raises LogUnavailable."""
    log = WhatIfLog(asked.target, items, value_model, from_ms, until_ms, asked.concerns)
    reader = WholeLog(event_log, READER, POLL_RECORDS, log.on_decision, log.on_feedback)
    with contextlib.closing(reader):
        reader.read_all(POLL_S)
    log.undecodable += reader.undecodable
    return log
