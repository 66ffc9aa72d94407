"""The worker that follows the event log, keeps the statistics of every experiment fresh, and acts.

It folds what arrives (`log_reader`) and every few seconds, in a round, measures all experiments of
the file, does what follows from that (`deciding`: an arm stopped, a step of a ramp; each a change
in the log before anything else knows of it) and replaces run_dir/experiments.json whole, which
`tandem experiments report` reads instead of the log as long as it is fresh. Prometheus gets
guardrails and sample ratios as they stand.

It acts only when it has read both logs, of decisions and of changes, to within MOST_LAG_S of their
ends: on half of the data, or not knowing that a person has stopped an arm, it would be wrong for
good. Two workers do no harm: what both decide has one id and is one change.

It holds the fold in memory (see `fold` for how much), saves it to run_dir/experiments.fold every
ten minutes and at its end, and when it starts takes that and reads the whole log once more: a set
does not mind. So a restart, a replay or a second worker gives the same statistics to the bit, and
an experiment may last longer than event_log.retention_days as long as the file is kept. What is
older than the retention and carries no experiment of the file is forgotten.

One worker reads everything; shards of disjoint units would merge (`results.Measured.__add__`), and
nothing here does that yet.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from prometheus_client import Counter, Gauge

from protos.tandem.v1.records_pb2 import ExperimentChange
from services.common import telemetry
from services.common.channels import joined
from services.common.discovery import Announcement, replica_folder
from services.common.processes.stopping import stop_on_sigterm
from services.common.processes.waiting import Stopped, wait_for
from services.common.settings import Settings
from services.common.telemetry import OwnedGauge
from services.event_log.connect import connect
from services.event_log.interface import Lag, LogUnavailable, LogWentBack
from services.experiments.act.look import Look, Seen
from services.experiments.changes.actions import ramp_step
from services.experiments.changes.log import ChangeLog
from services.experiments.declare import config_reader
from services.experiments.declare.config import Experiment, ExperimentsError, moving_changes
from services.experiments.declare.fingerprints import fingerprint_of
from services.experiments.measure.fold import Fold
from services.experiments.measure.log_reader import POLL_S, LogReader
from services.experiments.measure.results import DAY_MS
from services.experiments.report.findings import Coverage
from services.feedback.joiner import BACKOFF_S, write_snapshot

log = structlog.get_logger(__name__)

SNAPSHOT = "experiments.json"
FOLD = "experiments.fold"
SAVE_EVERY_S = 600.0
FRESH_S = 30.0  # age up to which a snapshot stands for the log, or two rounds if that is longer
MOST_OF_THE_TIME = 0.2  # share of the time that measuring may take ...
PATIENCE_S = 30.0  # ... unless a breach would be seen later than so: it must be within a minute
MOST_EVER = 0.5  # share that measuring takes then: the log must still be read
MOST_LAG_S = 30.0  # of the log behind its end up to which the worker acts
MOST_LOOKS = 50  # at the changes, in a row: a member of a group is not at once given what to read
ELSEWHERE_S = 60.0  # age up to which a request by other parameters of the arms is one of now
REPEATED_AFTER = 0.25  # share of the log's retention after which changes are appended again

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


class Fresh(NamedTuple):
    """What a snapshot says of an experiment."""

    seen: Seen
    coverage: Coverage
    as_of_ms: float


class Worker:
    """Measures all experiments of what a reader has folded, and acts. Used by one thread."""

    def __init__(
        self,
        reader: LogReader,
        changes: ChangeLog,
        experiments_file: Path,
        source: str,
        retention_days: float = 7.0,
        act: bool = True,
    ) -> None:
        """`source` names the log in reports, `retention_days` is the log's; without `act` it only
        measures and reports. Raises ExperimentsError and OSError of the file."""
        self._reader = reader
        self._changes = changes
        self._file = experiments_file
        self._source = source
        self._retention_ms = retention_days * DAY_MS
        self._act = act
        self._config = config_reader.load(experiments_file)
        self._refused = ""
        self._failures: dict[str, str] = {}  # of experiments that cannot be measured: why
        self._reached_end = False  # of the log, nearly and at least once

    def round(self, now_ms: float) -> dict[str, Any]:
        """Measure every experiment, act, and say what a snapshot says; also sets the gauges.

        An experiment that cannot be measured is left out, and stops no other. Raises
        LogUnavailable; a change that was to be made is decided anew in the next round.
        """
        self._follow_file()
        self._follow_changes()
        lags = self._reader.lags()
        self._reached_end = self._reached_end or (self._reader.assigned() and _near_end(lags))
        lag_s = max(lag.seconds for lag in lags.values())
        acting = self._act and self._reached_end and self._changes.followed and lag_s <= MOST_LAG_S
        settled = self._reader.fold.settled()
        coverage = Coverage(settled.unmatched, self._reader.undecodable, self._source)
        found = {}
        failures = {}
        shown = _Shown()
        for layer, experiment in self._config.experiments():
            name = experiment.name
            try:
                look = Look(
                    settled, layer.name, experiment, self._changes.changes, now_ms, coverage
                )
                if acting:
                    self._make(look.decide(), now_ms)
                seen = look.seen()
                found[name] = {"declared": declared(experiment), **seen.to_json()}
                shown.of_experiment(experiment, look, seen)
                if seen.measured.elsewhere_ms > now_ms - ELSEWHERE_S * 1000:
                    failures[name] = "elsewhere"
                    if failures[name] != self._failures.get(name):
                        log.error("experiment_served_by_other_parameters", experiment=name)
            except LogUnavailable:
                raise
            except Exception as error:  # a bug; the others' guardrails must go on
                failures[name] = repr(error)
                found.pop(name, None)
                if failures[name] != self._failures.get(name):
                    log.exception("experiment_not_measured", experiment=name)
            shown.set(UNMEASURED, name in failures, name)
        shown.end()
        self._failures = failures
        if self._changes.followed:
            salts = {experiment.salt for _, experiment in self._config.experiments()}
            self._changes.repeat(salts, now_ms, REPEATED_AFTER * self._retention_ms)
        ACTING.set(acting)
        for topic, lag in lags.items():
            LAG_EVENTS.labels(topic).set(lag.events)
            LAG_SECONDS.labels(topic).set(lag.seconds)
        MEMORY_BYTES.set(self._reader.fold.nbytes)
        return {
            "written_ms": now_ms,
            "fresh_s": FRESH_S,
            "caught_up": self._reached_end and self._changes.followed,
            "lag_s": lag_s,
            "unmatched": coverage.unmatched,
            "undecodable": coverage.undecodable,
            "source": self._source,
            "experiments": found,
        }

    def _make(self, changes: list[ExperimentChange], now_ms: float) -> None:
        self._changes.append(changes, now_ms)
        for change in changes:
            kind = ExperimentChange.Kind.Name(change.kind).lower()
            ACTIONS.labels(kind).inc()
            log.warning(
                "experiment_changed",
                experiment=change.experiment,
                kind=kind,
                arm=change.arm,
                reason=change.reason,
            )

    def save(self, path: Path, now_ms: float) -> None:
        """Forget what nothing needs any more, and replace the file at `path` by the rest. OSError
        when it cannot be written."""
        names = {experiment.name for _, experiment in self._config.experiments()}
        self._reader.fold.forget(now_ms - self._retention_ms, names)
        temporary = path.with_suffix(".tmp-fold")
        temporary.write_bytes(self._reader.fold.to_bytes())
        temporary.replace(path)

    def _follow_changes(self) -> None:
        """Take in what has come; all of it, if that does not take long."""
        for _ in range(MOST_LOOKS):
            if self._changes.read(POLL_S):
                return

    def _follow_file(self) -> None:
        """Take the experiments of the file; keep the last good ones when it has an error, or would
        move units: routers refuse it then, and go on with those that are kept here."""
        try:
            new = config_reader.load(self._file)
            if moves := moving_changes(self._config, new):
                raise ExperimentsError(str(self._file), moves)
            self._config = new
            self._refused = ""
        except (ExperimentsError, OSError) as error:
            if str(error) != self._refused:
                self._refused = str(error)
                log.error("experiments_refused", file=str(self._file), problem=str(error))


def _near_end(lags: Mapping[str, Lag]) -> bool:
    """Whether the log was read nearly to its end: under traffic there is always something left. It
    tells nothing that the age of what is left is not known, which is then 0."""
    return all(not lag.events or 0 < lag.seconds <= MOST_LAG_S for lag in lags.values())


class _Shown:
    """What a round sets of the gauges per experiment. Series that it does not set go when it ends:
    until then a scrape sees those of the round before, and never none."""

    _GAUGES = BREACHED, RATIO_BROKEN, ARM_STOPPED, RAMP_STEP, UNMEASURED

    def __init__(self) -> None:
        self._series: set[tuple[Gauge, tuple[str, ...]]] = set()

    def set(self, gauge: Gauge, value: float, *labels: str) -> None:
        gauge.labels(*labels).set(value)
        self._series.add((gauge, labels))

    def of_experiment(self, experiment: Experiment, look: Look, seen: Seen) -> None:
        """What is known of one that was measured."""
        name, state = experiment.name, seen.state
        for g in look.judged.guardrails:
            self.set(BREACHED, g.safety == "breached", name, g.arm, g.metric.name)
        if look.judged.sample_ratio:
            self.set(RATIO_BROKEN, look.judged.sample_ratio.broken, name)
        for arm in state.pauses:
            self.set(ARM_STOPPED, arm in state.stopped, name, arm)
        if experiment.ramp:
            self.set(RAMP_STEP, ramp_step(experiment, state), name)

    def end(self) -> None:
        for gauge in self._GAUGES:
            for metric in gauge.collect():
                for sample in metric.samples:
                    labels = tuple(sample.labels.values())
                    if (gauge, labels) not in self._series:
                        gauge.remove(*labels)


def declared(experiment: Experiment) -> str:
    """All of a declaration that statistics depend on: a snapshot of another one is of no use."""
    parts = (
        experiment.salt,
        experiment.unit,
        experiment.start_ms,
        experiment.stop_ms,
        experiment.plan,
        experiment.ramp,
        experiment.interleave,
        fingerprint_of(experiment),
    )
    return repr(parts)


def fresh(path: Path, experiment: Experiment, source: str, now_ms: float) -> Fresh | None:
    """An experiment's statistics and changes from the snapshot at `path`.

    None when there is none, or it is too old (FRESH_S), as far behind the log or from before the
    log was read to its end, of another log, or of another declaration.
    """
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        entry = content["experiments"].get(experiment.name)
        if (
            entry is None
            or entry["declared"] != declared(experiment)
            or not content["caught_up"]
            or content["lag_s"] > FRESH_S
            or content["source"] != source
            or not 0 <= now_ms - content["written_ms"] <= content["fresh_s"] * 1000
        ):
            return None
        coverage = Coverage(content["unmatched"], content["undecodable"], source)
        return Fresh(Seen.from_json(entry), coverage, content["written_ms"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("experiments_snapshot_unreadable", file=str(path), cause=repr(error))
        return None


def run_worker(settings: Settings, stop: threading.Event) -> None:
    """Run the worker of these settings until `stop` or SIGTERM.

    Call it from the main thread of its own process, after configure_logging. Serves /metrics on
    experiments.metrics_port, announces itself as `experiments` with that address. Raises
    ExperimentsError or OSError of the experiments' file; an outage of the log is waited out, at the
    start and later.
    """
    stop_on_sigterm(stop)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    host = settings.router.host
    with contextlib.ExitStack() as opened:
        event_log = opened.enter_context(contextlib.closing(connect(settings.event_log)))
        saved = remembered(settings.run_dir / FOLD)
        try:
            begin = partial(LogReader, event_log, saved)
            reader = wait_for("the event log", begin, stop, LogUnavailable)
        except Stopped:
            return
        opened.callback(reader.close)
        changes = opened.enter_context(contextlib.closing(ChangeLog(event_log)))
        worker = Worker(
            reader,
            changes,
            settings.router.experiments_file,
            settings.event_log.url,
            settings.event_log.retention_days,
            settings.experiments.act,
        )
        server, _, port = telemetry.serve_metrics(
            "experiments", host, settings.experiments.metrics_port
        )
        opened.callback(server.server_close)
        opened.callback(server.shutdown)
        address = joined(host, port)
        folder = replica_folder(settings.run_dir, "experiments")
        opened.callback(Announcement(folder, address, metrics=address).withdraw)
        log.info("experiments_worker_started", metrics_port=port)
        follow(worker, reader, settings.run_dir, settings.experiments.report_every_s, stop)
    log.info("experiments_worker_stopped")


def remembered(path: Path) -> Fold:
    """What a worker saved; empty when there is nothing, or it cannot be read."""
    try:
        return Fold.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return Fold()
    except (OSError, ValueError) as error:
        log.warning("experiments_fold_unreadable", file=str(path), cause=str(error))
        return Fold()


def round_s(every_s: float, took_s: float) -> float:
    """From the beginning of a round that took so long to that of the next."""
    return max(every_s, min(took_s / MOST_OF_THE_TIME, PATIENCE_S), took_s / MOST_EVER)


def follow(
    worker: Worker, reader: LogReader, run_dir: Path, every_s: float, stop: threading.Event
) -> None:
    """Fold, go round and save until `stop`, and once at the end.

    A log or a file that fails is logged and tried again.
    """
    file = run_dir / SNAPSHOT
    next_report, next_save = 0.0, time.monotonic() + SAVE_EVERY_S
    while True:
        stopping = stop.is_set()
        try:
            if not stopping:
                reader.step(POLL_S)
            if stopping or time.monotonic() >= next_report:
                began = time.monotonic()
                content = worker.round(time.time_ns() / 1e6)
                until_next_s = round_s(every_s, time.monotonic() - began)
                next_report = began + until_next_s
                write_snapshot(file, content | {"fresh_s": max(FRESH_S, 2 * until_next_s)})
                SNAPSHOT_AT.set(content["written_ms"] / 1000)
            if stopping or time.monotonic() >= next_save:
                next_save = time.monotonic() + SAVE_EVERY_S
                worker.save(run_dir / FOLD, time.time_ns() / 1e6)
        except LogUnavailable as error:
            log.warning("experiments_worker_waits", cause=str(error), seconds=BACKOFF_S)
            stop.wait(BACKOFF_S)
        except LogWentBack as error:  # the fold counts once what comes again
            log.error("experiments_worker_reads_anew", cause=str(error))
            reader.begin_anew()
        except OSError as error:  # of the files written here
            log.warning("experiments_not_written", folder=str(run_dir), cause=str(error))
        if stopping:
            return
