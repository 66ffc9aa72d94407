"""What a table of the retrieval benchmark says; the tables stand in `retrieval_tables.yaml`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

SEEDS = (19, 20, 21)
COUNTING = frozenset({"popularity", "markov", "item_knn", "ease"})


@dataclass(frozen=True)
class Recipe:
    """One row of a table: a model, its settings and its training, without the seed.

    `source` is a model of the registry, one of COUNTING, or "union" of the rows named in
    `settings["of"]`. `training` are the fields of SequenceTraining (PairTraining for pairs). `grid`
    are the values that a counting row tries for further settings, every combination.
    """

    model: str
    source: str
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS
    family: str = ""
    notes: str = ""
    references: tuple[str, ...] = ()  # rows that this one is compared with; empty: the table's
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values; the empty one alone without a grid."""
        combinations = itertools.product(*self.grid.values())
        return [dict(zip(self.grid, values, strict=True)) for values in combinations]

    @property
    def deterministic(self) -> bool:
        """Whether no seed changes the row's figures."""
        return self.source in COUNTING


@dataclass(frozen=True)
class Table:
    """Models compared with each other on the same cases.

    `kind` "shift" trains once and measures on two sets of cases, which fill two tables. `world` and
    `users` are the simulator's knobs where they differ from its defaults, and `chosen` says how
    they were chosen: the page prints all of it. A run with a smaller `--budget` than `least_budget`
    leaves the table out: it is too long for the small `make bench-models`.
    """

    data: Literal["amazon-beauty", "ml-1m", "simulator"]
    protocol: Literal["user-split", "leave-one-out", "last-fifth", "next-item"]
    recipes: tuple[Recipe, ...]
    references: tuple[str, ...]
    primary: str = "recall@50"  # metric that rows are sorted by and differences are of
    unit: str = "test user"
    kind: Literal["sequences", "pairs", "shift", "epoch-time"] = "sequences"
    world: dict[str, Any] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)
    chosen: str = ""
    least_budget: float = 0.0

    def references_of(self, recipe: Recipe) -> tuple[str, ...]:
        """The rows that a row is compared with, never itself."""
        return tuple(r for r in recipe.references or self.references if r != recipe.model)


TABLES = TypeAdapter(dict[str, Table]).validate_python(
    yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())["tables"]
)
