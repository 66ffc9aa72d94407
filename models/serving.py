"""From a published folder to a model that can answer: the loaders of the two services.

A model, its item table and its item vectors come from one folder, so they can never be of
different versions. Everything is verified before anything is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.artifact import Artifact, ArtifactError, load_verified
from models.catalogue import ItemTable
from models.ranking.interface import RankingModel
from models.ranking.masknet import MaskNet, MaskNetConfig
from models.retrieval.interface import RetrievalModel
from models.retrieval.ssl_two_tower import SSLTwoTower, SSLTwoTowerConfig

_RETRIEVAL: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "ssl_two_tower": lambda parameters: SSLTwoTower(SSLTwoTowerConfig(**parameters)),
}
_RANKING: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "masknet": lambda parameters: MaskNet(MaskNetConfig(**parameters)),
}


@dataclass(frozen=True)
class LoadedRetrieval:
    """A retrieval model in eval mode; `item_vectors` float32[n + 1, d] on its device."""

    model: RetrievalModel
    items: ItemTable
    item_vectors: torch.Tensor
    version: str
    name: str


@dataclass(frozen=True)
class LoadedRanking:
    """A ranking model in eval mode."""

    model: RankingModel[Any]
    items: ItemTable
    version: str
    name: str


def load_retrieval(folder: Path, device: str | torch.device = "cpu") -> LoadedRetrieval:
    """Verify and load a retrieval version; ArtifactError names what is wrong with which file."""
    artifact = load_verified(folder)
    model = _build(artifact, _RETRIEVAL, device)
    vectors = artifact.array("item_vectors")
    if len(vectors) != len(artifact.items) + 1 or not np.isfinite(vectors).all():
        raise ArtifactError(
            f"{folder / 'item_vectors.npy'}: needs {len(artifact.items) + 1} finite rows, "
            f"has shape {vectors.shape}"
        )
    tensor = torch.from_numpy(np.array(vectors)).to(device)
    return LoadedRetrieval(model, artifact.items, tensor, artifact.version, artifact.name)


def load_ranking(folder: Path, device: str | torch.device = "cpu") -> LoadedRanking:
    """Verify and load a ranking version; ArtifactError names what is wrong with which file."""
    artifact = load_verified(folder)
    model = _build(artifact, _RANKING, device)
    return LoadedRanking(model, artifact.items, artifact.version, artifact.name)


def _build(
    artifact: Artifact,
    registry: dict[str, Callable[[dict[str, Any]], nn.Module]],
    device: str | torch.device,
) -> Any:
    """The module that the artifact's config names, with its weights and items, in eval mode."""
    where = artifact.folder / "config.json"
    kind = artifact.config.get("model")
    if kind not in registry:
        raise ArtifactError(f"{where}: model {kind!r} is not one of {sorted(registry)}")
    # JSON has no tuples: sequences come back as lists.
    parameters = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in artifact.config.get("parameters", {}).items()
    }
    try:
        model: Any = registry[kind](parameters)
        model.load_state_dict(artifact.tensors)
        model.to(device).load_items(artifact.items)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{where}: weights, config and items disagree ({error})") from error
    return model.eval()
