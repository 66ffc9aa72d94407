"""The publish contract: what is current stays current, and damage is never loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from models import artifact, serving
from models.artifact import ArtifactError
from models.catalogue import ItemTable
from models.ranking.masknet import MaskNet, MaskNetConfig
from models.retrieval.ssl_two_tower import SSLTwoTower, SSLTwoTowerConfig
from tests.unit.models import synthetic
from tests.unit.models.users import some_users

DATA = synthetic.dataset(users=40)
FILES = [
    "model.safetensors",
    "config.json",
    "schema.json",
    "item_keys.npy",
    "item_features.npy",
    "item_ids.json",
    "metrics.json",
    "data_window.json",
    "item_vectors.npy",
    "checksums.json",
]


def _two_tower(seed: int = 0) -> SSLTwoTower:
    torch.manual_seed(seed)
    model = SSLTwoTower(SSLTwoTowerConfig(len(DATA.items), len(DATA.tag_vocabulary), 8, (16,), 8))
    model.load_items(DATA.items)
    return model.eval()


def _publish(folder: Path, seed: int = 0, **changes: object) -> str:
    model = _two_tower(seed)
    parts: dict = {
        "tensors": model.state_dict(),
        "config": {"model": "ssl_two_tower", "parameters": model.config()},
        "items": DATA.items,
        "metrics": {"recall": 0.5},
        "data_window": {"until_ms": 1},
        "arrays": {"item_vectors": model.item_vectors().numpy()},
    }
    return artifact.publish(folder, "ssl_two_tower", **(parts | changes))


def test_a_published_model_answers_as_the_trained_one(tmp_path: Path) -> None:
    version = _publish(tmp_path)
    loaded = serving.load_retrieval(artifact.current(tmp_path, "ssl_two_tower"))
    users = some_users(4, len(DATA.items))
    assert (loaded.name, loaded.version) == ("ssl_two_tower", version)
    assert torch.equal(loaded.model.encode_users(users), _two_tower().encode_users(users))
    assert torch.equal(loaded.item_vectors, loaded.model.item_vectors())
    assert loaded.items.ids == DATA.items.ids


def test_a_published_ranking_model_answers_as_the_trained_one(tmp_path: Path) -> None:
    model = MaskNet(MaskNetConfig(len(DATA.items), width=4, units=8)).eval()
    model.load_items(DATA.items)
    artifact.publish(
        tmp_path,
        "masknet",
        tensors=model.state_dict(),
        config={"model": "masknet", "parameters": model.config()},
        items=DATA.items,
        metrics={},
        data_window={},
    )
    loaded = serving.load_ranking(artifact.current(tmp_path, "masknet")).model
    rows, zeros = torch.arange(5), torch.zeros(5, dtype=torch.long)
    users = some_users(1, len(DATA.items))
    one = loaded.score(loaded.user_part(users), zeros, rows, torch.ones(5, 3))
    assert torch.equal(one, model.score(model.user_part(users), zeros, rows, torch.ones(5, 3)))


def test_versions_sort_by_time_and_the_newest_is_current(tmp_path: Path) -> None:
    versions = [_publish(tmp_path, now_ms=1_700_000_000_000 + i) for i in (0, 1, 2_000)]
    assert versions == sorted(versions)
    assert artifact.current(tmp_path, "ssl_two_tower").name == versions[-1]
    assert len({v.split("-")[1] for v in versions}) == 1, "equal content, equal hash"


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_is_found_and_named(tmp_path: Path, file: str) -> None:
    _publish(tmp_path)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(ArtifactError, match=file):
        artifact.load_verified(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_found_and_named(tmp_path: Path, file: str) -> None:
    _publish(tmp_path)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    os.truncate(folder / file, (folder / file).stat().st_size - 1)
    with pytest.raises(ArtifactError, match=file):
        artifact.load_verified(folder)


@pytest.mark.parametrize("file", [*FILES, "READY"])
def test_a_missing_file_is_found_and_named(tmp_path: Path, file: str) -> None:
    _publish(tmp_path)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    (folder / file).unlink()
    with pytest.raises(ArtifactError, match=file):
        artifact.load_verified(folder)


def _signed_anew(folder: Path) -> None:
    """Let the checksums confirm whatever the version's files hold now."""
    sums = {p.name: artifact._checksum(p) for p in folder.iterdir() if p.name in FILES[:-1]}
    (folder / "checksums.json").write_text(json.dumps(sums))
    ready = {**json.loads((folder / "READY").read_text())}
    ready["checksums"] = artifact._checksum(folder / "checksums.json")
    (folder / "READY").write_text(json.dumps(ready))


