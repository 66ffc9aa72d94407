"""The retrieval benchmark: runs are saved one by one, merged by seed and not repeated."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from load_tests import bench_models_retrieval as bench
from load_tests.retrieval_tables import TABLES, Recipe, Table
from models.training.results import ModelResult, load_all

SMALL = {"width": 4, "history": 5, "negatives": 5}
BRIEF = {"steps": 4, "batch_size": 8, "validate_every": 2}
TABLE = Table(
    "amazon-beauty",
    "user-split",
    (
        Recipe("Popularity", "popularity"),
        Recipe("Markov", "markov"),
        Recipe("SA", "comirec_sa", SMALL, BRIEF, (1, 2)),
        Recipe("Both", "union", {"of": ["Popularity", "SA"]}),
    ),
    reference="Popularity",
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "amazon-beauty"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = [
        " ".join(map(str, [user, *(1 + rng.permutation(250)[: rng.integers(5, 12)])]))
        for user in range(1, 61)
    ]
    (folder / "Beauty.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "Beauty_item2attributes.json.gz").write_bytes(gzip.compress(b"{}"))
    return folder.parent


def test_runs_are_merged_by_seed_and_not_repeated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TABLES, "small", TABLE)
    out = tmp_path / "out"
    bench.run_table("small", data, out, seeds=1)
    assert {r.model: r.seeds for r in load_all(out)} == {
        "Popularity": (19,), "Markov": (19,), "SA": (1,), "Both": (19,),
    }  # fmt: skip
    first = ModelResult.load(out / "small" / "sa.json")
    capsys.readouterr()
    bench.run_table("small", data, out)
    assert capsys.readouterr().out.count("\n") == 1, "only SA's second seed was missing"
    both = ModelResult.load(out / "small" / "sa.json")
    assert both.seeds == (1, 2)
    assert both.metrics["recall@50"][0] == first.metrics["recall@50"][0]
    assert len(both.per_unit["recall@50"]) == len(both.train_seconds) == 2
    assert both.dense_parameters == 5 * 4 + (4 * 16 + 16) + (16 * 4 + 4)
    bench.run_table("small", data, out)
    assert capsys.readouterr().out == ""


def test_other_settings_replace_what_was_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES, "small", TABLE)
    out = tmp_path / "out"
    bench.run_table("small", data, out, ["SA"])
    bench.run_table("small", data, out, ["SA"], seeds=1, budget=0.5)
    found = ModelResult.load(out / "small" / "sa.json")
    assert (found.seeds, found.settings["budget"]) == ((1,), 0.5)


def test_every_table_names_rows_once_and_its_reference_is_a_row() -> None:
    for name, table in TABLES.items():
        models = [recipe.model for recipe in table.recipes]
        assert len(set(models)) == len(models), name
        assert not table.reference or table.reference in models
        for recipe in table.recipes:
            json.dumps(recipe.settings | recipe.training)
            needed = recipe.settings.get("of", [])
            assert set(needed) <= set(models[: models.index(recipe.model)])
