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
from models.schema.declaration import Declaration
from models.schema.fold import Event, Fold, ItemState, UserState, Values


class Interaction(NamedTuple):
    """One row of a canonical event table, ready for the fold."""

    user_id: str
    item_id: str
    item_key: int
    event_time_ms: int
    kinds: tuple[int, ...]  # ids of its events
    values: tuple[float, ...] = ()  # theirs, 0 where an event has none; none given: all 0


def interactions(
    events: pl.DataFrame, declaration: Declaration, shift_ms: int = 0
) -> Iterator[Interaction]:
    """The rows of a canonical event table in order, `shift_ms` added to their times."""
    keys = {item_id: item_key(item_id) for item_id in events["item_id"].unique()}
    there = [event for event in declaration.events if event.name in events.columns]
    valued = [event for event in there if f"{event.name}.value" in events.columns]
    ids = [event.id for event in there]
    columns = events.select("user_id", "item_id", "event_time_ms", *(event.name for event in there))
    values = events.select(f"{event.name}.value" for event in valued).fill_null(0.0)
    amounts = dict(zip([event.id for event in valued], values.iter_columns(), strict=True))
    for row, (user_id, item_id, time_ms, *happened) in enumerate(columns.iter_rows()):
        kinds = tuple(id for id, one in zip(ids, happened, strict=True) if one)
        of = tuple(float(amounts[k][row]) if k in amounts else 0.0 for k in kinds) if valued else ()
        yield Interaction(user_id, item_id, keys[item_id], time_ms + shift_ms, kinds, of)


@dataclass
class FeatureState:
    """Every user's and every item's rows after the events applied so far."""

    fold: Fold
    users: dict[str, UserState] = field(default_factory=dict)
    items: dict[int, ItemState] = field(default_factory=dict)  # by item key

    def apply(self, interaction: Interaction, values: Values | None) -> None:
        """Fold one interaction, its events in the order of their declaration.

        `values` are the item's, None for an item that the catalogue does not know.
        """
        fold = self.fold
        user = self.users.get(interaction.user_id)
        if user is None:
            user = self.users[interaction.user_id] = fold.user_state()
        item = self.items.get(interaction.item_key)
        if item is None:
            item = self.items[interaction.item_key] = fold.item_state()
        amounts = interaction.values or (0.0,) * len(interaction.kinds)
        for kind, value in zip(interaction.kinds, amounts, strict=True):
            event = Event(
                "", interaction.user_id, interaction.item_key, kind, interaction.event_time_ms,
                value,
            )  # fmt: skip
            fold.user(user, event, values)
            fold.item(item, event)


def values_by_key(items: ItemTable, fold: Fold) -> dict[int, Values | None]:
    """What the fold reads of each known item, by item key."""
    values = items.values_of(np.arange(1, len(items) + 1), fold.item_fields)
    return dict(zip(items.keys[1:].tolist(), values, strict=True))


def initial_state(dataset: Dataset, shift_ms: int = 0) -> FeatureState:
    """All features as they stood at the split; `shift_ms` moves the past towards now."""
    fold = dataset.schema.fold
    state, values = FeatureState(fold), values_by_key(dataset.items, fold)
    for interaction in interactions(dataset.train, dataset.schema.declaration, shift_ms):
        state.apply(interaction, values.get(interaction.item_key))
    return state


def shift_to(dataset: Dataset, now_ms: int) -> int:
    """The `shift_ms` that puts the split at `now_ms`."""
    return now_ms - dataset.train_until_ms


def future_interactions(dataset: Dataset, shift_ms: int = 0) -> dict[str, list[Interaction]]:
    """What each user really did after the split, oldest first: the simulator's ground truth.

    Items first met after the split are not in the catalogue; their interactions are included.
    """
    by_user: dict[str, list[Interaction]] = {}
    for interaction in interactions(dataset.test, dataset.schema.declaration, shift_ms):
        by_user.setdefault(interaction.user_id, []).append(interaction)
    return by_user
