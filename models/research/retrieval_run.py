"""One row of a table of the retrieval benchmark with one seed, and where its result is saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.data.errors import DataError
from models.data.sequences import Sequences
from models.figures import machine_line
from models.research import pair_baselines
from models.research.item_pairs import PairTraining
from models.research.retrieval_data import Data, defaults, digest
from models.research.retrieval_tables import COUNTING, Recipe, Table
from models.retrieval.ssl_item_to_item import SSLItemToItemConfig
from models.training.baselines.scorers import FITS
from models.training.prepared import sequence_evaluation
from models.training.prepared.sequences import SequenceTraining, build_config
from models.training.results import Figures, ModelResult, by_seed, slug

EPOCH_TIMED: dict[str, Any] = {"sampling": "events", "min_history": 1, "valid_cases": 100}
CHOSEN = ("validation", "chosen")  # of the saved settings, what a run found and did not take


@dataclass(frozen=True)
class Outcome:
    """What one run has measured; `suffix` says which of a run's tables it belongs to."""

    figures: Figures
    seconds: float
    note: str = ""
    suffix: str = ""
    lists: np.ndarray | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)  # of the recipe's grid


@dataclass(frozen=True)
class Run:
    """One model with one seed: from the recipe to the saved result."""

    name: str
    table: Table
    recipe: Recipe
    seed: int
    budget: float
    results: Path
    data: Data

    @property
    def is_learned(self) -> bool:
        """Whether it is a trained model."""
        return self.recipe.source not in COUNTING | {"union"}

    def settings(self, suffix: str = "") -> dict[str, Any]:
        """What is saved beside the figures; a result with other settings is replaced."""
        recipe = self.recipe
        out: dict[str, Any] = {"source": recipe.source}
        if recipe.source == "union":
            out["of"] = {name: self.digest_of_lists(name) for name in recipe.settings["of"]}
        else:
            out["model"] = resolved_model(self.table, recipe, self.data.sequences)
        if recipe.grid:
            out["grid"] = recipe.grid
        if self.is_learned:
            out["training"] = resolved_training(self.table, recipe)
            out["budget"] = self.budget
        if recipe.deterministic:
            out["deterministic"] = True
        if self.data.world:
            out["world"] = dict(self.data.world)
        if self.table.kind == "epoch-time":
            out["threads"] = torch.get_num_threads()
        if suffix == "-ood":
            out["drop_from"] = f"{self.name}-iid"
        out["digests"] = self.data.digests(suffix)
        return json.loads(json.dumps(out))  # as it is read back

    @property
    def protocol(self) -> str:
        """How it was measured, with the world's knobs and how they were chosen."""
        if not self.data.world:
            return self.table.protocol
        knobs = ", ".join(f"{k} {v:,}" for k, v in self.data.world.items())
        return f"{self.table.protocol}; world: {knobs}; {self.table.chosen}"

    def saved(self) -> bool:
        """Whether this seed's figures are there, in every table that the run fills."""
        found = [self.stored(suffix) for suffix in self.data.suffixes]
        return all(result is not None and self.seed in result.seeds for result in found)

    def relabel(self) -> None:
        """Give saved results the present references and family, which no figure depends on."""
        wanted = self.table.references_of(self.recipe)
        for suffix in self.data.suffixes:
            found = self.stored(suffix)
            if found is not None:
                present = replace(found, references=wanted, family=self.recipe.family)
                if present.references != found.references or present.family != found.family:
                    present.save(self.results)

    def stored(self, suffix: str) -> ModelResult | None:
        """The saved result of the same settings, if any."""
        path = self.results / slug(self.name + suffix) / f"{slug(self.recipe.model)}.json"
        if not path.is_file():
            return None
        found = ModelResult.load(path)
        measured = {k: v for k, v in found.settings.items() if k not in CHOSEN}
        return found if measured == self.settings(suffix) else None

    def merged(self, outcome: Outcome) -> ModelResult:
        """The saved result with this seed's figures added or replaced."""
        recipe, old = self.recipe, self.stored(outcome.suffix)
        keep = [i for i, s in enumerate(old.seeds) if s != self.seed] if old is not None else []
        figures, seeds, seconds = [outcome.figures], [self.seed], [outcome.seconds]
        if old is not None:
            figures = [*(old.figures(i) for i in keep), *figures]
            seeds = [*(old.seeds[i] for i in keep), *seeds]
            seconds = [*(old.train_seconds[i] for i in keep), *seconds]
        measured = by_seed(figures)
        return ModelResult(
            table=self.name + outcome.suffix,
            data=self.table.data,
            protocol=self.protocol,
            model=recipe.model,
            settings=self.settings(outcome.suffix)
            | {k: dict(v) for k in CHOSEN if (v := getattr(outcome, k))},
            seeds=tuple(seeds),
            **measured,
            parameters=0,  # this and other costs: see save_costs
            dense_parameters=0,
            flops_per_row=None,
            latency_ms=None,
            train_seconds=tuple(seconds),
            machine=machine_line(),
            command=f"python -m models.research.bench_retrieval {self.name}",
            notes="; ".join(part for part in (recipe.notes, outcome.note) if part),
            family=recipe.family,
            references=self.table.references_of(recipe),
            primary=self.table.primary if self.table.primary in measured["metrics"] else "",
            unit=self.table.unit,
        )

    def lists_path(self, model: str) -> Path:
        return self.results / slug(self.name) / "lists" / f"{slug(model)}.npy"

    def save_lists(self, lists: np.ndarray) -> None:
        """Keep the first seed's lists, for the union of sources."""
        path = self.lists_path(self.recipe.model)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, lists.astype(np.int32))

    def digest_of_lists(self, model: str) -> str:
        """Of another row's lists; empty where they are missing."""
        return digest(self.load_lists(model)) if self.lists_path(model).is_file() else ""

    def load_lists(self, model: str) -> np.ndarray:
        """The lists of another row of the table."""
        path = self.lists_path(model)
        if not path.is_file():
            raise DataError(f"{path}: {self.recipe.model!r} needs the lists of {model!r}: run it")
        return np.load(path, allow_pickle=False)


def resolved_model(table: Table, recipe: Recipe, sequences: Sequences) -> dict[str, Any]:
    """Every setting of the row's model, the defaults too, but for those of its grid."""
    if recipe.source in COUNTING:
        fit = scorer_of(table, recipe) if table.kind == "pairs" else FITS[recipe.source]
        known = defaults(fit) | recipe.settings
        return {k: v for k, v in known.items() if k not in recipe.grid and k != "dtype"}
    if recipe.source == "ssl_item_to_item":
        return asdict(SSLItemToItemConfig(**recipe.settings))
    return asdict(build_config(recipe.source, sequences, **recipe.settings))


def scorer_of(table: Table, recipe: Recipe) -> Callable[..., Any]:
    """What fits a counting baseline."""
    if table.kind == "pairs":
        return getattr(pair_baselines, f"{recipe.source}_scorer")
    return partial(sequence_evaluation.counting_scorer, name=recipe.source)


def resolved_training(table: Table, recipe: Recipe) -> dict[str, Any]:
    """Every field of the row's training, the defaults too, but for the seed."""
    kind = PairTraining if table.kind == "pairs" else SequenceTraining
    given = (EPOCH_TIMED if table.kind == "epoch-time" else {}) | recipe.training
    return {k: v for k, v in asdict(kind(**given)).items() if k != "seed"}
