"""Stage 2: the user's features and history, one read of the feature store.

The rows stay packed: the router looks at header and checksum, passes them on, and unpacks only the
history's item keys for the filter.
"""

from __future__ import annotations

import asyncio

import numpy as np

from feature_store import codec
from feature_store.interface import FeatureStore, FeatureStoreUnavailable, RowKey
from feature_store.reader import serve_raw
from models.schema import HISTORY, PROFILE
from protos.tandem.v1.records_pb2 import DEFAULT_FEATURES
from services.router.metrics import FEATURE_AGE, FEATURE_STATUS
from services.router.request import RequestState

GROUPS = (PROFILE, HISTORY)
_AGE = {group.name: FEATURE_AGE.labels(group.name) for group in GROUPS}
_STATUS = {
    (group.name, status): FEATURE_STATUS.labels(group.name, status.name.lower())
    for group in GROUPS
    for status in codec.RowStatus
}


async def hydrate(state: RequestState, store: FeatureStore, limit_s: float) -> None:
    """Fill the user's rows and ages; on failure the defaults, said in the degradations."""
    user_id = state.request.user_id
    try:
        async with asyncio.timeout(max(state.budget.stage(limit_s), 0)):
            rows = await store.read_async([RowKey(group.name, user_id) for group in GROUPS])
    except (FeatureStoreUnavailable, TimeoutError):
        state.degrade(DEFAULT_FEATURES)
        rows = [None, None]
    served = []
    for group, row in zip(GROUPS, rows, strict=True):
        judged = serve_raw(group, row, state.now_ms)
        state.feature_age_s[group.name] = judged.age_s
        _STATUS[group.name, judged.status].inc()
        if judged.row:
            _AGE[group.name].observe(judged.age_s)
        served.append(judged.row)
    state.profile_row, state.history_row = served


def seen_keys(history_row: bytes) -> np.ndarray:
    """uint64 keys of the items in a packed history row that `hydrate` has judged, read in place.

    Empty for an empty row.
    """
    if not history_row:
        return np.zeros(0, np.uint64)
    record = np.frombuffer(history_row, HISTORY.dtype, 1, codec.HEADER_BYTES)[0]
    return record["item_keys"][: record["length"]]
