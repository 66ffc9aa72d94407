"""One experiment as the log shows it at an instant: what was done to it, measured and reported.

The worker and `tandem experiments report` see experiments through this, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from protos.tandem.v1.records_pb2 import ExperimentChange, ExperimentState
from services.experiments.act.deciding import decide, ramp_report
from services.experiments.changes.actions import (
    AT_START,
    Changes,
    Epoch,
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
from services.experiments.report.build import report
from services.experiments.report.findings import ChangeReport, Coverage, RampReport, Report


@dataclass(frozen=True)
class Seen:
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
    def from_json(content: Mapping[str, Any]) -> Seen:
        """ValueError when the content is not of `to_json`."""
        try:
            ramp = content["ramp"]
            return Seen(
                Measured.from_json(content["measured"]),
                state_of(ParseDict(content["state"], ExperimentState())),
                tuple(ChangeReport(**change) for change in content["changes"]),
                RampReport(**ramp | {"steps": tuple(ramp["steps"])}) if ramp else None,
            )
        except (KeyError, TypeError, ParseError) as error:
            raise ValueError(f"this was not seen by a look ({error!r}). Look anew.") from error


class Look:
    """A look at one experiment at the instant `now_ms`."""

    def __init__(
        self,
        settled: Settled,
        layer: str,
        experiment: Experiment,
        changes: Changes,
        now_ms: float,
        coverage: Coverage,
    ) -> None:
        """`experiment` is the file's declaration."""
        self._settled = settled
        self._layer = layer
        self._experiment = experiment
        self._changes = changes
        self._now_ms = now_ms
        self._coverage = coverage
        self.state = changes.states().get(experiment.salt, AT_START)
        self._live = experiment_in_force(experiment, self.state)
        self._measured, found = self._see(epochs(self.state))
        # What may stop an arm rests on the time since it was resumed, if it was.
        self.judged = self._see(judged_epochs(self.state))[1] if self.state.resumed_ms else found

    def decide(self) -> list[ExperimentChange]:
        """What is to be done now (see `deciding`)."""
        units = self._step_units(self.state)
        return decide(self._experiment, self.state, self.judged, self._now_ms, units)

    def seen(self) -> Seen:
        """What this look has found, with the changes that are known by now."""
        state = self._changes.states().get(self._experiment.salt, AT_START)
        units = self._step_units(state)
        return Seen(
            self._measured,
            state,
            change_reports(self._changes.of(self._experiment.salt)),
            ramp_report(self._experiment, state, self.judged, self._now_ms, units),
        )

    def _step_units(self, state: LiveState) -> int:
        """What `decide` wants to know; 0 where no ramp goes on."""
        if at_last_step(self._experiment, state):
            return 0
        since_ms = state.ramp_step_since_ms
        return step_units(self._settled, self._experiment, since_ms, self._now_ms)

    def _see(self, parts: Sequence[Epoch]) -> tuple[Measured, Report]:
        found = measured(self._settled, self._live, self._now_ms, parts)
        return found, report(
            self._layer, self._live, found, self._now_ms, self._coverage, forecast=False
        )


def step_units(settled: Settled, experiment: Experiment, since_ms: float, now_ms: float) -> int:
    """How many units that were first exposed at or after `since_ms` have a final outcome."""
    exposed = Exposed.of(settled, experiment, now_ms)
    first_ms = exposed.time_ms[exposed.first]
    span = spans_of(experiment)[0]
    final = first_ms + span.observe_ms + span.window_ms <= now_ms
    return int(np.count_nonzero(final & (first_ms >= since_ms)))


def report_of(
    layer: str,
    experiment: Experiment,
    seen: Seen,
    as_of_ms: float,
    coverage: Coverage,
    *,
    forecast: bool = True,
) -> Report:
    """The report of what was seen of an experiment, which is the file's declaration."""
    live = experiment_in_force(experiment, seen.state)
    return report(
        layer,
        live,
        seen.measured,
        as_of_ms,
        coverage,
        forecast=forecast,
        changes=seen.changes,
        ramp=seen.ramp,
    )


def change_reports(changes: Sequence[ExperimentChange]) -> tuple[ChangeReport, ...]:
    """Changes as reports have them."""
    return tuple(
        ChangeReport(c.event_time_ms, c.actor, ExperimentChange.Kind.Name(c.kind), c.arm, c.reason)
        for c in changes
    )
