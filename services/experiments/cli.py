"""`tandem experiments`: check, show and try an experiments file before it is rolled out."""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.common.settings import Settings, SettingsInvalid
from services.experiments import config_reader
from services.experiments.assignment import Assigner
from services.experiments.config import (
    Experiment,
    ExperimentsConfig,
    ExperimentsError,
    Layer,
    moving_changes,
)
from services.experiments.models import served, unknown_surfaces, unserved
from services.experiments.schema import json_schema

if TYPE_CHECKING:
    from protos.tandem.v1.records_pb2 import ExperimentChange
    from services.event_log.interface import EventLog
    from services.experiments.actions import LiveState
    from services.experiments.changes import ChangeLog
    from services.experiments.fold import Fold, Settled
    from services.experiments.report import Report
    from services.experiments.worker import Fresh

app = typer.Typer(help="Check, show and try an experiments file.", no_args_is_help=True)

COLUMNS = "layer", "experiment", "unit", "buckets", "arm", "weight", "traffic", "parameters"
MIN_WIDTH = 120  # of a table that can be read; a narrower terminal wraps it

File = Annotated[
    Path | None,
    typer.Argument(help="The experiments file or folder; default: router.experiments_file."),
]

ExperimentsOption = Annotated[
    Path | None,
    typer.Option("--file", help="The experiments file or folder; default: that of the settings."),
]


@app.command()
def validate(
    file: File = None,
    running: Annotated[
        Path | None,
        typer.Option(help="The file or folder in force: also refuse what would move its users."),
    ] = None,
) -> None:
    """Print every error as `file:line: path: reason. fix.` and exit with 1 if there is one.

    An arm whose model the settings do not serve is an error, too, and so is a condition on a
    surface that they do not list.
    """
    path = _path(file)
    config = _load(path)
    settings = _settings()
    if problems := [
        *unserved(config, served(settings)),
        *unknown_surfaces(config, settings.router.surfaces),
    ]:
        _fail(ExperimentsError(str(path), problems).lines())
    if running is not None and (moves := moving_changes(_load(running), config)):
        _fail(ExperimentsError(str(path), moves).lines())
    count = sum(1 for _ in config.experiments())
    typer.echo(f"{path}: valid; {len(config.layers)} layers, {count} experiments")


@app.command()
def describe(file: File = None) -> None:
    """Show layers, experiments with their state, conditions, arms and traffic as a table."""
    table = Table(*COLUMNS)
    config = _load(_path(file))
    now_ms = time.time() * 1000
    for layer, experiment in config.experiments():
        lo, hi = experiment.buckets
        head = [layer.name, _headline(experiment, now_ms), experiment.unit, f"{lo}-{hi}"]
        for arm in experiment.arms:
            overrides = "\n".join(f"{k} = {v}" for k, v in arm.parameters.items())
            weight = "both" if experiment.interleave else f"{arm.weight:g} %"
            name = f"{arm.name} (stopped)" if arm.stopped else arm.name
            table.add_row(*head, name, weight, f"{arm.traffic:g} %", overrides)
            head = [""] * 4
    console = Console(width=max(Console().width, MIN_WIDTH))
    console.print(table)
    if config.holdout.buckets:
        console.print(f"{config.holdout.percent:g} % of users are held out of all experiments.")
    for segment in config.segments:
        conditions = " and ".join(condition.text for condition in segment.where)
        console.print(escape(f"segment {segment.name}: {conditions}"))


def _headline(experiment: Experiment, now_ms: float) -> str:
    """The name with what is not plain about it: state, bounds, conditions, ramp and interleaving,
    each on a line."""
    state = experiment.state(now_ms)
    lines = [experiment.name if state == "running" else f"{experiment.name} ({state})"]
    if experiment.start_ms > -math.inf:
        lines.append(f"from {_instant(experiment.start_ms)}")
    if experiment.stop_ms < math.inf:
        lines.append(f"until {_instant(experiment.stop_ms)}")
    lines += [f"where {condition.text}" for condition in experiment.where]
    if experiment.interleave:
        lines.append(f"interleaves by {experiment.interleave}")
    if ramp := experiment.ramp:
        lines.append(f"ramp {', '.join(f'{step / 100:g}' for step in ramp.steps)} %")
        lines.append(f"each {ramp.hold_s:g} s, {ramp.min_units} units, {ramp.gate}")
    return escape("\n".join(lines))


