"""`tandem experiments stop`, `resume` and `audit`: what people change while experiments run."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from services.common.terminal import load_settings, plain
from services.experiments.cli.inputs import (
    FileOption,
    Name,
    experiment_named,
    fail,
    iso_instant,
    load,
    open_log,
    say_json,
    wide_console,
)
from services.experiments.declare.config import Experiment

if TYPE_CHECKING:
    from protos.tandem.v1.records_pb2 import ExperimentChange
    from services.event_log.interface import EventLog
    from services.experiments.changes.log import ChangeLog
    from services.experiments.changes.state import LiveState


def stop(
    name: Name,
    reason: Annotated[str, typer.Option(help="A sentence for the audit.")],
    arm: Annotated[
        str, typer.Option(help="An arm; default: all treatments, or the interleaving.")
    ] = "",
    file: FileOption = None,
) -> None:
    """Give an arm's users what control has, from now on; every router follows within seconds.

    They keep their place in the arm and are not counted while it is stopped.
    """
    from services.experiments.changes import actions
    from services.experiments.changes.state import live_arms

    def decided(experiment: Experiment, state: LiveState) -> list[ExperimentChange]:
        chosen = [arm] if arm else live_arms(experiment, state)
        by = actions.By(_actor(), reason, time.time() * 1000)
        return actions.stop_all(experiment, state, dict.fromkeys(chosen, by))

    _change(name, reason, file, decided)


def resume(
    name: Name,
    arm: Annotated[str, typer.Option(help="The arm, or `interleaved`.")],
    reason: Annotated[str, typer.Option(help="A sentence for the audit.")],
    file: FileOption = None,
) -> None:
    """Give a stopped arm's users the arm again. Its guardrails are judged anew, by units that come
    from now on; nothing else resumes an arm.
    """
    from services.experiments.changes import actions

    def decided(experiment: Experiment, state: LiveState) -> list[ExperimentChange]:
        by = actions.By(_actor(), reason, time.time() * 1000)
        return [actions.resume(experiment, state, arm, by)]

    _change(name, reason, file, decided)


def _change(
    name: str,
    reason: str,
    file: Path | None,
    decided: Callable[[Experiment, LiveState], list[ExperimentChange]],
) -> None:
    """Append what is decided for the state in the log, and say it."""
    from services.experiments.changes.actions import ActionRefused

    _, experiment = experiment_named(load(file), name)
    if not reason.strip():
        fail("--reason is empty: write a sentence that others will understand next month.")
    with open_log(load_settings()) as event_log:
        log = read_changes(event_log)
        state = log.changes.state(experiment.salt)
        try:
            changes = decided(experiment, state)
        except ActionRefused as error:
            fail(f"{error}.")
        log.append(changes, time.time() * 1000)
    for change in changes:
        done = "stopped" if change.kind == change.ARM_STOPPED else "resumed"
        typer.echo(f"{name}: {change.arm} is {done}")


def audit(
    name: Annotated[str, typer.Argument(help="An experiment; default: all.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with the evidence, instead of a table.")
    ] = False,
) -> None:
    """List what was changed while experiments ran: when, by whom, and why.

    Of experiments that are no longer in the file it reaches as far back as the log.
    """
    with open_log(load_settings()) as event_log:
        changes = read_changes(event_log).changes.all()
    if name:
        changes = [change for change in changes if change.experiment == name]
        if not changes:
            experiment_named(load(None), name)
    if as_json:
        say_json([_change_json(change) for change in changes])
        return
    table = Table("time", "experiment", "kind", "arm", "by", "reason")
    for change in changes:
        said = (change.experiment, _kind(change), change.arm, change.actor, change.reason)
        table.add_row(iso_instant(change.event_time_ms), *map(plain, said))
    if changes:
        wide_console().print(table)
    else:
        typer.echo("nothing was changed while experiments ran")


def _change_json(change: ExperimentChange) -> dict[str, Any]:
    return {
        "id": change.change_id,
        "at_ms": change.event_time_ms,
        "experiment": change.experiment,
        "salt": change.salt,
        "kind": _kind(change),
        "arm": change.arm,
        "actor": change.actor,
        "reason": change.reason,
        "evidence": _evidence(change.evidence),
    }


def _evidence(text: str) -> Any:
    """As it was written by us; what is no JSON as text."""
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return text


def _kind(change: ExperimentChange) -> str:
    from protos.tandem.v1.records_pb2 import ExperimentChange

    return ExperimentChange.Kind.Name(change.kind).lower()


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def read_changes(event_log: EventLog) -> ChangeLog:
    """All changes, read once; more can be appended. LogUnavailable."""
    from services.experiments.assign.following import FIRST_READ_S
    from services.experiments.changes.log import ChangeLog

    with contextlib.closing(ChangeLog(event_log)) as changes:
        changes.read_all(FIRST_READ_S)
    return changes
