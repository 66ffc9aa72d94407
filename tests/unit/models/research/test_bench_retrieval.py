"""The retrieval benchmark: runs are saved one by one, merged by seed and not repeated."""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.research import bench_retrieval as bench
from models.research import retrieval_run
from models.research.comparison import BEST_COUNTING, result_tables
from models.research.retrieval_data import digest, load
from models.research.retrieval_tables import COUNTING, TABLES, Recipe, Table
from models.training.prepared import sequence_evaluation as ev
from models.training.prepared.sequences import SequenceTraining
from models.training.results import ModelResult, load_all

MULTI_INTEREST = {"hcn_r", "comirec_sa", "comirec_dr", "mind"}
SMALL = {"width": 4, "history": 5, "negatives": 5}
BRIEF = {"steps": 4, "batch_size": 8, "validate_every": 2}
TABLE = Table(
    "amazon-beauty",
    "user-split",
    (
        Recipe("Popularity", "popularity", seeds=(19,)),
        Recipe("Markov", "markov", seeds=(19,)),
        Recipe("SA", "comirec_sa", SMALL, BRIEF, (1, 2)),
        Recipe("Both", "union", {"of": ["Popularity", "SA"]}, seeds=(19,)),
    ),
    references=("Popularity", BEST_COUNTING),
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
    attributes = {str(item): [1, 2 + item % 7] for item in range(1, 240)}
    (folder / "Beauty_item2attributes.json.gz").write_bytes(
        gzip.compress(json.dumps(attributes).encode())
    )
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
    assert both.latency_ms is not None
    assert both.latency_ms > 0
    assert ModelResult.load(out / "small" / "markov.json").latency_ms is None
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


def test_what_a_run_depends_on_is_saved_in_full(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES, "small", TABLE)
    out = tmp_path / "out"
    bench.run_table("small", data, out, ["SA", "Popularity", "Markov"], seeds=1)
    found = {r.model: r for r in load_all(out)}
    training = found["SA"].settings["training"]
    assert set(training) == {f.name for f in fields(SequenceTraining)} - {"seed"}
    assert (training["steps"], training["weight_decay"]) == (4, 0.0)
    assert {"interests", "num_items", *SMALL} <= set(found["SA"].settings["model"])
    assert set(found["SA"].settings["digests"]) == {
        "events", "attributes", "train", "valid", "test",
    }  # fmt: skip
    assert found["SA"].references == ("Popularity", BEST_COUNTING)
    assert found["Popularity"].references == (BEST_COUNTING,)
    assert found["Markov"].settings["validation"]["recall@50"] >= 0
    assert found["Markov"].settings["deterministic"]
    assert "deterministic" not in found["SA"].settings
    assert {g.reference for row in result_tables(list(found.values()))[0].rows for g in row.gains}


@pytest.mark.parametrize("changed", ["training default", "model default", "data"])
def test_a_changed_default_or_other_data_run_the_row_again(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: str,
) -> None:
    monkeypatch.setitem(TABLES, "small", TABLE)
    out = tmp_path / "out"
    bench.run_table("small", data, out, ["SA", "Both", "Popularity"], seeds=1)
    capsys.readouterr()
    bench.run_table("small", data, out, ["SA"], seeds=1)
    assert capsys.readouterr().out == ""
    if changed == "training default":
        resolved = retrieval_run.resolved_training
        monkeypatch.setattr(
            retrieval_run, "resolved_training", lambda *a: resolved(*a) | {"weight_decay": 1.0}
        )
    elif changed == "model default":
        resolved_model = retrieval_run.resolved_model
        monkeypatch.setattr(
            retrieval_run, "resolved_model", lambda *a: resolved_model(*a) | {"interests": 9}
        )
    else:
        path = data / "amazon-beauty" / "Beauty.txt.gz"
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        path.write_bytes(gzip.compress("\n".join(lines[:-1]).encode()))
    bench.run_table("small", data, out, ["SA"], seeds=1)
    assert capsys.readouterr().out.count("SA  seed 1") == 1


def test_other_references_are_taken_over_without_a_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TABLES, "small", TABLE)
    out = tmp_path / "out"
    bench.run_table("small", data, out, ["SA"], seeds=1)
    before = ModelResult.load(out / "small" / "sa.json")
    capsys.readouterr()
    monkeypatch.setitem(TABLES, "small", replace(TABLE, references=("Markov",)))
    bench.run_table("small", data, out, ["SA"], seeds=1)
    after = ModelResult.load(out / "small" / "sa.json")
    assert capsys.readouterr().out == ""
    assert (after.references, after.metrics) == (("Markov",), before.metrics)


