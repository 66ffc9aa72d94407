"""A model's version is warmed before it is served, and one model's trouble is not another's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from models.artifact import ArtifactError
from models.serving import load_retrieval
from services.common.model_service.model_slot import ModelSlot, any_in_force, warm_up_jobs
from tests.artifacts import publish_small, small_items


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    publish_small(tmp_path, ["ssl_two_tower"])
    return tmp_path


def slot(artifacts: Path, name: str = "ssl_two_tower") -> ModelSlot:
    return ModelSlot(name, artifacts, load_retrieval, lambda loaded, recent: None)


def test_a_published_version_is_warmed_with_what_was_asked_and_then_served(artifacts):
    warmed: list[tuple[str, list[int]]] = []
    subject = ModelSlot(
        "ssl_two_tower",
        artifacts,
        load_retrieval,
        lambda loaded, recent: warmed.append((loaded.version, recent)),
    )
    assert subject.refresh()
    first = subject.loaded.version
    assert not subject.refresh()
    subject.recent.extend(range(20))
    publish_small(artifacts, ["ssl_two_tower"], items=small_items(30), seed=1)
    assert subject.refresh()
    assert subject.loaded.version != first
    assert len(subject.loaded.items) == 30
    assert warmed == [(first, []), (subject.loaded.version, list(range(4, 20)))]


def test_a_version_whose_answers_are_none_is_refused(artifacts):
    versions: list[str] = []

    def warm(loaded, recent):
        versions.append(loaded.version)
        if len(versions) > 1:
            raise ArtifactError("NaN")

    subject = ModelSlot("ssl_two_tower", artifacts, load_retrieval, warm)
    subject.refresh()
    publish_small(artifacts, ["ssl_two_tower"], seed=1)
    assert not subject.refresh()
    assert subject.loaded.version == versions[0]


async def test_a_replica_begins_as_soon_as_one_of_its_models_can_be_served(artifacts):
    slots = [slot(artifacts, "not_published"), slot(artifacts)]
    await any_in_force(slots, 0.01)
    assert [s.in_force for s in slots] == [False, True]


async def test_a_replica_waits_for_its_first_version(tmp_path):
    subject = slot(tmp_path)
    waiting = asyncio.create_task(any_in_force([subject], 0.01))
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, publish_small, tmp_path, ["ssl_two_tower"])
    await asyncio.wait_for(waiting, 20)
    assert subject.in_force


def test_warming_uses_the_recorded_requests_alone_and_together():
    assert warm_up_jobs([], [0]) == [[0], [0]]
    assert warm_up_jobs([2, 3], [0, 1]) == [[0], [1], [2], [3], [0, 1, 2, 3]]
