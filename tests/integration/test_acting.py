"""From a real event log to a stopped arm: worker, change log and follower, round by round.

Nothing is measured by time: one clock is set by hand for the log, the worker and the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from typer.testing import CliRunner, Result

from protos.tandem.v1.experiments_pb2 import DescribeRequest
from protos.tandem.v1.experiments_pb2_grpc import ExperimentsStub
from protos.tandem.v1.records_pb2 import (
    CLICK,
    IMPRESSION,
    UNRANKED,
    DecisionRecord,
    ExperimentChange,
    FeedbackEvent,
    StageTimes,
)
from services.common.settings import EventLogSettings, Settings
from services.event_log.connect import connect
from services.event_log.interface import EventLog, Lag, Record
from services.event_log.topics import DECISIONS, EXPERIMENTS, FEEDBACK
from services.experiments.act import standing
from services.experiments.act.snapshot import SNAPSHOT, fresh
from services.experiments.act.worker import MOST_LAG_S, Worker
from services.experiments.assign.assignment import ExperimentsFile
from services.experiments.assign.following import Follower
from services.experiments.changes import actions
from services.experiments.changes.actions import AT_START, LiveState, state_of
from services.experiments.changes.log import ChangeLog
from services.experiments.cli.experiments import app
from services.experiments.declare import config_reader
from services.experiments.declare.config import Experiment
from services.experiments.measure.log_reader import LogReader
from services.experiments.measure.results import Measured
from services.feedback.joiner import write_snapshot
from tests.integration.conftest import running

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
PATIENCE_S = 20.0
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
            EventLogSettings(url=self.url), clock=lambda: self.now_ms / 1000
        )
        self._rng = random.Random(5)
        self._visits = 0
        self.begin()

    def begin(self) -> None:
        """Start the worker and the follower, as after a restart of both."""
        self.reader = LogReader(self.log)
        self.changes = ChangeLog(self.log)
        self.worker = self.new_worker()
        self.experiments = ExperimentsFile(self.file)
        self.follower = Follower(self.log, self.experiments, self.folder)
        self.follower.begin()

    def new_worker(self, act: bool = True) -> Worker:
        return Worker(self.reader, self.changes, self.file, self.url, act=act)

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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as opened:

        def started(text: str = EXPERIMENTS_FILE) -> Installation:
            installation = Installation(tmp_path, text)
            opened.callback(installation.close)
            return installation

        yield started


def harmed(installation: Installation, users: range = range(400)) -> dict[int, str]:
    """Users whose outcome is final, in an arm that does harm; their arms."""
    arms = installation.visits(users, HARMFUL)
    installation.pass_s(FINAL_S)
    return arms


def test_an_arm_that_does_harm_is_stopped_and_its_users_get_control(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    actions_before = REGISTRY.get_sample_value(
        "tandem_experiments_actions_total", {"kind": "arm_stopped"}
    )
    arms = installed.visits(range(400), HARMFUL)
    assert set(arms.values()) == {"control", "mixed"}
    installed.round()
    assert installed.done() == []  # no outcome is final
    installed.pass_s(FINAL_S)
    content = installed.round()
    assert installed.done() == ["ARM_STOPPED"]
    actions_after = REGISTRY.get_sample_value(
        "tandem_experiments_actions_total", {"kind": "arm_stopped"}
    )
    assert (actions_after or 0) - (actions_before or 0) == 1
    (told,) = content["experiments"]["mix"]["changes"]
    assert told["arm"] == "mixed"
    # The follower has heard of it.
    after = installed.visits(range(400), HARMFUL)
    assert after == {user: arm for user, arm in arms.items() if arm == "control"}
    mixed = next(user for user, arm in arms.items() if arm == "mixed")
    decision = installed.experiments.assigner().assign(f"u{mixed}", now_ms=installed.now_ms)
    (assignment,) = decision.assignments
    assert (assignment.arm, assignment.overridden) == ("control", True)
    assert not decision.overrides
    # Nothing more happens, however long it goes on.
    for _ in range(3):
        installed.pass_s(FINAL_S)
        installed.round()
    assert installed.done() == ["ARM_STOPPED"]


def test_an_experiment_that_cannot_be_measured_leaves_the_others_guarded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = EXPERIMENTS_FILE[EXPERIMENTS_FILE.index("  - name: value") :]
    first = second.replace("value", "first").replace("mix\n", "broken\n")
    first = first.replace("rerank.diversity", "rerank.like_weight")
    installed = start(EXPERIMENTS_FILE.replace(second, first + second))
    measured = standing.measured

    def breaks(settled: Any, experiment: Experiment, *rest: Any) -> Measured:
        if experiment.name == "broken":
            raise ZeroDivisionError("no such outcome was thought of")
        return measured(settled, experiment, *rest)

    monkeypatch.setattr(standing, "measured", breaks)
    harmed(installed)
    content = installed.round()
    assert set(content["experiments"]) == {"mix"}
    assert [(c.experiment, c.arm) for c in installed.audited()] == [("mix", "mixed")]
    unmeasured = partial(REGISTRY.get_sample_value, "tandem_experiments_unmeasured")
    assert unmeasured({"experiment": "broken"}) == 1
    assert unmeasured({"experiment": "mix"}) == 0
    monkeypatch.undo()
    assert set(installed.round()["experiments"]) == {"broken", "mix"}
    assert unmeasured({"experiment": "broken"}) == 0


def test_no_series_is_missing_while_a_round_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alert that waits for minutes begins anew where a scrape finds nothing."""
    installed = start(RAMPED_FILE)
    harmed(installed, range(1_000))  # of whom the ramp lets in 40 %
    installed.round()

    def series() -> set[tuple[str, ...]]:
        return {
            (sample.name, *sample.labels.values())
            for metric in REGISTRY.collect()
            if metric.name.startswith("tandem_experiments_") and metric.type == "gauge"
            for sample in metric.samples
        }

    before = series()
    assert ("tandem_experiments_guardrail_breached", "mix", "mixed", "degraded_share") in before
    assert ("tandem_experiments_arm_stopped", "mix", "mixed") in before
    seen = []
    measured = standing.measured

    def scraped(*arguments: Any) -> Measured:
        seen.append(series())
        return measured(*arguments)

    monkeypatch.setattr(standing, "measured", scraped)
    installed.round()
    assert seen
    assert all(each >= before for each in seen)
    # What is gone from the file goes from the metrics when the round ends.
    installed.file.write_text("version: 1\nlayers: []\n")
    installed.round()
    assert not any("mix" in labels for _, *labels in series())


