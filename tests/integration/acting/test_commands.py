"""What people are told of changes, and what they change themselves."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from protos.tandem.v1.experiments_pb2 import DescribeRequest
from protos.tandem.v1.experiments_pb2_grpc import ExperimentsStub
from services.common.settings import Settings
from services.event_log.connect import connect
from services.event_log.topics import EXPERIMENTS
from services.experiments.act.snapshot import SNAPSHOT, fresh
from services.experiments.changes import actions
from services.experiments.changes.log import ChangeLog
from services.experiments.changes.state import AT_START, state_of, stoppable
from services.experiments.declare import config_reader
from tests.domains import FILMS
from tests.integration.acting.installation import (
    EXPERIMENTS_FILE,
    FINAL_S,
    HARMLESS,
    RAMPED_FILE,
    T0_MS,
    Start,
    harmed,
)
from tests.integration.conftest import running

PATIENCE_S = 20.0


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
    (installed.folder / SNAPSHOT).write_text(json.dumps(content))
    ((_, experiment),) = config_reader.load(installed.file, FILMS).experiments()
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
    config = config_reader.load(small_settings.router.experiments_file, FILMS)
    _, experiment = next(config.experiments())
    arm = stoppable(experiment)[0]
    by = actions.By("ann", "a test", 1000)
    stopped = actions.stop(experiment, AT_START, arm, by)
    resumed = actions.resume(experiment, state_of(stopped.state), arm, by._replace(now_ms=2000))
    log = connect(small_settings.event_log, None)
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
