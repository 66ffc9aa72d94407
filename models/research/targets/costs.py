"""Targets of size and speed: parameters, training loop, data preparation, the benchmark itself.

Parameters are counted on models built here and now. The training loop's speed is what
`make bench-training` saved; preparation is timed by `prepared`, in a process of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from models.research.targets.verdicts import DOCUMENT, Verdict, judged
from models.training.results import ModelResult

EVENTS = 1_000_000
PREPARE_S, PREPARE_GB = 10.0, 2.0
SPEED = 2.0  # times the examples/s of a plain loop
PLAIN = "plain PyTorch"
# Cases of load_tests/peers/bench_training.py.
TRAINED = ("MaskNet", "SASRec", "SASRec, 400,000 items")
MINUTES = 60.0
EPOCH_S = 60.0
_WRITTEN = re.compile(r"written in ([\d.]+) s, peak memory ([\d.]+) GB")


@dataclass(frozen=True, kw_only=True)
class Size:
    """A published number of dense parameters; several forms of one model are one target."""

    name: str
    model: str
    fields: int
    forms: tuple[dict[str, Any], ...]
    published: tuple[int, ...]
    histories: int = 0
    tasks: int = 1


SIZES = TypeAdapter(tuple[Size, ...]).validate_python(DOCUMENT["sizes"])


@dataclass(frozen=True)
class Preparation:
    """What `tandem data prepare` says it took for a number of events, once started."""

    events: int
    seconds: float
    gigabytes: float  # peak memory of its process

    def __str__(self) -> str:
        return f"{self.events:,} events: {self.seconds:.1f} s, {self.gigabytes:.2f} GB"


@dataclass(frozen=True)
class Costs:
    """What was measured besides the results; what is missing was not."""

    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of SIZES, by name
    training: Mapping[str, Any] = field(default_factory=dict)  # figures of `make bench-training`
    preparation: Preparation | None = None
    minutes: float | None = None  # of the whole small run


def built_parameters(size: Size) -> tuple[int, ...]:
    """Dense parameters of the size's models as built now."""
    from models.registry import kind_of
    from models.schema.inputs import FeatureSchema, Input

    fields = [Input(name=f"f{i}", size=2) for i in range(size.fields)]
    for i in range(size.histories):
        fields.append(Input(name=f"h{i}", kind="history", side="user", size=2, table="f0"))
        fields.append(Input(name=f"p{i}", kind="pool", side="user", of=f"h{i}"))
    schema = FeatureSchema(tuple(fields), tuple(f"t{i}" for i in range(size.tasks)))
    kind = kind_of(size.model, "ranking")
    models = (kind.table_ranker(schema, form) for form in size.forms)
    return tuple(model.num_dense_parameters() for model in models)


def of_sizes(built: Mapping[str, tuple[int, ...]]) -> list[Verdict]:
    """Of the parameters, by the name of their size."""
    group = "Parameters without embedding tables, of models built for this page"
    return [
        judged(
            group,
            f"{size.name}: {_numbers(size.published)}",
            _numbers(built.get(size.name, ())),
            built[size.name] == size.published if size.name in built else None,
        )
        for size in SIZES
    ]


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(f"{n:,}" for n in values)


def of_epoch(results: Sequence[ModelResult]) -> Verdict:
    """Of the table that is a timing."""
    seconds = next((r.mean("epoch_s") for r in results if r.table == "ssl-epoch"), None)
    return judged(
        "40,000 items, a million events",
        f"an epoch of the SSL two-tower in under {EPOCH_S:g} s on two cores",
        "" if seconds is None else f"{seconds:.1f} s",
        None if seconds is None else seconds < EPOCH_S,
    )


def of_training(case: str, loops: Mapping[str, Any]) -> Verdict:
    """Of a case of `make bench-training`; no loops: it was not run."""
    speed = {name: each["examples_per_s"] for name, each in loops.items()}
    ratios = {name: speed[name] / speed[PLAIN] for name in speed if name != PLAIN}
    return judged(
        "Training loop, beside a plain PyTorch loop in the same run (`make bench-training`)",
        f"{case}: a loop of at least {SPEED:g} times the examples/s",
        ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()),
        max(ratios.values()) >= SPEED if ratios else None,
    )


def of_preparation(found: Preparation | None) -> Verdict:
    """Of fewer than a million events nothing follows."""
    reached = None
    if found is not None and found.events >= EVENTS:
        reached = found.seconds < PREPARE_S and found.gigabytes < PREPARE_GB
    return judged(
        "Data preparation, simulated events in the form of ml-1m",
        f"a million events in under {PREPARE_S:g} s and {PREPARE_GB:g} GB",
        str(found or ""),
        reached,
    )


def of_command(minutes: float | None) -> Verdict:
    """Of the whole small run."""
    return judged(
        "The benchmark",
        f"make bench-models (small) in under {MINUTES:g} minutes on two cores",
        "" if minutes is None else f"{minutes:.1f} minutes of wall clock",
        None if minutes is None else minutes < MINUTES,
    )


def prepared(events: int = EVENTS) -> Preparation:
    """Time `tandem data prepare ml-1m` on simulated events in the owner's form.

    RuntimeError, with its output, if the command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        source.mkdir()
        write_ratings(source, events)
        command = ["-m", "services.cli", "data", "prepare", "ml-1m"]
        done = subprocess.run(
            [sys.executable, *command, "--source", str(source), "--out", str(out)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    found = _WRITTEN.search(done.stdout)
    if found is None:
        raise RuntimeError(f"tandem data prepare failed: {done.stdout}{done.stderr}")
    return Preparation(events, float(found[1]), float(found[2]))


def write_ratings(folder: Path, events: int) -> None:
    """Impressions of a simulated world as ratings.dat, users.dat and movies.dat, sized as ml-1m."""
    import polars as pl

    from models.data.simulator import WorldConfig, build_world
    from models.data.simulator import events as impressions

    world = build_world(WorldConfig(clusters=20, items_per_cluster=180))
    users = 6_000
    log = impressions(world, events, users)
    number = pl.col("user_id", "item_id").rank("dense")
    nothing = pl.lit(None, pl.String)
    log.with_columns(number).select(
        "user_id", nothing.alias("_1"), "item_id", nothing.alias("_2"),
        1 + 2 * pl.col("click") + pl.col("like") + pl.col("long_view"), nothing.alias("_3"),
        pl.col("event_time_ms") // 1000,
    ).write_csv(folder / "ratings.dat", separator=":", include_header=False)  # fmt: skip
    people = [f"{u}::F::25::{u % 21}::0" for u in range(1, users + 1)]
    films = [f"{i}::Film {i} ({1950 + i % 50})::Drama" for i in range(1, world.num_items + 1)]
    (folder / "users.dat").write_text("\n".join(people) + "\n")
    (folder / "movies.dat").write_text("\n".join(films) + "\n")
