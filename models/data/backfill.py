"""From past events to live feature state: seeds a feature store and feeds the traffic simulator.

`initial_state` folds events exactly as the feature updater would have
(`models/schema/fold.py`), so a store seeded with it is the store that a system running since the
first event would have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl

from models.catalogue import ItemTable, item_key
from models.data.events import Dataset
from models.schema.films import CLICK, FOLD, IMPRESSION, LIKE
from models.schema.fold import Event, ItemState, UserState, Values


class Interaction(NamedTuple):
    """One row of the canonical event table, ready for the fold."""

    user_id: str
    item_id: str
    item_key: int
    event_time_ms: int
    like: bool


def interactions(events: pl.DataFrame, shift_ms: int = 0) -> Iterator[Interaction]:
    """The rows of a canonical event table in order, `shift_ms` added to their times."""
    keys = {item_id: item_key(item_id) for item_id in events["item_id"].unique()}
    columns = events.select("user_id", "item_id", "event_time_ms", "like")
    for user_id, item_id, time_ms, like in columns.iter_rows():
        yield Interaction(user_id, item_id, keys[item_id], time_ms + shift_ms, like)


@dataclass
class FeatureState:
    """Every user's and every item's rows after the events applied so far."""

    users: dict[str, UserState] = field(default_factory=dict)
    items: dict[int, ItemState] = field(default_factory=dict)  # by item key

    def apply(self, interaction: Interaction, values: Values | None) -> None:
        """Fold one interaction: an impression, its click and, if it was liked, the like.

        `values` are the item's, None for an item that the catalogue does not know.
        """
        user = self.users.get(interaction.user_id)
        if user is None:
            user = self.users[interaction.user_id] = FOLD.user_state()
        item = self.items.get(interaction.item_key)
        if item is None:
            item = self.items[interaction.item_key] = FOLD.item_state()
        for kind in (IMPRESSION, CLICK, LIKE) if interaction.like else (IMPRESSION, CLICK):
            event = Event(
                "", interaction.user_id, interaction.item_key, kind, interaction.event_time_ms
            )
            FOLD.user(user, event, values)
            FOLD.item(item, event)


def values_by_key(items: ItemTable) -> dict[int, Values | None]:
    """What the fold reads of each known item, by item key."""
    values = items.values_of(np.arange(1, len(items) + 1), FOLD.item_fields)
    return dict(zip(items.keys[1:].tolist(), values, strict=True))


def initial_state(dataset: Dataset, shift_ms: int = 0) -> FeatureState:
    """All features as they stood at the split; `shift_ms` moves the past towards now."""
    state = FeatureState()
    values = values_by_key(dataset.items)
    for interaction in interactions(dataset.train, shift_ms):
        state.apply(interaction, values.get(interaction.item_key))
    return state


def shift_to(dataset: Dataset, now_ms: int) -> int:
    """The `shift_ms` that puts the split at `now_ms`."""
    return now_ms - dataset.train_until_ms


def future_interactions(dataset: Dataset, shift_ms: int = 0) -> dict[str, list[Interaction]]:
    """What each user really did after the split, oldest first: the simulator's ground truth.

    Items first rated after the split are not in the catalogue; their interactions are included.
    """
    by_user: dict[str, list[Interaction]] = {}
    for interaction in interactions(dataset.test, shift_ms):
        by_user.setdefault(interaction.user_id, []).append(interaction)
    return by_user
