"""`tandem import`: brings the owner's events, items and users in. Mounted by `services/cli.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from models.data.own.imports import Options, Summary
    from models.data.own.imports import Progress as Report
    from models.data.own.tally import Group, Tally, Why
    from models.data.own.wanted import TableName

app = typer.Typer(
    no_args_is_help=True,
    help="Bring in your own events, items and users, as your schema.yaml declares them.",
)
console = Console(highlight=False)

File = Annotated[
    Path, typer.Argument(help="Parquet, CSV (.csv, .tsv) or JSON lines (.jsonl, .ndjson); or .gz.")
]
Folder = Annotated[Path, typer.Option(help="Folder of your schema.yaml; tables go to its data/.")]
Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="NAME=COLUMN", help="The file's column of a name; repeatable."),
]
Timezone = Annotated[
    str | None, typer.Option(help="Of times without one: Europe/Berlin, say (IANA name).")
]
Separator = Annotated[str, typer.Option(help="Between the values of a list in one text.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="End at the first row refused, and import nothing.")
]
HERE = Path()


@app.command()
def events(
    file: File,
    map_: Map = None,
    event: Annotated[
        str | None, typer.Option(help="Event of every row, where the file does not name it.")
    ] = None,
    folder: Folder = HERE,
    timezone: Timezone = None,
    strict: Strict = False,
) -> None:
    """Add events: user_id, item_id, event, time, and value where the event has one."""
    from models.data.own.imports import Options

    options = Options(mapping_of(map_), timezone, strict=strict, event=event)
    _import("events", file, folder, options)


def _rows(table: TableName, what: str) -> None:
    """The command of a table whose rows are set by their ids."""

    @app.command(name=table, help=what)
    def rows(
        file: File,
        map_: Map = None,
        folder: Folder = HERE,
        timezone: Timezone = None,
        separator: Separator = "|",
        strict: Strict = False,
    ) -> None:
        from models.data.own.imports import Options

        _import(table, file, folder, Options(mapping_of(map_), timezone, separator, strict))


_rows("items", "Set items by their item_id, with the fields and texts declared; others stay.")
_rows("users", "Set users by their user_id, with the given fields declared; others stay.")


def _end(message: str) -> NoReturn:
    Console(stderr=True).print(
        f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True
    )
    raise typer.Exit(1)


def mapping_of(given: Sequence[str] | None) -> dict[str, str]:
    """The column of each name that is mapped; the command ends where one says nothing."""
    found: dict[str, str] = {}
    for each in given or ():
        name, equals, column = each.partition("=")
        if not (name and equals and column):
            _end(f"--map {each}: write NAME=COLUMN: user_id=CustomerNo, say")
        if name in found:
            _end(f"--map {each}: {name} is mapped to {found[name]!r} already: leave one out")
        found[name] = column
    return found


def _import(table: TableName, file: Path, folder: Path, options: Options) -> None:
    import time

    # Imported here: polars takes most of a second, which `tandem --help` need not spend.
    from models.data.errors import DataError
    from models.data.own.imports import import_file

    try:
        with _progress(file) as report:
            now_ms = int(time.time() * 1000)
            done = import_file(table, file, folder, options, now_ms, report)
    except DataError as error:
        _end(str(error))
    except OSError as error:  # a full disk, a folder that may not be written
        _end(f"{error.filename or folder}: {error.strerror}: nothing was imported")
    _print(table, file, done)
    if done.nothing:
        _end(f"{file}: no row could be imported")


@contextmanager
def _progress(file: Path) -> Iterator[Report]:
    """A line that says how far it is, on a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("reading", total=1.0)

        def report(stage: str, share: float) -> None:
            bar.update(task, description=f"{stage} {escape(file.name)}", completed=share)

        yield report


def _print(table: TableName, file: Path, done: Summary) -> None:
    tally = done.tally
    print_refused(table, tally, done.ignored)
    _say(
        f"{file}: {tally.read:,} rows read: {done.accepted:,} accepted,"
        f" {done.merged.duplicates:,} duplicates, {tally.refusals:,} refused"
    )
    if not done.path.exists():
        return
    if table == "events":
        _print_events(done)
        return
    from models.data.own.facts import number_of_rows

    _say(
        f"{done.path}: {number_of_rows(done.path):,} {table}: {done.merged.new:,} new,"
        f" {done.merged.updated:,} updated"
    )


def print_refused(table: TableName, tally: Tally, ignored: Sequence[str]) -> None:
    """What of a file was not taken."""
    if tally.refused:
        _print_groups("refused", tally, tally.refused)
    if tally.noted:
        _print_groups("taken in part", tally, tally.noted)
    if ignored:
        names = ", ".join(map(repr, ignored))
        properties = " (properties of events are not imported)" if table == "events" else ""
        _say(f"no columns of {table}, ignored: {names}{properties}")


def _print_groups(title: str, tally: Tally, groups: dict[Why, Group]) -> None:
    """Counts by column and reason, the most frequent first; values are quoted, so that none of
    them can move the cursor."""
    shown = Table("column", "what", "rows", f"first {tally.place}", "value", title=title)
    shown.columns[2].justify = shown.columns[3].justify = "right"
    for column in shown.columns:
        column.overflow = "fold"
    for why, group in sorted(groups.items(), key=lambda each: -each[1].rows):
        value = "" if group.value is None else repr(group.value)
        shown.add_row(
            _line(why.column), _line(why.reason), f"{group.rows:,}", f"{group.place:,}",
            escape(value),
        )  # fmt: skip
    console.print(shown)


def _print_events(done: Summary) -> None:
    from models.data.own.facts import event_facts

    facts = event_facts(done.path)
    names = ", ".join(f"{name} {count:,}" for name, count in facts.events.items())
    _say(
        f"{done.path}: {sum(facts.events.values()):,} events ({names}) of {facts.users:,} users and"
        f" {facts.items:,} items, {_date(facts.first_ms)} to {_date(facts.last_ms)} UTC"
    )


def _date(ms: int) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}"


def _say(line: str) -> None:
    console.print(_line(line), soft_wrap=True)


def _line(text: str) -> str:
    """A text of others as a line of the terminal: control characters as `\\x1b`."""
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))
