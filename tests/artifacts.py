"""Small artifacts with untrained weights: real files for tests that are not about quality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models import artifact
from models.catalogue import ItemTable
from models.ranking.masknet import MaskNet, MaskNetConfig
from models.retrieval.ssl_two_tower import SSLTwoTower, SSLTwoTowerConfig
from models.schema import ITEM_DTYPE


def small_items(count: int = 60) -> ItemTable:
    """Items "m1".."m<count>" in order of falling popularity, of four genres in turn."""
    features = np.zeros(count, ITEM_DTYPE)
    for i in range(count):
        features[i]["genres"][1 + i % 4] = 1
        features[i]["year"] = 1980 + i % 40
        features[i]["train_clicks"] = 2 * (count - i)
        features[i]["train_likes"] = count - i
    return ItemTable.build([f"m{i}" for i in range(1, count + 1)], features)


def publish_small(artifacts_dir: Path, *, items: ItemTable | None = None, seed: int = 0) -> None:
    """Publish ssl_two_tower and masknet over the same small catalogue."""
    torch.manual_seed(seed)
    table = items or small_items()
    retrieval = SSLTwoTower(SSLTwoTowerConfig(num_items=len(table), num_tags=0))
    retrieval.load_items(table)
    retrieval.eval()
    with torch.inference_mode():
        vectors = retrieval.item_vectors().numpy()
    ranking = MaskNet(MaskNetConfig(num_items=len(table), units=32))
    for name, model, arrays in (
        ("ssl_two_tower", retrieval, {"item_vectors": vectors}),
        ("masknet", ranking, {}),
    ):
        artifact.publish(
            artifacts_dir,
            name,
            tensors=model.state_dict(),
            config={"model": name, "parameters": model.config()},
            items=table,
            metrics={},
            data_window={},
            arrays=arrays,
        )
