"""What a table of the ranking benchmark says; the tables stand in `ranking_tables.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

ONE_HOT = "scikit-learn"  # in place of a network's name
ORACLE = "Oracle"


@dataclass(frozen=True)
class Entry:
    """One row of a table of results; entries of the same `searched` share one search."""

    label: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    searched: str = ""  # label of the entry whose search is used; empty: its own
    family: str = ""
    references: tuple[str, ...] = ()  # rows that this one is compared with; empty: the table's


@dataclass(frozen=True)
class Benchmark:
    """Models compared with each other on one split of one data set."""

    data: str
    protocol: str
    entries: tuple[Entry, ...]
    searched_in: str = ""  # table whose searches are used; empty: its own
    several_seeds: bool = False  # of no use with one
    references: tuple[str, ...] = ("DCN-V2",)

    def references_of(self, entry: Entry) -> tuple[str, ...]:
        """Labels that an entry is compared with."""
        return entry.references or tuple(r for r in self.references if r != entry.label)


BENCHMARKS = TypeAdapter(dict[str, Benchmark]).validate_python(
    yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())["tables"]
)