def _instant(ms: float) -> str:
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds" if ms % 1000 else "seconds").replace("+00:00", "Z")


@app.command()
def assign(
    user: Annotated[str, typer.Option(help="A user id.")],
    session: Annotated[str, typer.Option(help="A session id.")] = "",
    surface: Annotated[str, typer.Option(help="The surface of the request.")] = "",
    context: Annotated[
        list[str] | None, typer.Option(help="A context value, NAME=NUMBER; repeat for several.")
    ] = None,
    unit: Annotated[
        list[str] | None, typer.Option(help="The id of a further unit, NAME=ID; repeat likewise.")
    ] = None,
    user_feature: Annotated[
        list[str] | None, typer.Option(help="A count of the user's, NAME=NUMBER; repeat likewise.")
    ] = None,
    at: Annotated[
        str, typer.Option(help="An instant like 2026-12-01T09:00:00Z; default: now.")
    ] = "",
    file: File = None,
) -> None:
    """Print the arms and all parameters in force for a request of a user."""
    config = _load(_path(file))
    allow_lists = {experiment.name: experiment.allow_list for _, experiment in config.experiments()}
    unit_ids = dict(_unit_id(text) for text in unit or ())
    decision = Assigner(config).assign(
        user,
        session,
        now_ms=_at_ms(at),
        surface=surface,
        context=dict(_number(text, "--context") for text in context or ()),
        unit_ids=unit_ids,
        user=dict(_number(text, "--user-feature") for text in user_feature or ()),
    )
    for a in decision.assignments:
        listed = allow_lists[a.experiment].keys() & {user, session, *unit_ids.values()}
        why = "by the allow-list" if listed else "its own arm is stopped"
        note = f" ({why})" if a.overridden else ""
        typer.echo(f"{a.layer} / {a.experiment}: {a.arm}{note}")
    if decision.held_out:
        typer.echo("in no experiment: held out")
    elif not decision.assignments:
        typer.echo("in no experiment")
    for name, value in decision.parameters.as_text().items():
        mark = "  <- experiment" if name in decision.overrides else ""
        typer.echo(f"  {name} = {value}{mark}")
    if both := decision.interleaved:
        typer.echo(f"these are {both.arm_a}'s; by {both.method} with those of {both.arm_b}:")
        other = both.b.as_text()
        for name, value in both.a.as_text().items():
            if other[name] != value:
                typer.echo(f"  {name} = {other[name]}")


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="The name of an experiment.")],
    file: File = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    at: Annotated[
        str, typer.Option(help="Count outcomes that are final by this instant; default: now.")
    ] = "",
    from_log: Annotated[
        bool, typer.Option("--from-log", help="Read the log even if a worker has just measured.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Also write the report to this file, as one page for any browser."),
    ] = None,
) -> None:
    """Say what the event log knows of an experiment: effects, guardrails, verdicts.

    Takes what the worker (`tandem serve experiments`) has just measured, or reads the whole
    retained log of the settings, which changes nothing in it. Exits with 1 for errors only,
    whatever the verdicts.
    """
    # Imported when asked for: scipy and the log take longer than the other commands.
    from services.experiments.look import report_of
    from services.experiments.report_view import show

    layer, experiment = _experiment(_load(_path(file)), name)
    settings = _settings()
    as_of_ms = _at_ms(at)
    found = None if at or from_log else _from_worker(settings, experiment, as_of_ms)
    seen, coverage, as_of_ms = found or _from_log(settings, layer, experiment, as_of_ms)
    said = report_of(layer.name, experiment, seen, as_of_ms, coverage)
    if html is not None:
        _write_page(said, html)
    if as_json:
        typer.echo(json.dumps(said.to_json(), indent=2))
    else:
        show(said, Console(width=max(Console().width, MIN_WIDTH)))


