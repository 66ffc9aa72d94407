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
from services.experiments.targeting import NOTHING, Context
from services.router.request import RequestState

# Where length and keys lie in a packed history row: read there without a numpy record.
_LENGTH = struct.Struct("<H")
_LENGTH_AT, _KEYS_AT = (
    codec.HEADER_BYTES + HISTORY.dtype.fields[name][1]  # type: ignore[index]  # it has fields
    for name in ("length", "item_keys")
)

# The user's counts, which are what experiments may look at; read the same way. The padding of the
# format stands for the fields between them.
COUNTS = tuple(f.name for f in PROFILE.features if f.dtype == "<u4" and not f.shape)
_COUNTS_AT = codec.HEADER_BYTES


def _counts_format() -> str:
    form, at = "<", 0
    for name in COUNTS:
        _, offset = PROFILE.dtype.fields[name][:2]  # type: ignore[index]  # it has fields
        form += f"{offset - at}xI"
        at = offset + 4
    return form


_COUNTS = struct.Struct(_counts_format())


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


def counts(profile_row: bytes) -> tuple[int, ...]:
    """The user's COUNTS in a profile row that `hydrate` has judged and found fresh."""
    return _COUNTS.unpack_from(profile_row, _COUNTS_AT)


def user_features(profile_row: bytes) -> Context:
    """What conditions on the user look at; of a user without a fresh profile nothing is known."""
    if not profile_row:
        return NOTHING
    return dict(zip(COUNTS, counts(profile_row), strict=True))


def seen_keys(history_row: bytes) -> bytes:
    """Packed uint64 keys of the items in a history row that `hydrate` has judged.

    Empty for an empty row.
    """
    if not history_row:
        return b""
    (length,) = _LENGTH.unpack_from(history_row, _LENGTH_AT)
    return history_row[_KEYS_AT : _KEYS_AT + 8 * min(length, HISTORY_LENGTH)]
