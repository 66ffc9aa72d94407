"""The publish contract: what is current stays current, and damage is never loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from models import artifact, sealed, serving
from models.artifact import ArtifactError
from models.catalogue import ItemTable
from models.data.worlds.films.schema import GENRES, SCHEMA
from models.retrieval.ssl_two_tower import SSLTwoTower
from tests.artifacts import built, publish
from tests.unit.models import synthetic

DATA = synthetic.dataset(users=40)
FILES = [
    "model.safetensors",
    "config.json",
    "schema.json",
    "item_keys.npy",
    "item_features.npy",
    "item_ids.json",
    "item_counts.npy",
    "item_vocabularies.npz",
    "metrics.json",
    "data_window.json",
    "checksums.json",
]


def _two_tower(seed: int = 0) -> SSLTwoTower:
    sizes = {"field_width": 8, "hidden": (16,), "width": 8}
    model: SSLTwoTower = built("ssl_two_tower", DATA.items, seed=seed, **sizes)
    return model


def _publish(folder: Path, seed: int = 0, items: ItemTable = DATA.items, **changes: object) -> str:
    known: dict[str, object] = {"metrics": {"recall": 0.5}, "data_window": {"until_ms": 1}}
    model = _two_tower(seed)
    return publish(folder, "ssl_two_tower", model, items, **(known | changes))


def test_a_published_version_is_what_was_published(tmp_path: Path) -> None:
    """Of what its model answers see `ranking/test_declared.py`."""
    version = _publish(tmp_path)
    folder, model = artifact.current(tmp_path, "ssl_two_tower"), _two_tower()
    found = artifact.load_verified(folder, SCHEMA)
    assert (found.name, found.version, found.folder) == ("ssl_two_tower", version, folder)
    assert found.reads == model.reads
    assert found.items.ids == DATA.items.ids
    assert (found.metrics, found.data_window) == ({"recall": 0.5}, {"until_ms": 1})
    assert all(torch.equal(found.tensors[key], value) for key, value in model.state_dict().items())
    loaded = serving.load_retrieval(folder)
    assert (loaded.name, loaded.version) == ("ssl_two_tower", version)
    assert loaded.model.config() == model.config()


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
    sums = {p.name: sealed.checksum(p) for p in folder.iterdir() if p.name in FILES[:-1]}
    (folder / "checksums.json").write_text(json.dumps(sums))
    ready = {**json.loads((folder / "READY").read_text())}
    ready["checksums"] = sealed.checksum(folder / "checksums.json")
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


@pytest.mark.parametrize(
    "changed",
    [
        lambda d: {key: d[key] for key in d if key != "reads"},
        lambda d: d | {"reads": None},
        lambda d: d | {"reads": []},
        lambda d: d | {"reads": {}},
        lambda d: d | {"reads": {**d["reads"], "sources": [{"how": "guess"}]}},
        lambda d: d | {"reads": {**d["reads"], "history": "long"}},
        lambda d: {"groups": {}, "item": [], "meaning": {}},  # of builds before
    ],
)
def test_what_does_not_say_what_it_reads_is_refused(
    tmp_path: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    _publish(tmp_path)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    document = json.loads((folder / "schema.json").read_text())
    (folder / "schema.json").write_text(json.dumps(changed(document)))
    _signed_anew(folder)
    with pytest.raises(ArtifactError, match=r"schema\.json: does not say what the model reads"):
        artifact.load_verified(folder)


VALUES = list(GENRES)
OTHER_ITEMS: dict[str, Any] = {
    "no such field": {"features": ["year", "tags"]},
    "another type": {"dtype": "<u8"},
    "another first value": {"values": [VALUES[1], VALUES[0], *VALUES[2:]]},
    "hashes": {"values": []},
}


@pytest.mark.parametrize("case", OTHER_ITEMS)
def test_items_without_what_is_looked_at_beside_the_model_are_refused(
    tmp_path: Path, case: str
) -> None:
    """Of the films the genres: affinities count them and lists are diverse by them."""
    change, items = OTHER_ITEMS[case], DATA.items
    features = items.features
    if "features" in change:
        features = features[change["features"]]
    if "dtype" in change:
        wide = [(n, "<u8", (10,)) if n == "genres" else (n, features.dtype[n])
                for n in features.dtype.names]  # fmt: skip
        features = features.astype(wide)
    other = ItemTable(items.ids, items.keys, features, items.counts, items.vocabularies)
    _publish(tmp_path, items=other)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    if "values" in change:
        document = json.loads((folder / "schema.json").read_text())
        document["item_values"]["genres"] = change["values"]
        (folder / "schema.json").write_text(json.dumps(document))
        _signed_anew(folder)
    for load in (artifact.load_verified, artifact.load_items):
        with pytest.raises(ArtifactError, match="items have no field genres"):
            load(folder, SCHEMA)
        assert len(_items(load(folder))) == len(items)  # whoever has no schema takes it as it is


def _items(found: Any) -> ItemTable:
    items: ItemTable = getattr(found, "items", found)
    return items


@pytest.mark.parametrize("values", [VALUES[:-1], [*VALUES, "Opera"]])
def test_items_may_know_more_or_fewer_values(tmp_path: Path, values: list[str]) -> None:
    _publish(tmp_path)
    folder = artifact.current(tmp_path, "ssl_two_tower")
    document = json.loads((folder / "schema.json").read_text())
    document["item_values"]["genres"] = values
    (folder / "schema.json").write_text(json.dumps(document))
    _signed_anew(folder)
    artifact.load_verified(folder, SCHEMA)
    artifact.load_items(folder, SCHEMA)


def test_a_publisher_killed_midway_leaves_the_current_version(tmp_path: Path) -> None:
    version = _publish(tmp_path)
    code = """
