"""Small artifacts with untrained weights: real files for tests that are not about quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import artifact, registry
from models.catalogue import ItemTable
from models.data.worlds.films.schema import ITEM_DTYPE, SCHEMA
from models.schema.compiled import Schema
from models.schema.inputs import reads_of
from models.training import phases, ranking, retrieval
from services.common.settings import CandidateGenerationSettings, RankingSettings

SIX = ("hcn_r", "desmil_r", "ssl_two_tower", "infnet", "masknet", "mc_mlcc")
SERVED = (*CandidateGenerationSettings().models, *RankingSettings().models)
SMALL: dict[str, dict[str, Any]] = {"masknet": {"units": 32}}


def small_items(count: int = 60) -> ItemTable:
    """Items "m1".."m<count>" in order of falling popularity, of four genres in turn."""
    features = np.zeros(count, ITEM_DTYPE)
    for i in range(count):
        features[i]["genres"][0] = 1 + i % 4
        features[i]["year"] = 1980 + i % 40
    likes = np.arange(count, 0, -1)
    counts = np.stack([2 * likes, likes], axis=1)
    return ItemTable.build([f"m{i}" for i in range(1, count + 1)], features, counts)


def built(
    name: str, items: ItemTable, *, seed: int = 0, schema: Schema = SCHEMA, **settings: Any
) -> Any:
    """A new model of a domain's items, which it has loaded, in eval mode."""
    ranks = registry.kind_of(name).part == "ranking"
    config_of = ranking.model_config if ranks else retrieval.model_config
    model: Any = phases.build(name, config_of(schema, items, name, **settings), seed, "cpu")
    model.load_items(items)
    return model.eval()


def publish(
    artifacts_dir: Path,
    name: str,
    model: Any,
    items: ItemTable,
    schema: Schema = SCHEMA,
    **changes: Any,
) -> str:
    """Publish it as trainings do, but for what `changes` say; the version."""
    parts: dict[str, Any] = {
        "tensors": model.state_dict(),
        "config": {"model": name, "parameters": model.config()},
        "reads": model.reads,
    }
    return publish_items(artifacts_dir, name, items, schema, **(parts | changes))


def publish_items(
    artifacts_dir: Path, name: str, items: ItemTable, schema: Schema = SCHEMA, **changes: Any
) -> str:
    """Publish a version of no model, for who reads its items alone; the version."""
    parts: dict[str, Any] = {
        "tensors": {},
        "config": {},
        "reads": reads_of(schema.declaration, schema.layout, "retrieval", items.sizes),
        "declaration": schema.declaration,
        "items": items,
        "metrics": {},
        "data_window": {},
    }
    return artifact.publish(artifacts_dir, name, **(parts | changes))


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
        own = items or small_items()
        model = built(name, own, seed=seed, **SMALL.get(name, {}))
        with torch.no_grad():
            change(model)
        publish(artifacts_dir, name, model, own)
