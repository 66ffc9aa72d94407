"""Measures runs that `tandem train --data DATASET` saved, beside baselines on the same cases.

A run is measured on the test part of its own data set and protocol, because the split decided what
it learned from. Runs that differ in nothing but the seed are one row with several seeds. `measure`
gives a table per data set and protocol, `write` a page:

    OUT/models.md, plots/*.svg, cards/*.md    as `models/research/pages/models_page.py` renders them
    OUT/results/TABLE/MODEL.json, .npz        what they are rendered from
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from models.data.errors import DataError
from models.data.sequences import Cases, Split
from models.data.simulator import WorldConfig
from models.research.comparison import BEST_COUNTING
from models.research.pages.models_page import render
from models.retrieval.interface import RetrievalModel
from models.training.metrics import interest_cosine
from models.training.prepared import sequence_evaluation as ev
from models.training.prepared import source as sources
from models.training.prepared import tables
from models.training.prepared.measure import (
    ONE_HOT,
    counting_scorers,
    one_hot,
    ranking_figures,
    timed,
)
from models.training.prepared.saved import CONFIG, ITEMS, RESULTS, TRAINED, load, load_config
from models.training.prepared.sequences import item_table, model_history
from models.training.prepared.source import PREPARED, PROTOCOLS, Source, read_split, read_table
from models.training.prepared.tables import TableTensors
from models.training.results import (
    Figures,
    ModelResult,
    by_seed,
    load_all,
    this_machine,
    today,
)

EVALUATED = Path("run/evaluated")
PAGE = "models.md"
LEARNS_FROM = {"ranking": "table", "retrieval": "sequences"}


@dataclass(frozen=True)
class Run:
    """A folder that a training saved: what it says of itself and what it measured then."""

    folder: Path
    config: Mapping[str, Any]
    results: Mapping[str, ModelResult]  # by model: its own and those of the baselines

    @property
    def model(self) -> str:
        return str(self.config["model"])

    @property
    def saved(self) -> ModelResult:
        """What the training measured of its own model."""
        return self.results[self.model]

    @property
    def part(self) -> str:
        """The part of its data set that it learned from: "table" or "sequences"."""
        return LEARNS_FROM[self.config["part"]]

    @property
    def protocol(self) -> str | None:
        """Of a retrieval model; a table has its own parts."""
        return self.config.get("protocol")

    @property
    def settings(self) -> dict[str, Any]:
        """Of the model and of the training, defaults included, but for the seed."""
        if self.part == "table":
            return self.saved.settings
        training = {k: v for k, v in self.config["training"].items() if k != "seed"}
        return self.config["parameters"] | {"training": training}


Rows = dict[str, list[Run]]  # by the name of a table's row: the runs of its seeds


# Reading


def read(folder: Path) -> Run:
    """The run in `folder`; DataError that says what to do where there is none or it is damaged."""
    if not (folder / CONFIG).is_file():
        near = [*folder.glob(f"*/{CONFIG}")] or [*folder.parent.glob(f"*/{CONFIG}")]
        near = near or [*TRAINED.glob(f"*/*/{CONFIG}")]
        there = ", ".join(sorted(str(path.parent) for path in near))
        known = f"there are {there}" if there else "make one with `tandem train ... --data DATASET`"
        raise DataError(f"{folder}: is no trained run, it has no {CONFIG}: {known}")
    config = load_config(folder)
    try:
        run = Run(folder, config, {r.model: r for r in load_all(folder / RESULTS)})
        if run.saved.seeds != (config["seed"],):
            raise DataError(f"seed {config['seed']}, but results of {run.saved.seeds}")
        # What the rest reads of a run.
        needed = {"name", "world" if "world" in config["data"] else "xxh3_128"} - set(
            config["data"]
        )
        if run.part == "table":
            needed |= {"history_items"} - set(config) | {ONE_HOT} - set(run.results)
        else:
            needed |= {"parameters", "training", "protocol"} - set(config)
            if not needed and run.protocol not in PROTOCOLS:
                raise DataError(f"protocol {run.protocol}")
        if needed:
            raise DataError(f"it does not say {', '.join(sorted(needed))}")
    except (DataError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: is no complete run ({error}): train it anew") from error
    return run


def source_of(runs: Sequence[Run], data: str | None) -> Source:
    """The data that all the runs were trained on, in `data` or where `tandem data prepare` puts
    them; DataError unless they are the very same."""
    run, *others = runs
    origin = run.config["data"]
    name = origin["name"]
    for other in others:
        if other.config["data"] != origin:
            raise DataError(
                f"{run.folder} and {other.folder} were trained on different data of the name "
                f"{name}: evaluate them one after the other"
            )
    if "world" in origin:
        if data not in (None, name):
            raise DataError(f"{run.folder}: was trained on the {name}: leave out --data {data}")
        try:
            world = WorldConfig(**origin["world"])
        except TypeError as error:
            raise DataError(
                f"{run.folder}: its world is not known ({error}): train anew"
            ) from error
        return Source(name, None, world, origin.get("size", {}))
    where = data or str(PREPARED / name)
    found = sources.find(where, run.config["part"])
    if found is None or found.folder is None:
        raise DataError(
            f"{run.folder}: was trained on {name}, which is not in {where}: run `tandem data "
            f"prepare {name}`, or pass the folder it is in with --data"
        )
    if found.identity(run.part)["xxh3_128"] != origin["xxh3_128"]:
        raise DataError(
            f"{run.folder}: was trained on other data than {found.folder} holds: pass the folder "
            f"of its {name} with --data, or train it anew"
        )
    return Source(name, found.folder)


def check_protocol(run: Run, protocol: str | None) -> None:
    """DataError unless `protocol`, if given, is the one that the run was trained with."""
    if protocol is None or protocol == run.protocol:
        return
    if protocol not in PROTOCOLS:
        raise DataError(f"--protocol {protocol}: is not one of {', '.join(PROTOCOLS)}")
    if run.protocol is None:
        raise DataError(
            f"--protocol {protocol}: belongs to retrieval models, and {run.folder} is a ranking "
            "model, measured on the test part of its table: leave it out"
        )
    raise DataError(
        f"--protocol {protocol}: {run.folder} was trained with {run.protocol}: it may have "
        f"learned from, or been chosen by, events that {protocol} asks for. Leave the option out, "
        f"or train one for it: `tandem train retrieval --model {run.model} --data "
        f"{run.config['data']['name']} --protocol {protocol}`"
    )


# Measuring


def measure(
    folders: Sequence[Path],
    data: str | None = None,
    protocol: str | None = None,
    device: str = "cpu",
    command: str = "",
    console: Console | None = None,
) -> list[ModelResult]:
    """Results of the runs and of the baselines, table by table, the runs of a table first.

    `data` and `protocol` must be those of the runs (`source_of`, `check_protocol`).
    """
    runs = [read(folder) for folder in dict.fromkeys(folders)]
    groups: dict[tuple[str, str | None], list[Run]] = {}
    for run in runs:
        check_protocol(run, protocol)
        groups.setdefault((run.config["data"]["name"], run.protocol), []).append(run)
    # What is wrong with any table ends the command before the first one is measured.
    ready = [(rows_of(group), source_of(group, data)) for group in groups.values()]
    results = []
    for (_, trained_with), (rows, source) in zip(groups, ready, strict=True):
        measured = _ranking if trained_with is None else _retrieval
        results += measured(rows, source, device, command, console)
    return results


def rows_of(runs: Sequence[Run]) -> Rows:
    """The runs of one table by the name of their row, those of different seeds together.

    Rows of one model are told apart by the settings that they do not share. DataError for two runs
    of the same settings and seed.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.model, run.settings], sort_keys=True, default=str)
        for other in alike.setdefault(key, []):
            if other.saved.seeds == run.saved.seeds:
                raise DataError(
                    f"{other.folder} and {run.folder} are the same training with the same seed: "
                    "leave one out"
                )
        alike[key].append(run)
    named: Rows = {}
    for members in alike.values():
        mine = _flat(members[0].settings)
        others = [_flat(m[0].settings) for m in alike.values() if m[0].model == members[0].model]
        keys = dict.fromkeys(key for each in others for key in each)
        differ = [k for k in keys if any(each.get(k) != mine.get(k) for each in others)]
        told = [f"{k.rsplit('.', 1)[-1]}={mine.get(k, 'default')}" for k in differ]
        named[", ".join([members[0].model, *told])] = members
    return named