import os, signal, sys
from pathlib import Path
from models import sealed
from tests.unit.models.test_artifact import _publish
write = sealed.write_json
def die(path, document):
    if path.name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, document)
sealed.write_json = die
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


def test_a_config_of_another_build_is_refused(tmp_path: Path) -> None:
    model = built("dnn", DATA.items)
    for parameters in ({}, {"settings": {}}, {"num_items": 3, "width": 4}, [],
                       {**model.config(), "settings": {"depth": 3}}):  # fmt: skip
        publish(tmp_path, "dnn", model, DATA.items,
                config={"model": "dnn", "parameters": parameters})  # fmt: skip
        with pytest.raises(ArtifactError, match=r"config\.json: .*disagree"):
            serving.load_ranking(artifact.current(tmp_path, "dnn"))


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """Though each weight is finite."""
    tensors = {k: v.clone() for k, v in _two_tower().state_dict().items()}
    for layer in (0, 2):
        tensors[f"item_mlp.{layer}.weight"] *= 1e30
    _publish(tmp_path, tensors=tensors)
    with pytest.raises(ArtifactError, match="makes NaN or infinity of an item"):
        serving.load_retrieval(artifact.current(tmp_path, "ssl_two_tower"))


def test_a_weight_that_is_not_finite_is_found_and_named(tmp_path: Path) -> None:
    tensors = dict(_two_tower().state_dict())
    tensors["tables.table.weight"] = tensors["tables.table.weight"].clone()
    tensors["tables.table.weight"][-1, -1] = torch.inf
    _publish(tmp_path, tensors=tensors)
    with pytest.raises(ArtifactError, match=r"table\.weight holds NaN or infinity"):
        serving.load_retrieval(artifact.current(tmp_path, "ssl_two_tower"))


def test_memory_that_is_not_to_be_had_is_not_held_against_the_version(tmp_path: Path) -> None:
    parameters = _two_tower().config() | {"field_width": 10**13}
    config = {"model": "ssl_two_tower", "parameters": parameters}
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
