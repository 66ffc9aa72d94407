"""Small artifacts with untrained weights: real files for tests that are not about quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import artifact, registry
from models.catalogue import ItemTable
from models.schema.films import ITEM_DTYPE
from services.common.settings import CandidateGenerationSettings, RankingSettings

SIX = ("hcn_r", "desmil_r", "ssl_two_tower", "infnet", "masknet", "mc_mlcc")
SERVED = (*CandidateGenerationSettings().models, *RankingSettings().models)
# Beyond the size of the catalogue: what a config must have, and what makes it small.
SMALL: dict[str, dict[str, Any]] = {"ssl_two_tower": {"num_tags": 0}, "masknet": {"units": 32}}


def small_items(count: int = 60) -> ItemTable:
    """Items "m1".."m<count>" in order of falling popularity, of four genres in turn."""
    features = np.zeros(count, ITEM_DTYPE)
    for i in range(count):
        features[i]["genres"][0] = 1 + i % 4
        features[i]["year"] = 1980 + i % 40
    likes = np.arange(count, 0, -1)
    counts = np.stack([2 * likes, likes], axis=1)
    return ItemTable.build([f"m{i}" for i in range(1, count + 1)], features, counts)


def publish_small(
    artifacts_dir: Path,
    names: Iterable[str] = SERVED,
    *,
    items: ItemTable | None = None,
    seed: int = 0,
    change: Callable[[Any], None] = lambda model: None,
) -> None:
    """Publish models over the same small catalogue: unless named, those of the settings."""
    for name in names:
        publish_untrained(
            artifacts_dir,
            name,
            items or small_items(),
            SMALL.get(name, {}),
            seed=seed,
            change=change,
        )


def publish_untrained(
    artifacts_dir: Path,
    name: str,
    items: ItemTable,
    settings: Mapping[str, Any],
    *,
    metrics: Mapping[str, Any] | None = None,
    data_window: Mapping[str, Any] | None = None,
    seed: int = 0,
    change: Callable[[Any], None] = lambda model: None,
) -> None:
    """Publish a model of the registry with its first random weights, after `change`."""
    kind = registry.kind_of(name)
    torch.manual_seed(seed)
    model: Any = kind.module(kind.configure(**settings, num_items=len(items)))
    model.load_items(items)
    model.eval()
    with torch.no_grad():
        change(model)
    arrays = {}
    if kind.part == "retrieval":
        with torch.inference_mode():
            arrays["item_vectors"] = model.item_vectors().numpy()
    artifact.publish(
        artifacts_dir,
        name,
        tensors=model.state_dict(),
        config={"model": name, "parameters": model.config()},
        items=items,
        metrics=metrics or {},
        data_window=data_window or {},
        arrays=arrays,
    )