@pytest.mark.parametrize(
    "changed",
    [
        lambda ids: [ids[0], *ids[:0:-1]],
        lambda ids: [*ids[:-1], ids[1]],
        lambda ids: [ids[0], *range(1, len(ids))],
        lambda ids: dict.fromkeys(ids, 0),
        lambda ids: ["first", *ids[1:]],
        lambda ids: ids[:-1],
    ],
)
def test_no_version_gives_an_item_the_id_of_another(
    tmp_path: Path, changed: Callable[[list[str]], object]
) -> None:
    _publish(tmp_path)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    (folder / "item_ids.json").write_text(json.dumps(changed(DATA.items.ids)))
    _signed_anew(folder)
    for load in (artifact.load_items, artifact.load_verified):
        with pytest.raises(ArtifactError, match="cannot be read"):
            load(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(tmp_path: Path, file: str) -> None:
    _publish(tmp_path)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(ArtifactError, match=f"{file}: .*no regular file"):
        artifact.load_verified(folder)


def test_checksums_that_confirm_nothing_are_refused(tmp_path: Path) -> None:
    _publish(tmp_path)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    for file in FILES[:-1]:
        (folder / file).rename(folder / f"{file}.away")
    _signed_anew(folder)
    with pytest.raises(ArtifactError, match=r"checksums\.json: confirms no "):
        artifact.load_verified(folder)


@pytest.mark.parametrize("part", ["groups", "profile", "item", "meaning", "history", "features"])
def test_another_schema_is_refused(tmp_path: Path, part: str) -> None:
    _publish(tmp_path)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    document = json.loads((folder / "schema.json").read_text())
    match part:
        case "profile":
            del document["groups"]["profile"]
        case "features":
            document["groups"]["history"]["hash"] = "0123456789abcdef"
        case _:
            document[part] = {}
    (folder / "schema.json").write_text(json.dumps(document))
    _signed_anew(folder)
    with pytest.raises(ArtifactError, match=r"schema\.json: made with another"):
        artifact.load_verified(folder)


def test_an_item_table_that_models_do_not_read_is_refused(tmp_path: Path) -> None:
    features = np.zeros(2, [("brand", "<u8")])
    artifact.publish(
        tmp_path,
        "other",
        tensors={"w": torch.zeros(1)},
        config={"model": "other", "parameters": {}},
        items=ItemTable.build(["a", "b"], features),
        metrics={},
        data_window={},
    )
    folder = artifact.current(tmp_path, "other")
    for load in (artifact.load_verified, artifact.load_items):
        with pytest.raises(ArtifactError, match="another item table than models read"):
            load(folder)


def test_groups_that_no_model_reads_may_be_others(tmp_path: Path) -> None:
    _publish(tmp_path)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    document = json.loads((folder / "schema.json").read_text())
    document["groups"]["user_delivery"] = {"hash": "0123"}
    (folder / "schema.json").write_text(json.dumps(document))
    _signed_anew(folder)
    artifact.load_verified(folder)


def test_a_publisher_killed_midway_leaves_the_current_version(tmp_path: Path) -> None:
    version = _publish(tmp_path)
    code = """
import os, signal, sys
from pathlib import Path
from models import artifact
from tests.unit.models.test_artifact import _publish
write = artifact._write_json
def die(path, document):
    if path.name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, document)
artifact._write_json = die
_publish(Path(sys.argv[1]), seed=1)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "READY"], check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    folder = artifact.current(tmp_path, "ssl_two_tower")
    assert artifact.load_verified(folder).version == version
    (half,) = folder.parent.glob(".building-*")
    with pytest.raises(ArtifactError, match="READY"):
        artifact.load_verified(half)


def test_a_version_that_never_became_current_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = _publish(tmp_path)

    def killed(folder: Path, version: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact, "_make_current", killed)
    with pytest.raises(KeyboardInterrupt):
        _publish(tmp_path, seed=1)
    assert artifact.current(tmp_path, "ssl_two_tower").name == version


def test_a_failing_publish_cleans_up_and_changes_nothing(tmp_path: Path) -> None:
    version = _publish(tmp_path)
    with pytest.raises(TypeError):
        _publish(tmp_path, metrics={"no json": object()})
    versions = tmp_path / "ssl_two_tower" / "versions"
    assert [p.name for p in versions.iterdir()] == [version]
    assert artifact.current(tmp_path, "ssl_two_tower").name == version


def test_nothing_published_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="tandem train"):
        artifact.current(tmp_path, "masknet")


@pytest.mark.parametrize("document", [{"version": "../elsewhere"}, {"version": 3}, {}, []])
def test_a_current_file_that_names_no_version_is_refused(tmp_path: Path, document: object) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "current.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"current\.json"):
        artifact.current(tmp_path, "m")


def test_a_service_refuses_the_other_services_model(tmp_path: Path) -> None:
    _publish(tmp_path)
    with pytest.raises(ArtifactError, match="ssl_two_tower"):
        serving.load_ranking(artifact.current(tmp_path, "ssl_two_tower"))


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path: Path) -> None:
    tensors = dict(_two_tower().state_dict())
    tensors.pop("default")
    _publish(tmp_path, tensors=tensors)
    with pytest.raises(ArtifactError, match="disagree"):
        serving.load_retrieval(artifact.current(tmp_path, "ssl_two_tower"))


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    vectors = np.full((len(DATA.items) + 1, 8), np.nan, np.float32)
    _publish(tmp_path, arrays={"item_vectors": vectors})
    with pytest.raises(ArtifactError, match="item_vectors"):
        serving.load_retrieval(artifact.current(tmp_path, "ssl_two_tower"))


def test_a_weight_that_is_not_finite_is_found_and_named(tmp_path: Path) -> None:
    tensors = dict(_two_tower().state_dict())
    tensors["id_table.weight"][-1, -1] = torch.inf
    _publish(tmp_path, tensors=tensors)
    with pytest.raises(ArtifactError, match=r"id_table\.weight holds NaN or infinity"):
        serving.load_retrieval(artifact.current(tmp_path, "ssl_two_tower"))


def test_memory_that_is_not_to_be_had_is_not_held_against_the_version(tmp_path: Path) -> None:
    config = {"model": "ssl_two_tower", "parameters": _two_tower().config() | {"num_items": 10**14}}
    _publish(tmp_path, config=config)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        serving.load_retrieval(artifact.current(tmp_path, "ssl_two_tower"))


def test_an_item_table_that_no_checksum_confirms_is_refused(tmp_path: Path) -> None:
    _publish(tmp_path)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    assert artifact.load_items(folder).ids == DATA.items.ids
    sums = json.loads((folder / "checksums.json").read_text())
    del sums["item_ids.json"]
    (folder / "checksums.json").write_text(json.dumps(sums))
    ready = json.loads((folder / "READY").read_text())
    ready["checksums"] = xxhash.xxh3_128_hexdigest((folder / "checksums.json").read_bytes())
    (folder / "READY").write_text(json.dumps(ready))
    with pytest.raises(ArtifactError, match=r"confirms no item_ids\.json"):
        artifact.load_items(folder)
