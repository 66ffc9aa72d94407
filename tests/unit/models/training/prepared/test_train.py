"""Training on prepared data: what is saved can be built again, says what was measured, resumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from models import registry
from models.data.datasets import load_sequences, save_sequences
from models.data.errors import DataError
from models.data.sequences import from_events, leave_one_out
from models.data.tables import Field, FieldTable, HistoryField
from models.layers.embedding_tables import EmbeddingOptions
from models.training.checkpoint import CheckpointFolder
from models.training.loop import LoopConfig
from models.training.pipeline import Means
from models.training.prepared import measure as measure_module
from models.training.prepared import tables
from models.training.prepared.saved import WEIGHTS, load
from models.training.prepared.sequence_evaluation import case_batch
from models.training.prepared.sequences import SequenceTraining
from models.training.prepared.settings import TableSettings, ranker_spec, sequence_settings
from models.training.prepared.source import PROTOCOLS, Source, find, read_split, read_table
from models.training.prepared.tables import TableTensors
from models.training.prepared.train import train_ranking, train_retrieval
from models.training.results import ModelResult, load_all

SMALL = {
    "masknet": ["width=4", "units=8", "tower=4", "blocks=1"],
    "logistic_regression": [],
    "mc_mlcc": ["channels=2", "heads=2", "dims=2,1", "tower=4", "channel_width=4"],
    "hcn_r": ["width=8", "history=6", "short_history=3", "negatives=8"],
    "sasrec": ["width=8", "history=6", "negatives=8"],
}
LOOP = ["learning_rate=0.02", "batch_size=128"]
STEPS = ["steps=20", "validate_every=10", "batch_size=32"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_table(rows: int = 900, users: int = 12) -> FieldTable:
    """Clicks by the item; likes, of clicks only, by a number."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, users, rows), rng.integers(0, 8, rows)
    price = rng.normal(5, 3, rows).astype(np.float32)
    click = rng.random(rows) < np.where(item % 2, 0.9, 0.2)
    like = click & (rng.random(rows) < np.where(price > 5, 0.9, 0.1))
    return FieldTable(
        "toy",
        (Field("user", users + 1, "user"), Field("item", 9, "item")),
        np.stack([user + 1, item + 1], axis=1).astype(np.int32),
        ("price",),
        price[:, None],
        ("click", "like"),
        np.stack([click, like], axis=1).astype(np.float32),
        np.stack([np.ones(rows, bool), click], axis=1),
        user.astype(np.int32),
        np.arange(rows, dtype=np.int64),
        np.repeat([0, 1, 2], [rows - 400, 150, 250]).astype(np.int8),
        history={"past": HistoryField(np.full((rows, 3), 1, np.int32), "item")},
    ).check()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A data set with a table and with sequences: walks on a circle of 24 items."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    small_table().save(folder / "table")
    rng = np.random.default_rng(0)
    walks = [(rng.integers(24) + np.arange(rng.integers(6, 12))) % 24 for _ in range(60)]
    user = np.repeat(np.arange(60), [len(w) for w in walks])
    save_sequences(from_events("toy", user, np.concatenate(walks)), folder / "sequences")
    return Source("toy", folder)


# Finding


def test_a_prepared_data_set_is_found_by_folder_and_by_name(source: Source, tmp_path: Path) -> None:
    assert source.folder is not None
    found = find(str(source.folder), "ranking", tmp_path)
    assert found == source
    small_table().save(tmp_path / "ml-1m" / "table")
    assert find("ml-1m", "ranking", tmp_path) == Source("ml-1m", tmp_path / "ml-1m")
    assert find("simulator", "ranking", tmp_path) == Source("simulator", None)
    assert find(str(tmp_path), "ranking", tmp_path) is None
    assert find("nowhere", "ranking", tmp_path) is None


