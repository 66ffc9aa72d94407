"""The publish contract: how a trained model becomes an immutable, verifiable folder.

    <artifacts>/<name>/versions/<version>/   model.safetensors  config.json  schema.json
                                             item_keys.npy  item_features.npy  item_ids.json
                                             metrics.json  data_window.json  [<array>.npy ...]
                                             checksums.json  READY
    <artifacts>/<name>/current.json          {"version": ...}: what replicas serve

`publish` builds the folder under a temporary name in the same file system, fsyncs every file,
writes READY last (it holds the checksum of checksums.json), renames the folder to its version and
then replaces current.json atomically. A crash at any point leaves `current` as it was; at worst a
`.building-*` folder stays behind, which nobody reads. `load_verified` trusts nothing that READY and
the checksums do not confirm. No pickle is ever written or read.

Not guaranteed: of two publishers of one name at the same moment, either may end up current.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from safetensors import SafetensorError

from models.catalogue import ItemTable
from models.schema import schema_document

if TYPE_CHECKING:
    # Weights are torch's, but whoever only asks for the current version (the router, the updater)
    # is spared its 300 MB: the functions below import it when they touch weights.
    import torch

WEIGHTS, CHECKSUMS, READY = "model.safetensors", "checksums.json", "READY"
CONFIG, SCHEMA, METRICS, DATA_WINDOW = (
    "config.json", "schema.json", "metrics.json", "data_window.json",
)  # fmt: skip


class ArtifactError(Exception):
    """An artifact cannot be published or trusted; the message names the file and the reason."""


@dataclass(frozen=True)
class Artifact:
    """The verified parts of one version; the item features and arrays stay memory-mapped."""

    folder: Path
    name: str
    version: str
    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    items: ItemTable
    metrics: dict[str, Any]
    data_window: dict[str, Any]

    def array(self, name: str) -> np.ndarray:
        """The published array `name`, read-only and memory-mapped."""
        return _read(self.folder / f"{name}.npy", lambda p: np.load(p, mmap_mode="r"))


def publish(
    artifacts_dir: Path,
    name: str,
    *,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    items: ItemTable,
    metrics: Mapping[str, Any],
    data_window: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
    now_ms: int | None = None,
) -> str:
    """Publish a version and make it current; returns its id (sorts by time, ends in a hash).

    `config["model"]` says which class loads it; `config["parameters"]` are that class's own.
    """
    from safetensors import torch as safetensors_torch

    versions = artifacts_dir / name / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=versions))
    try:
        cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        safetensors_torch.save_file(cpu, building / WEIGHTS)
        items.save(building)
        for key, array in (arrays or {}).items():
            np.save(building / f"{key}.npy", array, allow_pickle=False)
        for file, document in (
            (CONFIG, config),
            (SCHEMA, schema_document()),
            (METRICS, metrics),
            (DATA_WINDOW, data_window),
        ):
            _write_json(building / file, document)
        sums = {path.name: _checksum(path) for path in sorted(building.iterdir())}
        _write_json(building / CHECKSUMS, sums)
        digest = _checksum(building / CHECKSUMS)
        moment = datetime.fromtimestamp((now_ms or time.time_ns() // 1_000_000) / 1000, UTC)
        version = f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}Z-{digest[:8]}"
        for path in building.iterdir():
            _fsync(path)
        ready = {"name": name, "version": version, "checksums": digest}
        _write_json(building / READY, ready)
        _fsync(building / READY)
        building.chmod(0o755)  # mkdtemp makes it private; replicas may run as another user
        _fsync(building)
        building.rename(versions / version)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise ArtifactError(f"{versions}: cannot publish {name} ({error})") from error
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    _fsync(versions)
    _make_current(artifacts_dir / name, version)
    return version


def current(artifacts_dir: Path, name: str) -> Path:
    """The folder of the version that replicas should serve now."""
    path = artifacts_dir / name / "current.json"
    if not path.is_file():
        raise ArtifactError(f"{path}: nothing published yet: run `tandem train`")
    version = _read_json(path).get("version")
    if not isinstance(version, str) or Path(version).name != version:
        raise ArtifactError(f"{path}: names no version")
    return path.parent / "versions" / version


def load_verified(folder: Path) -> Artifact:
    """Read a version after checking READY, every checksum and the schema."""
    from safetensors import torch as safetensors_torch

    if not (folder / READY).is_file():
        raise ArtifactError(f"{folder / READY}: missing: the version was not fully published")
    ready = _read_json(folder / READY)
    if _checksum(folder / CHECKSUMS) != ready.get("checksums"):
        raise ArtifactError(f"{folder / CHECKSUMS}: does not match READY: publish again")
    for file, expected in _read_json(folder / CHECKSUMS).items():
        if _checksum(folder / file) != expected:
            raise ArtifactError(f"{folder / file}: checksum mismatch: truncated or altered")
    # Through JSON and back, so that tuples compare as the lists they were stored as.
    if _read_json(folder / SCHEMA) != json.loads(json.dumps(schema_document())):
        raise ArtifactError(
            f"{folder / SCHEMA}: made with another feature schema: train with this code"
        )
    return Artifact(
        folder,
        str(ready["name"]),
        str(ready["version"]),
        _read(folder / WEIGHTS, safetensors_torch.load_file),
        _read_json(folder / CONFIG),
        _read(folder, ItemTable.load),
        _read_json(folder / METRICS),
        _read_json(folder / DATA_WINDOW),
    )


def _make_current(folder: Path, version: str) -> None:
    """Point current.json at `version` in one atomic step."""
    handle, temporary = tempfile.mkstemp(prefix=".current-", dir=folder)
    with os.fdopen(handle, "w") as file:
        json.dump({"version": version}, file)
        file.flush()
        os.fsync(file.fileno())
    path = Path(temporary)
    path.chmod(0o644)
    path.replace(folder / "current.json")
    _fsync(folder)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False))


def _read_json(path: Path) -> dict[str, Any]:
    document = _read(path, lambda p: json.loads(p.read_text()))
    if not isinstance(document, dict):
        raise ArtifactError(f"{path}: is not a JSON object")
    return document


def _read(path: Path, reader: Any) -> Any:
    """`reader(path)`, its failures turned into ArtifactError."""
    try:
        return reader(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error})") from error


def _checksum(path: Path) -> str:
    """xxh3-128 of a file: guards against damage, not against an attacker."""
    return str(_read(path, lambda p: xxhash.xxh3_128_hexdigest(p.read_bytes())))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
