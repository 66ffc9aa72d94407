"""The data that a table of the retrieval benchmark trains on and asks about."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.data import simulator
from models.data.readers import amazon_beauty, movielens_1m_sequences
from models.data.sequences import NextItemPairs, Sequences, Split, next_item_pairs
from models.data.simulator import ShiftedSequences
from models.research.retrieval_tables import Table
from models.training.prepared.source import PROTOCOLS


@dataclass(frozen=True)
class Data:
    """What a table trains on and asks about."""

    sequences: Sequences
    splits: Mapping[str, Split]  # by suffix of the table they fill; none for pairs
    pairs: NextItemPairs | None = None
    world: Mapping[str, Any] = field(default_factory=dict)  # of the simulator, all knobs

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the names of the tables that are filled."""
        return tuple(self.splits) or ("",)

    @property
    def split(self) -> Split:
        """The first split: all have the same training part."""
        return next(iter(self.splits.values()))

    def digests(self, suffix: str) -> dict[str, str]:
        """What the figures depend on, by part: events, training part, validation and test cases."""
        s = self.sequences
        found = {"events": digest(s.offsets, s.items), "attributes": digest(s.item_attributes)}
        if self.pairs is not None:
            p = self.pairs
            return found | {
                "train": digest(p.train, p.train_user),
                "valid": digest(p.valid, p.valid_user),
                "test": digest(p.test, p.test_user),
            }
        split = self.splits[suffix]
        return found | {
            "train": digest(split.train_start, split.train_end),
            "valid": digest(*asdict(split.valid).values()),
            "test": digest(*asdict(split.test).values(), split.filter_seen),
        }


def digest(*parts: Any) -> str:
    """16 hexadecimal digits that differ when any array (by type and shape too) or value does."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).tobytes())
        else:
            found.update(repr(part).encode())
    return found.hexdigest()[:16]


def load(table: Table, data_dir: Path) -> Data:
    """The table's data, split."""
    if table.data == "simulator":
        made, world = simulated(table)
        suffixes = {"-iid": "iid", "-ood": "ood"} if table.kind == "shift" else {"": "iid"}
        return Data(
            made.sequences,
            {suffix: made.split(test) for suffix, test in suffixes.items()},
            world=world,
        )
    readers = {"amazon-beauty": amazon_beauty.read, "ml-1m": movielens_1m_sequences.read}
    sequences = readers[table.data](data_dir / table.data)
    if table.kind == "pairs":
        return Data(sequences, {}, next_item_pairs(sequences))
    return Data(sequences, {"": PROTOCOLS[table.protocol](sequences)})


def simulated(table: Table) -> tuple[ShiftedSequences, dict[str, Any]]:
    """What the users of the table's world did, and every knob of the world and its users."""
    config = simulator.WorldConfig(**table.world)
    users = defaults(simulator.sequences) | table.users
    made = simulator.sequences(simulator.build_world(config), **users)
    return made, asdict(config) | users


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that a function need not be given, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
