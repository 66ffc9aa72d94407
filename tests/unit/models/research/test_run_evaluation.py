"""A saved run is measured on what its training kept from it, on nothing else, beside baselines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from models.data.datasets import save_sequences
from models.data.errors import DataError
from models.data.sequences import from_events
from models.research.comparison import BEST_COUNTING
from models.research.run_evaluation import check_protocol, measure, read, rows_of, write
from models.training.metrics import interest_cosine
from models.training.pipeline import Means
from models.training.prepared import measure as measure_module
from models.training.prepared.measure import ONE_HOT
from models.training.prepared.saved import load
from models.training.prepared.sequence_evaluation import case_batch
from models.training.prepared.source import PROTOCOLS, Source, read_split
from models.training.prepared.train import train_ranking, train_retrieval
from models.training.results import ModelResult, load_all
from services.cli import app
from tests.unit.models.training.prepared.test_simulator_knobs import SIZES, WORLD
from tests.unit.models.training.prepared.test_train import LOOP, SMALL, STEPS, small_table

COUNTING = ["popularity", "markov", "item_knn", "ease"]
SSL = ["width=4", "hidden=8", "field_width=4"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save_toy(folder: Path, seed: int = 0) -> None:
    """A table, and walks on a circle of 24 items with two attributes."""
    small_table().save(folder / "table")
    rng = np.random.default_rng(seed)
    walks = [(rng.integers(24) + np.arange(rng.integers(6, 12))) % 24 for _ in range(60)]
    user = np.repeat(np.arange(60), [len(w) for w in walks])
    attributes: dict[str, tuple[int, ...]] = {str(i): (1 + i % 3, 4 + i % 2) for i in range(24)}
    save_sequences(
        from_events("toy", user, np.concatenate(walks), attributes=attributes),
        folder / "sequences",
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in run/data and runs on it in run/trained, as the commands leave them."""
    place = tmp_path_factory.mktemp("place")
    save_toy(place / "run/data/toy")
    source = Source("toy", place / "run/data/toy")
    runs = place / "run/trained/toy"
    hcn, means = [*SMALL["hcn_r"], *STEPS], Means()
    trainings = {
        "hcn_r-0": ("hcn_r", hcn, 0, "leave-one-out"),
        "hcn_r-1": ("hcn_r", hcn, 1, "leave-one-out"),
        "hcn_r-single": ("hcn_r", [*hcn, "interests=1"], 0, "leave-one-out"),
        "ssl_two_tower-0": ("ssl_two_tower", [*SSL, *STEPS], 0, "leave-one-out"),
        "sasrec-0": ("sasrec", [*SMALL["sasrec"], *STEPS], 0, "user-split"),
    }
    for folder, (model, pairs, seed, protocol) in trainings.items():
        train_retrieval(source, model, pairs, seed, runs / folder, means, protocol)
    for model in ("masknet", "logistic_regression"):
        pairs = [*SMALL[model], *LOOP, "epochs=1"]
        train_ranking(source, model, pairs, 0, runs / f"{model}-0", means)
    return place


@pytest.fixture(autouse=True)
def _here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


RUNS = Path("run/trained/toy")


def by_model(results: list[ModelResult]) -> dict[str, ModelResult]:
    return {result.model: result for result in results}


# What is measured


@pytest.mark.parametrize("run", ["hcn_r-0", "ssl_two_tower-0", "sasrec-0"])
def test_a_retrieval_run_has_the_figures_that_its_training_measured(run: str) -> None:
    found = by_model(measure([RUNS / run]))
    assert list(found) == [run.split("-")[0], *COUNTING]
    for saved in load_all(RUNS / run / "results"):
        again = found[saved.model]
        assert {k: again.metrics[k] for k in saved.metrics} == saved.metrics
        assert (again.table, again.protocol) == (saved.table, saved.protocol)


@pytest.mark.parametrize("run", ["masknet-0", "logistic_regression-0"])
def test_a_ranking_run_has_the_figures_that_its_training_measured(run: str) -> None:
    found = by_model(measure([RUNS / run]))
    assert list(found) == [run.split("-")[0], ONE_HOT]
    for saved in load_all(RUNS / run / "results"):
        assert found[saved.model].metrics == saved.metrics
        assert found[saved.model].references == (ONE_HOT,)


def test_the_cosine_of_interests_is_that_of_every_case_and_there_is_none_of_one_interest() -> None:
    several = measure([RUNS / "hcn_r-0"])[0]
    model = load(RUNS / "hcn_r-0")
    split = read_split(Source("toy", Path("run/data/toy")), "leave-one-out")
    users = model.encode_users(case_batch(split.sequences, split.test, 6)).numpy()
    assert several.per_unit["interest_cosine"][0] == pytest.approx(interest_cosine(users))
    assert len(several.per_unit["interest_cosine"][0]) == 60
    assert "interest_cosine" not in measure([RUNS / "hcn_r-single"])[0].metrics


