"""What every benchmark says beside its figures: the machine and the command; and the tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path("load_tests/results")

_tables: list[dict[str, Any]] = []  # all that this process has printed
console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)


def machine() -> dict[str, Any]:
    """The facts that a figure depends on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": " ".join(sys.orig_argv),
    }


def machine_line() -> str:
    """The facts in short, for a result file."""
    facts = machine()
    return f"{facts['cpu']}, {facts['cores']} cores, load {facts['load_average'][0]}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def print_machine() -> None:
    """One line per fact; the load shows what else ran at the same time."""
    for name, value in machine().items():
        console.print(f"[dim]{name}: {value}[/]")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table whose first column is text and whose others are right-aligned."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    cells = [[str(cell) for cell in row] for row in rows]
    for row in cells:
        table.add_row(*row)
    console.print(table)
    _tables.append({"title": title, "columns": list(columns), "rows": cells})


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def save(name: str, figures: dict[str, Any]) -> None:
    """Write the figures, with the machine's facts and the tables that were printed, to
    load_tests/results/`name`.json; `make figures` makes a page of these files."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "tables": _tables, **figures}, indent=1))
    console.print(f"[dim]written to {path}[/]")