def test_other_lists_of_a_part_run_the_union_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TABLES, "small", TABLE)
    out = tmp_path / "out"
    bench.run_table("small", data, out, seeds=1)
    capsys.readouterr()
    path = out / "small" / "lists" / "popularity.npy"
    np.save(path, np.load(path)[:, ::-1])
    bench.run_table("small", data, out, seeds=1)
    assert "Both  seed 19" in capsys.readouterr().out
    found = ModelResult.load(out / "small" / "both.json")
    assert found.settings["of"] == {
        "Popularity": digest(np.load(path)),
        "SA": digest(np.load(out / "small" / "lists" / "sa.npy")),
    }


def test_a_shift_fills_two_tables_with_counted_rows_too_and_names_its_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(
        "simulator", "user-split", (Recipe("Markov", "markov", seeds=(19,)),),
        references=(BEST_COUNTING,), kind="shift",
        world={"clusters": 8, "items_per_cluster": 60, "rho": 3.0},
        users={"train_users": 50, "valid_users": 10, "test_users": 20, "mean_length": 6},
        chosen="chosen by hand",
    )  # fmt: skip
    monkeypatch.setitem(TABLES, "shifted", table)
    bench.run_table("shifted", tmp_path, tmp_path / "out")
    like, unlike = load_all(tmp_path / "out")
    assert (like.table, unlike.table) == ("shifted-iid", "shifted-ood")
    assert unlike.settings["drop_from"] == "shifted-iid"
    assert like.settings["digests"]["test"] != unlike.settings["digests"]["test"]
    assert like.settings["world"] == unlike.settings["world"]
    world = like.settings["world"]
    assert (world["rho"], world["stay"]) == (3.0, 0.3)
    assert (world["train_users"], world["test_users"], world["mean_length"]) == (50, 20, 6)
    assert "rho 3.0" in like.protocol
    assert "stay 0.3" in like.protocol
    assert like.protocol.endswith("chosen by hand")
    bigger = replace(table, users=table.users | {"train_users": 60})
    run = retrieval_run.Run("shifted", bigger, table.recipes[0], 19, 1.0, tmp_path / "out",
                    load(bigger, tmp_path))  # fmt: skip
    assert not run.saved()


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_a_digest_is_equal_for_equal_arrays_only(one: list[int], other: list[int]) -> None:
    a, b = np.array(one, np.int64), np.array(other, np.int64)
    assert (digest(a) == digest(b)) == (one == other)
    assert digest(a) != digest(a.astype(np.int32))


def test_a_counting_baseline_takes_the_settings_that_validate_best(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"neighbours": (1, 30), "shrink": (0.0, 5.0)}
    table = replace(TABLE, recipes=(Recipe("ItemKNN", "item_knn", seeds=(19,), grid=grid),))
    monkeypatch.setitem(TABLES, "small", table)
    out = tmp_path / "out"
    bench.run_table("small", data, out)
    found = ModelResult.load(out / "small" / "itemknn.json")
    split = load(table, data).split
    reached = {}
    for neighbours, shrink in itertools.product(*grid.values()):
        scorer = ev.counting_scorer(split, "item_knn", neighbours=int(neighbours), shrink=shrink)
        reached[neighbours, shrink] = ev.mean_metric(split, split.valid, scorer, "recall@50")
    best = max(reached, key=lambda each: reached[each])
    assert len(set(reached.values())) > 1
    assert tuple(found.settings["chosen"].values()) == best
    assert found.settings["validation"]["recall@50"] == reached[best]
    assert found.settings["grid"] == {k: list(v) for k, v in grid.items()}
    assert found.notes.endswith("the best of 4 on validation cases")
    capsys.readouterr()
    bench.run_table("small", data, out)
    assert capsys.readouterr().out == "", "what was chosen does not make it another row"
    wider = replace(table.recipes[0], grid={"neighbours": (1, 30, 90), "shrink": (0.0, 5.0)})
    monkeypatch.setitem(TABLES, "small", replace(table, recipes=(wider,)))
    bench.run_table("small", data, out)
    assert "ItemKNN" in capsys.readouterr().out


