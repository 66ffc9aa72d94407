"""`tandem schema`: what a schema.yaml declares, and whether it may follow on an older one and has
what the experiments that run use."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from models.schema import lock, read
from models.schema.declaration import (
    Declaration,
    Derived,
    Event,
    Field,
    Match,
    OnSurface,
    Pool,
    Position,
    Ratio,
    Since,
)
from models.schema.layout import layout_of
from models.schema.lock import Lock, LockError
from models.schema.reader.words import duration_text
from models.yaml_reader.problems import YamlError
from services.common.terminal import load_settings
from services.experiments.declare import config_reader
from services.experiments.declare.config import ExperimentsError
from services.experiments.declare.domain import domain_of
from services.experiments.declare.served import undeclared

app = typer.Typer(no_args_is_help=True, help="The declaration of a domain: schema.yaml.")
console = Console(highlight=False)

SCHEMA = Path("schema.yaml")
File = Annotated[Path, typer.Option("--file", help="The schema.yaml.")]
OF_AN_EXAMPLE = (
    f"\nIf {lock.NAME} is an example's, of which nothing is to be kept, delete it, data/ and run/,"
    " and lock anew."
)


def _end(text: str) -> NoReturn:
    typer.echo(text, err=True)
    raise typer.Exit(1)


def _load(file: Path) -> Declaration:
    try:
        return read.load(file)
    except OSError as error:
        _end(f"{file}: cannot be read ({error.strerror}). Write one, or name it with --file.")
    except read.SchemaError as error:
        _end(str(error))


def _lock_of(path: Path) -> Lock:
    try:
        return lock.read(path)
    except LockError as error:
        _end(str(error))


def _after(before: Lock, declared: Declaration, file: Path, hint: str = OF_AN_EXAMPLE) -> Lock:
    """The lock with what is declared; the command ends where that may not follow."""
    if found := lock.problems(before, declared):
        _end(f"{YamlError(str(file), found)}{hint}")
    return before.with_(declared)


@app.command("schema")
def json_schema() -> None:
    """Print the JSON Schema of schema.yaml, for editors."""
    typer.echo(json.dumps(read.json_schema(), indent=1))


@app.command()
def describe(file: File = SCHEMA) -> None:
    """Say what a schema.yaml declares: events, fields, tasks, and the rows that are kept."""
    declared = _load(file)
    for table in (_events(declared), _fields(declared), _outcome(declared), _rows(declared)):
        console.print(table)


@app.command()
def check(
    old: Annotated[
        Path | None,
        typer.Argument(help="An older schema.yaml; default: the schema.lock beside the file."),
    ] = None,
    file: File = SCHEMA,
    experiments: Annotated[
        Path | None,
        typer.Option(help="The experiments that run; default: those of the settings."),
    ] = None,
) -> None:
    """Whether the file is right, may follow on an older one, and has what experiments use; 1 and
    every reason if not."""
    declared = _load(file)
    before = Lock().with_(_load(old)) if old else _lock_of(file.with_name(lock.NAME))
    after = _after(before, declared, file, "" if old else OF_AN_EXAMPLE)
    _check_experiments(declared, file, experiments)
    if declared.not_obeyed:
        typer.echo(f"Not obeyed so far: {', '.join(declared.not_obeyed)}.")
    if not old and before == Lock():
        typer.echo(f"{file} is right. Nothing is locked yet: run `tandem schema lock`.")
        return
    new = [group.name for group in after.layouts[len(before.layouts) :]]
    what = f" Rows change: {', '.join(new)}." if new else ""
    behind = "" if old or after == before else f" {lock.NAME} lacks some: run `tandem schema lock`."
    typer.echo(f"{file} may follow on {old or lock.NAME}.{what}{behind}")


def _check_experiments(declared: Declaration, file: Path, named: Path | None) -> None:
    """The command ends where an experiment uses what is not declared. Experiments that nobody named
    are looked for beside ./schema.yaml alone: others are of another domain."""
    path = named or load_settings().router.experiments_file
    if named is None and (file != SCHEMA or not path.exists()):
        typer.echo("No experiments were read: name those that run with --experiments.")
        return
    try:
        config = config_reader.load(path, domain_of(declared))
        if problems := undeclared(config, declared):
            raise ExperimentsError(str(path), problems)
    except ExperimentsError as error:
        _end(str(error))
    except OSError as error:
        _end(f"{path}: cannot be read ({error.strerror}). Name the experiments that run.")


@app.command("lock")
def append(file: File = SCHEMA) -> None:
    """Append to the schema.lock beside the file what it has come to need; commit both."""
    declared, path = _load(file), file.with_name(lock.NAME)
    before = _lock_of(path)
    after = _after(before, declared, file)
    if after == before:
        typer.echo(f"{path} has all that {file} needs.")
        return
    try:
        lock.write(path, after)
    except OSError as error:
        _end(f"{path}: cannot be written ({error.strerror}).")
    number = len(after.revisions)
    typer.echo(f"{path} has now all that {file} needs: revision {number}. Commit both.")


def _events(declared: Declaration) -> Table:
    table = Table("event", "id", "in lists, in the history", "value", "properties", title="events")
    for event in declared.events:
        history = "seen in lists" if event.impression else "yes" if event.history else ""
        if event.upgrades:
            history = f"yes, takes over {', '.join(event.upgrades)}"
        properties = ", ".join(each.name for each in event.properties)
        table.add_row(event.name, str(event.id), history, _value(event), properties)
    return table


def _value(event: Event) -> str:
    if event.value is None:
        return ""
    high = "" if event.value.high == math.inf else f" to {event.value.high:,.15g}"
    repeats = ", the last holds" if event.value.replaces else ""
    return f"{event.value.unit}, {event.value.low:,.15g}{high or ' or more'}{repeats}"


def _fields(declared: Declaration) -> Table:
    table = Table("of", "field", "type", "default", "read by", title="fields")
    for side, fields in (
        ("user", declared.user_given),
        ("context", declared.context),
        ("item", declared.item_fields),
    ):
        for each in fields:
            default = "unknown" if each.default is None else str(each.default)
            table.add_row(side, each.name, _type(each), default, each.read_by)
    for name in declared.display:
        table.add_row("item", name, "shown text", "", "none")
    for side, counts in (("user", declared.user_counts), ("item", declared.item_counts)):
        for count in counts:
            what = "sum of its values" if count.of_value else "count"
            table.add_row(side, count.event, what + _fading(count.half_life_s), "0", count.read_by)
    for affinity in declared.affinities:
        what = f"{', '.join(affinity.by)} per {affinity.field}{_fading(affinity.half_life_s)}"
        table.add_row("user", affinity.name, what, "0", affinity.read_by)
    for derived in declared.derived:
        side, what = _derived(derived)
        table.add_row(side, derived.name, what, "", derived.read_by)
    return table


def _type(each: Field) -> str:
    parts: list[str] = [each.type]
    if each.type in ("bag", "text"):
        parts.append(f"of {each.slots}")
    if each.type in ("vector", "numbers"):
        parts.append(f"of {each.length}")
    if each.vocabulary:
        parts.append(f"{each.vocabulary.size} {each.vocabulary.source}")
    if each.scale != "linear":
        parts.append(each.scale)
    return ", ".join(parts)


def _fading(half_life_s: float) -> str:
    return "" if half_life_s == math.inf else f", half-life {duration_text(half_life_s)}"


def _derived(derived: Derived) -> tuple[str, str]:
    match derived:
        case Ratio():
            fading = _fading(derived.half_life_s)
            return derived.side, f"{derived.above} per {derived.below}{fading}"
        case Match():
            return "user and item", f"share of {derived.affinity}"
        case Pool():
            return "user", f"history pooled: {', '.join(derived.events)}"
        case Since():
            return "user", f"seconds since {derived.event}"
        case OnSurface():
            return "request", "the surface"
        case Position():
            return "shown item", f"its place in the list, {derived.places} told apart; in training"


def _outcome(declared: Declaration) -> Table:
    table = Table(show_header=False, title="tasks, value, surfaces")
    for task in declared.tasks:
        what = f"value of {task.event}" if task.target == "value" else task.event
        table.add_row(f"task {task.name}", what + (f", given {task.given}" if task.given else ""))
    table.add_row("value", declared.formula)
    for weight in declared.weights:
        bounds = f"{weight.default:g}, from {weight.low:g} to {weight.high:g}"
        table.add_row(f"weight {weight.name}", bounds)
    for surface in declared.surfaces:
        parts = [f"{surface.seeds} seeds (not obeyed so far)"] if surface.seeds else []
        parts += [surface.formula] if surface.formula != declared.formula else []
        table.add_row(f"surface {surface.name}", ", ".join(parts))
    for condition in declared.eligible:
        table.add_row("shown if (not obeyed so far)", condition.text)
    if declared.diversity:
        table.add_row("diverse by", declared.diversity)
    return table


def _rows(declared: Declaration) -> Table:
    table = Table("group", "of", "bytes", "values", title="rows")
    for group in layout_of(declared).groups:
        names = ", ".join(group.dtype.names or ())
        table.add_row(group.name, group.entity, f"{group.dtype.itemsize:,}", names)
    return table
