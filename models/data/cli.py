"""`tandem data`: which data sets there are, and making one ready. Mounted by `services/cli.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from models.data.datasets import DataSet
    from models.data.tables import FieldTable

app = typer.Typer(no_args_is_help=True, help="Data sets: what there is, and making one ready.")
PREPARED = Path("run/data")
console = Console()


@app.command(name="list")
def list_all(
    prepared: Annotated[Path, typer.Option(help="Folder that holds prepared data.")] = PREPARED,
) -> None:
    """Every data set: what it is, rows, terms, and whether it is at hand."""
    # Imported here: polars takes most of a second, which `tandem --help` need not spend.
    from models.data.datasets import DATA_SETS

    table = Table(title="data sets", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("what", overflow="fold", ratio=4)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("terms", overflow="fold", ratio=3)
    table.add_column("at hand, or where to get it", overflow="fold", ratio=4)
    for data in DATA_SETS.values():
        table.add_row(
            data.name,
            data.what,
            f"{sum(data.rows):,}" if data.rows else "-",
            data.terms,
            _where(data, prepared / data.name),
        )
    console.print(table)


def _where(data: DataSet, prepared: Path) -> str:
    if data.generated:
        return "generated"
    if (prepared / "table").is_dir() or (prepared / "sequences").is_dir():
        return f"prepared in {prepared}"
    if data.bundled is not None:
        return "shipped with Tandem"
    return data.page


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="Data set, as `tandem data list` names it.")],
    source: Annotated[Path | None, typer.Option(help="Folder of the owner's files.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result (default run/data/NAME).")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of ratings: time or random.")] = None,
    users: Annotated[int | None, typer.Option(help="KuaiRand: keep so many users.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Of a random split or draw.")] = None,
    skip_checksums: Annotated[
        bool, typer.Option("--skip-checksums", help="The files differ on purpose.")
    ] = False,
) -> None:
    """Check the owner's files and write the form that training reads."""
    import resource
    import sys
    import time

    from models.data import datasets
    from models.data.errors import DataError

    out = out or PREPARED / name
    options = {"split": split, "users": users, "seed": seed}
    started = time.perf_counter()
    try:
        with console.status(name) as status:

            def report(stage: str) -> None:
                status.update(f"{name}: {stage}")
                if not console.is_terminal:  # a log keeps the stages that a status line overwrites
                    elapsed = time.perf_counter() - started
                    console.print(f"{elapsed:6.1f} s  {stage}", highlight=False)

            made = datasets.prepare(
                datasets.find(name), source, out, options, not skip_checksums, report
            )
    except DataError as error:
        Console(stderr=True).print(
            f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from None
    seconds = time.perf_counter() - started
    for note in made.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    if made.table is not None:
        _print_table(made.table)
    if made.sequences is not None:
        s = made.sequences
        console.print(
            f"sequences: {len(s):,} users, {len(s.items):,} events, {s.num_items:,} items",
            highlight=False,
        )
    if made.domain:
        console.print(
            f"schema.yaml and its tables: to serve it, tandem train all --data {out}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gigabytes = peak / (1e9 if sys.platform == "darwin" else 1e6)  # bytes there, kB elsewhere
    console.print(
        f"{out}: written in {seconds:.1f} s, peak memory {gigabytes:.2f} GB",
        highlight=False,
        soft_wrap=True,
    )


def _print_table(table: FieldTable) -> None:
    """Rows per part, fields by side, and the rate of each task where it is known."""
    from models.data.tables import SIDES, SPLITS

    parts = ", ".join(f"{split} {len(table.rows(split)):,}" for split in SPLITS)
    console.print(f"table: {len(table):,} rows: {parts}", highlight=False)
    for side in SIDES:
        named = [f"{f.name} ({f.vocabulary:,})" for f in table.fields if f.side == side]
        named += [f"{k} (bag, {b.vocabulary:,})" for k, b in table.bags.items() if b.side == side]
        if named:
            console.print(f"{side}: {', '.join(named)}", highlight=False)
    if table.dense_names:
        console.print(f"numbers: {', '.join(table.dense_names)}", highlight=False)
    for name, history in table.history.items():
        mean = (history.ids > 0).sum() / len(table)
        console.print(
            f"history {name}: of {history.of}, {history.ids.shape[1]} at most, {mean:.1f} on "
            "average",
            highlight=False,
        )
    for index, task in enumerate(table.tasks):
        known = table.known[:, index]
        console.print(
            f"task {task}: {table.labels[known, index].mean():.2%} of {known.sum():,} known rows",
            highlight=False,
        )
