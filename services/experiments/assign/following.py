"""A process that assigns arms follows what changes while experiments run.

`Follower` keeps an `ExperimentsFile` at the states of the event log's topic `experiments`. When the
log cannot be read at the start, the states that were saved last (run_dir/experiments.states.json)
hold until it can: an arm that was stopped stays stopped. No request waits for any of this.

WHAT IS NOT GUARANTEED. Between a change and the next look a process assigns as before; such
requests are logged as what they were, and analysis leaves units out that first came then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from prometheus_client import Counter

from models.files import replace_whole
from protos.tandem.v1.records_pb2 import ExperimentChange, ExperimentState
from services.common.telemetry import OwnedGauge
from services.event_log.interface import EventLog, LogUnavailable
from services.experiments.assign.experiments_file import ExperimentsFile
from services.experiments.changes.log import POLL_S, ChangeLog
from services.experiments.changes.state import LiveState, message_of, state_of

STATES = "experiments.states.json"
FIRST_READ_S = 10.0

FOLLOWED = OwnedGauge(
    "tandem_experiments_changes_followed",
    "1 while this process follows stopped arms and ramps; 0 means that it assigns by what it knew "
    "last: see to the event log.",
)
APPLIED = Counter(
    "tandem_experiments_changes_applied_total",
    "Changes of running experiments that this process has taken in, those from before its start "
    "included; processes that differ for long do not assign alike.",
    ["kind"],
)

log = structlog.get_logger(__name__)


class Follower:
    """Used by one thread, or by several in turn."""

    def __init__(
        self,
        event_log: EventLog,
        experiments: ExperimentsFile,
        run_dir: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` as in `ChangeLog`."""
        self._changes = ChangeLog(event_log, _count, clock)
        self._experiments = experiments
        self._file = run_dir / STATES
        self._followed: bool | None = None

    def begin(self, timeout_s: float = FIRST_READ_S) -> None:
        """Take in all changes, or the saved states if that fails; within about `timeout_s`."""
        try:
            self._changes.read_all(timeout_s)
        except LogUnavailable as error:
            self._experiments.use_states(saved_states(self._file))
            self._failed(error)
        else:
            self._apply()

    def refresh(self) -> None:
        """Take in what has come since. Raises nothing for a log that fails: the states stay."""
        try:
            reached_end = self._changes.read(POLL_S)
        except LogUnavailable as error:
            self._failed(error)
            return
        if reached_end:  # a part of the log may lack the resumption of an arm that it stops
            self._apply()

    def close(self) -> None:
        """Stop following."""
        self._changes.close()

    def _apply(self) -> None:
        states = self._changes.changes.states()
        if self._experiments.use_states(states) or not self._followed:
            try:
                save_states(self._file, states)
            except OSError as error:
                log.warning("experiment_states_not_saved", file=str(self._file), cause=str(error))
        self._followed = True
        FOLLOWED.set(1)

    def _failed(self, error: LogUnavailable) -> None:
        if self._followed is not False:
            log.error("experiment_changes_not_followed", cause=str(error))
        self._followed = False
        FOLLOWED.set(0)


def save_states(file: Path, states: dict[str, LiveState]) -> None:
    """Replace the file; several processes may do so at once. OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {salt: MessageToDict(message_of(state)) for salt, state in states.items()}
    replace_whole(file, json.dumps(content, indent=1), durable=False)


def saved_states(file: Path) -> dict[str, LiveState]:
    """What `save_states` wrote; none where there is no such file, or it cannot be read."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {
            salt: state_of(ParseDict(state, ExperimentState())) for salt, state in content.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, ParseError) as error:
        log.warning("experiment_states_unreadable", file=str(file), cause=repr(error))
        return {}


def _count(change: ExperimentChange) -> None:
    APPLIED.labels(ExperimentChange.Kind.Name(change.kind).lower()).inc()
