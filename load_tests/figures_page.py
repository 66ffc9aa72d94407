"""`make figures`: what the benchmarks measured on this machine, as docs/figures.md.

One section per file that a benchmark has written to load_tests/results: the tables that it printed,
the machine, the date and the command. Sections of benchmarks without such a file stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.figures import RESULTS

PAGE = Path("docs/figures.md")
HEAD = """# What was measured

Written by `make figures` from what the benchmarks have saved: run a benchmark, then `make figures`.
Both sides of a ratio are measured in one run, interleaved, and the figures are medians; another
machine, or a busy one, has others. The demo and `make bench-models` save no figures here: what
stands of them is from one run, written down.
"""
HEADING = re.compile(r"^## make (\S+)$", re.MULTILINE)


def main() -> None:
    sections = read(PAGE.read_text()) if PAGE.exists() else {}
    for file in sorted(RESULTS.glob("bench_*.json")):
        name = file.stem.replace("_", "-")
        saved = json.loads(file.read_text())
        if "tables" not in saved:
            print(f"{file}: saved by an earlier version: run `make {name}` again")
            continue
        sections[name] = section(name, saved)
    PAGE.write_text("\n".join([HEAD, *(sections[name] for name in sorted(sections))]))
    print(PAGE)


def read(page: str) -> dict[str, str]:
    """The sections of a page that was written before, by benchmark."""
    starts = [*HEADING.finditer(page)]
    ends = [m.start() for m in starts[1:]] + [len(page)]
    return {
        m[1]: page[m.start() : end].rstrip() + "\n" for m, end in zip(starts, ends, strict=True)
    }


def section(name: str, saved: Mapping[str, Any]) -> str:
    """One benchmark: its machine in a line, then its tables."""
    of = saved["machine"]
    load, command = ", ".join(map(str, of["load_average"])), of["command"]
    about = (
        f"{of['date']}, {of['cores']} cores of {of['cpu']}, Python {of['python']}, load average "
        f"{load}: `python {command[max(command.find('-m '), 0) :]}`"
    )
    return "\n\n".join([f"## make {name}", about, *map(table, saved["tables"])]) + "\n"


def table(printed: Mapping[str, Any]) -> str:
    """A printed table in Markdown."""
    columns = printed["columns"]
    rules = ["---", *["--:"] * (len(columns) - 1)]
    rows = [columns, rules, *printed["rows"]]
    lines = ["| " + " | ".join(str(c).replace("|", "/") for c in row) + " |" for row in rows]
    return "\n".join([f"**{printed['title']}**", "", *lines])


if __name__ == "__main__":
    main()
