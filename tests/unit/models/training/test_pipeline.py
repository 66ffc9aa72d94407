"""Any model goes the whole way from events to a loadable artifact; bad data does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from models import artifact, registry, serving
from models.data.errors import DataError
from models.data.events import Dataset
from models.training import pipeline, replay
from models.training.checkpoint import CheckpointError, CheckpointFolder
from models.training.loop import LoopConfig
from tests.unit.models import synthetic

LOOP = LoopConfig(epochs=1, batch_size=128, learning_rate=2e-3)
TINY: dict[str, Any] = {"width": 8, "tower": (8,), "hidden": (8,), "channel_width": 4, "heads": 1,
                        "negatives": 30, "units": 16, "field_width": 8}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Dataset:
    return synthetic.dataset(users=24)


def tiny(name: str) -> dict[str, Any]:
    known = registry.defaults(registry.kind_of(name).config)
    return {key: value for key, value in TINY.items() if key in known}


def test_every_model_is_trained_measured_and_published(data: Dataset, tmp_path: Path) -> None:
    report = pipeline.train_all(
        tmp_path,
        dataset=data,
        retrieval_loop=LOOP,
        ranking_loop=LOOP,
        retrieval_models=registry.names("retrieval"),
        ranking_models=registry.names("ranking"),
        settings={name: tiny(name) for name in registry.MODELS},
        baselines=("popularity", "markov", "item_knn", "ease"),
    )
    assert report.versions.keys() == registry.MODELS.keys()
    for name in registry.names("retrieval"):
        found = serving.load_retrieval(artifact.current(tmp_path, name))
        assert (found.name, found.version) == (name, report.versions[name])
        assert found.model.source == name
        assert 0 <= report.recall_at_50[name].mean <= 1
    for name in registry.names("ranking"):
        ranked = serving.load_ranking(artifact.current(tmp_path, name))
        assert ranked.version == report.versions[name]
        assert ranked.model.tasks == ("click", "like")
        assert 0 < report.auc[name]["click"] < 1
    assert {"popularity", "markov", "item_knn", "ease"} < report.recall_at_50.keys()
    assert "one_hot_regression" in report.auc  # the torch model has the other name
    mlcc = [serving.load_ranking(artifact.current(tmp_path, n)).model for n in ("mlcc", "mc_mlcc")]
    assert [model.config()["channels"] for model in mlcc] == [1, 4]


def test_a_resumed_call_publishes_the_same_weights(data: Dataset, tmp_path: Path) -> None:
    def train(out: str, checkpoint: CheckpointFolder | None) -> dict[str, torch.Tensor]:
        pipeline.train_all(
            tmp_path / out, dataset=data, parts=("ranking",), ranking_models=("dnn",),
            ranking_loop=LOOP, settings={"dnn": tiny("dnn")}, checkpoint=checkpoint,
        )  # fmt: skip
        return artifact.load_verified(artifact.current(tmp_path / out, "dnn")).tensors

    folder = tmp_path / "checkpoints"
    first = train("first", CheckpointFolder(folder))
    assert sorted(f.name for f in folder.iterdir()) == [
        "dnn-epochs.safetensors",
        "dnn-final.safetensors",
    ]
    (folder / "dnn-final.safetensors").unlink()  # as if killed between the two phases
    second = train("second", CheckpointFolder(folder, resume=True))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(CheckpointError, match="--resume"):
        train("third", CheckpointFolder(folder))
    other = replace(data, name="other")
    with pytest.raises(CheckpointError, match=r"data\.name: checkpoint 'synthetic'"):
        pipeline.train_all(
            tmp_path, dataset=other, parts=("ranking",), ranking_models=("dnn",),
            ranking_loop=LOOP, settings={"dnn": tiny("dnn")},
            checkpoint=CheckpointFolder(folder, resume=True),
        )  # fmt: skip


def _with(data: Dataset, *columns: pl.Expr) -> Dataset:
    return replace(data, events=data.events.with_columns(*columns))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: replace(d, events=d.events.drop("like")), "no column 'like'; there are user_id"),
        (
            lambda d: _with(d, pl.when(pl.int_range(pl.len()) == 7).then(None)
                            .otherwise(pl.col("like")).alias("like")),
            "column 'like': row 7 has no value",
        ),
        (
            lambda d: _with(d, pl.when(pl.int_range(pl.len()) == 9).then(float("nan"))
                            .otherwise(pl.col("like").cast(pl.Float64)).alias("like")),
            "column 'like': row 9 has no value",
        ),
        (lambda d: _with(d, pl.col("like").cast(pl.Int8)), "column 'like' is Int8, must be true"),
        (lambda d: replace(d, valid_from_ms=0), "the training split is empty"),
        (lambda d: replace(d, valid_from_ms=d.train_until_ms), "the validation split is empty"),
        (lambda d: replace(d, train_until_ms=2**60), "the test split is empty"),
    ],
)  # fmt: skip
def test_bad_data_is_refused_before_anything_is_trained(
    change: Any, words: str, data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        pipeline.train_all(tmp_path, dataset=change(data))
    assert not list(tmp_path.iterdir())


def test_examples_are_checked(data: Dataset) -> None:
    examples = replay.replay(data)
    pipeline.check_examples(data, examples)
    counters = examples.counters.copy()
    counters[5, 0, 1] = float("nan")
    with pytest.raises(DataError, match="feature counters of example 5 is not finite"):
        pipeline.check_examples(data, replace(examples, counters=counters))
    history = examples.history.copy()
    history[6, 0] = len(data.items) + 1
    with pytest.raises(DataError, match="history of example 6 has an item outside the catalogue"):
        pipeline.check_examples(data, replace(examples, history=history))


def test_a_model_whose_examples_depend_on_each_other_is_not_shared_out(
    data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(registry.SettingError, match=r"desmil_r .* trained by one worker"):
        pipeline.train_all(tmp_path, dataset=data, retrieval_models=("desmil_r",), workers=2)
