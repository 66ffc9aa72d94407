"""The publish contract: how a trained model becomes an immutable, verifiable folder.

    <artifacts>/<name>/versions/<version>/   model.safetensors  config.json  schema.json
                                             item_keys.npy  item_features.npy  item_ids.json
                                             metrics.json  data_window.json
                                             checksums.json  READY
    <artifacts>/<name>/current.json          {"version": ...}: what replicas serve

`publish` builds the folder under a temporary name in the same file system, fsyncs every file,
writes READY last (it holds the checksum of checksums.json), renames the folder to its version and
then replaces current.json atomically. A crash at any point leaves `current` as it was; at worst a
`.building-*` folder stays behind, which nobody reads. `load_verified` trusts nothing that READY and
the checksums do not confirm; `load_items` reads of a version no more than its item table, and
trusts that as little. No pickle is ever written or read.

schema.json says what the model reads of the domain, and which values the ids of its items' fields
stand for. It is compared with the schema of who loads the version: what that declares besides does
not matter.

Not guaranteed: of two publishers of one name at the same moment, either may end up current.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from safetensors import SafetensorError

from models import catalogue, sealed
from models.catalogue import ItemTable
from models.files import replace_whole, sync
from models.schema.compiled import Schema
from models.schema.declaration import Declaration
from models.schema.inputs import Reads

if TYPE_CHECKING:
    # Weights are torch's, but whoever only asks for the current version (the router, the updater)
    # is spared its 300 MB: the functions below import it when they touch weights.
    import torch

WEIGHTS, READY = "model.safetensors", sealed.READY
CONFIG, SCHEMA, METRICS, DATA_WINDOW = (
    "config.json", "schema.json", "metrics.json", "data_window.json",
)  # fmt: skip


# An artifact cannot be published or trusted, or not be read now.
ArtifactError: TypeAlias = sealed.Broken
ArtifactUnreachable: TypeAlias = sealed.Unreachable

Read = TypeVar("Read")
_VERSION = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)


class Overtaken(ArtifactError):
    """What was to be published is not wanted any more; nothing was."""


@dataclass(frozen=True)
class Artifact:
    """The verified parts of one version; the item features stay memory-mapped."""

    folder: Path
    name: str
    version: str
    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    reads: Reads
    items: ItemTable
    metrics: dict[str, Any]
    data_window: dict[str, Any]


def publish(
    artifacts_dir: Path,
    name: str,
    *,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    reads: Reads,
    declaration: Declaration,
    items: ItemTable,
    metrics: Mapping[str, Any],
    data_window: Mapping[str, Any],
    still: Callable[[], bool] = lambda: True,
    now_ms: int | None = None,
) -> str:
    """Publish a version and make it current; returns its id (sorts by time, ends in a hash).

    `config["model"]` says which class loads it; `config["parameters"]` are that class's own.
    `reads`: what the model reads of the `declaration`, which is that of the items, too. `still`:
    asked when all is written, whether to publish it; where not, Overtaken is raised.
    """
    from safetensors import torch as safetensors_torch

    versions = artifacts_dir / name / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=versions))
    try:
        cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        safetensors_torch.save_file(cpu, building / WEIGHTS)
        items.save(building)
        for file, document in (
            (CONFIG, config),
            (SCHEMA, _document(reads, declaration)),
            (METRICS, metrics),
            (DATA_WINDOW, data_window),
        ):
            sealed.write_json(building / file, document)
        moment = datetime.fromtimestamp((now_ms or time.time_ns() // 1_000_000) / 1000, UTC)
        digest = sealed.confirm(building)
        version = f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}Z-{digest[:8]}"
        sealed.seal(building, digest, {"name": name, "version": version})
        building.chmod(0o755)  # mkdtemp makes it private; replicas may run as another user
        if not still():
            raise Overtaken(f"{versions}: another version of {name} was published meanwhile")
        building.rename(versions / version)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise ArtifactError(f"{versions}: cannot publish {name} ({error})") from error
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    sync(versions)
    _make_current(artifacts_dir / name, version)
    return version


def current(artifacts_dir: Path, name: str) -> Path:
    """The folder of the version that replicas should serve now."""
    path = artifacts_dir / name / "current.json"
    if not _read(path, Path.is_file):
        raise ArtifactError(f"{path}: nothing published yet: run `tandem train`")
    version = sealed.read_json(path).get("version")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ArtifactError(f"{path}: names no version")
    return path.parent / "versions" / version


def older(folder: Path) -> list[Path]:
    """The versions that were published before that of `folder`, the newest of them first."""
    others = (p for p in folder.parent.glob("*") if _VERSION.fullmatch(p.name))
    return sorted((p for p in others if p.name < folder.name), reverse=True)


def load_verified(folder: Path, schema: Schema | None = None) -> Artifact:
    """Read a version after checking READY, every checksum and, if there is one, that it was made
    for the `schema` of who loads it."""
    from safetensors import torch as safetensors_torch

    ready = _verify(folder)
    document = sealed.read_json(folder / SCHEMA)
    try:
        reads = Reads.of(document.get("reads"))
    except ValueError as error:
        raise ArtifactError(
            f"{folder / SCHEMA}: does not say what the model reads, as other builds of Tandem did:"
            " train it anew"
        ) from error
    if schema is not None and (what := reads.unfit(schema.declaration, schema.layout)):
        raise ArtifactError(
            f"{folder / SCHEMA}: {what}, which schema.yaml does not declare so: train it anew, or"
            " declare it as before"
        )
    return Artifact(
        folder=folder,
        name=str(ready["name"]),
        version=str(ready["version"]),
        tensors=_read(folder / WEIGHTS, safetensors_torch.load_file),
        config=sealed.read_json(folder / CONFIG),
        reads=reads,
        items=_items(folder, document, schema),
        metrics=sealed.read_json(folder / METRICS),
        data_window=sealed.read_json(folder / DATA_WINDOW),
    )


def load_items(folder: Path, schema: Schema | None = None) -> ItemTable:
    """The item table of a version, after checking all that is read for it: never the weights."""
    _verify(folder, catalogue.FILES)
    return _items(folder, sealed.read_json(folder / SCHEMA), schema)


def _document(reads: Reads, declaration: Declaration) -> dict[str, Any]:
    values = {
        field.name: list(field.vocabulary.values)
        for field in declaration.item_fields
        if field.vocabulary is not None and field.vocabulary.source == "values"
    }
    return {"reads": reads.document(), "item_values": values}


def _items(folder: Path, document: Mapping[str, Any], schema: Schema | None) -> ItemTable:
    """The item table. What is looked at without a model (affinities, diversity) must be in it and
    mean what it means to who loads it; one of them may know more values than the other."""
    items, values = _read(folder, ItemTable.load), document.get("item_values")
    if schema is None:
        return items
    declared = schema.declaration
    for name in sorted({*schema.fold.item_fields, declared.diversity} - {""}):
        field, column = declared.item_field[name], schema.layout.item.dtype[name]
        there = items.features.dtype
        mine = field.vocabulary.values if field.vocabulary else ()
        known = tuple(values.get(name, ())) if isinstance(values, dict) else ()
        both = min(len(mine), len(known))
        same = known[:both] == mine[:both] and bool(mine) == bool(known)
        if name not in (there.names or ()) or there[name].base != column.base or not same:
            raise ArtifactError(
                f"{folder / catalogue.FEATURES_FILE}: items have no field {name} as schema.yaml"
                " declares it: train anew"
            )
    return items


def _verify(folder: Path, needed: Collection[str] = ()) -> dict[str, Any]:
    """What READY says, once the files that are needed (none named: all) have been checked."""
    if needed:
        return sealed.verify(folder, (SCHEMA, *needed))
    return sealed.verify(folder, (SCHEMA, WEIGHTS, CONFIG, *catalogue.FILES), others=True)


def _make_current(folder: Path, version: str) -> None:
    """Point current.json at `version` in one atomic step; replicas may run as another user."""
    content = json.dumps({"version": version})
    replace_whole(folder / "current.json", content, durable=True, mode=0o644)


def _read(path: Path, reader: Callable[[Path], Read]) -> Read:
    """`reader(path)`, its failures turned into ArtifactError."""
    try:
        return sealed.read(path, reader)
    except SafetensorError as error:
        raise ArtifactError(f"{path}: cannot be read ({error})") from error
