"""The domain that models and services have today: films, as their schema.yaml declares them.

Training, the feature store and the services derive from it: the store's packed rows
(`feature_store/codec.py`) from `FeatureGroup.dtype`, the models' inputs (`models/inputs.py`) and
the fold (`models/schema/fold.py`) from its fields. Changing a column changes the group's hash. Rows
of the first version are read as rows of now (`first_version.py`); a row under any other hash is
never misread: readers serve the defaults for it, and the feature updater stops, so that no build
throws away what another has written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from models.schema.fold import Fold
from models.schema.layout import affinity_column, count_column, layout_of
from models.schema.progress import APPLIED, SOURCE
from models.schema.read import load

FILMS = load(Path(__file__).parents[1] / "data" / "worlds" / "films" / "schema.yaml")
LAYOUT = layout_of(FILMS)
FOLD = Fold(FILMS, LAYOUT)

PROFILE, HISTORY, COUNTERS = LAYOUT.profile, LAYOUT.history, LAYOUT.counters
READ_BY_MODELS = (PROFILE, HISTORY, COUNTERS)
GROUPS = {group.name: group for group in (*LAYOUT.stored, SOURCE, APPLIED)}
HISTORY_LENGTH, MODEL_HISTORY = FILMS.history.length, FILMS.history.models_read

IMPRESSION, CLICK, LIKE = (FILMS.event[name].id for name in ("impression", "click", "like"))
# Columns of PROFILE: impressions, clicks and likes, and the clicks per genre; of COUNTERS: clicks
# and likes.
COUNTS = tuple(count_column(FILMS, count) for count in FILMS.user_counts)
IMPRESSIONS, CLICKS, LIKES = COUNTS
GENRE_CLICKS = affinity_column(FILMS, FILMS.affinities[0])
ITEM_COUNTS = tuple(count_column(FILMS, count) for count in FILMS.item_counts)
ITEM_CLICKS, ITEM_LIKES = ITEM_COUNTS

_vocabulary = FILMS.item_field["genres"].vocabulary
assert _vocabulary is not None
GENRES = _vocabulary.values
GENRE_SLOTS = 1 + len(GENRES)  # column 0 is "no genre listed"
TAG_SLOTS = FILMS.item_field["tags"].slots  # an item's most used tags (vocabulary ids, 0 = none)

# An item's own features do not come from events: they travel in the model's artifact as one
# memory-mapped table (models/catalogue.py), one row per item, row 0 = unknown item.
ITEM_DTYPE = np.dtype(
    [
        ("year", "<u2"),  # year of release, 0 = unknown
        ("genres", "<f4", (GENRE_SLOTS,)),  # multi-hot
        ("tags", "<u2", (TAG_SLOTS,)),  # tag vocabulary ids, 0 = none
        ("train_clicks", "<u4"),  # clicks in the training window
        ("train_likes", "<u4"),
    ]
)


def item_key(item_id: str) -> int:
    """The 64-bit key that stands for a string item id inside the system (xxh3, seed 0)."""
    return xxhash.xxh3_64_intdigest(item_id.encode())


def schema_document() -> dict[str, Any]:
    """What models read, as JSON-ready data: written into every artifact."""
    return {
        "groups": {
            g.name: {
                "entity": g.entity,
                "hash": f"{g.hash:016x}",
                "features": [[f.name, f.dtype, list(f.shape), f.default] for f in g.features],
            }
            for g in READ_BY_MODELS
        },
        "item": [
            [n, str(ITEM_DTYPE[n].base), list(ITEM_DTYPE[n].shape)] for n in ITEM_DTYPE.names or ()
        ],
        "history": {"length": HISTORY_LENGTH, "model_length": MODEL_HISTORY},
    }
