"""A trained model as a folder, which appears complete or not at all.

    OUT/weights.safetensors, config.json    the model: `load` builds it again
    OUT/items.npy                           retrieval: the id of item row r at place r - 1
    OUT/results/TABLE/MODEL.json, .npz      what was measured (`models/training/results.py`)

Services cannot load it: its features are the data set's, not those of the serving schema
(`models/data/worlds/films/schema.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from models import registry
from models.data.errors import DataError
from models.data.folders import whole_folder
from models.layers.embedding_tables import EmbeddingOptions
from models.schema.inputs import FeatureSchema, Reads
from models.training.results import ModelResult

TRAINED = Path("run/trained")
FORMAT = 2  # 1: fields of the user's side were not the first
WEIGHTS, CONFIG, ITEMS, RESULTS = "weights.safetensors", "config.json", "items.npy", "results"


def vacant(out: Path) -> Path:
    """`out`, unless something else than an earlier training lies there."""
    if out.exists() and not (out / CONFIG).is_file() and any(out.iterdir()):
        raise DataError(f"--out {out}: holds other files: name a new or empty folder")
    return out


def save(
    out: Path,
    model: nn.Module,
    config: Mapping[str, Any],
    results: Sequence[ModelResult],
    item_ids: Sequence[str] = (),
) -> None:
    """Write everything as one new folder; an earlier training there is replaced."""
    with whole_folder(out) as scratch:
        weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        save_file(weights, scratch / WEIGHTS)
        document = {"format": FORMAT, **config}
        (scratch / CONFIG).write_text(json.dumps(document, indent=1) + "\n")
        if item_ids:
            np.save(scratch / ITEMS, np.array(item_ids, dtype=str), allow_pickle=False)
        for result in results:
            result.save(scratch / RESULTS)


def load_config(folder: Path) -> dict[str, Any]:
    """What a training says of the model that it saved; DataError if it cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: is no trained model ({error}): train it anew") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise DataError(f"{folder}: format {found}, expected {FORMAT}: train anew")
    return config


def load(folder: Path) -> Any:
    """The model that a training saved, on the CPU; DataError if it cannot be read.

    A `TableRanker`, or a retrieval model; ssl_two_tower needs `load_items` of its items besides.
    """
    config = load_config(folder)
    try:
        weights = load_file(folder / WEIGHTS)
        if config["part"] == "ranking":
            model = _ranker(config)
        else:
            kind = registry.kind_of(config["model"], "retrieval")
            model = kind.build(config["parameters"], Reads.of(config["reads"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{folder}: is no trained model ({error}): train it anew") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(
            f"{folder / WEIGHTS}: is not of the model that {CONFIG} names: train it anew"
        ) from error
    return model.eval()


def _ranker(config: Mapping[str, Any]) -> nn.Module:
    own = config["ranker"]
    schema = TypeAdapter(FeatureSchema).validate_python(config["schema"])
    options = EmbeddingOptions(**own["options"])
    kind = registry.kind_of(own["model"], "ranking")
    return kind.table_ranker(schema, own["settings"], options, own["l2"])
