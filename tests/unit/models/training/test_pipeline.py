"""Any model goes the whole way from events to a loadable artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models import artifact, registry, serving
from models.data.events import Dataset
from models.training import pipeline
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
        assert 0 < report.quality[name]["click auc"] < 1
    assert {"popularity", "markov", "item_knn", "ease"} < report.recall_at_50.keys()
    assert "one_hot_regression" in report.quality  # the torch model has the other name
    mlcc = [serving.load_ranking(artifact.current(tmp_path, n)).model for n in ("mlcc", "mc_mlcc")]
    assert [model.config()["settings"]["channels"] for model in mlcc] == [1, 4]


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


def test_a_model_whose_examples_depend_on_each_other_is_not_shared_out(
    data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(registry.SettingError, match=r"desmil_r .* trained by one worker"):
        pipeline.train_all(tmp_path, dataset=data, retrieval_models=("desmil_r",), workers=2)