def test_item_pairs_stand_beside_counting_baselines_and_know_what_they_cost(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"field_width": 4, "hidden": (6,), "width": 4}
    table = replace(
        TABLES["beauty-next-item"],
        recipes=(
            Recipe("Markov", "markov", seeds=(19,)),
            Recipe("ItemKNN", "item_knn", seeds=(19,), grid={"shrink": (0.0, 1.0)}),
            Recipe("SSL", "ssl_item_to_item", tiny, {"epochs": 1, "batch_size": 64}, (1,)),
        ),
        references=(BEST_COUNTING,),
    )
    monkeypatch.setitem(TABLES, "pairs", table)
    out = tmp_path / "out"
    bench.run_table("pairs", data, out)
    found = {r.model: r for r in load_all(out)}
    assert set(found["Markov"].metrics) == set(found["SSL"].metrics)
    assert found["Markov"].settings["validation"].keys() == {"tail_recall@50"}
    (gains,) = {
        tuple(g.reference for g in row.gains)
        for row in result_tables(list(found.values()))[0].rows
        if row.result.model == "SSL"
    }
    assert gains in (("Markov",), ("ItemKNN",))
    # The mean of a bag of 8, then 4 fields of width 4 through 16 x 6 and 6 x 4.
    assert found["SSL"].flops_per_row == 2 * (8 * 4 + 16 * 6 + 6 * 4)
    assert found["SSL"].latency_ms is not None
    assert found["SSL"].latency_ms > 0


def test_the_timing_of_an_epoch_knows_what_its_model_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = replace(
        TABLES["ssl-epoch"],
        recipes=(
            Recipe("SSL two-tower", "ssl_two_tower", {"field_width": 4, "hidden": (6,), "width": 4},
                   {"batch_size": 64}, (19,)),
        ),
        world={"clusters": 8, "items_per_cluster": 60},
        users={"train_users": 50, "valid_users": 10, "test_users": 20, "mean_length": 6},
    )  # fmt: skip
    monkeypatch.setitem(TABLES, "epoch", table)
    bench.run_table("epoch", tmp_path, tmp_path / "out")
    (found,) = load_all(tmp_path / "out")
    # The tower from 2 x 4, the means of the history and of its newest, to 6 to 4: looking them up
    # multiplies nothing.
    assert found.flops_per_row == 2 * (8 * 6 + 6 * 4)
    assert found.latency_ms is not None
    assert found.latency_ms > 0


def test_a_table_that_is_too_long_is_left_out_of_short_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TABLES, "small", replace(TABLE, least_budget=1.0))
    bench.run_table("small", data, tmp_path / "out", ["Markov"], budget=0.5)
    assert "small: left out" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    bench.run_table("small", data, tmp_path / "out", ["Markov"])
    assert load_all(tmp_path / "out")


def test_a_metric_that_saved_seeds_lack_is_left_out_of_later_ones(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES, "small", TABLE)
    out, new = tmp_path / "out", "intra_list_diversity@50"
    bench.run_table("small", data, out, ["SA"], seeds=1)
    first = ModelResult.load(out / "small" / "sa.json")
    assert new in first.metrics
    old = {k: v for k, v in first.metrics.items() if k != new}
    units = {k: v for k, v in first.per_unit.items() if k != new}
    replace(first, metrics=old, per_unit=units).save(out)
    bench.run_table("small", data, out, ["SA"])
    both = ModelResult.load(out / "small" / "sa.json")
    assert both.seeds == (1, 2)
    assert set(both.metrics) == set(old)


def test_every_learned_row_has_three_seeds_and_every_claim_its_control() -> None:
    for name, table in TABLES.items():
        models = {recipe.model for recipe in table.recipes}
        for recipe in table.recipes:
            if recipe.source in COUNTING | {"union"} or table.kind == "epoch-time":
                continue
            assert len(recipe.seeds) >= 3
            several = {"hcn_r", "comirec_sa"} if name != "beauty-user-split" else MULTI_INTEREST
            ablation = recipe.references == ("HCN-R",)
            if recipe.source in several and "K=1" not in recipe.model and not ablation:
                base, _, rest = recipe.model.partition(", ")
                control = ", ".join(part for part in (base, "K=1", rest) if part)
                assert control in models
                assert table.references_of(recipe)[0] == control


def test_hcn_r_is_measured_without_each_of_its_parts() -> None:
    rows = {r.model: r for r in TABLES["beauty-user-split"].recipes}
    whole = rows["HCN-R"]
    switched = {
        name: dict(row.settings.items() - whole.settings.items())
        for name, row in rows.items()
        if row.references == ("HCN-R",)
    }
    assert switched == {
        "HCN-R, L=0": {"layers": 0},
        "HCN-R, long only": {"short": False},
        "HCN-R, concatenated": {"co_network": "concat"},
    }


def test_every_table_names_rows_once_and_its_reference_is_a_row() -> None:
    for name, table in TABLES.items():
        models = [recipe.model for recipe in table.recipes]
        assert len(set(models)) == len(models), name
        for recipe in table.recipes:
            assert set(table.references_of(recipe)) <= {*models, BEST_COUNTING}
            assert recipe.model not in table.references_of(recipe)
        for recipe in table.recipes:
            json.dumps(recipe.settings | recipe.training)
            needed = recipe.settings.get("of", [])
            assert set(needed) <= set(models[: models.index(recipe.model)])