def test_a_worker_says_so_when_routers_serve_other_parameters_than_its_file(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    installed.visits(range(100), HARMLESS)
    installed.round()
    unmeasured = partial(
        REGISTRY.get_sample_value, "tandem_experiments_unmeasured", {"experiment": "mix"}
    )
    assert unmeasured() == 0
    # An edit that a running router refuses, and a worker that starts with it.
    installed.file.write_text(EXPERIMENTS_FILE.replace("0.5}", "0.9}"))
    installed.experiments.reload_if_changed()
    installed.round()
    assert unmeasured() == 0  # it goes on with what the router has
    installed.worker = installed.new_worker()
    installed.visits(range(100, 200), HARMLESS)
    installed.round()
    assert unmeasured() == 1
    installed.file.write_text(EXPERIMENTS_FILE)
    installed.worker = installed.new_worker()
    installed.round()
    assert unmeasured() == 0


def test_the_audit_has_reason_and_evidence(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    harmed(installed)
    installed.round()
    (entry,) = json.loads(installed.command("audit", "mix", "--json").output)
    assert (entry["kind"], entry["arm"], entry["actor"]) == ("arm_stopped", "mixed", "worker")
    assert entry["at_ms"] == installed.now_ms
    assert "degraded_share: BREACHED by mixed" in entry["reason"]
    (evidence,) = entry["evidence"]["guardrails"]
    assert evidence["allowed"] == 0.05
    assert evidence["harm"] > 0.2
    assert evidence["interval"][0] > 0.05
    assert evidence["log_e"] > 3
    assert evidence["units"] == 400
    table = installed.command("audit").output
    assert "arm_stopped" in table
    assert "BREACHED" in " ".join(table.split())


def test_whoever_writes_a_reason_commands_nobodys_terminal(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    installed.visits(range(5), HARMLESS)
    reason = "bad\x1b[2J \u202edab [red]as it is[/] \x9b31m\nnew line"
    assert not installed.command("stop", "mix", "--reason", reason).exit_code
    for said in (installed.command("audit").output, installed.command("report", "mix").output):
        assert not {"\x1b", "\u202e", "\x9b"} & set(said)
        words = " ".join(said.replace("│", " ").split())
        assert r"bad\x1b[2J \u202edab [red]as it is[/] \x9b31m\nnew line" in words
    assert json.loads(installed.command("audit", "--json").output)[0]["reason"] == reason


def test_a_restart_of_both_ends_is_in_the_same_state_and_changes_nothing(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    harmed(installed)
    installed.round()
    state, arms = installed.state(), installed.visits(range(400), HARMFUL)
    before = installed.audited()
    installed.end()  # nothing of its memory was saved: it reads the whole log once more
    installed.begin()
    installed.round()
    assert installed.state() == state
    assert installed.visits(range(400), HARMFUL) == arms
    assert installed.audited() == before


def test_two_workers_that_decide_at_once_make_one_change(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    other = ChangeLog(installed.log)
    other.read_all(10.0)
    other.read = lambda wait_s=0.0: True  # type: ignore[method-assign]  # what follows it misses
    harmed(installed)
    installed.round()
    Worker(installed.reader, other, installed.file, "log").round(installed.now_ms + 400)
    with contextlib.closing(installed.log.consumer(EXPERIMENTS, "count")) as records:
        found = [record for _ in range(3) for record in records.poll(100, 0.0)]
    assert len(found) == 2
    (change,) = installed.audited()
    assert change.event_time_ms == installed.now_ms
    other.close()


def test_a_ramp_steps_up_when_its_gate_holds_and_moves_nobody(start: Start) -> None:
    installed = start(RAMPED_FILE)
    users = range(500)
    first = installed.visits(users, HARMLESS)
    assert 150 < len(first) < 250
    installed.pass_s(FINAL_S)
    content = installed.round()
    assert installed.done() == ["RAMP_ADVANCED"]
    assert content["experiments"]["mix"]["ramp"]["step"] == 1
    second = installed.visits(users, HARMLESS)
    assert 300 < len(second) < 400
    assert first.items() <= second.items()
    installed.pass_s(99)
    content = installed.round()
    assert installed.done() == ["RAMP_ADVANCED"]
    assert "1 s to go" in content["experiments"]["mix"]["ramp"]["waits_for"]
    installed.pass_s(1)
    assert installed.round()["experiments"]["mix"]["ramp"]["waits_for"].startswith(
        "It waits for units: 0 "
    )
    installed.pass_s(FINAL_S)
    installed.round()
    assert installed.done() == ["RAMP_ADVANCED", "RAMP_ADVANCED"]
    last = installed.visits(users, HARMLESS)
    assert len(last) == 500
    assert second.items() <= last.items()
    installed.pass_s(10 * FINAL_S)
    installed.round()
    assert installed.done() == ["RAMP_ADVANCED", "RAMP_ADVANCED"]
    assert installed.state().ramp_step == 2


def test_a_ramp_does_not_step_up_into_harm(start: Start) -> None:
    installed = start(RAMPED_FILE)
    installed.visits(range(1000), HARMFUL)
    for _ in range(4):
        installed.pass_s(FINAL_S)
        content = installed.round()
    assert installed.done() == ["ARM_STOPPED"]
    assert content["experiments"]["mix"]["ramp"]["step"] == 0
    assert "mixed, which is stopped" in content["experiments"]["mix"]["ramp"]["waits_for"]


def resumed(installed: Installation) -> None:
    ((_, experiment),) = config_reader.load(installed.file).experiments()
    change = actions.resume(
        experiment,
        installed.state(),
        "mixed",
        actor="ann",
        reason="the ranker's pool was doubled",
        now_ms=installed.now_ms,
    )
    with contextlib.closing(ChangeLog(installed.log)) as elsewhere:
        elsewhere.append([change], installed.now_ms)
    installed.round()
    assert installed.state() == state_of(change.state)


def test_a_resumed_arm_is_not_stopped_by_old_evidence_but_by_new(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    harmed(installed)
    installed.round()
    assert installed.done() == ["ARM_STOPPED"]
    installed.pass_s(10)
    resumed(installed)
    for _ in range(3):
        installed.pass_s(FINAL_S)
        installed.visits(range(400), HARMLESS)  # who has met it before
        installed.round()
    assert installed.done() == ["ARM_STOPPED", "ARM_RESUMED"]
    harmed(installed, range(1000, 1400))
    installed.round()
    assert installed.done() == ["ARM_STOPPED", "ARM_RESUMED", "ARM_STOPPED"]
    assert installed.state().stopped == {"mixed"}


def test_a_worker_that_may_not_act_or_is_behind_only_reports(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    harmed(installed)
    installed.worker = installed.new_worker(act=False)
    content = installed.round()
    assert content["experiments"]["mix"]["changes"] == []
    assert installed.done() == []
    assert REGISTRY.get_sample_value("tandem_experiments_acting") == 0

    installed.worker = installed.new_worker()
    lags = installed.reader.lags
    installed.reader.read_all()
    installed.worker.round(T0_MS)  # has seen the end, when nothing was final
    installed.reader.lags = lambda: (
        lags()
        | {  # type: ignore[method-assign]
            FEEDBACK: Lag(9, MOST_LAG_S + 1)
        }
    )
    installed.worker.round(installed.now_ms)
    assert installed.done() == []
    installed.reader.lags = lags  # type: ignore[method-assign]
    installed.worker.round(installed.now_ms)
    assert installed.done() == ["ARM_STOPPED"]


def test_a_worker_that_starts_acts_when_it_is_near_the_end_of_a_log_that_goes_on(
    start: Start,
) -> None:
    """Under traffic there is always something that it has not read yet."""
    installed = start(EXPERIMENTS_FILE)
    harmed(installed)
    installed.reader.read_all()
    installed.visits(range(400, 410), HARMLESS)
    installed.pass_s(MOST_LAG_S + 1)
    content = installed.worker.round(installed.now_ms)
    assert (content["caught_up"], installed.done()) == (False, [])
    installed.reader.read_all()
    installed.visits(range(400, 410), HARMLESS)
    installed.pass_s(1)
    worker = installed.new_worker()
    assert not installed.reader.caught_up()
    content = worker.round(installed.now_ms)
    assert (content["caught_up"], installed.done()) == (True, ["ARM_STOPPED"])


def test_a_worker_that_starts_reads_all_changes_before_its_first_round(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = start(EXPERIMENTS_FILE)
    harmed(installed)
    installed.round()
    for _ in range(2):
        assert not installed.command("resume", "mix", "--arm", "mixed", "--reason", "r").exit_code
        assert not installed.command("stop", "mix", "--arm", "mixed", "--reason", "s").exit_code
    monkeypatch.setattr("services.experiments.changes.log.POLL_RECORDS", 1)
    installed.end()
    installed.begin()
    installed.reader.read_all()
    content = installed.worker.round(installed.now_ms)
    assert content["caught_up"]
    assert len(content["experiments"]["mix"]["changes"]) == 5


def test_a_file_that_routers_refuse_is_refused_by_the_worker(start: Start) -> None:
    """By other weights than those that assign, every sample ratio would be broken."""
    installed = start(EXPERIMENTS_FILE)
    installed.visits(range(400), HARMLESS)
    assert installed.round()["caught_up"]
    moving = EXPERIMENTS_FILE.replace("control, weight: 50", "control, weight: 80")
    installed.file.write_text(moving.replace("mixed, weight: 50", "mixed, weight: 20"))
    installed.experiments.reload_if_changed()
    installed.pass_s(1)
    installed.visits(range(400, 800), HARMLESS)
    installed.round()
    assert installed.done() == []


@pytest.mark.parametrize(("before", "after"), [(10, 100), (100, 10)])
def test_an_edit_of_one_arms_traffic_stops_nothing(start: Start, before: int, after: int) -> None:
    """Neither by the ratio, though users come back whom the arm had kept out or keeps out now, nor
    by a guardrail, though everything is degraded more often than before the edit."""

    def file(traffic: int) -> str:
        return EXPERIMENTS_FILE.replace(
            "mixed, weight: 50", f"mixed, weight: 50, traffic: {traffic}"
        )

    installed = start(file(before))
    installed.visits(range(1500), HARMLESS)
    installed.pass_s(FINAL_S)
    installed.round()
    installed.visits(range(1500, 2000), HARMLESS)
    installed.pass_s(10)
    installed.file.write_text(file(after))
    installed.experiments.reload_if_changed()
    arms = installed.visits(range(3500), dict.fromkeys(HARMLESS, 0.4))
    sizes = [list(arms.values()).count(arm) for arm in ("control", "mixed")]
    assert sizes[1] / sizes[0] == pytest.approx(after / 100, rel=0.2)
    for _ in range(3):
        installed.pass_s(FINAL_S)
        installed.round()
    assert installed.done() == []
    broken = "tandem_experiments_sample_ratio_broken"
    assert REGISTRY.get_sample_value(broken, {"experiment": "mix"}) == 0
    at = "2023-11-14T22:21:34Z"
    assert installed.now_ms == T0_MS + 494_000
    found = json.loads(installed.command("report", "mix", "--json", "--at", at).output)
    assert any("The split between the arms changed" in w for w in found["warnings"])
    # Real harm after it is still found.
    installed.visits(range(3500, 8500), {"control": 0.4, "mixed": 1.0})
    installed.pass_s(FINAL_S)
    installed.round()
    assert installed.done() == ["ARM_STOPPED"]


def test_the_report_shows_changes_and_ramp_from_the_log_and_from_the_worker(start: Start) -> None:
    installed = start(RAMPED_FILE)
    installed.visits(range(500), HARMLESS)
    installed.pass_s(FINAL_S)
    installed.round()
    installed.pass_s(1)
    content = installed.round()
    at = "2023-11-14T22:15:22Z"
    assert installed.now_ms == T0_MS + 122_000
    from_log = json.loads(installed.command("report", "mix", "--json", "--at", at).output)
    assert [c["kind"] for c in from_log["changes"]] == ["RAMP_ADVANCED"]
    assert from_log["ramp"]["steps"] == [40.0, 70.0, 100.0]
    assert from_log["ramp"]["step"] == 1
    assert from_log["arms"][0]["traffic"] == 70.0
    write_snapshot(installed.folder / SNAPSHOT, content)
    ((_, experiment),) = config_reader.load(installed.file).experiments()
    found = fresh(installed.folder / SNAPSHOT, experiment, installed.url, installed.now_ms)
    assert found is not None
    assert found.standing.ramp is not None
    assert found.standing.ramp.waits_for == from_log["ramp"]["waits_for"]
    assert [c.reason for c in found.standing.changes] == [c["reason"] for c in from_log["changes"]]
    shown = " ".join(installed.command("report", "mix", "--at", at).output.split())
    assert "[70 %]" in shown
    assert "ramp advanced" in shown


def test_people_stop_and_resume_arms_with_a_reason(start: Start) -> None:
    installed = start(EXPERIMENTS_FILE)
    assert installed.command("audit").output == "nothing was changed while experiments ran\n"
    stopped = installed.command("stop", "mix", "--reason", "it looks odd")
    assert (stopped.exit_code, stopped.output) == (0, "mix: mixed is stopped\n")
    installed.follower.refresh()
    assert set(installed.visits(range(50), HARMLESS).values()) == {"control"}
    resumed = installed.command("resume", "mix", "--arm", "mixed", "--reason", "it was not")
    assert (resumed.exit_code, resumed.output) == (0, "mix: mixed is resumed\n")
    installed.follower.refresh()
    assert set(installed.visits(range(50), HARMLESS).values()) == {"control", "mixed"}
    entries = json.loads(installed.command("audit", "--json").output)
    assert [(e["kind"], e["reason"]) for e in entries] == [
        ("arm_stopped", "it looks odd"),
        ("arm_resumed", "it was not"),
    ]
    assert all(entry["actor"] not in ("", "worker") for entry in entries)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stop", "mxi", "--reason", "r"), "there is no experiment 'mxi'. Use one of mix."),
        (("stop", "mix", "--arm", "mixd", "--reason", "r"), "Use one of mixed"),
        (("stop", "mix", "--arm", "control", "--reason", "r"), "enabled: false"),
        (("stop", "mix", "--reason", " "), "--reason is empty"),
        (("resume", "mix", "--arm", "mixed", "--reason", "r"), "mixed is not stopped"),
        (("audit", "mxi"), "there is no experiment 'mxi'. Use one of mix."),
    ],
)
def test_what_people_cannot_do_is_refused_and_changes_nothing(
    start: Start, arguments: tuple[str, ...], said: str
) -> None:
    installed = start(EXPERIMENTS_FILE)
    refused = installed.command(*arguments)
    assert refused.exit_code == 1
    assert said in refused.output
    assert installed.done() == []


async def test_a_router_starts_with_what_is_stopped_and_follows_what_is_resumed(
    small_settings: Settings,
) -> None:
    config = config_reader.load(small_settings.router.experiments_file)
    _, experiment = next(config.experiments())
    arm = actions.stoppable(experiment)[0]
    how = {"actor": "ann", "reason": "a test"}
    stopped = actions.stop(experiment, AT_START, arm, now_ms=1000, **how)
    resumed = actions.resume(experiment, state_of(stopped.state), arm, now_ms=2000, **how)
    log = connect(small_settings.event_log)
    changes = ChangeLog(log)
    changes.append([stopped], 1000)
    async with running(small_settings) as installation:
        stub = ExperimentsStub(installation.channel)

        async def is_stopped() -> bool:
            described = await stub.Describe(DescribeRequest())
            arms = [a for layer in described.layers for e in layer.experiments for a in e.arms]
            return any(a.stopped for a in arms if a.name == arm)

        assert await is_stopped()
        changes.append([resumed], 2000)
        deadline = time.monotonic() + PATIENCE_S
        while await is_stopped():
            assert time.monotonic() < deadline, "the router does not follow"
            await asyncio.sleep(0.01)
    log.close()
    assert list((small_settings.run_dir / "events" / EXPERIMENTS / "groups").iterdir()) == []
