"""The assigner in force in a process: that of a file on disk, exchanged when the file changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
from prometheus_client import Counter

from services.common.telemetry import OwnedGauge
from services.experiments.assign.assignment import Assigner
from services.experiments.changes.state import LiveState, in_force
from services.experiments.declare import config_reader
from services.experiments.declare.config import ExperimentsError, moving_changes
from services.experiments.declare.domain import Domain

FILE_OK = OwnedGauge(
    "tandem_experiments_file_ok",
    "1 when the experiments in force are those of the file; 0 means that the file on disk was "
    "refused and somebody must repair it.",
)
FILE_LOADED_AT = OwnedGauge(
    "tandem_experiments_file_loaded_timestamp_seconds",
    "When the experiments in force were read; tells whether a rollout has reached this process.",
)
RELOADS = Counter(
    "tandem_experiments_reloads_total",
    "Changes of the experiments file by outcome; alert on refused ones.",
    ["outcome"],
)

log = structlog.get_logger(__name__)


class ExperimentsFile:
    """The experiments in force, following a file or all *.yaml of a folder, and the states that
    `use_states` gives: stopped arms and steps of ramps.

    Replace a file by a rename: one written in place may be read when it is half there. Several
    files that must change together want a folder that is exchanged as a whole, by a symbolic link
    as Kubernetes does it: what stands there in between is taken for what is meant if it is valid.

    A change that would move units is found by comparing a file with the one before it. That is no
    guarantee for a process that starts with the changed file, nor for an experiment that is taken
    out in one change and put back with other weights in the next: start afresh with a new salt.
    """

    def __init__(self, path: Path, domain: Domain, clock: Callable[[], float] = time.time) -> None:
        """Read `path` once. Raises ExperimentsError or OSError: a process must not start without
        its experiments. `clock` gives the time in seconds since the epoch, for the metrics."""
        self.path = path
        self._domain = domain
        self._clock = clock
        self._lock = threading.Lock()  # of all that follows; readers take `_assigner` without it
        self._seen: config_reader.Sources | None = config_reader.read(path)
        self._states: Mapping[str, LiveState] = {}
        self._declared = config_reader.parse_all(self._seen, str(path), domain)
        self._assigner = Assigner(in_force(self._declared, self._states))
        self._loaded()

    def assigner(self) -> Assigner:
        """The assigner in force. Ask once per request: a reload may exchange it in between."""
        return self._assigner

    def reload_if_changed(self) -> None:
        """Follow the file: blocking, below a millisecond when all bytes are the same as before.

        A file that is invalid, gone, or would move units from one arm to another is reported once
        and changes nothing: the last good experiments stay in force. Raises nothing for it.
        """
        with self._lock:
            self._reload_if_changed()

    def use_states(self, states: Mapping[str, LiveState]) -> bool:
        """Put what changed while experiments ran (by salt) in force, for this file and those that
        follow it; whether that makes a difference. As cheap as a comparison if not."""
        with self._lock:
            changed = dict(states) != self._states
            self._states = dict(states)
            new = in_force(self._declared, self._states) if changed else self._assigner.config
            if new != self._assigner.config:
                self._assigner = Assigner(new)
                log.info("experiments_changed", file=str(self.path))
            return changed

    def _reload_if_changed(self) -> None:
        try:
            sources = config_reader.read(self.path)
        except OSError as error:
            if self._seen is not None:
                self._seen = None
                problem = f"{self.path}: cannot be read ({error.strerror}). Put the file back."
                self._refuse([problem])
            return
        if sources == self._seen:
            return
        self._seen = sources
        try:
            new = config_reader.parse_all(sources, str(self.path), self._domain)
            if moves := moving_changes(self._declared, new):
                raise ExperimentsError(str(self.path), moves)
        except ExperimentsError as error:
            self._refuse(error.lines())
            return
        self._declared = new
        self._assigner = Assigner(in_force(new, self._states))  # readers see the old or the new
        self._loaded()
        RELOADS.labels("accepted").inc()
        log.info("experiments_reloaded", file=str(self.path))

    def _loaded(self) -> None:
        FILE_OK.set(1)
        FILE_LOADED_AT.set(self._clock())

    def _refuse(self, problems: list[str]) -> None:
        FILE_OK.set(0)
        RELOADS.labels("refused").inc()
        log.error("experiments_refused", file=str(self.path), problems=problems)
