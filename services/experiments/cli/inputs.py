"""What the commands of `tandem experiments` have in common: inputs, output, and how they fail.

A command that cannot go on prints sentences on stderr and exits with 1.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from feature_store.urls import public
from services.common.schema import SchemaRefused, schema_of
from services.common.settings import Settings
from services.common.terminal import load_settings, printable
from services.experiments.declare import config_reader
from services.experiments.declare.config import (
    Experiment,
    ExperimentsConfig,
    ExperimentsError,
    Layer,
)
from services.experiments.declare.domain import Domain, domain_of

if TYPE_CHECKING:
    from services.event_log.interface import EventLog

MIN_WIDTH = 120  # of a table that can be read; a narrower terminal wraps it

T = TypeVar("T")

File = Annotated[
    Path | None,
    typer.Argument(help="The experiments file or folder; default: router.experiments_file."),
]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", help="The experiments file or folder; default: that of the settings."),
]
Name = Annotated[str, typer.Argument(help="The name of an experiment.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
AsOf = Annotated[
    str, typer.Option("--at", help="Count outcomes that are final by this instant; default: now.")
]


def iso_instant(ms: float) -> str:
    """An instant as `at_ms` and the experiments file read it."""
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds" if ms % 1000 else "seconds").replace("+00:00", "Z")


def at_ms(text: str) -> float:
    """The instant that --at names; now if it is empty."""
    if not text:
        return time.time() * 1000
    if (ms := config_reader.instant_ms(text)) is None:
        raise typer.BadParameter(
            "write date, time and zone like 2026-12-01T09:00:00Z", param_hint="--at"
        )
    return ms


def named(
    texts: Sequence[str] | None, option: str, value_of: Callable[[str], T], form: str
) -> dict[str, T]:
    """What an option NAME=VALUE gives that may be repeated; `form` says how to write it where
    `value_of` raises ValueError."""
    found = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        try:
            if not name:
                raise ValueError
            found[name] = value_of(value)
        except ValueError:
            raise typer.BadParameter(f"write {text!r} as {form}", param_hint=option) from None
    return found


def path_of(file: Path | None) -> Path:
    """The experiments file that is meant."""
    return file if file is not None else load_settings().router.experiments_file


def domain() -> Domain:
    """That of the settings."""
    try:
        return domain_of(schema_of(load_settings()).declaration)
    except SchemaRefused as error:
        fail(str(error))


def load(file: Path | None) -> ExperimentsConfig:
    """The experiments of the file that is meant (`path_of`)."""
    path = path_of(file)
    try:
        return config_reader.load(path, domain())
    except ExperimentsError as error:
        fail(*error.lines())
    except OSError as error:
        fail(f"{path}: cannot be read ({error.strerror}). Give the name of an existing file.")


def wide_console() -> Console:
    """As wide as the terminal, or as a table that can be read."""
    return Console(width=max(Console().width, MIN_WIDTH))


def say_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2))


def fail(*lines: str) -> NoReturn:
    for line in lines:
        typer.echo(printable(line), err=True)
    raise typer.Exit(1)


@contextlib.contextmanager
def open_log(settings: Settings) -> Iterator[EventLog]:
    """The log, open; whatever it cannot do inside the block ends the command with a sentence."""
    from services.event_log.connect import connect
    from services.event_log.interface import LogUnavailable, LogWentBack

    url = settings.event_log.url
    try:
        with contextlib.closing(connect(settings.event_log, settings.installation)) as event_log:
            yield event_log
    except (LogUnavailable, LogWentBack, OSError, ValueError) as error:
        fail(f"{public(url)}: cannot be read or written ({error}). Check event_log.url.")


def experiment_named(config: ExperimentsConfig, name: str) -> tuple[Layer, Experiment]:
    """An experiment of the file, or a sentence with the names that there are."""
    names = []
    for layer, experiment in config.experiments():
        if experiment.name == name:
            return layer, experiment
        names.append(experiment.name)
    fail(f"there is no experiment {name!r}. Use one of {', '.join(names) or 'those you write'}.")
