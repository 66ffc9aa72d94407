"""The data that a training is on: what `tandem data prepare` made, or the simulator's world.

A ranking model learns from a data set's table, a retrieval model from its sequences; the simulator
generates either. "world.KEY=VALUE" is a knob of the simulator (`with_world`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from models import registry
from models.data import simulator
from models.data.datasets import DATA_SETS, load_sequences
from models.data.errors import DataError
from models.data.sequences import Sequences, Split, last_fifth, leave_one_out, user_split
from models.data.tables import MANIFEST, SPLITS, FieldTable, file_checksum

PREPARED = Path("run/data")
PROTOCOLS: Mapping[str, Callable[[Sequences], Split]] = {
    "user-split": user_split,
    "leave-one-out": leave_one_out,
    "last-fifth": last_fifth,
}

WORLD = "world."  # before the keys of the simulator's knobs


@dataclass(frozen=True)
class Source:
    """A prepared data set, or (without a folder) the simulator with its knobs."""

    name: str
    folder: Path | None
    world: simulator.WorldConfig = field(default_factory=simulator.WorldConfig)
    size: Mapping[str, int] = field(default_factory=dict)  # of simulator.table or .sequences

    def part(self, part: str) -> Path:
        """Folder of "table" or "sequences"; DataError where the data set has none."""
        assert self.folder is not None
        found = self.folder / part
        if not found.is_dir():
            other = "sequences" if part == "table" else "table"
            raise DataError(f"{self.folder}: {_WRONG_KIND[part].format(other)}")
        return found

    def identity(self, part: str) -> dict[str, Any]:
        """What a checkpoint of a training on it must agree with."""
        if self.folder is None:
            size = {"size": dict(self.size)} if self.size else {}
            return {"name": self.name, "world": asdict(self.world), **size}
        path = self.part(part) / (MANIFEST if part == "table" else "sequences.npz")
        if not path.is_file():
            raise DataError(f"{path}: is not there: run `tandem data prepare`")
        return {"name": self.name, "xxh3_128": file_checksum(path)}

    def generate(self, part: str) -> Any:
        """The simulator's table or sequences; SettingError where its knobs admit none."""
        make = simulator.table if part == "table" else simulator.sequences
        for key, value in self.size.items():
            if value < 1:
                raise registry.SettingError(f"setting {WORLD}{key} must be at least 1, is {value}")
        world = registry.checked(simulator.build_world, {"config": self.world})
        return registry.checked(make, {"world": world, **self.size})


_WRONG_KIND = {
    "table": "holds {} only, and a ranking model learns from a table: train a retrieval model",
    "sequences": "holds a {} only, and a retrieval model learns from sequences: train a ranking "
    "model",
}


def find(data: str, part: str, prepared: Path = PREPARED) -> Source | None:
    """The prepared data set that `data` names or whose folder it is, for models of `part`.

    None: nothing of the kind, for the serving path to read. DataError: a known data set that is not
    prepared, or of the wrong kind.
    """
    folder = Path(data)
    if _is_prepared(folder):
        return Source(folder.resolve().name, folder)
    if folder.name in ("table", "sequences") and _is_prepared(folder.parent):
        raise DataError(f"--data {data}: is a part of a prepared data set: pass {folder.parent}")
    if data not in DATA_SETS:
        return None
    known = DATA_SETS[data]
    if known.generated:
        return Source(data, None)
    if (known.table if part == "ranking" else known.sequences) is None:
        wrong = ("table", "sequences") if part == "ranking" else ("sequences", "table")
        raise DataError(f"--data {data}: {_WRONG_KIND[wrong[0]].format(wrong[1])}")
    if _is_prepared(prepared / data):
        return Source(data, prepared / data)
    source = "" if known.bundled else " --source FOLDER"
    raise DataError(
        f"--data {data}: is not in {prepared / data}: run `tandem data prepare {data}{source}`"
    )


def with_world(source: Source, part: str, pairs: Sequence[str]) -> tuple[Source, list[str]]:
    """The simulator as the texts "world.KEY=VALUE" of `pairs` set it, and the other pairs.

    Keys are those of `simulator.WorldConfig` and the sizes of what models of `part` learn from.
    SettingError for an unknown key and where the data are no simulated ones.
    """
    own = [pair.removeprefix(WORLD) for pair in pairs if pair.startswith(WORLD)]
    if own and source.folder is not None:
        raise registry.SettingError(
            f"setting {WORLD}{own[0]}: belongs to --data simulator: leave it out"
        )
    make = simulator.table if part == "ranking" else simulator.sequences
    world, size = registry.settings(own, (simulator.WorldConfig, make), ("world", "return"))
    knobs = replace(source, world=simulator.WorldConfig(**world), size=size)
    return knobs, [pair for pair in pairs if not pair.startswith(WORLD)]


def _is_prepared(folder: Path) -> bool:
    return (folder / "table").is_dir() or (folder / "sequences").is_dir()


def read_table(source: Source) -> FieldTable:
    """The table; DataError unless every part of every task has both classes."""
    if source.folder is None:
        table = source.generate("table").table
    else:
        table = FieldTable.load(source.part("table")).check()
    for task, name in enumerate(table.tasks):
        for split in SPLITS:
            rows = table.rows(split)
            labels = table.labels[rows[table.known[rows, task]], task]
            if len(np.unique(labels)) < 2:
                raise DataError(
                    f"table {table.name}: task {name}: the {split} part has known rows of one class"
                    " only: use more rows or another split"
                )
    return table


def read_split(source: Source, protocol: str) -> Split:
    """The sequences, split; DataError unless every part has something to train on or to ask.

    The simulator's "user-split" has test users of the training users' interests; other protocols
    take all its users, those of shifted interests included.
    """
    if protocol not in PROTOCOLS:
        raise registry.SettingError(f"--protocol {protocol}: is not one of {', '.join(PROTOCOLS)}")
    if source.folder is None:
        simulated = source.generate("sequences")
        own = protocol == "user-split"
        split = simulated.split("iid") if own else PROTOCOLS[protocol](simulated.sequences)
    else:
        split = PROTOCOLS[protocol](load_sequences(source.part("sequences")))
    for name, count in (
        ("training", len(split.train_events())), ("validation", len(split.valid)),
        ("test", len(split.test)),
    ):  # fmt: skip
        if not count:
            raise DataError(
                f"{source.name}: the {name} part of protocol {protocol} is empty: use more users "
                "or another protocol"
            )
    return split
