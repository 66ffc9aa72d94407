"""Targets of size and speed: parameters, training loop, data preparation, the benchmark itself.

Parameters are counted on models built here and now. The training loop's speed is what
`make bench-training` saved; preparation is timed by `prepared`, in a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.research.targets.verdicts import Measured

EVENTS = 1_000_000
PREPARE_S, PREPARE_GB = 10.0, 2.0
SPEED = 2.0  # times the examples/s of a plain loop
PLAIN = "plain PyTorch"
# Cases of load_tests/peers/bench_training.py.
TRAINED = ("MaskNet", "SASRec", "SASRec, 400,000 items")
MINUTES = 60.0
_WRITTEN = re.compile(r"written in ([\d.]+) s, peak memory ([\d.]+) GB")


@dataclass(frozen=True)
class Size:
    """A published number of dense parameters; several forms of one model are one target."""

    name: str
    model: str
    fields: int
    forms: tuple[dict[str, Any], ...]
    published: tuple[int, ...]
    histories: int = 0
    tasks: int = 1


_CHANNELS = tuple({"channels": s} for s in (1, 2, 3, 4))
_INFNET = {"prune_last_block": False, "pool_histories": False}  # as the formula counts
SIZES = (
    Size("MaskNet serial, 22x10, r=2, 3x400", "masknet", 22,
         ({"width": 10, "reduction": 2, "units": 400, "variant": "serial", "tower": ()},),
         (1_599_901,)),
    Size("MC-MLCC, Criteo, S=1 to 4", "mlcc", 39, _CHANNELS,
         (305_893, 486_853, 667_813, 848_773)),
    Size("MC-MLCC, Avazu, S=1 to 4", "mlcc", 22, _CHANNELS,
         (191_174, 293_254, 395_334, 497_414)),
    Size("MC-MLCC, TaobaoAds, S=1 to 4", "mlcc", 17,
         tuple(form | {"dims": (2, 1)} for form in _CHANNELS),
         (119_434, 160_234, 201_034, 241_834)),
    Size("MC-MLCC, Criteo, controls S=1 E=64 and S=4 E=4", "mlcc", 39,
         ({"channels": 1, "channel_width": 64}, {"channels": 4, "channel_width": 4}),
         (2_746_981, 204_805)),
    Size("INFNet, d=32 N=3 and d=64 N=4", "infnet", 36,
         (_INFNET, _INFNET | {"width": 64, "blocks": 4}), (267_651, 1_201_667), 3, 3),
)  # fmt: skip


@dataclass(frozen=True)
class Preparation:
    """What `tandem data prepare` says it took for a number of events, once started."""

    events: int
    seconds: float
    gigabytes: float  # peak memory of its process


@dataclass(frozen=True)
class Costs:
    """What was measured besides the results; what is missing was not."""

    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of SIZES, by name
    training: Mapping[str, Any] = field(default_factory=dict)  # figures of `make bench-training`
    preparation: Preparation | None = None
    minutes: float | None = None  # of the whole small run


def saved_training(path: Path) -> dict[str, Any]:
    """The figures that `make bench-training` saved; none if it was not run."""
    return json.loads(path.read_text()) if path.is_file() else {}


def built_parameters(size: Size) -> tuple[int, ...]:
    """Dense parameters of the size's models as built now."""
    from models.layers.embedding_tables import CategoricalField, FeatureSchema, History
    from models.ranking.table_model import TableRanker

    schema = FeatureSchema(
        tuple(CategoricalField(f"f{i}", 2) for i in range(size.fields)),
        tuple(f"t{i}" for i in range(size.tasks)),
        histories=tuple(History(f"h{i}", "f0") for i in range(size.histories)),
    )
    models = (TableRanker(schema, size.model, form) for form in size.forms)
    return tuple(model.num_dense_parameters() for model in models)


def sizes(m: Measured, built: Mapping[str, tuple[int, ...]]) -> None:
    m.group = "Parameters without embedding tables, of models built for this page"
    for size in SIZES:
        own = built.get(size.name)
        m.say(
            f"{size.name}: {_numbers(size.published)}",
            "-" if own is None else _numbers(own),
            None if own is None else own == size.published,
        )


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(f"{n:,}" for n in values)


def training(m: Measured, figures: Mapping[str, Any]) -> None:
    m.group = "Training loop, beside a plain PyTorch loop in the same run (`make bench-training`)"
    for case in TRAINED:
        own = figures.get(case)
        ratios = {} if own is None else {
            name: each["examples_per_s"] / own[PLAIN]["examples_per_s"]
            for name, each in own.items() if name != PLAIN
        }  # fmt: skip
        m.say(
            f"{case}: a loop of at least {SPEED:g} times the examples/s",
            ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()) or "-",
            max(ratios.values()) >= SPEED if ratios else None,
        )


def preparation(m: Measured, found: Preparation | None) -> None:
    m.group = "Data preparation, simulated events in the form of ml-1m"
    m.say(
        f"a million events in under {PREPARE_S:g} s and {PREPARE_GB:g} GB",
        "-" if found is None else
        f"{found.events:,} events: {found.seconds:.1f} s, {found.gigabytes:.2f} GB",
        None if found is None or found.events < EVENTS else
        found.seconds < PREPARE_S and found.gigabytes < PREPARE_GB,
    )  # fmt: skip


def command(m: Measured, minutes: float | None) -> None:
    m.group = "The benchmark"
    m.say(
        f"make bench-models (small) in under {MINUTES:g} minutes on two cores",
        "-" if minutes is None else f"{minutes:.1f} minutes of wall clock",
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