def _first(rows: Rows) -> Run:
    return next(iter(rows.values()))[0]


def _flat(settings: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping)
        found |= _flat(value, f"{under}{key}.") if nested else {f"{under}{key}": value}
    return found


def _retrieval(
    rows: Rows, source: Source, device: str, command: str, console: Console | None
) -> list[ModelResult]:
    first = _first(rows).saved
    split = read_split(source, first.protocol)
    results = []
    for name, members in rows.items():
        measured = [_retrieved(run, split, device) for run in members]
        results.append(_row(name, members, measured, command, BEST_COUNTING))
    counting, left_out = counting_scorers(split)
    if left_out and console is not None:
        console.print(left_out, highlight=False)
    for name, fit in counting.items():
        scorer, seconds = timed(fit)
        validation = ev.mean_metric(split, split.valid, scorer, first.primary)
        settings = {"deterministic": True, "validation": {first.primary: validation}}
        found = ev.evaluate(split, split.test, scorer).figures
        results.append(_beside(results[0], name, found, seconds, settings=settings))
    return results


def _retrieved(run: Run, split: Split, device: str) -> Figures:
    """A retrieval model on the test cases, the cosine of its interests included."""
    try:
        ids = np.load(run.folder / ITEMS, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{run.folder}: is no complete run ({error}): train it anew") from error
    if ids.tolist() != list(split.sequences.item_ids):
        raise DataError(
            f"{run.folder}: its {len(ids)} items are not the {split.sequences.num_items} of "
            f"{split.sequences.name}: train it anew"
        )
    model = load(run.folder).to(device)
    model.load_items(item_table(split))
    history = model_history(model)
    found = ev.evaluate(split, split.test, ev.model_scorer(model, split.sequences, history))
    found.per_case["interest_cosine"] = _interest_cosines(model, split, split.test, history)
    return found.figures


def _interest_cosines(
    model: RetrievalModel, split: Split, cases: Cases, history: int
) -> np.ndarray:
    """float64[C]: mean cosine of each case's interests to each other; NaN for a single one."""
    blocks = []
    for start in range(0, len(cases), ev.BLOCK):
        block = cases.take(slice(start, start + ev.BLOCK))
        users = model.encode_users(ev.case_batch(split.sequences, block, history))
        blocks.append(interest_cosine(users.cpu().numpy()))
    return np.concatenate(blocks)


def _ranking(
    rows: Rows, source: Source, device: str, command: str, console: Console | None
) -> list[ModelResult]:
    table = read_table(source)
    histories = {run.config["history_items"] for runs in rows.values() for run in runs}
    inputs = {size: TableTensors(table, device, size) for size in histories}
    test = next(iter(inputs.values())).rows("test")
    results = []
    for name, members in rows.items():
        measured = []
        for run in members:
            model = load(run.folder).to(device)
            scores = tables.predict(model, inputs[run.config["history_items"]], test)
            measured.append(ranking_figures(table, test, scores))
        results.append(_row(name, members, measured, command, ONE_HOT))
    if console is not None:
        console.print(f"{ONE_HOT}: fitting", highlight=False)
    (scores, note), seconds = timed(lambda: one_hot(table, test))
    saved = _first(rows).results[ONE_HOT]
    row = _beside(
        results[0],
        ONE_HOT,
        ranking_figures(table, test, scores),
        seconds,
        settings={"deterministic": True, **saved.settings},
        parameters=saved.parameters,
        dense_parameters=saved.dense_parameters,
        notes=note,
    )
    return [*results, row]


def _row(
    name: str, runs: Sequence[Run], measured: Sequence[Figures], command: str, reference: str
) -> ModelResult:
    """The row of runs of one training, costs as the trainings measured them."""
    each = [run.saved for run in runs]
    return replace(
        each[0],
        **by_seed(measured),
        model=name,
        settings=runs[0].settings,
        seeds=tuple(seed for saved in each for seed in saved.seeds),
        train_seconds=tuple(s for saved in each for s in saved.train_seconds),
        command=command,
        notes="; ".join(dict.fromkeys(saved.notes for saved in each)),
        references=(reference,),
        created=today(),
    )


def _beside(
    like: ModelResult, name: str, found: Figures, seconds: float, **facts: Any
) -> ModelResult:
    """A row of what no seed changes, fitted here."""
    return like.beside(name, found, seconds, seeds=(0,), machine=this_machine(), **facts)


# Writing


def check_vacant(out: Path) -> None:
    """DataError if `out` holds anything but an earlier evaluation, which `write` replaces."""
    earlier = (out / PAGE).is_file() and (out / RESULTS).is_dir()
    if out.exists() and not earlier and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"--out {out}: holds other files: name a new or empty folder")


def write(results: Sequence[ModelResult], out: Path, command: str) -> list[Path]:
    """The page, its plots and cards, in place of those of an earlier evaluation; their paths."""
    check_vacant(out)
    for part in (RESULTS, "plots", "cards"):
        shutil.rmtree(out / part, ignore_errors=True)
    for result in results:
        result.save(out / RESULTS)
    return render(out / RESULTS, out, out / "cards", command)