def test_a_run_is_compared_with_the_counting_baseline_that_validation_prefers() -> None:
    run, *counting = measure([RUNS / "hcn_r-0"])
    assert run.references == (BEST_COUNTING,)
    validation = {r.model: r.settings["validation"]["ndcg@10"] for r in counting}
    assert max(validation, key=lambda m: validation[m]) != "popularity"  # walks have an order
    assert all(r.settings["deterministic"] for r in counting)


def test_ease_is_left_out_where_its_matrix_would_be_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure_module, "EASE_ITEMS", 23)
    assert [r.model for r in measure([RUNS / "sasrec-0"])] == ["sasrec", *COUNTING[:-1]]


# Rows


def test_seeds_are_one_row_and_other_settings_another() -> None:
    rows = measure([RUNS / "hcn_r-0", RUNS / "hcn_r-single", RUNS / "hcn_r-1"])[:2]
    assert [(r.model.split(", ")[1], r.seeds) for r in rows] == [
        ("interests=4", (0, 1)), ("interests=1", (0,)),
    ]  # fmt: skip
    alone = [measure([RUNS / f"hcn_r-{seed}"])[0] for seed in (0, 1)]
    for metric, values in rows[0].metrics.items():
        assert values == tuple(each.metrics[metric][0] for each in alone)
    assert rows[0].train_seconds == tuple(each.train_seconds[0] for each in alone)


def test_a_single_run_keeps_the_plain_name_of_its_model() -> None:
    assert list(rows_of([read(RUNS / "hcn_r-0"), read(RUNS / "ssl_two_tower-0")])) == [
        "hcn_r", "ssl_two_tower",
    ]  # fmt: skip


def test_the_same_training_twice_is_refused(tmp_path: Path) -> None:
    shutil.copytree(RUNS / "hcn_r-0", tmp_path / "copy")
    with pytest.raises(DataError, match="are the same training with the same seed: leave one out"):
        measure([RUNS / "hcn_r-0", tmp_path / "copy"])
    assert len(measure([RUNS / "hcn_r-0", RUNS / "hcn_r-0"])) == 1 + len(COUNTING)


def test_runs_of_other_protocols_and_parts_stand_in_other_tables() -> None:
    found = measure([RUNS / "hcn_r-0", RUNS / "masknet-0", RUNS / "sasrec-0"])
    assert {r.table: r.model for r in reversed(found)} == {
        "toy-leave-one-out": "hcn_r", "toy-ranking": "masknet", "toy-user-split": "sasrec",
    }  # fmt: skip


# Protocols


@pytest.mark.parametrize(("own", "other"), [*permutations(PROTOCOLS, 2)])
def test_a_protocol_that_the_run_was_not_trained_with_is_refused(own: str, other: str) -> None:
    saved = read(RUNS / "hcn_r-0")
    run = replace(saved, config={**saved.config, "protocol": own})
    check_protocol(run, own)
    check_protocol(run, None)
    words = f"--protocol {other}: .* was trained with {own}: it may have learned from, .*--data toy"
    with pytest.raises(DataError, match=words):
        check_protocol(run, other)


# Bad input


def damage_weights(run: Path) -> None:
    weights = run / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])


def other_weights(run: Path) -> None:
    shutil.copy(RUNS / "sasrec-0/weights.safetensors", run)


def damage_config(run: Path) -> None:
    (run / "config.json").write_text("{")


def remove_protocol(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    del config["protocol"]
    (run / "config.json").write_text(json.dumps(config))


def other_seed(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"seed": 5}))


def other_items(run: Path) -> None:
    np.save(run / "items.npy", np.load(run / "items.npy")[::-1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_weights, "is no trained model .*: train it anew"),
        (other_weights, "is not of the model that config.json names: train it anew"),
        (damage_config, "is no trained model .*: train it anew"),
        (remove_protocol, r"is no complete run \(it does not say protocol\): train it anew"),
        (other_seed, r"is no complete run \(seed 5, but results of \(0,\)\): train it anew"),
        (other_items, "its 24 items are not the 24 of toy: train it anew"),
        (lambda run: (run / "items.npy").unlink(), "is no complete run .*items.npy.*: train it"),
        (lambda run: shutil.rmtree(run / "results"), "is no complete run .*results.*: train it"),
        (lambda run: (run / "config.json").unlink(), "is no trained run, it has no config.json"),
        (shutil.rmtree, "is no trained run, it has no config.json: there are run/trained/toy/hcn"),
    ],
)
def test_a_damaged_run_names_the_folder_and_what_to_do(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUNS / "hcn_r-0", run)
    damage(run)
    with pytest.raises(DataError, match=f"{run}.*: {words}"):
        measure([run])


