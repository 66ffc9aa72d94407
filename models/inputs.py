"""From feature rows to what models are handed of users, once for training and for serving.

`user_batch` decodes nothing and bucketizes nothing: it puts the history into item rows and keeps
the records as they are. What a model makes of them is in `models/declared_inputs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.catalogue import ItemTable


@dataclass(frozen=True)
class UserBatch:
    """B users at the moment of a request. H entries of history, newest first, left-aligned."""

    history: np.ndarray  # int64[B, H] item rows, 0 = padding
    events: np.ndarray  # uint8[B, H]: ids of their events
    profile: np.ndarray  # records [B] of the group profile
    given: np.ndarray  # records [B] of the group given
    context: np.ndarray  # records [B] of what came with the requests
    now_ms: np.ndarray  # int64[B]

    def __len__(self) -> int:
        return len(self.history)

    def take(self, index: slice | np.ndarray) -> UserBatch:
        """Some of the users."""
        return UserBatch(*(values[index] for values in vars(self).values()))


def user_batch(
    profile: np.ndarray,
    history: np.ndarray,
    given: np.ndarray,
    context: np.ndarray,
    now_ms: np.ndarray,
    items: ItemTable,
    models_read: int,
) -> UserBatch:
    """B users from their records [B] of four groups and request times int64[B].

    Events of items that the table does not know are skipped (the rest moves up), so that what a
    model sees does not depend on when an unknown item was clicked. `models_read` entries are left.
    """
    keys = history["item_keys"]
    used = np.arange(keys.shape[1]) < history["length"][:, None]
    rows = np.where(used, items.index_of(keys), 0)
    # Stable sort on "is padding" moves known items to the front and keeps their order.
    order = np.argsort(rows == 0, axis=1, kind="stable")[:, :models_read]
    rows = np.take_along_axis(rows, order, axis=1)
    events = np.take_along_axis(history["event_ids"], order, axis=1)
    return UserBatch(rows, events * (rows > 0), profile, given, context, now_ms)
