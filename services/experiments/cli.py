"""`tandem experiments`: check, show and try an experiments file before it is rolled out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from services.common.settings import Settings, SettingsInvalid
from services.experiments import config_reader
from services.experiments.assignment import Assigner
from services.experiments.config import ExperimentsConfig, ExperimentsError, moving_changes
from services.experiments.models import served, unserved

app = typer.Typer(help="Check, show and try an experiments file.", no_args_is_help=True)

COLUMNS = "layer", "experiment", "unit", "buckets", "arm", "weight", "traffic", "parameters"
MIN_WIDTH = 120  # of a table that can be read; a narrower terminal wraps it

File = Annotated[
    Path | None, typer.Argument(help="The experiments file; default: router.experiments_file.")
]


@app.command()
def validate(
    file: File = None,
    running: Annotated[
        Path | None,
        typer.Option(help="The file in force: also refuse what would move its users."),
    ] = None,
) -> None:
    """Print every error as `file:line: path: reason. fix.` and exit with 1 if there is one.

    An arm whose model the settings do not serve is an error, too.
    """
    path = _path(file)
    config = _load(path)
    if problems := unserved(config, served(_settings())):
        _fail(ExperimentsError(str(path), problems).lines())
    if running is not None and (moves := moving_changes(_load(running), config)):
        _fail(ExperimentsError(str(path), moves).lines())
    count = sum(1 for _ in config.experiments())
    typer.echo(f"{path}: valid; {len(config.layers)} layers, {count} experiments")


@app.command()
def describe(file: File = None) -> None:
    """Show layers, experiments, arms and traffic as a table."""
    table = Table(*COLUMNS)
    for layer, experiment in _load(_path(file)).experiments():
        name = experiment.name if experiment.enabled else f"{experiment.name} (off)"
        lo, hi = experiment.buckets
        head = [layer.name, name, experiment.unit, f"{lo}-{hi}"]
        for arm in experiment.arms:
            overrides = "\n".join(f"{k} = {v}" for k, v in arm.parameters.items())
            table.add_row(*head, arm.name, f"{arm.weight:g} %", f"{arm.traffic:g} %", overrides)
            head = [""] * 4
    Console(width=max(Console().width, MIN_WIDTH)).print(table)


@app.command()
def assign(
    user: Annotated[str, typer.Option(help="A user id.")],
    session: Annotated[str, typer.Option(help="A session id.")] = "",
    file: File = None,
) -> None:
    """Print the arms and all parameters in force for a user."""
    decision = Assigner(_load(_path(file))).assign(user, session)
    for a in decision.assignments:
        note = " (by the allow-list)" if a.overridden else ""
        typer.echo(f"{a.layer} / {a.experiment}: {a.arm}{note}")
    if not decision.assignments:
        typer.echo("in no experiment")
    for name, value in decision.parameters.as_text().items():
        mark = "  <- experiment" if name in decision.overrides else ""
        typer.echo(f"  {name} = {value}{mark}")


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
