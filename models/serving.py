"""From a published folder to a model that can answer: the loaders of the two services.

A model, its item table and its item vectors come from one folder, so they can never be of
different versions. Everything is verified before anything is built, and no number that is served
from may be NaN or infinite: checksums confirm a broken training, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models import cold_start
from models.artifact import WEIGHTS, Artifact, ArtifactError, load_verified
from models.catalogue import ItemTable
from models.ranking.interface import Ranker
from models.registry import Part, UnknownModel, kind_of
from models.retrieval.interface import RetrievalModel
from models.schema.compiled import Schema
from models.schema.inputs import Reads


@dataclass(frozen=True)
class LoadedRetrieval:
    """A retrieval model in eval mode; `item_vectors` float32[n + 1, d] on its device."""

    model: RetrievalModel
    items: ItemTable
    item_vectors: torch.Tensor
    version: str
    name: str

    @property
    def trained(self) -> bool:
        """Whether it has learned anything of its domain."""
        return self.model.source != cold_start.NAME


@dataclass(frozen=True)
class LoadedRanking:
    """A ranking model in eval mode."""

    model: Ranker
    items: ItemTable
    version: str
    name: str

    @property
    def trained(self) -> bool:
        """Whether it has learned anything of its domain."""
        return not isinstance(self.model, cold_start.ColdStart)


def load_retrieval(
    folder: Path, device: str | torch.device = "cpu", schema: Schema | None = None
) -> LoadedRetrieval:
    """Verify and load a retrieval version, which must read what `schema` declares (None: whatever
    it reads); ArtifactError names what is wrong with which file."""
    artifact = load_verified(folder, schema)
    model = _build(artifact, "retrieval", device)
    vectors, where = artifact.array("item_vectors"), folder / "item_vectors.npy"
    if len(vectors) != len(artifact.items) + 1 or not np.isfinite(vectors).all():
        raise ArtifactError(
            f"{where}: needs {len(artifact.items) + 1} finite rows, has shape {vectors.shape}"
        )
    if len(vectors) > 2 and (vectors[1:] == vectors[1]).all():
        raise ArtifactError(
            f"{where}: all items have one vector, which orders them by nothing: train again"
        )
    tensor = torch.from_numpy(np.array(vectors)).to(device)
    return LoadedRetrieval(model, artifact.items, tensor, artifact.version, artifact.name)


def load_ranking(
    folder: Path, device: str | torch.device = "cpu", schema: Schema | None = None
) -> LoadedRanking:
    """As `load_retrieval`, of a ranking version."""
    artifact = load_verified(folder, schema)
    model = _build(artifact, "ranking", device)
    model.prepare_serving()
    return LoadedRanking(model, artifact.items, artifact.version, artifact.name)


def _build(artifact: Artifact, part: Part, device: str | torch.device) -> Any:
    """The module that the artifact's config names, with its weights and items, in eval mode."""
    where = artifact.folder / "config.json"
    for name, tensor in artifact.tensors.items():
        if not tensor.isfinite().all():
            raise ArtifactError(
                f"{artifact.folder / WEIGHTS}: {name} holds NaN or infinity: train again"
            )
    name, parameters = str(artifact.config.get("model")), artifact.config.get("parameters", {})
    build: Callable[[Mapping[str, Any], Reads], nn.Module]
    try:
        build = cold_start.build if name == cold_start.NAME else kind_of(name, part).build
    except UnknownModel as error:
        raise ArtifactError(f"{where}: {error}") from error
    try:
        model: Any = build(parameters, artifact.reads)
        model.load_state_dict(artifact.tensors)
        model.to(device).load_items(artifact.items)
    except (TypeError, ValueError, RuntimeError) as error:
        if _out_of_memory(error):
            raise
        raise ArtifactError(f"{where}: weights, config and items disagree ({error})") from error
    return model.eval()


def _out_of_memory(error: Exception) -> bool:
    """Whether torch got no memory, for which the version is not to blame."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
