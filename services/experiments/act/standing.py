"""How an experiment stands at an instant, as the log shows it: statistics, changes and ramp.

The worker and `tandem experiments report` see experiments through this, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from protos.tandem.v1.records_pb2 import ExperimentChange, ExperimentState
from services.experiments.act.deciding import ramp_report
from services.experiments.changes.state import (
    Changes,
    LiveState,
    at_last_step,
    epochs,
    experiment_in_force,
    judged_epochs,
    message_of,
    state_of,
)
from services.experiments.declare.config import Experiment
from services.experiments.measure.exposures import Exposed
from services.experiments.measure.fold import Settled
from services.experiments.measure.measure import measured, spans_of
from services.experiments.measure.results import Measured
from services.experiments.report.build import build_report
from services.experiments.report.findings import ChangeReport, Coverage, RampReport, Report


@dataclass(frozen=True)
class Standing:
    """What a report is made of, beside the declaration."""

    measured: Measured
    state: LiveState
    changes: tuple[ChangeReport, ...]
    ramp: RampReport | None

    def to_json(self) -> dict[str, Any]:
        """As JSON that `from_json` reads back exactly."""
        return {
            "measured": self.measured.to_json(),
            "state": MessageToDict(message_of(self.state)),
            "changes": [asdict(change) for change in self.changes],
            "ramp": asdict(self.ramp) if self.ramp else None,
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Standing:
        """ValueError when the content is not of `to_json`."""
        try:
            ramp = content["ramp"]
            return Standing(
                Measured.from_json(content["measured"]),
                state_of(ParseDict(content["state"], ExperimentState())),
                tuple(ChangeReport(**change) for change in content["changes"]),
                RampReport(**ramp | {"steps": tuple(ramp["steps"])}) if ramp else None,
            )
        except (KeyError, TypeError, ParseError) as error:
            raise ValueError(
                f"no experiment stands like this ({error!r}). Measure anew."
            ) from error


class KnownLog(NamedTuple):
    """What is known of the log, and when."""

    settled: Settled
    coverage: Coverage
    now_ms: float


def measure(at: KnownLog, experiment: Experiment, state: LiveState) -> tuple[Measured, Measured]:
    """The statistics of all units, and those that may stop an arm: where one was resumed they rest
    on the time since (`judged_epochs`). `experiment` is the file's declaration, here as below."""
    live = experiment_in_force(experiment, state)
    whole = measured(at.settled, live, at.now_ms, epochs(state))
    if not state.resumed_ms:
        return whole, whole
    return whole, measured(at.settled, live, at.now_ms, judged_epochs(state))


def judge(
    at: KnownLog, layer: str, experiment: Experiment, state: LiveState, recent: Measured
) -> Report:
    """The report that decisions rest on; `recent` is the second of `measure`."""
    live = experiment_in_force(experiment, state)
    return build_report(layer, live, recent, at.now_ms, at.coverage, forecast=False)


def step_units(at: KnownLog, experiment: Experiment, state: LiveState) -> int:
    """How many units that were first exposed in the ramp's step in force have a final outcome; 0
    where no ramp goes on."""
    if at_last_step(experiment, state):
        return 0
    exposed = Exposed.of(at.settled, experiment, at.now_ms)
    first_ms = exposed.time_ms[exposed.first]
    span = spans_of(experiment)[0]
    final = first_ms + span.observe_ms + span.window_ms <= at.now_ms
    return int(np.count_nonzero(final & (first_ms >= state.ramp_step_since_ms)))


def standing_by(
    at: KnownLog, experiment: Experiment, changes: Changes, whole: Measured, judged: Report
) -> Standing:
    """By the first of `measure` and by `judge`, with the changes that are known by now."""
    state = changes.state(experiment.salt)
    done = tuple(
        ChangeReport(
            at_ms=c.event_time_ms, actor=c.actor, kind=ExperimentChange.Kind.Name(c.kind),
            arm=c.arm, reason=c.reason,
        )
        for c in changes.of(experiment.salt)
    )  # fmt: skip
    units = step_units(at, experiment, state)
    return Standing(whole, state, done, ramp_report(experiment, state, judged, at.now_ms, units))


def standing(at: KnownLog, layer: str, experiment: Experiment, changes: Changes) -> Standing:
    """How it stands if nothing is done about it."""
    state = changes.state(experiment.salt)
    whole, recent = measure(at, experiment, state)
    judged = judge(at, layer, experiment, state, recent)
    return standing_by(at, experiment, changes, whole, judged)


def report_of(
    layer: str, experiment: Experiment, stands: Standing, as_of_ms: float, coverage: Coverage
) -> Report:
    """The report of an experiment that stands like this."""
    live = experiment_in_force(experiment, stands.state)
    return build_report(
        layer, live, stands.measured, as_of_ms, coverage, changes=stands.changes, ramp=stands.ramp
    )
