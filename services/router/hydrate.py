"""Stage 2: the user's features and history, one read of the feature store.

The rows stay packed: the router looks at header and checksum, passes them on, and unpacks only the
history's item keys for the filter. What the user has just done and the store does not show yet is
folded into them (recent_feedback.py).
"""

from __future__ import annotations

import numpy as np

from feature_store.interface import FeatureStore, FeatureStoreUnavailable, RowKey
from feature_store.reader import serve_raw
from models.catalogue import item_key
from protos.tandem.v1.records_pb2 import DEFAULT_FEATURES
from services.common.packed import U8
from services.experiments.declare.targeting import NOTHING, Context
from services.router.recent_feedback import RecentFeedback
from services.router.request import Degradations, Request, User
from services.router.user_rows import UserRows, features_of


async def hydrate(
    request: Request,
    rows_of: UserRows,
    store: FeatureStore,
    recent: RecentFeedback,
    limit_s: float,
) -> User:
    """The user's rows and their ages; on failure the defaults, said in the degradations."""
    asked, user_id = request.asked, request.asked.user_id
    acted = user_id in recent.users
    keys = [RowKey(group, user_id) for group in (rows_of.with_applied if acted else rows_of.served)]
    if rows_of.given is not None:
        keys.append(RowKey(rows_of.given.name, user_id))
    degradations: Degradations = ()
    given_row = None
    try:
        rows = await store.read_async(keys, request.budget.stage(limit_s))
    except FeatureStoreUnavailable:
        degradations = (DEFAULT_FEATURES,)
        # What was just done is excluded; but counts of that alone would be a wrong profile.
        profile_row, (_, history_row) = None, recent.over(user_id, None, None, None, None)
    else:
        if rows_of.given is not None:
            *rows, given_row = rows
        profile_row, history_row = recent.over(user_id, *rows) if acted else rows
    profile = serve_raw(rows_of.profile, profile_row, request.now_ms)
    history = serve_raw(rows_of.history, history_row, request.now_ms)
    excluded = rows_of.seen_keys(history.row)
    if asked.exclude_item_ids:
        named = [item_key(item_id) for item_id in asked.exclude_item_ids]
        excluded += np.array(named, U8).tobytes()
    context = {
        "user_id": user_id,
        "surface": asked.surface,
        "now_ms": request.now_ms,
        # As they are stored: whoever is behind this router may not know the layout of now.
        "profile_row": profile_row if profile.row else b"",
        "history_row": history_row if history.row else b"",
        "context": asked.context or None,
        "context_text": asked.context_text or None,
        "request_id": request.request_id,
    }
    if rows_of.given is not None and serve_raw(rows_of.given, given_row, request.now_ms).row:
        context["given_row"] = given_row
    return User(profile, history, context, rows_of.numbers(profile.row), excluded, degradations)


async def read_features(
    rows_of: UserRows,
    store: FeatureStore,
    recent: RecentFeedback,
    user_id: str,
    now_ms: int,
    limit_s: float,
) -> Context:
    """What conditions on the user look at, for who asks without a request to recommend."""
    acted = user_id in recent.users
    groups = rows_of.with_applied if acted else rows_of.served[:1]
    try:
        rows = await store.read_async([RowKey(group, user_id) for group in groups], limit_s)
    except FeatureStoreUnavailable:
        return NOTHING
    profile_row = recent.over(user_id, *rows)[0] if acted else rows[0]
    profile = serve_raw(rows_of.profile, profile_row, now_ms)
    return features_of(rows_of.numbers(profile.row))
