"""A user's packed rows as the router sees them: it looks into them without unpacking them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from feature_store import codec
from models.schema.compiled import Schema
from models.schema.layout import count_column
from services.common.packed import I2
from services.experiments.declare.metrics import Kept, events_of
from services.experiments.declare.targeting import NOTHING, Context

_LENGTH = struct.Struct("<H")
_PIECES = {"<u4": "I", "<f8": "d"}  # of counts that never fade, and of the others and sums


class _KeptAt:
    """Where a profile row has the numbers that are kept of a user."""

    def __init__(self, schema: Schema) -> None:
        dtype = schema.layout.profile.dtype

        def place(each: Kept) -> tuple[np.dtype, int]:
            found: tuple[np.dtype, int] = dtype.fields[  # type: ignore[index]  # it has fields
                count_column(schema.declaration, each.kept)
            ][:2]
            return found

        kept = sorted(events_of(schema.declaration).kept, key=lambda each: place(each)[1])
        # What the values are of, as decision records say it, and what packs them for these.
        self.sources = np.array([each.source for each in kept], I2).tobytes()
        self.packed = struct.Struct(f"<{len(kept)}d")
        self.tested = [(each.name, i) for i, each in enumerate(kept) if each.tested]
        self._values = _reader_of([place(each) for each in kept])

    def read(self, profile_row: bytes) -> Numbers:
        return Numbers(self, self._values.unpack_from(profile_row, codec.HEADER_BYTES))


class Numbers(NamedTuple):
    """What is kept of a user (`metrics.Events.kept`): counts, and sums of values."""

    kept: _KeptAt
    values: tuple[float, ...]

    @property
    def tested(self) -> Context:
        """What conditions on the user look at, by name."""
        return {name: self.values[i] for name, i in self.kept.tested}


class UserRows:
    """The groups of a user's rows, and where in them the router looks without unpacking them; and
    the fields that come with a request, by name."""

    def __init__(self, schema: Schema) -> None:
        layout = schema.layout
        self.revision = layout.revision
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
        self._kept = _KeptAt(schema)

    def numbers(self, profile_row: bytes) -> Numbers | None:
        """Of a profile row that was judged and found fresh; None for an empty one."""
        return self._kept.read(profile_row) if profile_row else None

    def seen_keys(self, history_row: bytes) -> bytes:
        """Packed uint64 keys of the items in a history row that was judged and found fresh.

        Empty for an empty row.
        """
        if not history_row:
            return b""
        (length,) = _LENGTH.unpack_from(history_row, self._length_at)
        return history_row[self._keys_at : self._keys_at + 8 * min(length, self._longest)]


def _reader_of(places: Sequence[tuple[np.dtype, int]]) -> struct.Struct:
    """What reads values of these types at these offsets, ascending, of a packed row."""
    text, end = "<", 0
    for dtype, offset in places:
        text += f"{offset - end}x{_PIECES[dtype.str]}"
        end = offset + dtype.itemsize
    return struct.Struct(text)


def features_of(numbers: Numbers | None) -> Context:
    """What conditions on the user look at; of a user without a fresh profile nothing is known."""
    return NOTHING if numbers is None else numbers.tested
