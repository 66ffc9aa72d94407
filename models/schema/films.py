"""The domain that models and trainings have today: films, as their schema.yaml declares them.

Services are handed a compiled schema (`compiled.py`), the films' unless the settings name another.
It may declare more than the films do; what models read of rows must be in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.schema.compiled import Schema, SchemaUnfit, load
from models.schema.layout import affinity_column, count_column

FILE = Path(__file__).parents[1] / "data" / "worlds" / "films" / "schema.yaml"
SCHEMA = load(FILE)
FILMS, FOLD, GROUPS = SCHEMA.declaration, SCHEMA.fold, SCHEMA.groups

PROFILE, HISTORY, COUNTERS = SCHEMA.layout.profile, SCHEMA.layout.history, SCHEMA.layout.counters
READ_BY_MODELS = (PROFILE, HISTORY, COUNTERS)
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

# An item's own fields do not come from events: they travel in the model's artifact as one
# memory-mapped table (models/catalogue.py), one row per item, row 0 = unknown item.
ITEM_DTYPE = SCHEMA.layout.item.dtype


def check_read_by_models(schema: Schema) -> None:
    """That a schema has what models read of rows. Raises SchemaUnfit, naming what it lacks."""
    for group in READ_BY_MODELS:
        there = {f.name: (f.dtype, f.shape) for f in schema.groups[group.name].features}
        for feature in group.features:
            if there.get(feature.name) != (feature.dtype, feature.shape):
                raise SchemaUnfit(
                    f"models read {feature.name} of {group.name} ({feature.doc or 'each entry'}):"
                    f" declare in your schema.yaml what that of the films does ({FILE})"
                )


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
