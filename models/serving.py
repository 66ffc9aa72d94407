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
from models.ranking.dcn_v2 import DCNV2, DCNV2Config
from models.ranking.deepfm import DeepFM, DeepFMConfig
from models.ranking.din import DIN, DINConfig
from models.ranking.dnn import DNN, DNNConfig
from models.ranking.fm import FM, FMConfig
from models.ranking.infnet import INFNet, INFNetConfig
from models.ranking.interface import RankingModel
from models.ranking.logistic_regression import LogisticRegression, LogisticRegressionConfig
from models.ranking.masknet import MaskNet, MaskNetConfig
from models.ranking.mlcc import MLCC, MLCCConfig
from models.ranking.mmoe import MMoE, MMoEConfig
from models.retrieval.comirec import ComiRecDR, ComiRecDRConfig, ComiRecSA, ComiRecSAConfig
from models.retrieval.desmil import DESMILR, DESMILRConfig
from models.retrieval.hcn import HCNR, HCNRConfig
from models.retrieval.interface import RetrievalModel
from models.retrieval.mind import MIND, MINDConfig
from models.retrieval.sasrec import SASRec, SASRecConfig
from models.retrieval.ssl_two_tower import SSLTwoTower, SSLTwoTowerConfig
from models.retrieval.youtube_dnn import YouTubeDNN, YouTubeDNNConfig

_RETRIEVAL: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "ssl_two_tower": lambda parameters: SSLTwoTower(SSLTwoTowerConfig(**parameters)),
    "hcn_r": lambda parameters: HCNR(HCNRConfig(**parameters)),
    "desmil_r": lambda parameters: DESMILR(DESMILRConfig(**parameters)),
    "comirec_sa": lambda parameters: ComiRecSA(ComiRecSAConfig(**parameters)),
    "comirec_dr": lambda parameters: ComiRecDR(ComiRecDRConfig(**parameters)),
    "mind": lambda parameters: MIND(MINDConfig(**parameters)),
    "youtube_dnn": lambda parameters: YouTubeDNN(YouTubeDNNConfig(**parameters)),
    "sasrec": lambda parameters: SASRec(SASRecConfig(**parameters)),
}
_RANKING: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "masknet": lambda parameters: MaskNet(MaskNetConfig(**parameters)),
    "dcn_v2": lambda parameters: DCNV2(DCNV2Config(**parameters)),
    "deepfm": lambda parameters: DeepFM(DeepFMConfig(**parameters)),
    "din": lambda parameters: DIN(DINConfig(**parameters)),
    "dnn": lambda parameters: DNN(DNNConfig(**parameters)),
    "fm": lambda parameters: FM(FMConfig(**parameters)),
    "infnet": lambda parameters: INFNet(INFNetConfig(**parameters)),
    "logistic_regression": lambda parameters: LogisticRegression(
        LogisticRegressionConfig(**parameters)
    ),
    "mlcc": lambda parameters: MLCC(MLCCConfig(**parameters)),
    "mmoe": lambda parameters: MMoE(MMoEConfig(**parameters)),
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
