"""`--set world.KEY=VALUE`: the simulator's knobs reach what it generates, or say why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import registry
from models.data import simulator
from models.data.errors import DataError
from models.training.prepared.source import (
    Source,
    read_split,
    read_table,
    with_world,
)

WORLD = ["world.clusters=8", "world.items_per_cluster=12", "world.seed=3"]
SIZES = ["world.train_users=60", "world.valid_users=10", "world.test_users=20",
         "world.mean_length=8"]  # fmt: skip


def test_knobs_reach_the_world_and_the_others_the_model() -> None:
    plain = Source("simulator", None)
    source, rest = with_world(plain, "retrieval", [*WORLD, "width=4", *SIZES])
    assert rest == ["width=4"]
    assert source.world == simulator.WorldConfig(8, 12, seed=3)
    split = read_split(source, "user-split")
    assert split.sequences.num_items <= 8 * 12
    assert len(split.test) == 20
    table, _ = with_world(plain, "ranking", ["world.impressions=3000", "world.users=50"])
    assert len(read_table(table)) == 3000
    assert with_world(plain, "retrieval", []) == (plain, [])
    assert "size" not in plain.identity("table")  # as checkpoints of the plain world have it


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("world.clstrs=8", r"'clstrs' does not exist \(did you mean clusters\?\)"),
        ("world.clusters=x", "clusters: 'x' is not a whole number"),
        ("world.clusters=9", "use an even number"),
        ("world.train_users=0", "setting world.train_users must be at least 1, is 0"),
        ("world.impressions=9", "'impressions' does not exist"),
        ("world.dirichlet=-1", "shape < 0"),
    ],
)
def test_a_knob_that_makes_no_world_says_why(pair: str, words: str) -> None:
    def split() -> None:
        source, _ = with_world(Source("simulator", None), "retrieval", [pair])
        read_split(source, "user-split")

    with pytest.raises((registry.SettingError, DataError), match=words):
        split()


def test_knobs_of_other_data_are_refused() -> None:
    with pytest.raises(registry.SettingError, match=r"world.rho=2: belongs to --data simulator"):
        with_world(Source("toy", Path("toy")), "retrieval", ["world.rho=2"])
