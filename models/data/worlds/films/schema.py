"""The films' schema, which services and trainings have unless the settings name another."""

from __future__ import annotations

from pathlib import Path

from models.schema import lock, read
from models.schema.compiled import compiled
from models.schema.layout import affinity_column, count_column

FILE = Path(__file__).with_name("schema.yaml")
# Not by `load`: a lock that lags is for `tandem schema lock` to mend, which imports this, too.
SCHEMA = compiled(read.load(FILE), lock.read(FILE.with_name(lock.NAME)))
FILMS, FOLD, GROUPS = SCHEMA.declaration, SCHEMA.fold, SCHEMA.groups

PROFILE, HISTORY, COUNTERS = SCHEMA.layout.profile, SCHEMA.layout.history, SCHEMA.layout.counters
HISTORY_LENGTH, MODEL_HISTORY = FILMS.history.length, FILMS.history.models_read

IMPRESSION, CLICK, LIKE = (FILMS.event[name].id for name in ("impression", "click", "like"))
# Columns of PROFILE: impressions, clicks and likes, and the clicks per genre; of COUNTERS: clicks
# and likes, each fading and for ever.
COUNTS = tuple(count_column(FILMS, count) for count in FILMS.user_counts)
IMPRESSIONS, CLICKS, LIKES = COUNTS
GENRE_CLICKS = affinity_column(FILMS, FILMS.affinities[0])
ITEM_COUNTS = tuple(count_column(FILMS, count) for count in FILMS.item_counts)
ITEM_CLICKS, _, ITEM_LIKES, _ = ITEM_COUNTS  # those that fade; the others never do

_vocabulary = FILMS.item_field["genres"].vocabulary
assert _vocabulary is not None
GENRES = _vocabulary.values
GENRE_SLOTS = 1 + len(GENRES)  # column 0 is "no genre listed"

# An item's own fields do not come from events: they travel in the model's artifact as one
# memory-mapped table (models/catalogue.py), one row per item, row 0 = unknown item.
ITEM_DTYPE = SCHEMA.layout.item.dtype
