"""What is in force stays in force until another version has been loaded whole."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from models import artifact, catalogue
from models.artifact import ArtifactError
from services.common.current_version import CurrentVersion
from services.router.popularity import CurrentPopular
from tests.artifacts import publish_items, small_items

NAME = "model"


def publish(artifacts: Path, items: int = 5) -> Path:
    """A version that differs from others in the number of its items."""
    version = publish_items(artifacts, NAME, small_items(items), tensors={"weight": torch.ones(1)})
    return artifacts / NAME / "versions" / version


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Followed:
    """A current version whose clock passes a minute between any two looks."""

    def __init__(self, artifacts: Path, load: Callable[[Path], object] | None = None) -> None:
        self.clock = Clock()
        self.version: CurrentVersion = (
            CurrentPopular(artifacts, NAME, monotonic=self.clock)
            if load is None
            else CurrentVersion(artifacts, NAME, load, what="model", monotonic=self.clock)
        )

    def refresh(self) -> bool:
        self.clock.now += 60
        return self.version.refresh()


def swaps(outcome: str) -> float:
    labels = {"model": NAME, "outcome": outcome}
    return REGISTRY.get_sample_value("tandem_model_swaps_total", labels) or 0.0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", [*catalogue.FILES, "schema.json", "checksums.json", "READY"])
@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["altered", "missing"])
def test_a_damaged_version_is_not_taken_and_told_once(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    publish(tmp_path)
    subject = Followed(tmp_path)
    assert subject.refresh()
    first, before = subject.version.loaded, swaps("refused")
    damage(publish(tmp_path, 6) / file)
    with capture_logs() as logs:
        assert [subject.refresh() for _ in range(3)] == [False] * 3
    assert subject.version.loaded is first
    assert swaps("refused") == before + 1
    (line,) = logs
    assert line["event"] == "popular_refused"
    assert file in line["error"] or "READY" in line["error"]
    publish(tmp_path, 7)
    assert subject.refresh()


def test_a_catalogue_needs_no_weights(tmp_path: Path) -> None:
    flip(publish(tmp_path) / "model.safetensors")
    assert Followed(tmp_path).refresh()
    assert not Followed(tmp_path, artifact.load_verified).refresh()


@pytest.mark.parametrize("load", [None, artifact.load_verified], ids=["catalogue", "model"])
@pytest.mark.parametrize("descending", [False, True], ids=["READY first", "READY last"])
def test_a_version_that_is_being_copied_is_taken_when_it_is_whole(
    tmp_path: Path, load: Callable[[Path], object] | None, descending: bool
) -> None:
    source = publish(tmp_path / "source")
    here = tmp_path / "here" / NAME
    copied = here / "versions" / source.name
    copied.mkdir(parents=True)
    (here / "current.json").write_text(json.dumps({"version": source.name}))
    subject = Followed(here.parent, load)
    files = sorted(path.name for path in source.iterdir())
    for file in sorted(files, reverse=descending):
        assert not subject.refresh()
        content = (source / file).read_bytes()
        (copied / file).write_bytes(content[: len(content) // 2])
        assert not subject.refresh()
        (copied / file).write_bytes(content)
    assert subject.refresh()


TRANSIENT = [
    OSError(5, "Input/output error"),
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("a request from elsewhere made the model raise"),
    artifact.ArtifactUnreachable("the disk does not answer"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
def test_what_says_nothing_about_a_version_is_tried_again(tmp_path: Path, error: Exception) -> None:
    failing = [False, True, True, True, False]

    def load(folder: Path) -> str:
        if failing.pop(0):
            raise error
        return folder.name

    publish(tmp_path)
    subject = Followed(tmp_path, load)
    assert subject.refresh()
    first, second, before = subject.version.loaded, publish(tmp_path).name, swaps("postponed")
    with capture_logs() as logs:
        assert [subject.refresh() for _ in range(3)] == [False] * 3
    assert subject.version.loaded == first
    assert [line["event"] for line in logs] == ["model_postponed"]
    assert swaps("postponed") == before + 1
    assert subject.refresh()
    assert subject.version.loaded == second


def test_what_was_refused_for_its_content_is_not_loaded_again_before_that_changes(
    tmp_path: Path,
) -> None:
    loads: list[str] = []

    def load(folder: Path) -> str:
        loads.append(folder.name)
        if len(loads) == 2:
            raise ArtifactError("NaN")
        return folder.name

    publish(tmp_path)
    subject = Followed(tmp_path, load)
    subject.refresh()
    folder = publish(tmp_path)
    assert [subject.refresh() for _ in range(5)] == [False] * 5
    assert len(loads) == 2
    shutil.copy(folder / "READY", folder / "READY.again")
    assert subject.refresh()


def test_trying_again_takes_at_most_a_tenth_of_the_time(tmp_path: Path) -> None:
    clock, tried_at = Clock(), []

    def load(folder: Path) -> object:
        tried_at.append(clock.now)
        clock.now += 5
        raise OSError("slow, and then nothing")

    publish(tmp_path)
    subject = CurrentVersion(tmp_path, NAME, load, what="model", monotonic=clock)
    while clock.now < 200:
        subject.refresh()
        clock.now += 1
    assert tried_at == [0, 55, 110, 165]


def test_a_file_that_cannot_be_read_now_says_nothing_about_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path)
    subject = Followed(tmp_path)
    subject.refresh()
    first = subject.version.loaded
    file = publish(tmp_path, 6) / "item_ids.json"
    content = file.read_bytes()
    file.unlink()
    with socket.socket(socket.AF_UNIX) as unreadable, capture_logs() as logs:
        monkeypatch.chdir(file.parent)  # a socket's path must be short
        unreadable.bind(file.name)
        assert not subject.refresh()
    assert subject.version.loaded is first
    assert [line["event"] for line in logs] == ["popular_postponed"]
    file.unlink()
    file.write_bytes(content)
    assert subject.refresh()


BAD_CURRENT = {
    "deep": b"[" * 100_000,
    "binary": bytes(range(256)),
    "empty": b"",
    "a list": b"[]",
    "above": b'{"version": ".."}',
    "no name": b'{"version": ""}',
    "nul": b'{"version": "a\\u0000b"}',
    "long": json.dumps({"version": "a" * 10_000}).encode(),
    "not there": b'{"version": "gone"}',
}


@pytest.mark.parametrize("content", [*BAD_CURRENT.values(), None], ids=[*BAD_CURRENT, "a folder"])
def test_whatever_current_json_holds_is_told_once_and_changes_nothing(
    tmp_path: Path, content: bytes | None
) -> None:
    publish(tmp_path)
    subject = Followed(tmp_path)
    subject.refresh()
    first, current = subject.version.loaded, tmp_path / NAME / "current.json"
    current.unlink()
    if content is None:
        current.mkdir()
    else:
        current.write_bytes(content)
    with capture_logs() as logs:
        assert [subject.refresh() for _ in range(3)] == [False] * 3
    assert len(logs) == 1
    assert subject.version.loaded is first


def test_a_catalogue_outlives_its_folder_and_is_followed_when_that_is_back(tmp_path: Path) -> None:
    publish(tmp_path / "artifacts")
    subject = Followed(tmp_path / "artifacts")
    subject.refresh()
    (tmp_path / "artifacts").rename(tmp_path / "away")
    assert not subject.refresh()
    assert len(subject.version.loaded.keys) == 5
    publish(tmp_path / "away", 6)
    (tmp_path / "away").rename(tmp_path / "artifacts")
    assert subject.refresh()
    assert len(subject.version.loaded.keys) == 6


def test_who_starts_without_a_version_has_one_as_soon_as_there_is_one(tmp_path: Path) -> None:
    subject = Followed(tmp_path)
    with capture_logs() as logs:
        assert not subject.refresh()
        assert not subject.refresh()
    assert not subject.version.in_force
    assert "nothing published yet" in logs[0]["error"]
    assert "waiting" in logs[0]["in_force"]
    publish(tmp_path)
    assert subject.refresh()


def test_who_starts_with_a_damaged_version_serves_what_its_predecessor_serves(
    tmp_path: Path,
) -> None:
    publish(tmp_path, 4)
    publish(tmp_path, 5)
    predecessor = Followed(tmp_path)
    predecessor.refresh()
    flip(publish(tmp_path, 6) / "item_ids.json")
    folder = publish(tmp_path, 7)
    content = (folder / "item_ids.json").read_bytes()
    flip(folder / "item_ids.json")
    subject = Followed(tmp_path)
    assert subject.refresh()
    assert not predecessor.refresh()
    assert len(subject.version.loaded.keys) == len(predecessor.version.loaded.keys) == 5
    assert not subject.refresh()
    (folder / "item_ids.json").write_bytes(content)
    assert subject.refresh()
    assert len(subject.version.loaded.keys) == 7


def test_a_version_that_is_refused_again_after_another_is_told_again(tmp_path: Path) -> None:
    good = publish(tmp_path)
    subject = Followed(tmp_path)
    subject.refresh()
    bad = publish(tmp_path)
    flip(bad / "READY")
    current = tmp_path / NAME / "current.json"
    with capture_logs() as logs:
        for folder in (bad, good, bad):
            current.write_text(json.dumps({"version": folder.name}))
            assert not subject.refresh()
    assert len(logs) == 2
