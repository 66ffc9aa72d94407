"""The domain that models and trainings have today: films, as their schema.yaml declares them.

Services are handed a compiled schema (`compiled.py`), the films' unless the settings name another.
It may declare more than the films do; what models read of rows must be in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.schema import lock, read
from models.schema.compiled import Schema, SchemaUnfit, compiled
from models.schema.layout import affinity_column, column_of, count_column, meaning_of

FILE = Path(__file__).parents[1] / "data" / "worlds" / "films" / "schema.yaml"
# Not by `load`: a lock that lags is for `tandem schema lock` to mend, which imports this, too.
SCHEMA = compiled(read.load(FILE), lock.read(FILE.with_name(lock.NAME)))
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
    """That a schema has what models read, and looks at no more of items than their tables hold.
    Raises SchemaUnfit, naming what is wrong."""
    for group in READ_BY_MODELS:
        there = {f.name: (f.dtype, f.shape) for f in schema.groups[group.name].features}
        means = _means(schema.groups[group.name].meaning)
        lacking = [f.name for f in group.features if there.get(f.name) != (f.dtype, f.shape)]
        lacking += [name for name, of in _means(group.meaning).items() if means.get(name) != of]
        if lacking:
            raise _unfit(f"models read {lacking[0]} of {group.name}")
    declared = schema.declaration
    for event in FILMS.events:
        if (found := declared.event.get(event.name)) is None or found.id != event.id:
            raise _unfit(f"models and reports know the event {event.name} by the id {event.id}")
    for name in {affinity.field for affinity in declared.affinities} | {declared.diversity} - {""}:
        mine, theirs = FILMS.item_field.get(name), declared.item_field[name]
        if mine is None or not mine.vocabulary or not theirs.vocabulary or (
            column_of(mine) != column_of(theirs)
            or meaning_of(mine.vocabulary) != meaning_of(theirs.vocabulary)
            or mine.vocabulary.source != "values"
        ):  # fmt: skip
            raise _unfit(f"item tables have no field {name} with these values")


def _means(meaning: str) -> dict[str, Any]:
    return json.loads(meaning) if meaning else {}


def _unfit(what: str) -> SchemaUnfit:
    return SchemaUnfit(
        f"{what}, as the films declare it: leave that in your file as it is in {FILE}"
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
        "meaning": {
            group.name: _means(group.meaning) for group in (*READ_BY_MODELS, SCHEMA.layout.item)
        },
        "history": {"length": HISTORY_LENGTH, "model_length": MODEL_HISTORY},
    }