def test_data_that_the_run_was_not_trained_on_are_refused_and_the_same_elsewhere_are_not(
    tmp_path: Path,
) -> None:
    save_toy(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match=f"trained on other data than {tmp_path}/other holds"):
        measure([RUNS / "hcn_r-0"], str(tmp_path / "other"))
    shutil.copytree("run/data/toy", tmp_path / "moved")
    found = measure([RUNS / "hcn_r-0"], str(tmp_path / "moved"))
    assert found[0].metrics == measure([RUNS / "hcn_r-0"])[0].metrics
    (tmp_path / "moved/sequences/sequences.npz").unlink()
    with pytest.raises(DataError, match=r"sequences.npz: is not there: run `tandem data prepare`"):
        measure([RUNS / "hcn_r-0"], str(tmp_path / "moved"))


def test_missing_data_name_where_they_were_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = (RUNS / "hcn_r-0").resolve()
    monkeypatch.chdir(tmp_path)
    words = "was trained on toy, which is not in run/data/toy: run `tandem data prepare toy`, or"
    with pytest.raises(DataError, match=words):
        measure([run])


# The command


def tandem(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300"})


def test_the_command_writes_a_page_with_every_model_and_replaces_an_earlier_one(
    tmp_path: Path,
) -> None:
    out = tmp_path / "page"
    done = tandem("evaluate", RUNS / "hcn_r-0", RUNS / "masknet-0", "--out", out)
    assert done.exit_code == 0, done.output
    page = (out / "models.md").read_text()
    for name in ("hcn_r", *COUNTING, "masknet", ONE_HOT):
        assert f"| [{name}](cards/" in page
        assert name in done.output
    assert "interest_cosine" in page
    assert (out / "plots/toy-leave-one-out.svg").is_file()
    done = tandem("evaluate", RUNS / "sasrec-0", "--out", out, "--protocol", "user-split")
    assert done.exit_code == 0, done.output
    assert "hcn_r" not in (out / "models.md").read_text()
    assert [p.name for p in (out / "plots").iterdir()] == ["toy-user-split.svg"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([RUNS / "hcn_r-9"], "run/trained/toy/hcn_r-9: is no trained run"),
        ([RUNS], "run/trained/toy: is no trained run, it has no config.json: there are run/tra"),
        ([RUNS / "hcn_r-0", "masknet"], "masknet: is no trained run"),
        ([RUNS / "hcn_r-0", "--protocol", "user-split"], "was trained with leave-one-out: it may"),
        ([RUNS / "hcn_r-0", "--protocol", "random"], "random: is not one of user-split, leave-"),
        ([RUNS / "masknet-0", "--protocol", "user-split"], "is a ranking model"),
        (["masknet", "--protocol", "user-split"], "masknet is a published model"),
        ([RUNS / "hcn_r-0", "--data", "nowhere"], "trained on toy, which is not in nowhere"),
        ([RUNS / "hcn_r-0", "--device", "gpu"], "--device gpu: is not cpu, cuda or cuda:N"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_sentence(
    arguments: list[object], words: str, tmp_path: Path
) -> None:
    done = tandem("evaluate", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert words in done.output
    assert isinstance(done.exception, SystemExit)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/notes.txt").write_text("mine")
    done = tandem("evaluate", RUNS / "hcn_r-0", "--out", tmp_path)
    assert done.exit_code == 1
    assert "holds other files: name a new or empty folder" in done.output
    with pytest.raises(DataError, match="holds other files"):
        write([], tmp_path, "")
    assert (tmp_path / "results/notes.txt").read_text() == "mine"


# The simulator


def test_a_run_on_the_simulator_is_evaluated_on_its_own_world(tmp_path: Path) -> None:
    def train(name: str, *more: str) -> Path:
        sets = [x for pair in (*WORLD, *SIZES, *more, *SMALL["sasrec"]) for x in ("--set", pair)]
        done = tandem(
            "train", "retrieval", "--data", "simulator", "--model", "sasrec", "--epochs", 1,
            "--out", tmp_path / name, *sets,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        return tmp_path / name

    run, other = train("run"), train("other", "world.rho=9")
    saved = by_model(load_all(run / "results"))["sasrec"]
    found = measure([run])[0]
    assert {k: found.metrics[k] for k in saved.metrics} == saved.metrics
    with pytest.raises(DataError, match="trained on different data of the name simulator"):
        measure([run, other])
    with pytest.raises(DataError, match="trained on the simulator: leave out --data"):
        measure([run], "run/data/toy")