@app.command()
def plan(
    name: Annotated[str, typer.Argument(help="The name of an experiment.")],
    file: File = None,
    units_per_day: Annotated[
        float | None,
        typer.Option(min=0.0, help="New units that come a day in production; default: the log's."),
    ] = None,
    lift: Annotated[
        float | None,
        typer.Option(help="Find this lift (0.02 is 2 %) instead of the minimal effects."),
    ] = None,
    power: Annotated[
        float, typer.Option(min=0.1, max=0.999, help="Chance to find an effect of that size.")
    ] = 0.8,
    mean: Annotated[
        list[str] | None,
        typer.Option(help="A metric's value today, METRIC=NUMBER, instead of the log's; repeat."),
    ] = None,
    sd: Annotated[
        list[str] | None,
        typer.Option(help="Its standard deviation over units, METRIC=NUMBER; repeat."),
    ] = None,
    correlation: Annotated[
        list[str] | None,
        typer.Option(help="Its correlation with CUPED's covariate, METRIC=NUMBER; repeat."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    at: Annotated[
        str, typer.Option(help="Count outcomes that are final by this instant; default: now.")
    ] = "",
) -> None:
    """Forecast how many units an experiment needs and how long it must run, before it starts.

    Metrics and arrivals are taken from the event log as production made them; what is given by
    options is not looked up. The log is read as a whole, which changes nothing in it.
    """
    from services.experiments import planning
    from services.experiments.planning_view import show
    from services.experiments.production import ProductionFold, arrivals

    config = _load(_path(file))
    _, experiment = _experiment(config, name)
    given = {
        "mean": _by_metric(mean, experiment, "--mean"),
        "sd": _by_metric(sd, experiment, "--sd"),
        "correlation": _by_metric(correlation, experiment, "--correlation"),
    }
    try:
        asked = planning.wanted(experiment, lift)
        baselines, notes = planning.given(asked, **given), list[str]()
        arriving: tuple[float, ...] = () if units_per_day is None else (units_per_day,)
        missing = [own for own in asked if own.key not in baselines]
        if missing or units_per_day is None:
            settled, _ = _read_log(_settings(), ProductionFold(experiment))
            found, notes = planning.from_log(
                settled, experiment, missing, given["correlation"], _at_ms(at)
            )
            baselines |= found
            if units_per_day is None:
                arriving = arrivals(settled, experiment)
        said = planning.forecast(
            experiment,
            baselines,
            arriving,
            power=power,
            lift=lift,
            held_out=config.holdout.percent,
            notes=notes,
        )
    except (planning.CannotPlan, ValueError) as error:
        _fail([f"{name}: {error}"])
    if as_json:
        typer.echo(json.dumps(said.to_json(), indent=2))
    else:
        show(said, {m.name: m for m in experiment.plan.metrics}, Console())


def _by_metric(texts: list[str] | None, experiment: Experiment, option: str) -> dict[str, float]:
    """NUMBER is of the primary metric, METRIC=NUMBER of that one."""
    plan = experiment.plan
    names = [metric.name for metric in plan.metrics]
    found = {}
    for text in texts or ():
        name, equals, number = text.rpartition("=")
        if not equals and plan.primary:
            name = plan.primary.metric.name
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if name not in names or not math.isfinite(value):
            raise typer.BadParameter(
                f"write {text!r} as METRIC=NUMBER with one of {', '.join(names) or 'its metrics'}",
                param_hint=option,
            )
        found[name] = value
    return found


def _write_page(said: Report, path: Path) -> None:
    from services.experiments.report_html import page

    try:
        path.write_text(page(said), "utf-8")
    except OSError as error:
        _fail([f"{path}: cannot be written ({error.strerror}). Give a file in an existing folder."])


def _from_worker(settings: Settings, experiment: Experiment, now_ms: float) -> Fresh | None:
    from services.experiments.worker import SNAPSHOT, fresh

    return fresh(settings.run_dir / SNAPSHOT, experiment, settings.event_log.url, now_ms)


def _from_log(settings: Settings, layer: Layer, experiment: Experiment, as_of_ms: float) -> Fresh:
    from services.experiments.findings import Coverage
    from services.experiments.fold import Fold
    from services.experiments.look import Look
    from services.experiments.worker import Fresh

    with _event_log(settings) as event_log:
        settled, undecodable = _folded(event_log, Fold())
        changes = _changes(event_log).changes
    coverage = Coverage(settled.unmatched, undecodable, settings.event_log.url)
    look = Look(settled, layer.name, experiment, changes, as_of_ms, coverage)
    return Fresh(look.seen(), coverage, as_of_ms)


def _read_log(settings: Settings, fold: Fold) -> tuple[Settled, int]:
    """The whole log in a fold, and the number of records that could not be read."""
    with _event_log(settings) as event_log:
        return _folded(event_log, fold)


def _folded(event_log: EventLog, fold: Fold) -> tuple[Settled, int]:
    from services.experiments.log_reader import LogReader

    with contextlib.closing(LogReader(event_log, fold)) as reader:
        reader.read_all()
    return fold.settled(), reader.undecodable


@contextlib.contextmanager
def _event_log(settings: Settings) -> Iterator[EventLog]:
    """The log, open; whatever it cannot do inside the block ends the command with a sentence."""
    from services.event_log.connect import connect
    from services.event_log.interface import LogUnavailable

    url = settings.event_log.url
    try:
        with contextlib.closing(connect(settings.event_log)) as event_log:
            yield event_log
    except (LogUnavailable, OSError, ValueError) as error:
        _fail([f"{url}: cannot be read or written ({error}). Check event_log.url."])


def _changes(event_log: EventLog) -> ChangeLog:
    """All changes, read once; more can be appended. LogUnavailable."""
    from services.experiments.changes import ChangeLog
    from services.experiments.following import FIRST_READ_S

    with contextlib.closing(ChangeLog(event_log)) as changes:
        changes.read_all(FIRST_READ_S)
    return changes


@app.command()
def stop(
    name: Annotated[str, typer.Argument(help="The name of an experiment.")],
    reason: Annotated[str, typer.Option(help="A sentence for the audit.")],
    arm: Annotated[
        str, typer.Option(help="An arm; default: all treatments, or the interleaving.")
    ] = "",
    file: ExperimentsOption = None,
) -> None:
    """Give an arm's users what control has, from now on; every router follows within seconds.

    They keep their place in the arm and are not counted while it is stopped.
    """
    from services.experiments import actions

    def decided(experiment: Experiment, state: LiveState) -> list[ExperimentChange]:
        chosen = [arm] if arm else actions.live_arms(experiment, state)
        return actions.stop_all(
            experiment, state, chosen, actor=_actor(), reason=reason, now_ms=time.time() * 1000
        )

    _change(name, reason, file, decided)


@app.command()
def resume(
    name: Annotated[str, typer.Argument(help="The name of an experiment.")],
    arm: Annotated[str, typer.Option(help="The arm, or `interleaved`.")],
    reason: Annotated[str, typer.Option(help="A sentence for the audit.")],
    file: ExperimentsOption = None,
) -> None:
    """Give a stopped arm's users the arm again. Its guardrails are judged anew, by units that come
    from now on; nothing else resumes an arm.
    """
    from services.experiments import actions

    def decided(experiment: Experiment, state: LiveState) -> list[ExperimentChange]:
        now_ms = time.time() * 1000
        return [
            actions.resume(experiment, state, arm, actor=_actor(), reason=reason, now_ms=now_ms)
        ]

    _change(name, reason, file, decided)


def _change(
    name: str,
    reason: str,
    file: Path | None,
    decided: Callable[[Experiment, LiveState], list[ExperimentChange]],
) -> None:
    """Append what is decided for the state in the log, and say it."""
    from services.experiments.actions import AT_START, ActionRefused

    _, experiment = _experiment(_load(_path(file)), name)
    if not reason.strip():
        _fail(["--reason is empty: write a sentence that others will understand next month."])
    with _event_log(_settings()) as event_log:
        log = _changes(event_log)
        state = log.changes.states().get(experiment.salt, AT_START)
        try:
            changes = decided(experiment, state)
        except ActionRefused as error:
            _fail([f"{error}."])
        log.append(changes, time.time() * 1000)
    for change in changes:
        done = "stopped" if change.kind == change.ARM_STOPPED else "resumed"
        typer.echo(f"{name}: {change.arm} is {done}")


@app.command()
def audit(
    name: Annotated[str, typer.Argument(help="An experiment; default: all.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with the evidence, instead of a table.")
    ] = False,
) -> None:
    """List what was changed while experiments ran: when, by whom, and why.

    Of experiments that are no longer in the file it reaches as far back as the log.
    """
    with _event_log(_settings()) as event_log:
        changes = _changes(event_log).changes.all()
    if name:
        changes = [change for change in changes if change.experiment == name]
        if not changes:
            _experiment(_load(_path(None)), name)
    if as_json:
        typer.echo(json.dumps([_change_json(change) for change in changes], indent=2))
        return
    table = Table("time", "experiment", "kind", "arm", "by", "reason")
    for change in changes:
        said = (change.experiment, _kind(change), change.arm, change.actor, change.reason)
        table.add_row(_instant(change.event_time_ms), *map(escape, said))
    if changes:
        Console(width=max(Console().width, MIN_WIDTH)).print(table)
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
    except ValueError:
        return text


def _kind(change: ExperimentChange) -> str:
    from protos.tandem.v1.records_pb2 import ExperimentChange

    known = change.kind in ExperimentChange.Kind.values()
    return ExperimentChange.Kind.Name(change.kind).lower() if known else str(change.kind)


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def _experiment(config: ExperimentsConfig, name: str) -> tuple[Layer, Experiment]:
    names = []
    for layer, experiment in config.experiments():
        if experiment.name == name:
            return layer, experiment
        names.append(experiment.name)
    _fail([f"there is no experiment {name!r}. Use one of {', '.join(names) or 'those you write'}."])


@app.command()
def schema() -> None:
    """Print the JSON Schema of an experiments file, for editors to complete and check it."""
    typer.echo(json.dumps(json_schema(), indent=2))


def _at_ms(text: str) -> float:
    if not text:
        return time.time() * 1000
    if (ms := config_reader.instant_ms(text)) is None:
        raise typer.BadParameter(
            "write date, time and zone like 2026-12-01T09:00:00Z", param_hint="--at"
        )
    return ms


def _number(text: str, option: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise typer.BadParameter(
            f"write {text!r} as NAME=NUMBER: its value is a number", param_hint=option
        ) from None


def _unit_id(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not (name and value):
        raise typer.BadParameter(f"write {text!r} as NAME=ID", param_hint="--unit")
    return name, value


def _path(file: Path | None) -> Path:
    return file if file is not None else _settings().router.experiments_file


def _settings() -> Settings:
    try:
        return Settings.load()
    except SettingsInvalid as error:
        _fail([str(error)])


def _load(path: Path) -> ExperimentsConfig:
    try:
        return config_reader.load(path)
    except ExperimentsError as error:
        _fail(error.lines())
    except OSError as error:
        _fail([f"{path}: cannot be read ({error.strerror}). Give the name of an existing file."])


def _fail(lines: list[str]) -> NoReturn:
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(1)
