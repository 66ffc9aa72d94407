"""A user's packed rows as the router sees them: it looks into them without unpacking them."""

from __future__ import annotations

import struct

from feature_store import codec
from models.schema.compiled import Schema
from models.schema.groups import FeatureGroup
from models.schema.layout import count_column
from services.experiments.declare.targeting import NOTHING, USER_FEATURES, Context

_LENGTH = struct.Struct("<H")
_UNSIGNED = {1: "B", 2: "H", 4: "I", 8: "Q"}  # by their bytes


class UserRows:
    """The groups of a user's rows, and where in them the router looks without unpacking them; and
    the fields that come with a request, by name."""

    def __init__(self, schema: Schema) -> None:
        layout = schema.layout
        self.profile, self.history = layout.profile, layout.history
        self.given = layout.given if layout.given.features else None
        self.context = {field.name: field for field in schema.declaration.context}
        self.served = (self.profile.name, self.history.name)
        # Also which events are in the rows.
        self.with_applied = (*self.served, layout.user_delivery.name, layout.user_older.name)
        self._length_at, self._keys_at = (
            codec.HEADER_BYTES + layout.history.dtype.fields[name][1]  # type: ignore[index]
            for name in ("length", "item_keys")
        )
        self._longest = schema.declaration.history.length
        kept = schema.declaration.kept_counts
        self._counts = [
            _unsigned_at(layout.profile, count_column(schema.declaration, kept[event]))
            if event in kept
            else None
            for event in USER_FEATURES.values()
        ]

    def counts(self, profile_row: bytes) -> tuple[int, ...]:
        """The USER_FEATURES in a profile row that was judged and found fresh, 0 for events that are
        not counted. Empty for an empty row."""
        if not profile_row:
            return ()
        return tuple(
            [0 if at is None else at[0].unpack_from(profile_row, at[1])[0] for at in self._counts]
        )

    def seen_keys(self, history_row: bytes) -> bytes:
        """Packed uint64 keys of the items in a history row that was judged and found fresh.

        Empty for an empty row.
        """
        if not history_row:
            return b""
        (length,) = _LENGTH.unpack_from(history_row, self._length_at)
        return history_row[self._keys_at : self._keys_at + 8 * min(length, self._longest)]


def _unsigned_at(group: FeatureGroup, column: str) -> tuple[struct.Struct, int]:
    """What reads an unsigned value of a packed row, and where it lies."""
    dtype, offset = group.dtype.fields[column][:2]  # type: ignore[index]  # it has fields
    return struct.Struct(f"<{_UNSIGNED[dtype.itemsize]}"), codec.HEADER_BYTES + offset


def features_of(counts: tuple[int, ...]) -> Context:
    """What conditions on the user look at; of a user without a fresh profile nothing is known."""
    return dict(zip(USER_FEATURES, counts, strict=True)) if counts else NOTHING
