"""The worker that follows the event log, keeps the statistics of every experiment fresh, and acts.

It folds what arrives (`log_reader`) and every few seconds, in a round, measures all experiments of
the file, does what follows from that (`deciding`: an arm stopped, a step of a ramp; each a change
in the log before anything else knows of it) and publishes how they stand (`snapshot`). Prometheus
gets guardrails and sample ratios.

It acts only when it has read both logs, of decisions and of changes, to within MOST_LAG_S of their
ends: on half of the data, or not knowing that a person has stopped an arm, it would be wrong for
good. Two workers do no harm: what both decide has one id and is one change.

It holds the fold in memory (see `fold` for how much), saves it to run_dir/experiments.fold every
ten minutes and at its end, and when it starts takes that and reads the whole log once more: a set
does not mind. So a restart, a replay or a second worker gives the same statistics to the bit, and
an experiment may last longer than event_log.retention_days as long as the file is kept. What is
older than the retention and carries no experiment of the file is forgotten.

One worker reads everything.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from models.files import replace_whole
from protos.tandem.v1.records_pb2 import ExperimentChange
from services.common.discovery import metrics_announced
from services.common.processes.stopping import stop_on_sigterm
from services.common.processes.waiting import Stopped, wait_for
from services.common.schema import schema_of
from services.common.settings import Settings
from services.event_log.connect import connect
from services.event_log.interface import Lag, LogUnavailable, LogWentBack
from services.experiments.act.deciding import decide
from services.experiments.act.metrics import (
    ACTING,
    ACTIONS,
    LAG_EVENTS,
    LAG_SECONDS,
    MEMORY_BYTES,
    SNAPSHOT_AT,
    UNDECODABLE,
    UNMATCHED,
    UNMEASURED,
    ExperimentGauges,
)
from services.experiments.act.snapshot import FRESH_S, SNAPSHOT, entry
from services.experiments.act.standing import KnownLog, judge, measure, standing_by, step_units
from services.experiments.changes.log import ChangeLog
from services.experiments.declare import config_reader
from services.experiments.declare.config import ExperimentsError, moving_changes
from services.experiments.declare.domain import Domain, domain_of
from services.experiments.measure.fold import Fold
from services.experiments.measure.log_reader import POLL_S, LogReader
from services.experiments.measure.results import DAY_MS
from services.experiments.report.findings import Coverage

log = structlog.get_logger(__name__)

FOLD = "experiments.fold"
SAVE_EVERY_S = 600.0
BACKOFF_S = 1.0  # when the log does not answer
MOST_OF_THE_TIME = 0.2  # share of the time that measuring may take ...
PATIENCE_S = 30.0  # ... unless a breach would be seen later than so: it must be within a minute
MOST_EVER = 0.5  # share that measuring takes then: the log must still be read
MOST_LAG_S = 30.0  # of the log behind its end up to which the worker acts
MOST_LOOKS = 50  # at the changes, in a row: a member of a group is not at once given what to read
ELSEWHERE_S = 60.0  # age up to which a request by other parameters of the arms is one of now
REPEATED_AFTER = 0.25  # share of the log's retention after which changes are appended again


class Worker:
    """Measures all experiments of what a reader has folded, and acts. Used by one thread."""

    def __init__(
        self,
        reader: LogReader,
        changes: ChangeLog,
        experiments_file: Path,
        domain: Domain,
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
        self._domain = domain
        self._config = config_reader.load(experiments_file, domain)
        self._refused = ""
        self._failures: dict[str, str] = {}  # of experiments that cannot be measured: why
        self._reached_end = False  # of the log, nearly and at least once

    def round(self, now_ms: float) -> dict[str, Any]:
        """Settle what was folded; measure, report, decide and append for every experiment; set the
        gauges, and return the snapshot of how they all stand, which `follow` writes.

        An experiment that cannot be measured is left out, and stops no other. Raises
        LogUnavailable; a change that was to be made is decided anew in the next round.
        """
        self._follow_file()
        self._follow_changes()
        lags = self._reader.lags()
        acting = self._may_act(lags)
        known = self._changes.changes
        settled = self._reader.fold.settled()
        coverage = Coverage(settled.unmatched, self._reader.undecodable, self._source)
        at = KnownLog(settled, coverage, now_ms)
        entries, failures, gauges = {}, dict[str, str](), ExperimentGauges()
        for layer, experiment in self._config.experiments():
            name = experiment.name
            try:
                state = known.state(experiment.salt)
                whole, recent = measure(at, experiment, state)
                judged = judge(at, layer.name, experiment, state, recent)
                if acting:
                    units = step_units(at, experiment, state)
                    self._append(decide(experiment, state, judged, now_ms, units), now_ms)
                stands = standing_by(at, experiment, known, whole, judged)
                entries[name] = entry(experiment, stands)
                gauges.of_experiment(experiment, stands, judged)
                if whole.elsewhere_ms > now_ms - ELSEWHERE_S * 1000:
                    failures[name] = "elsewhere"
                    self._tell(name, "elsewhere", "experiment_served_by_other_parameters")
            except LogUnavailable:
                raise
            except Exception as error:  # a bug; the others' guardrails must go on
                entries.pop(name, None)
                failures[name] = repr(error)
                self._tell(name, repr(error), "experiment_not_measured", exc_info=True)
            gauges.set(UNMEASURED, name in failures, name)
        gauges.end()
        self._failures = failures
        self._repeat(now_ms)
        self._set_gauges(lags, acting, coverage)
        return {
            "written_ms": now_ms,
            "fresh_s": FRESH_S,
            "caught_up": self._reached_end and self._changes.followed,
            "lag_s": _lag_s(lags),
            "unmatched": coverage.unmatched,
            "undecodable": coverage.undecodable,
            "source": self._source,
            "experiments": entries,
        }

    def _may_act(self, lags: Mapping[str, Lag]) -> bool:
        """Whether it may, and knows enough of the log and of what was changed."""
        self._reached_end = self._reached_end or (self._reader.assigned() and _near_end(lags))
        knows = self._reached_end and self._changes.followed and _lag_s(lags) <= MOST_LAG_S
        return self._act and knows

    def _append(self, changes: list[ExperimentChange], now_ms: float) -> None:
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

    def _repeat(self, now_ms: float) -> None:
        """Append again what the log would forget, of the experiments that the file still has."""
        if self._changes.followed:
            salts = {experiment.salt for _, experiment in self._config.experiments()}
            self._changes.repeat(salts, now_ms, REPEATED_AFTER * self._retention_ms)

    def _set_gauges(self, lags: Mapping[str, Lag], acting: bool, coverage: Coverage) -> None:
        ACTING.set(acting)
        for topic, lag in lags.items():
            LAG_EVENTS.labels(topic).set(lag.events)
            LAG_SECONDS.labels(topic).set(lag.seconds)
        MEMORY_BYTES.set(self._reader.fold.nbytes)
        UNMATCHED.set(coverage.unmatched)
        UNDECODABLE.set(coverage.undecodable)

    def _tell(self, experiment: str, failure: str, event: str, exc_info: bool = False) -> None:
        """Log a failure in the first round that has it."""
        if failure != self._failures.get(experiment):
            log.error(event, experiment=experiment, exc_info=exc_info)

    def save(self, path: Path, now_ms: float) -> None:
        """Forget what nothing needs any more, and replace the file at `path` by the rest. OSError
        when it cannot be written."""
        names = {experiment.name for _, experiment in self._config.experiments()}
        self._reader.fold.forget(now_ms - self._retention_ms, names)
        replace_whole(path, self._reader.fold.to_bytes(), durable=False)

    def _follow_changes(self) -> None:
        """Take in what has come; all of it, if that does not take long."""
        for _ in range(MOST_LOOKS):
            if self._changes.read(POLL_S):
                return

    def _follow_file(self) -> None:
        """Take the experiments of the file; keep the last good ones when it has an error, or would
        move units: routers refuse it then, and go on with those that are kept here."""
        try:
            new = config_reader.load(self._file, self._domain)
            if moves := moving_changes(self._config, new):
                raise ExperimentsError(str(self._file), moves)
            self._config = new
            self._refused = ""
        except (ExperimentsError, OSError) as error:
            if str(error) != self._refused:
                self._refused = str(error)
                log.error("experiments_refused", file=str(self._file), problem=str(error))


def _lag_s(lags: Mapping[str, Lag]) -> float:
    return max(lag.seconds for lag in lags.values())


def _near_end(lags: Mapping[str, Lag]) -> bool:
    """Whether the log was read nearly to its end: under traffic there is always something left. It
    tells nothing that the age of what is left is not known, which is then 0."""
    return all(not lag.events or 0 < lag.seconds <= MOST_LAG_S for lag in lags.values())


def run_worker(settings: Settings, stop: threading.Event) -> None:
    """Run the worker of these settings until `stop` or SIGTERM.

    Call it from the main thread of its own process, after configure_logging. Serves /metrics on
    experiments.metrics_port, announces itself as `experiments` with that address. Raises
    ExperimentsError or OSError of the experiments' file, and SchemaRefused; an outage of the log is
    waited out, at the start and later.
    """
    stop_on_sigterm(stop)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        event_log = opened.enter_context(
            contextlib.closing(connect(settings.event_log, settings.installation))
        )
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
            domain_of(schema_of(settings).declaration),
            settings.event_log.url,
            settings.event_log.retention_days,
            settings.experiments.act,
        )
        host, port = settings.router.host, settings.experiments.metrics_port
        serving = metrics_announced(settings.run_dir, "experiments", host, port)
        port = opened.enter_context(serving)
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
                content["fresh_s"] = max(FRESH_S, 2 * until_next_s)
                replace_whole(file, json.dumps(content), durable=False)
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
