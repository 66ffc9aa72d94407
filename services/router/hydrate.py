"""Stage 2: the user's features and history, one read of the feature store.

The rows stay packed: the router looks at header and checksum, passes them on, and unpacks only the
history's item keys for the filter. What the user has just done and the store does not show yet is
folded into them (recent_feedback.py).
"""

from __future__ import annotations

import struct

import numpy as np

from feature_store import codec
from feature_store.interface import FeatureStore, FeatureStoreUnavailable, RowKey
from feature_store.reader import serve_raw
from models.schema.films import COUNTS, HISTORY, HISTORY_LENGTH, PROFILE, item_key
from models.schema.groups import FeatureGroup
from models.schema.progress import USER_DELIVERY, USER_OLDER
from protos.tandem.v1.records_pb2 import DEFAULT_FEATURES
from services.common.packed import U8
from services.experiments.declare.targeting import NOTHING, USER_FEATURES, Context
from services.router.recent_feedback import RecentFeedback
from services.router.request import Degradations, Request, User

# Where length and keys lie in a packed history row: read there without a numpy record.
_LENGTH = struct.Struct("<H")
_LENGTH_AT, _KEYS_AT = (
    codec.HEADER_BYTES + HISTORY.dtype.fields[name][1]  # type: ignore[index]  # it has fields
    for name in ("length", "item_keys")
)

APPLIED_GROUPS = (USER_DELIVERY, USER_OLDER)  # they say which events are in the rows

_UNSIGNED = {1: "B", 2: "H", 4: "I", 8: "Q"}  # by their bytes


def _format_of(group: FeatureGroup, names: tuple[str, ...]) -> struct.Struct:
    """Reads unsigned fields of a packed row, in the group's order; pads what is between them."""
    form, at = f"<{codec.HEADER_BYTES}x", 0
    for name in names:
        dtype, offset = group.dtype.fields[name][:2]  # type: ignore[index]  # it has fields
        form += f"{offset - at}x{_UNSIGNED[dtype.itemsize]}"
        at = offset + dtype.itemsize
    return struct.Struct(form)


_COUNTS = _format_of(PROFILE, COUNTS)  # what experiments may look at


async def hydrate(
    request: Request, store: FeatureStore, recent: RecentFeedback, limit_s: float
) -> User:
    """The user's rows and their ages; on failure the defaults, said in the degradations."""
    asked, user_id = request.asked, request.asked.user_id
    keys = [RowKey(PROFILE.name, user_id), RowKey(HISTORY.name, user_id)]
    acted = user_id in recent.users
    if acted:
        keys += [RowKey(group.name, user_id) for group in APPLIED_GROUPS]
    degradations: Degradations = ()
    try:
        rows = await store.read_async(keys, request.budget.stage(limit_s))
    except FeatureStoreUnavailable:
        degradations = (DEFAULT_FEATURES,)
        # What was just done is excluded; but counts of that alone would be a wrong profile.
        profile_row, (_, history_row) = None, recent.over(user_id, None, None, None, None)
    else:
        profile_row, history_row = recent.over(user_id, *rows) if acted else rows
    profile = serve_raw(PROFILE, profile_row, request.now_ms)
    history = serve_raw(HISTORY, history_row, request.now_ms)
    excluded = seen_keys(history.row)
    if asked.exclude_item_ids:
        named = [item_key(item_id) for item_id in asked.exclude_item_ids]
        excluded += np.array(named, U8).tobytes()
    context = {
        "user_id": user_id,
        "surface": asked.surface,
        "now_ms": request.now_ms,
        "profile_row": profile.row,
        "history_row": history.row,
        "context": asked.context or None,
        "request_id": request.request_id,
    }
    return User(profile, history, context, excluded, degradations)


def counts(profile_row: bytes) -> tuple[int, ...]:
    """The USER_FEATURES in a profile row that `hydrate` has judged and found fresh."""
    return _COUNTS.unpack_from(profile_row)


def user_features(profile_row: bytes) -> Context:
    """What conditions on the user look at; of a user without a fresh profile nothing is known."""
    if not profile_row:
        return NOTHING
    return dict(zip(USER_FEATURES, counts(profile_row), strict=True))


async def read_features(
    store: FeatureStore, recent: RecentFeedback, user_id: str, now_ms: int, limit_s: float
) -> Context:
    """What conditions on the user look at, for who asks without a request to recommend."""
    acted = user_id in recent.users
    groups = (PROFILE, HISTORY, *APPLIED_GROUPS) if acted else (PROFILE,)
    try:
        rows = await store.read_async([RowKey(group.name, user_id) for group in groups], limit_s)
    except FeatureStoreUnavailable:
        return NOTHING
    profile = recent.over(user_id, *rows)[0] if acted else rows[0]
    return user_features(serve_raw(PROFILE, profile, now_ms).row)


def seen_keys(history_row: bytes) -> bytes:
    """Packed uint64 keys of the items in a history row that `hydrate` has judged.

    Empty for an empty row.
    """
    if not history_row:
        return b""
    (length,) = _LENGTH.unpack_from(history_row, _LENGTH_AT)
    return history_row[_KEYS_AT : _KEYS_AT + 8 * min(length, HISTORY_LENGTH)]
