"""What the worker says of itself and of experiments to Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from services.common.telemetry import OwnedGauge
from services.experiments.act.standing import Standing
from services.experiments.changes.state import ramp_step
from services.experiments.declare.config import Experiment
from services.experiments.report.findings import Report

LAG_EVENTS = Gauge(
    "tandem_experiments_lag_events",
    "Records not yet read, per topic: how stale the experiments' statistics are.",
    ["topic"],
)
LAG_SECONDS = Gauge(
    "tandem_experiments_lag_seconds",
    "Age of the oldest record not yet read, per topic; past half a minute the worker stops no arm.",
    ["topic"],
)
SNAPSHOT_AT = OwnedGauge(
    "tandem_experiments_snapshot_timestamp_seconds",
    "When the statistics were last written; alert when it stands still.",
)
MEMORY_BYTES = OwnedGauge(
    "tandem_experiments_memory_bytes",
    "What the worker remembers of decisions and feedback; measuring takes four times that.",
)
BREACHED = Gauge(
    "tandem_experiments_guardrail_breached",
    "1 when an arm harms a guardrail metric by more than is allowed: stop the arm.",
    ["experiment", "arm", "metric"],
)
RATIO_BROKEN = Gauge(
    "tandem_experiments_sample_ratio_broken",
    "1 when the arms' sizes are not those of the weights: trust no effect of the experiment.",
    ["experiment"],
)
ARM_STOPPED = Gauge(
    "tandem_experiments_arm_stopped",
    "1 while an arm is stopped by the worker or by a person: see `tandem experiments audit`.",
    ["experiment", "arm"],
)
RAMP_STEP = Gauge(
    "tandem_experiments_ramp_step",
    "Index of the ramp's step in force; alert when it should have moved on by now.",
    ["experiment"],
)
ACTIONS = Counter(
    "tandem_experiments_actions_total",
    "What this worker has done by itself; alert on arm_stopped.",
    ["kind"],
)
UNMEASURED = Gauge(
    "tandem_experiments_unmeasured",
    "1 while an experiment cannot be measured (the log says why), or requests are served by other "
    "parameters of its arms than the file's: nothing stops its arms then. Alert on 1, and stop "
    "them by hand if they may do harm.",
    ["experiment"],
)
ACTING = OwnedGauge(
    "tandem_experiments_acting",
    "1 while the worker would stop an arm that does harm; 0: it may not (experiments.act), or is "
    "behind the log. Alert on 0.",
)

_ARM = ["experiment", "arm"]
EXPOSURES = Gauge(
    "tandem_exposures",
    "Requests answered of units that met this arm first: arms stand in their weights' ratio.",
    _ARM,
)
EXPOSED_UNITS = Gauge(
    "tandem_exposed_units",
    "Users, or whatever the experiment assigns, that this arm was shown to first: what its rates"
    " have a sample of.",
    _ARM,
)
ARM_EVENTS = Gauge(
    "tandem_arm_events",
    "Feedback on this arm's lists, by the event's name in schema.yaml: what rates are made of.",
    [*_ARM, "event"],
)
DEGRADED_REQUESTS = Gauge(
    "tandem_arm_degraded_requests",
    "Requests of this arm that a stage failed or came late for: unequal shares make the arms"
    " incomparable.",
    _ARM,
)
UNMATCHED = OwnedGauge(
    "tandem_experiments_unmatched_events",
    "Feedback that quotes a request of which there is no decision: decisions are lost, or clients"
    " make up request ids.",
)
UNDECODABLE = OwnedGauge(
    "tandem_experiments_undecodable_records",
    "Records that are no valid message, or cannot be meant: a broken writer.",
)


class ExperimentGauges:
    """What a round sets of the gauges per experiment. Series that it does not set go when it ends:
    until then a scrape sees those of the round before, and never none."""

    _ALL = (
        BREACHED, RATIO_BROKEN, ARM_STOPPED, RAMP_STEP, UNMEASURED,
        EXPOSURES, EXPOSED_UNITS, ARM_EVENTS, DEGRADED_REQUESTS,
    )  # fmt: skip

    def __init__(self) -> None:
        self._series: set[tuple[Gauge, tuple[str, ...]]] = set()

    def set(self, gauge: Gauge, value: float, *labels: str) -> None:
        gauge.labels(*labels).set(value)
        self._series.add((gauge, labels))

    def of_experiment(self, experiment: Experiment, stands: Standing, judged: Report) -> None:
        """What is known of one that was measured."""
        name, state = experiment.name, stands.state
        for arm, counts in stands.measured.arms.items():
            self.set(EXPOSURES, counts.requests, name, arm)
            self.set(EXPOSED_UNITS, counts.units, name, arm)
            self.set(DEGRADED_REQUESTS, counts.degraded, name, arm)
            for event, n in counts.events.items():
                self.set(ARM_EVENTS, n, name, arm, event)
        for g in judged.guardrails:
            self.set(BREACHED, g.safety == "breached", name, g.arm, g.metric.name)
        if judged.sample_ratio:
            self.set(RATIO_BROKEN, judged.sample_ratio.broken, name)
        for arm in state.pauses:
            self.set(ARM_STOPPED, arm in state.stopped, name, arm)
        if experiment.ramp:
            self.set(RAMP_STEP, ramp_step(experiment, state), name)

    def end(self) -> None:
        for gauge in self._ALL:
            for metric in gauge.collect():
                for sample in metric.samples:
                    labels = tuple(sample.labels.values())
                    if (gauge, labels) not in self._series:
                        gauge.remove(*labels)
