"""Models for the whole session: untrained, but of the shipped data, so that the demo uses them.

The test of the whole demo trains its own; what the others test does not depend on what a model
knows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from models.data import events
from models.training.pipeline import data_window
from services.common.settings import Settings
from tests.artifacts import publish_untrained


@pytest.fixture(scope="session")
def dataset() -> events.Dataset:
    return events.load()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, dataset: events.Dataset) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    settings = Settings()
    for name in settings.candidate_generation.models:
        recall = {name: {"mean": 0.0, "standard_error": 0.0, "users": 0}}
        publish_untrained(
            folder, name, dataset.items, {"num_tags": len(dataset.tag_vocabulary)},
            metrics={"recall_at_50": recall}, data_window=data_window(dataset),
        )  # fmt: skip
    for name in settings.ranking.models:
        auc = {name: {"click": 0.5, "like": 0.5}}
        publish_untrained(
            folder, name, dataset.items, {},
            metrics={"auc": auc}, data_window=data_window(dataset),
        )  # fmt: skip
    return folder
