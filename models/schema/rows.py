"""The features of the system: names, types, defaults and lifetimes, in one place.

Training, the feature store and the services all derive from this file: the store's packed rows
(`feature_store/codec.py`) from `FeatureGroup.dtype`, the models' inputs (`models/inputs.py`) and
the event fold (`models/feature_fold.py`) from the fields named here. Changing a group changes its
hash. A row written under another hash is never misread: readers serve the defaults for it, and the
feature updater stops, so that no build throws away what another has written.
"""

from __future__ import annotations

import numpy as np
import xxhash

from models.schema.groups import Feature, FeatureGroup

DAY_S = 86_400

# What an event may be. The numbers are those of protos/tandem/v1/records.proto.
IMPRESSION, CLICK, LIKE = 1, 2, 3

HISTORY_LENGTH = 200  # events kept per user; models read the newest MODEL_HISTORY of them
MODEL_HISTORY = 50
EVENT_ID_RING = 1024  # a client's retry is recognised among the user's last so many events
WATERMARK_SLOTS = 4  # partitions remembered per user; more than one only after re-partitioning
MAX_PARTITIONS = 64  # of the feedback topic: an item's counters keep a watermark for each

GENRES = (
    "Action",
    "Adventure",
    "Animation",
    "Children",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "IMAX",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
GENRE_SLOTS = 20  # GENRES and one spare; column 0 is "no genre listed"
TAG_SLOTS = 8  # an item's most used tags (vocabulary ids, 0 = none)


# Films are not fashion: MovieLens users come back after years with the same taste, so a user's
# rows practically do not expire here (a shop would say weeks); item counters are fast-moving.
USER_TTL_S = 30 * 365.0 * DAY_S
COUNTERS_TTL_S = 365.0 * DAY_S

PROFILE = FeatureGroup(
    "profile",
    "user",
    USER_TTL_S,
    (
        Feature("impressions", "<u4", doc="items seen in lists"),
        Feature("clicks", "<u4", doc="items chosen"),
        Feature("likes", "<u4", doc="items liked"),
        Feature("last_event_ms", "<i8", doc="event time of the newest event, ms"),
        Feature(
            "genre_clicks", "<f4", (GENRE_SLOTS,), doc="clicks per genre, decayed by event time"
        ),
    ),
)
HISTORY = FeatureGroup(
    "history",
    "user",
    USER_TTL_S,
    (
        Feature("length", "<u2", doc="entries in use"),
        Feature("item_keys", "<u8", (HISTORY_LENGTH,), doc="clicked or liked items, newest first"),
        Feature("event_times_ms", "<i8", (HISTORY_LENGTH,)),
        Feature("event_types", "<u1", (HISTORY_LENGTH,)),
    ),
)
USER_DELIVERY = FeatureGroup(
    "user_delivery",
    "user",
    USER_TTL_S,
    (
        Feature("partitions", "<i4", (WATERMARK_SLOTS,), default=-1),
        Feature("offsets", "<i8", (WATERMARK_SLOTS,), default=-1, doc="last offset applied"),
        Feature("ring", "<u8", (EVENT_ID_RING,), doc="xxh3 of the last event ids applied"),
        Feature("ring_next", "<u4", doc="slot that the next event id overwrites"),
    ),
)
COUNTERS = FeatureGroup(
    "counters",
    "item",
    COUNTERS_TTL_S,
    (
        Feature("views", "<f8", doc="impressions, decayed to as_of_ms"),
        Feature("clicks", "<f8", doc="clicks, decayed to as_of_ms"),
        Feature("likes", "<f8", doc="likes, decayed to as_of_ms"),
        Feature("as_of_ms", "<i8", doc="event time the decayed counts refer to"),
    ),
)
ITEM_DELIVERY = FeatureGroup(
    "item_delivery",
    "item",
    COUNTERS_TTL_S,
    (Feature("offsets", "<i8", (MAX_PARTITIONS,), default=-1, doc="last offset applied"),),
)
SOURCE = FeatureGroup(
    "source",
    "log",
    USER_TTL_S,
    (Feature("identity", "<u8", doc="xxh3 of the identity of the topic read"),),
)
APPLIED = FeatureGroup(
    "applied",
    "log",
    USER_TTL_S,
    (Feature("next_offset", "<i8", doc="records before it, of one partition, are in the rows"),),
)
_OF_MODELS = (PROFILE, HISTORY, USER_DELIVERY, COUNTERS, ITEM_DELIVERY, SOURCE)
GROUPS = {g.name: g for g in (*_OF_MODELS, APPLIED)}

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

COUNTER_HALF_LIFE_S = 90.0 * DAY_S  # item popularity fades by half in 90 days
GENRE_HALF_LIFE_S = 365.0 * DAY_S


def item_key(item_id: str) -> int:
    """The 64-bit key that stands for a string item id inside the system (xxh3, seed 0)."""
    return xxhash.xxh3_64_intdigest(item_id.encode())


def schema_document() -> dict[str, object]:
    """The schema as JSON-ready data: written into every artifact and compared when it is loaded.

    Without APPLIED: no model reads it, and with it every model published before would be refused.
    """
    return {
        "groups": {
            g.name: {
                "entity": g.entity,
                "hash": f"{g.hash:016x}",
                "features": [[f.name, f.dtype, list(f.shape), f.default] for f in g.features],
            }
            for g in _OF_MODELS
        },
        "item": [
            [n, str(ITEM_DTYPE[n].base), list(ITEM_DTYPE[n].shape)] for n in ITEM_DTYPE.names or ()
        ],
        "history": {"length": HISTORY_LENGTH, "model_length": MODEL_HISTORY},
    }
