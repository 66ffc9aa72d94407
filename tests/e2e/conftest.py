"""Models for the whole session: untrained, but of the shipped data, so that the demo uses them.

The test of the whole demo trains its own; what the others test does not depend on what a model
knows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from models.data.events import Dataset
from models.data.worlds.films import dataset as films
from models.training.pipeline import data_window
from services.common.settings import Settings
from tests.artifacts import built, publish


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return films.load()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    settings = Settings()
    for name in settings.candidate_generation.models:
        recall = {name: {"mean": 0.0, "standard_error": 0.0, "users": 0}}
        publish(
            folder, name, built(name, dataset.items), dataset.items,
            metrics={"recall_at_50": recall}, data_window=data_window(dataset),
        )  # fmt: skip
    for name in settings.ranking.models:
        quality = {name: {"click auc": 0.5, "like auc": 0.5}}
        publish(
            folder, name, built(name, dataset.items), dataset.items,
            metrics={"quality": quality}, data_window=data_window(dataset),
        )  # fmt: skip
    return folder
