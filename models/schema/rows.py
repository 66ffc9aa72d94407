"""The features of the system: names, types, defaults and lifetimes, in one place.

Training, the feature store and the services all derive from this file: the store's packed rows
(`feature_store/codec.py`) from `FeatureGroup.dtype`, the models' inputs (`models/inputs.py`) and
the event fold (`models/feature_fold.py`) from the fields named here. Changing a group changes its
hash. A row written under another hash is never misread: readers serve the defaults for it, and the
feature updater stops, so that no build throws away what another has written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from models.schema.groups import Feature, FeatureGroup

DAY_S = 86_400

# What an event may be. The numbers are those of protos/tandem/v1/records.proto.
IMPRESSION, CLICK, LIKE = 1, 2, 3

HISTORY_LENGTH = 200  # events kept per user; models read the newest MODEL_HISTORY of them
MODEL_HISTORY = 50
# A client's retry is recognised among the user's last so many events: OLDER_IDS in a row of their
# own, which is written once for MOVED_IDS events, and those since in the row written every time.
EVENT_IDS = 1024
RECENT_IDS, MOVED_IDS, OLDER_IDS = 64, 32, 992
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
        Feature(
            "recent_low", "<u4", (RECENT_IDS,), doc="digests of the last event ids, oldest first"
        ),
        Feature("recent_high", "<u1", (RECENT_IDS,)),
        Feature("recent", "<u1", doc="how many there are"),
    ),
)
USER_OLDER = FeatureGroup(
    "user_older",
    "user",
    USER_TTL_S,
    (
        Feature("low", "<u4", (OLDER_IDS,), doc="digests of the ids before them, a ring"),
        Feature("high", "<u1", (OLDER_IDS,)),
        Feature("next", "<u2", doc="slot that the next ones overwrite"),
        Feature("moved_ms", "<i8", doc="newest event time when ids were moved here"),
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
READ_BY_MODELS = (PROFILE, HISTORY, COUNTERS)
GROUPS = {
    g.name: g for g in (*READ_BY_MODELS, USER_DELIVERY, USER_OLDER, ITEM_DELIVERY, SOURCE, APPLIED)
}

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


def is_readable(document: Mapping[str, Any]) -> bool:
    """Whether a model whose artifact has this document reads what is kept now. Of the groups that
    models do not read, which older artifacts have, too, nothing is asked."""
    groups = document.get("groups")
    if not isinstance(groups, Mapping):
        return False
    read = {group.name: groups.get(group.name) for group in READ_BY_MODELS}
    # Through JSON and back, so that tuples compare as the lists they were stored as.
    return {**document, "groups": read} == json.loads(json.dumps(schema_document()))
