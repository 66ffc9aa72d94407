"""A new version is taken up whole, and a broken one leaves the old one serving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import artifact
from models.serving import load_retrieval
from services.common.catalogue import CurrentCatalogue
from services.common.model_slot import ModelSlot, warm_up_jobs
from tests.artifacts import publish_small, small_items


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    publish_small(tmp_path)
    return tmp_path


def slot(artifacts: Path, warmed: list[str]) -> ModelSlot:
    return ModelSlot(
        "ssl_two_tower", artifacts, load_retrieval, lambda loaded: warmed.append(loaded.version)
    )


def test_a_published_version_is_warmed_and_then_served(artifacts):
    warmed: list[str] = []
    subject = slot(artifacts, warmed)
    first = subject.loaded.version
    assert not subject.refresh()
    publish_small(artifacts, items=small_items(30), seed=1)
    assert subject.refresh()
    assert subject.loaded.version != first
    assert len(subject.loaded.items) == 30
    assert warmed == [first, subject.loaded.version]


def test_a_damaged_version_is_refused_once_and_the_old_one_serves_on(artifacts):
    warmed: list[str] = []
    subject = slot(artifacts, warmed)
    first = subject.loaded
    publish_small(artifacts, seed=1)
    weights = artifact.current(artifacts, "ssl_two_tower") / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert not subject.refresh()
    assert not subject.refresh()
    assert subject.loaded is first
    publish_small(artifacts, seed=2)
    assert subject.refresh()


def test_a_version_that_cannot_be_warmed_is_refused(artifacts):
    versions: list[str] = []

    def warm(loaded):
        versions.append(loaded.version)
        if len(versions) > 1:
            raise RuntimeError("out of memory")

    subject = ModelSlot("ssl_two_tower", artifacts, load_retrieval, warm)
    publish_small(artifacts, seed=1)
    assert not subject.refresh()
    assert subject.loaded.version == versions[0]


def test_without_any_version_a_replica_does_not_start(tmp_path):
    with pytest.raises(artifact.ArtifactError):
        slot(tmp_path, [])


def test_the_catalogue_follows_and_survives_a_bad_publish(artifacts):
    now = [0.0]
    subject = CurrentCatalogue(artifacts, "ssl_two_tower", monotonic=lambda: now[0])
    publish_small(artifacts, items=small_items(30))
    assert len(subject.refresh_if_due(1.0)) == 60
    now[0] = 1.0
    assert len(subject.refresh_if_due(1.0)) == 30
    current = artifacts / "ssl_two_tower" / "current.json"
    current.write_text(json.dumps({"version": "gone"}))
    subject.refresh()
    assert len(subject.items) == 30


def test_warming_uses_the_recorded_requests_alone_and_together():
    assert warm_up_jobs([], 0) == [[0], [0]]
    assert warm_up_jobs([1, 2], 0) == [[1], [2], [1, 2]]
