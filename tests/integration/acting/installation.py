"""From a real event log to a stopped arm: worker, change log and follower, round by round.

Nothing is measured by time: one clock is set by hand for the log, the worker and the requests.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from protos.tandem.v1.records_pb2 import (
    CLICK,
    IMPRESSION,
    UNRANKED,
    DecisionRecord,
    ExperimentChange,
    FeedbackEvent,
    StageTimes,
)
from services.common.settings import EventLogSettings
from services.event_log.connect import connect
from services.event_log.interface import EventLog, Record
from services.event_log.topics import DECISIONS, FEEDBACK
from services.experiments.act.worker import Worker
from services.experiments.assign.experiments_file import ExperimentsFile
from services.experiments.assign.following import Follower
from services.experiments.changes.log import ChangeLog
from services.experiments.changes.state import LiveState
from services.experiments.cli.experiments import app
from services.experiments.measure.log_reader import LogReader
from tests.domains import FILMS

EXPERIMENTS_FILE = """\
version: 1
metrics:
  - {name: clicked, kind: binary, of: click, better: higher, window_s: 60}
  - {name: degraded_share, kind: ratio, of: degraded, per: request, better: lower}
layers:
  - name: value
    parameters: [rerank.diversity]
    experiments:
      - name: mix
        arms:
          - {name: control, weight: 50}
          - {name: mixed, weight: 50, parameters: {rerank.diversity: 0.5}}
        primary: {metric: clicked, minimal_effect: 0.1}
        guardrails:
          - {metric: degraded_share, allowed_absolute_harm: 0.05}
        observe_s: 60
        planned_units: 600
"""
RAMPED_FILE = EXPERIMENTS_FILE.replace(
    "        observe_s: 60\n",
    "        observe_s: 60\n"
    "        ramp: {steps: [40, 70, 100], hold_s: 100, min_units: 50, gate: no_breach}\n",
)
T0_MS = 1_700_000_000_000
FINAL_S = 121  # after its first exposure a unit's outcome is final

Shares = dict[str, float]
HARMLESS: Shares = {"control": 0.02, "mixed": 0.02}
HARMFUL: Shares = {"control": 0.02, "mixed": 0.4}


class Installation:
    """A log, a worker and a process that assigns, with one clock."""

    def __init__(self, folder: Path, text: str = EXPERIMENTS_FILE) -> None:
        self.folder = folder
        self.file = folder / "experiments.yaml"
        self.file.write_text(text)
        self.now_ms = T0_MS
        self.url = f"log://{folder}/events"
        self.log: EventLog = connect(
            EventLogSettings(url=self.url), None, clock=lambda: self.now_ms / 1000
        )
        self._rng = random.Random(5)
        self._visits = 0
        self.begin()

    def begin(self) -> None:
        """Start the worker and the follower, as after a restart of both."""
        self.reader = LogReader(self.log)
        self.changes = ChangeLog(self.log)
        self.worker = self.new_worker()
        self.experiments = ExperimentsFile(self.file, FILMS)
        self.follower = Follower(self.log, self.experiments, self.folder)
        self.follower.begin()

    def new_worker(self, act: bool = True) -> Worker:
        return Worker(self.reader, self.changes, self.file, FILMS, self.url, act=act)

    def end(self) -> None:
        for each in (self.reader, self.changes, self.follower):
            each.close()

    def close(self) -> None:
        self.end()
        self.log.close()

    def pass_s(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)

    def visits(self, users: Sequence[int], degraded: Shares) -> dict[int, str]:
        """A request of each user, assigned as by the router; the arms that count."""
        decisions, events, arms = [], [], {}
        for user in users:
            self._visits += 1
            request = f"r{self._visits}"
            decision = self.experiments.assigner().assign(f"u{user}", now_ms=self.now_ms)
            for a in decision.assignments:
                if not a.overridden:
                    arms[user] = a.arm
            share = degraded[arms.get(user, "control")]
            record = DecisionRecord(
                request_id=request,
                user_id=f"u{user}",
                event_time_ms=self.now_ms,
                assignments=decision.messages,
                degradations=[UNRANKED] if self._rng.random() < share else [],
                stage_ms=StageTimes(rank=10),
            )
            kinds = [IMPRESSION, CLICK] if self._rng.random() < 0.3 else [IMPRESSION]
            events += [
                FeedbackEvent(
                    event_id=f"{request}-{kind}",
                    request_id=request,
                    user_id=f"u{user}",
                    item_id="i",
                    event_type=kind,
                    event_time_ms=self.now_ms + 1,
                )
                for kind in kinds
            ]
            decisions.append(record)
        self._append(DECISIONS, decisions)
        self._append(FEEDBACK, events)
        return arms

    def _append(self, topic: str, messages: Sequence[DecisionRecord | FeedbackEvent]) -> None:
        records = [
            Record(m.user_id.encode(), m.SerializeToString(), m.event_time_ms) for m in messages
        ]
        self.log.append(topic, records).result()

    def round(self) -> dict[str, Any]:
        """One round of the worker over all that is in the log, and a look of the follower."""
        self.reader.read_all()
        content = self.worker.round(self.now_ms)
        self.follower.refresh()
        return content

    def done(self) -> list[str]:
        """The kinds of all changes in the log, as somebody reads it who was not there."""
        return [ExperimentChange.Kind.Name(c.kind) for c in self.audited()]

    def audited(self) -> list[ExperimentChange]:
        with contextlib.closing(ChangeLog(self.log)) as changes:
            changes.read_all(10.0)
            return changes.changes.all()

    def state(self) -> LiveState:
        return self.changes.changes.state("mix")

    def command(self, *arguments: str) -> Result:
        return CliRunner().invoke(
            app,
            list(arguments),
            env={
                "TANDEM_EVENT_LOG__URL": self.url,
                "TANDEM_RUN_DIR": str(self.folder),
                "TANDEM_ROUTER__EXPERIMENTS_FILE": str(self.file),
                "COLUMNS": "200",
            },
        )


Start = Callable[[str], Installation]


def harmed(installation: Installation, users: range = range(400)) -> dict[int, str]:
    """Users whose outcome is final, in an arm that does harm; their arms."""
    arms = installation.visits(users, HARMFUL)
    installation.pass_s(FINAL_S)
    return arms
