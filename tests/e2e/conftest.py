"""Models for the whole session: untrained, but of the shipped data, so that the demo uses them.

The test of the whole demo trains its own; what the others test does not depend on what a model
knows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import artifact
from models.data import events
from models.ranking.masknet import MaskNet, MaskNetConfig
from models.retrieval.ssl_two_tower import SSLTwoTower
from models.training.pipeline import data_window
from models.training.retrieval import model_config

UNMEASURED = {
    "recall_at_50": {"ssl_two_tower": {"mean": 0.0, "standard_error": 0.0, "users": 0}},
    "auc": {"masknet": {"click": 0.5, "like": 0.5}},
}


@pytest.fixture(scope="session")
def dataset() -> events.Dataset:
    return events.load()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, dataset: events.Dataset) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    torch.manual_seed(0)
    two_tower = SSLTwoTower(model_config(dataset))
    two_tower.load_items(dataset.items)
    two_tower.eval()
    masknet = MaskNet(MaskNetConfig(num_items=len(dataset.items)))
    masknet.load_items(dataset.items)
    vectors = two_tower.item_vectors().numpy()
    for name, model, arrays in (
        ("ssl_two_tower", two_tower, {"item_vectors": vectors}),
        ("masknet", masknet, {}),
    ):
        artifact.publish(
            folder,
            name,
            tensors=model.state_dict(),
            config={"model": name, "parameters": model.config()},
            items=dataset.items,
            metrics=UNMEASURED,
            data_window=data_window(dataset),
            arrays=arrays,
        )
    return folder