@pytest.mark.parametrize(
    ("data", "part", "words"),
    [
        ("ml-1m", "ranking", "run `tandem data prepare ml-1m --source FOLDER`"),
        ("amazon-beauty", "ranking", "holds sequences only, and a ranking model learns from a"),
        ("criteo-x1", "retrieval", "holds a table only, and a retrieval model learns from seq"),
    ],
)
def test_a_known_data_set_that_cannot_be_used_says_why(
    data: str, part: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        find(data, part, tmp_path)


def test_a_part_of_a_prepared_folder_names_the_whole(source: Source) -> None:
    assert source.folder is not None
    with pytest.raises(DataError, match=f"pass {source.folder}$"):
        find(str(source.folder / "table"), "ranking")


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_the_simulator_has_a_split_of_every_protocol_and_a_table(protocol: str) -> None:
    split = read_split(Source("simulator", None), protocol)
    assert split.filter_seen == (protocol != "user-split")
    one_asked = (split.test.end - split.test.cut == 1).all()
    assert one_asked == (protocol == "leave-one-out")
    assert len(split.test)


# Settings


@pytest.mark.parametrize("name", registry.names("ranking"))
def test_every_ranking_model_is_there_and_no_key_has_two_owners(name: str) -> None:
    spec, _ = ranker_spec(name, [])
    owners = (registry.kind_of(spec.model).config, EmbeddingOptions, TableSettings, LoopConfig)
    keys = [key for owner in owners for key in get_type_hints(owner)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", registry.names("retrieval"))
def test_no_key_of_a_retrieval_model_is_one_of_its_training(name: str) -> None:
    assert not set(get_type_hints(registry.kind_of(name).config)) & set(
        get_type_hints(SequenceTraining)
    )
    for protocol in PROTOCOLS:
        own, training = sequence_settings(name, protocol, ["epochs=3"], 5)
        assert not own
        assert (training.epochs, training.seed) == (3, 5)


def test_the_channels_of_mlcc_and_mc_mlcc_differ() -> None:
    assert ranker_spec("mlcc", [])[0].settings["channels"] == 1
    assert ranker_spec("mc_mlcc", [])[0].settings["channels"] == 4
    assert ranker_spec("mc_mlcc", ["channels=2"])[0].settings["channels"] == 2


# Training


def rank(source: Source, out: Path, name: str = "masknet", **means: Any) -> list[ModelResult]:
    pairs = [*SMALL[name], *LOOP, "epochs=3", "patience=3"]
    return train_ranking(source, name, pairs, 7, out, Means(**means))


@pytest.mark.parametrize("name", ["masknet", "mc_mlcc"])
def test_a_ranking_model_is_measured_saved_and_built_again(
    name: str, source: Source, tmp_path: Path
) -> None:
    own, plain = rank(source, tmp_path / "out", name)
    assert plain.metrics["click auc"][0] > 0.8  # the best possible is about .85
    assert plain.metrics["like auc"][0] < 0.65  # of a number, which it does not read
    assert {r.model: r.metrics for r in load_all(tmp_path / "out" / "results")} == {
        own.model: own.metrics, plain.model: plain.metrics,
    }  # fmt: skip
    model = load(tmp_path / "out")
    data = TableTensors(read_table(source))
    again = tables.evaluate(model, data)
    assert again.metrics["click auc"] == own.metrics["click auc"][0]
    assert again.metrics["like auc"] == own.metrics["like auc"][0]


@pytest.mark.parametrize("name", ["hcn_r", "sasrec"])
@pytest.mark.parametrize("protocol", ["user-split", "leave-one-out"])
def test_a_retrieval_model_is_measured_saved_and_built_again(
    name: str, protocol: str, source: Source, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    own, popularity, markov, item_knn, ease = train_retrieval(
        source, name, [*SMALL[name], *STEPS], 7, out, Means(), protocol
    )
    # After an item of the circle there is only one other, and 10 places.
    assert markov.metrics["hr@10"][0] == 1.0 > popularity.metrics["hr@10"][0]
    assert (item_knn.model, ease.model) == ("item_knn", "ease")
    for neighbours in (item_knn, ease):
        assert neighbours.metrics["hr@10"][0] > popularity.metrics["hr@10"][0]
    saved = {r.model: r.metrics for r in load_all(out / "results")}
    assert saved[name] == own.metrics
    assert np.load(out / "items.npy").tolist() == list(
        load_sequences(source.part("sequences")).item_ids
    )
    model = load(out)
    split = read_split(source, protocol)
    assert own.parameters == sum(p.numel() for p in model.parameters())
    users = model.encode_users(case_batch(split.sequences, split.test.take(slice(3)), 6))
    assert torch.isfinite(users).all()
    assert len(model.item_vectors()) == 25


def test_ease_is_left_out_of_catalogues_too_large_for_it_and_the_training_says_why(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(record=True, width=200)
    monkeypatch.setattr(measure_module, "EASE_ITEMS", 23)
    pairs = [*SMALL["sasrec"], *STEPS]
    results = train_retrieval(source, "sasrec", pairs, 7, tmp_path / "out",
                                       Means(console=console))  # fmt: skip
    assert [r.model for r in results] == ["sasrec", "popularity", "markov", "item_knn"]
    why = "ease: left out, it inverts a dense matrix of items x items: 24 items are more than 23"
    assert why in console.export_text()
    assert results[0].notes.endswith(why)


def test_the_same_seed_gives_the_same_weights_and_replaces_the_earlier_folder(
    source: Source, tmp_path: Path
) -> None:
    weights = []
    for _ in range(2):
        rank(source, tmp_path / "out")
        weights.append((tmp_path / "out" / WEIGHTS).read_bytes())
    assert weights[0] == weights[1]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_stopped_training_is_resumed_to_the_same_weights(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rank(source, tmp_path / "whole")
    calls = 0

    def stopped(*arguments: Any) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 3:  # in the validation after the last epoch
            raise KeyboardInterrupt
        return predict(*arguments)

    predict = tables.predict
    with monkeypatch.context() as patch:
        patch.setattr(tables, "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            rank(source, tmp_path / "resumed", checkpoint=CheckpointFolder(tmp_path / "kept"))
    assert not (tmp_path / "resumed").exists()
    again = CheckpointFolder(tmp_path / "kept", resume=True)
    resumed = rank(source, tmp_path / "resumed", checkpoint=again)
    assert resumed[0].metrics == whole[0].metrics
    first, second = (load_file(tmp_path / n / WEIGHTS) for n in ("whole", "resumed"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_folder_with_other_files_is_left_alone(source: Source, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        rank(source, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


# Bad data


def test_rows_without_users_are_drawn_in_blocks(tmp_path: Path) -> None:
    table = small_table()
    replace(table, user=np.zeros(len(table), np.int32)).save(tmp_path / "toy" / "table")
    own, _ = rank(Source("toy", tmp_path / "toy"), tmp_path / "out", "logistic_regression")
    assert own.unit == "block of test rows"
    assert not [name for name in own.metrics if name.endswith(("gauc", "uauc"))]
    units = own.per_unit["click auc"][0]
    assert len(units) == 250
    assert np.nanmean(units) == pytest.approx(own.metrics["click auc"][0], abs=1e-6)


def test_a_part_of_one_class_names_table_task_and_part(tmp_path: Path) -> None:
    table = small_table()
    labels = table.labels.copy()
    labels[table.split == 2, 1] = 0
    replace(table, labels=labels).save(tmp_path / "table")
    with pytest.raises(DataError, match="table toy: task like: the test part has known rows of on"):
        read_table(Source("toy", tmp_path))


def test_sequences_too_short_for_the_protocol_are_refused(tmp_path: Path) -> None:
    short = from_events("short", np.repeat(np.arange(9), 2), np.tile([1, 2], 9))
    save_sequences(short, tmp_path / "sequences")
    assert len(leave_one_out(short).test) == 0
    with pytest.raises(DataError, match="the validation part of protocol leave-one-out is empty"):
        read_split(Source("short", tmp_path), "leave-one-out")


def test_a_damaged_model_is_refused(source: Source, tmp_path: Path) -> None:
    rank(source, tmp_path / "out", "logistic_regression")
    weights = tmp_path / "out" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(DataError, match="is no trained model"):
        load(tmp_path / "out")
