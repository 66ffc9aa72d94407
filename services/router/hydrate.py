"""Stage 2: the user's features and history, one read of the feature store.

The rows stay packed: the router looks at header and checksum, passes them on, and unpacks only the
history's item keys for the filter.
"""

from __future__ import annotations

import struct

from feature_store import codec
from feature_store.interface import FeatureStore, FeatureStoreUnavailable, RowKey
from feature_store.reader import serve_raw
from models.schema import HISTORY, HISTORY_LENGTH, PROFILE
from protos.tandem.v1.records_pb2 import DEFAULT_FEATURES
from services.router.request import RequestState

# Where length and keys lie in a packed history row: read there without a numpy record.
_LENGTH = struct.Struct("<H")
_LENGTH_AT, _KEYS_AT = (
    codec.HEADER_BYTES + HISTORY.dtype.fields[name][1]  # type: ignore[index]  # it has fields
    for name in ("length", "item_keys")
)


async def hydrate(state: RequestState, store: FeatureStore, limit_s: float) -> None:
    """Fill the user's rows and ages; on failure the defaults, said in the degradations."""
    user_id = state.request.user_id
    keys = [RowKey(PROFILE.name, user_id), RowKey(HISTORY.name, user_id)]
    try:
        profile, history = await store.read_async(keys, state.budget.stage(limit_s))
    except FeatureStoreUnavailable:
        state.degrade(DEFAULT_FEATURES)
        return
    state.profile = serve_raw(PROFILE, profile, state.now_ms)
    state.history = serve_raw(HISTORY, history, state.now_ms)


def seen_keys(history_row: bytes) -> bytes:
    """Packed uint64 keys of the items in a history row that `hydrate` has judged.

    Empty for an empty row.
    """
    if not history_row:
        return b""
    (length,) = _LENGTH.unpack_from(history_row, _LENGTH_AT)
    return history_row[_KEYS_AT : _KEYS_AT + 8 * min(length, HISTORY_LENGTH)]
