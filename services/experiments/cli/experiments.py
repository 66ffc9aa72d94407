"""`tandem experiments`: check, show and try an experiments file before it is rolled out."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from services.common.schema import schema_of
from services.common.settings import Settings
from services.common.terminal import load_settings, plain
from services.experiments.assign.assignment import Assigner
from services.experiments.cli.acting import audit, read_changes, resume, stop
from services.experiments.cli.inputs import (
    AsJson,
    AsOf,
    File,
    Name,
    at_ms,
    domain,
    experiment_named,
    fail,
    iso_instant,
    load,
    named,
    open_log,
    path_of,
    say_json,
    wide_console,
)
from services.experiments.cli.what_if import what_if
from services.experiments.declare.config import (
    Experiment,
    ExperimentsError,
    Layer,
    moving_changes,
    remarks,
)
from services.experiments.declare.reader.file import json_schema
from services.experiments.declare.served import served, undeclared, unserved

if TYPE_CHECKING:
    from services.event_log.interface import EventLog
    from services.experiments.act.snapshot import Fresh
    from services.experiments.measure.fold import Fold, Settled
    from services.experiments.report.findings import Report

app = typer.Typer(help="Declare, plan, watch and stop experiments.", no_args_is_help=True)
app.command()(stop)
app.command()(resume)
app.command()(audit)
app.command("what-if")(what_if)

COLUMNS = "layer", "experiment", "unit", "buckets", "arm", "weight", "traffic", "parameters"


@app.command()
def validate(
    file: File = None,
    running: Annotated[
        Path | None,
        typer.Option(
            help="The file or folder in force: also refuse what would move its users or mix two "
            "treatments, and say what begins afresh."
        ),
    ] = None,
) -> None:
    """Print every error as `file:line: path: reason. fix.` and exit with 1 if there is one.

    An arm whose model the settings do not serve is an error, too, and so is a condition on a
    surface or a text that schema.yaml does not declare or on a count that it does not keep, and a
    metric of an event or a weight of the value formula that it does not declare.
    """
    path = path_of(file)
    config = load(path)
    settings = load_settings()
    if problems := [
        *unserved(config, served(settings)),
        *undeclared(config, schema_of(settings).declaration),
    ]:
        fail(*ExperimentsError(str(path), problems).lines())
    said: list[str] = []
    if running is not None:
        before = load(running)
        if moves := moving_changes(before, config):
            fail(*ExperimentsError(str(path), moves).lines())
        said = remarks(before, config)
    count = sum(1 for _ in config.experiments())
    typer.echo(f"{path}: valid; layers: {len(config.layers)}, experiments: {count}")
    for remark in said:
        typer.echo(f"note: {remark}")


@app.command()
def describe(file: File = None) -> None:
    """Show layers, experiments with their state, conditions, arms and traffic as a table: what the
    file says, not what was stopped and which steps ramps took since.
    """
    table = Table(*COLUMNS)
    config = load(file)
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
    console = wide_console()
    console.print(table)
    if config.holdout.buckets:
        console.print(f"{config.holdout.percent:g} % of users are held out of all experiments.")
    for segment in config.segments:
        conditions = " and ".join(condition.text for condition in segment.where)
        console.print(plain(f"segment {segment.name}: {conditions}"))
    console.print("What was stopped and where ramps are beyond the file: tandem experiments audit")


def _headline(experiment: Experiment, now_ms: float) -> str:
    """The name with what is not plain about it: state, bounds, conditions, ramp and interleaving,
    each on a line."""
    state = experiment.state(now_ms)
    lines = [experiment.name if state == "running" else f"{experiment.name} ({state})"]
    if experiment.start_ms > -math.inf:
        lines.append(f"from {iso_instant(experiment.start_ms)}")
    if experiment.stop_ms < math.inf:
        lines.append(f"until {iso_instant(experiment.stop_ms)}")
    lines += [f"where {condition.text}" for condition in experiment.where]
    if experiment.interleave:
        lines.append(f"interleaves by {experiment.interleave}")
    if ramp := experiment.ramp:
        lines.append(f"ramp {', '.join(f'{step / 100:g}' for step in ramp.steps)} %")
        lines.append(f"each {ramp.hold_s:g} s, {ramp.min_units} units, {ramp.gate}")
    return "\n".join(map(plain, lines))


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
    """Print the arms and all parameters that the file gives a request of a user, whatever was
    stopped and stepped up since (`audit`).
    """
    config = load(file)
    allow_lists = {experiment.name: experiment.allow_list for _, experiment in config.experiments()}
    unit_ids = named(unit, "--unit", _unit_id, "NAME=ID")
    number = "NAME=NUMBER: its value is a number"
    decision = Assigner(config).assign(
        user,
        session,
        now_ms=at_ms(at),
        surface=surface,
        context=named(context, "--context", float, number),
        unit_ids=unit_ids,
        user=named(user_feature, "--user-feature", float, number),
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
    name: Name,
    file: File = None,
    as_json: AsJson = False,
    at: AsOf = "",
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
    from services.experiments.act.standing import report_of
    from services.experiments.report.terminal import show

    layer, experiment = experiment_named(load(file), name)
    settings = load_settings()
    as_of_ms = at_ms(at)
    found = None if at or from_log else _from_worker(settings, experiment, as_of_ms)
    stands, coverage, as_of_ms = found or _from_log(settings, layer, experiment, as_of_ms)
    said = report_of(layer.name, experiment, stands, as_of_ms, coverage)
    if html is not None:
        _write_page(said, html)
    if as_json:
        say_json(said.to_json())
    else:
        show(said, wide_console())


@app.command()
def plan(
    name: Name,
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
    as_json: AsJson = False,
    at: AsOf = "",
) -> None:
    """Forecast how many units an experiment needs and how long it must run, before it starts.

    Metrics and arrivals are taken from the event log as production made them; what is given by
    options is not looked up. The log is read as a whole, which changes nothing in it.
    """
    from services.experiments.plan import planning
    from services.experiments.plan.baseline import ProductionFold, arrivals
    from services.experiments.plan.terminal import show

    config = load(file)
    _, experiment = experiment_named(config, name)
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
            with open_log(load_settings()) as event_log:
                settled, _ = _folded(event_log, ProductionFold(experiment))
            found, notes = planning.from_log(
                settled, experiment, missing, given["correlation"], at_ms(at)
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
        fail(f"{name}: {error}")
    if as_json:
        say_json(said.to_json())
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
    from services.experiments.report.html.page import page

    try:
        path.write_text(page(said), "utf-8")
    except OSError as error:
        fail(f"{path}: cannot be written ({error.strerror}). Give a file in an existing folder.")


def _from_worker(settings: Settings, experiment: Experiment, now_ms: float) -> Fresh | None:
    from services.experiments.act.snapshot import SNAPSHOT, fresh

    return fresh(settings.run_dir / SNAPSHOT, experiment, settings.event_log.url, now_ms)


def _from_log(settings: Settings, layer: Layer, experiment: Experiment, as_of_ms: float) -> Fresh:
    from services.experiments.act.snapshot import Fresh
    from services.experiments.act.standing import KnownLog, standing
    from services.experiments.measure.fold import Fold
    from services.experiments.report.findings import Coverage

    with open_log(settings) as event_log:
        settled, undecodable = _folded(event_log, Fold())
        changes = read_changes(event_log).changes
    coverage = Coverage(settled.unmatched, undecodable, settings.event_log.url)
    at = KnownLog(settled, coverage, as_of_ms)
    stands = standing(at, layer.name, experiment, changes)
    return Fresh(stands, coverage, as_of_ms)


def _folded(event_log: EventLog, fold: Fold) -> tuple[Settled, int]:
    """The whole log in a fold, and the number of records that could not be read."""
    from services.experiments.measure.log_reader import LogReader

    with contextlib.closing(LogReader(event_log, fold)) as reader:
        reader.read_all()
    return fold.settled(), reader.undecodable


@app.command()
def schema() -> None:
    """Print the JSON Schema of an experiments file, for editors to complete and check it."""
    say_json(json_schema(domain()))


def _unit_id(text: str) -> str:
    if not text:
        raise ValueError
    return text
