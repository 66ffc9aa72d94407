"""Training examples by replaying events through the serving fold (`models/schema/fold.py`).

Each example is one interaction with the features as they stood just BEFORE it, as the services hand
them to a model (`models/inputs.py`). Training and serving therefore cannot disagree;
`tests/unit/models/training/test_replay.py` compares them exactly.

Where the data log no impression without a choice, negatives are *sampled*: catalogue items that
existed at the time of the event and that the user did not choose in the data the example may know
(training examples: anything before the split; test examples: anything).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import polars as pl

from models.data.backfill import FeatureState, interactions, values_by_key
from models.data.events import CONTEXT, POSITION, VISIT, Dataset
from models.inputs import UserBatch, user_batch
from models.schema.compiled import Schema
from models.schema.declaration import Declaration, Task
from models.schema.fold import ItemState
from models.schema.groups import FeatureGroup
from models.schema.layout import SURFACE
from models.schema.progress import ITEM_DELIVERY
from models.schema.stored import records

CHUNK = 2048  # examples whose full rows (3.5 kB each) are held before they become model inputs


@dataclass(frozen=True)
class Examples:
    """N interactions, oldest first, with the features just before each. S = 1 + negatives.

    Column 0 of the slate is the item of the interaction (row 0: not in the catalogue), the rest
    are sampled negatives (row 0: none could be drawn).
    """

    users: UserBatch  # [N], the history as int32
    user: np.ndarray  # int32[N], numbered by first event
    slate: np.ndarray  # int32[N, S] item rows
    counters: np.ndarray  # float32[N, S, C]: all declared counts of the items
    positions: np.ndarray  # int32[N]: the item's place in the list, from 1; 0: not known
    columns: tuple[str, ...]  # theirs
    labels: np.ndarray  # float32[N, S, T], 0 where not known
    known: np.ndarray  # bool[N, S, T]
    chosen: np.ndarray  # bool[N]: more than seen in a list

    def __len__(self) -> int:
        return len(self.user)

    @property
    def time_ms(self) -> np.ndarray:
        """int64[N]: when each happened."""
        return self.users.now_ms

    @property
    def item(self) -> np.ndarray:
        """int32[N]: the interaction's item row, 0 when it is not in the catalogue."""
        return self.slate[:, 0]

    def user_batch(self, index: np.ndarray) -> UserBatch:
        """The users of the chosen examples as a model reads them."""
        chosen = self.users.take(index)
        return replace(chosen, history=chosen.history.astype(np.int64))


def replay(dataset: Dataset, negatives: int = 2, seed: int = 0) -> Examples:
    """Examples of all visits of `dataset`; those of the training period see no later event.

    `negatives` are sampled for each, unless the data have lists' impressions without a choice."""
    schema, events, items = dataset.schema, dataset.events, dataset.items
    visits = _visits(dataset)
    shown = _logs_impressions(schema.declaration, visits.events)
    if shown:
        negatives = 0
    declaration, layout, fold = schema.declaration, schema.layout, schema.fold
    n, length = len(events), declaration.history.models_read
    user = _numbered(events["user_id"])
    time_ms = events["event_time_ms"].to_numpy()
    happened = list(interactions(events, declaration))
    rows = items.index_of(np.fromiter((i.item_key for i in happened), np.uint64, n)).astype(
        np.int32
    )
    slate = np.concatenate(
        [rows[:, None], sample_negatives(user, rows, time_ms < dataset.train_until_ms,
                                         len(items), negatives, seed)], axis=1
    )  # fmt: skip
    columns = fold.item_columns
    users = UserBatch(
        history=np.zeros((n, length), np.int32),
        events=np.zeros((n, length), np.uint8),
        profile=np.zeros(n, layout.profile.dtype),
        given=_given(dataset, layout.given),
        context=context_records(schema, events),
        now_ms=time_ms,
    )
    of_items = np.zeros((*slate.shape, len(columns)), np.float32)

    # The item states are views of one array, so that a whole slate's counters are one index.
    counters = np.zeros(len(items) + 1, layout.counters.dtype)
    counters[:] = layout.counters.defaults()
    state = FeatureState(fold)
    for row in range(1, len(items) + 1):
        view = counters[row : row + 1].reshape(())
        state.items[int(items.keys[row])] = ItemState(view, ITEM_DELIVERY.defaults())
    values = values_by_key(items, fold)
    met, seen = np.zeros(len(items) + 1, bool), np.zeros(slate.shape, bool)
    nobody, histories = fold.user_state(), np.zeros(CHUNK, layout.history.dtype)
    for i, interaction in enumerate(happened):
        before = state.users.get(interaction.user_id, nobody)
        users.profile[i], histories[i % CHUNK] = before.profile, before.history
        of_items[i] = fold.counters_at(counters[slate[i]], interaction.event_time_ms)
        seen[i] = met[slate[i]]
        if (i + 1) % CHUNK == 0 or i + 1 == n:
            held, used = slice(i - i % CHUNK, i + 1), slice(i % CHUNK + 1)
            part = users.take(held)
            batch = user_batch(
                part.profile, histories[used], part.given, part.context, part.now_ms, items, length
            )
            users.history[held], users.events[held] = batch.history, batch.events
        state.apply(interaction, values.get(interaction.item_key))
        met[rows[i]] = rows[i] > 0
    at = visits.first
    labels, known = _labels(declaration, visits.events, slate[at], seen[at])
    # A negative that was drawn stood in no list: places would tell it from the others.
    positions = _positions(events)[at] if shown else np.zeros(len(at), np.int32)
    return Examples(
        users=users.take(at),
        user=user[at],
        slate=slate[at],
        counters=of_items[at],
        positions=positions,
        columns=columns,
        labels=labels,
        known=known,
        chosen=_any(visits.events, _choices(declaration)),
    )


class Visits(NamedTuple):
    """Row numbers int64[V] of the visits' beginnings, and what happened in each."""

    first: np.ndarray
    events: pl.DataFrame


def _visits(dataset: Dataset) -> Visits:
    """What happened in a visit after the period (training, validation, test) of its beginning is
    left out: it is not known there."""
    events = dataset.events
    if VISIT not in events.columns:
        return Visits(np.arange(len(events)), events)
    edges = (dataset.valid_from_ms, dataset.train_until_ms)
    period = pl.sum_horizontal(pl.col("event_time_ms") >= edge for edge in edges)
    own = events.with_row_index("(row)").with_columns(period.alias("(period)"))
    by_visit = own.group_by(VISIT).agg(pl.col("(row)").min(), pl.col("(period)").first())
    found = []
    for event in dataset.schema.declaration.events:
        if event.name in events.columns:
            found.append(pl.col(event.name).max())
        if (name := f"{event.name}.value") in events.columns:
            value = pl.col(name).drop_nulls()  # the sum of none is none, and not 0
            last = event.value is not None and event.value.replaces
            total = pl.when(value.len() > 0).then(value.sum())
            found.append((value.last() if last else total).alias(name))
    happened = (
        own.join(by_visit.select(VISIT, "(period)"), on=[VISIT, "(period)"])
        .sort("(row)")
        .group_by(VISIT)
        .agg(found)
    )
    rows = by_visit.join(happened, on=VISIT).sort("(row)")
    return Visits(rows["(row)"].to_numpy().astype(np.int64), rows.drop(VISIT, "(row)", "(period)"))


def _choices(declaration: Declaration) -> list[str]:
    """The events that say that a user chose an item."""
    kept = [event.name for event in declaration.events if event.history]
    return kept or [event.name for event in declaration.events if not event.impression]


def _any(events: pl.DataFrame, names: Sequence[str]) -> np.ndarray:
    """bool[V]: whether one of these events happened."""
    there = [events[name].to_numpy() for name in names if name in events.columns]
    return np.logical_or.reduce([np.zeros(len(events), bool), *there])


def _logs_impressions(declaration: Declaration, visits: pl.DataFrame) -> bool:
    """Whether some items were seen in a list and nothing more."""
    shown = _any(visits, [event.name for event in declaration.events if event.impression])
    other = _any(visits, [event.name for event in declaration.events if not event.impression])
    return bool((shown & ~other).any())


def context_records(schema: Schema, events: pl.DataFrame) -> np.ndarray:
    """Records [N] of what came with the requests, the defaults where the data do not say."""
    declaration, group = schema.declaration, schema.layout.context
    there = events.select(
        pl.col(CONTEXT + field.name).alias(field.name)
        for field in declaration.context
        if CONTEXT + field.name in events.columns
    )
    if not there.columns:  # a frame without columns has no rows
        there = pl.DataFrame({"": np.zeros(len(events), bool)})
    found = records(group, declaration.context, there)
    if SURFACE in (group.dtype.names or ()) and SURFACE in events.columns:
        ids = declaration.surface_ids
        found[SURFACE] = [ids.get(name, 0) for name in events[SURFACE]]
    return found


def _positions(events: pl.DataFrame) -> np.ndarray:
    if POSITION not in events.columns:
        return np.zeros(len(events), np.int32)
    return events[POSITION].fill_null(0).to_numpy().astype(np.int32)


def _given(dataset: Dataset, group: FeatureGroup) -> np.ndarray:
    """The given fields of each row's user, the defaults of who has none."""
    found = np.zeros(len(dataset.events), group.dtype)
    found[...] = group.defaults()
    if dataset.given is not None:
        places, records = dataset.given
        at = np.array([places.get(user, -1) for user in dataset.events["user_id"]], np.int64)
        found[at >= 0] = records[at[at >= 0]]
    return found


def _labels(
    declaration: Declaration, events: pl.DataFrame, slate: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """float32[N, S, T] and bool[N, S, T]: what each task says of the rows, and where it is known.

    A task without `given` is learned of items that had been met before the event, as every item is
    that a negative is drawn from; one with, of the rows for which the other happened.
    """
    shape = (*slate.shape, len(declaration.tasks))
    labels, known = np.zeros(shape, np.float32), np.zeros(shape, bool)
    names = [task.name for task in declaration.tasks]
    nothing = np.zeros(len(slate), bool)

    def column(name: str) -> np.ndarray:
        return events[name].fill_null(value=0).to_numpy() if name in events.columns else nothing

    def told(name: str) -> np.ndarray:
        return events[name].is_not_null().to_numpy() if name in events.columns else nothing

    def where(task: Task) -> np.ndarray:
        """bool[N]: the interactions of which the task is known, but for `seen`."""
        if not task.given:
            return ~nothing
        other = declaration.tasks[names.index(task.given)]
        return where(other) & column(other.event).astype(bool)

    for t, task in enumerate(declaration.tasks):
        name = task.event if task.target == "happened" else f"{task.event}.value"
        labels[:, 0, t] = column(name)
        if task.given:
            known[:, 0, t] = where(task)
        else:
            known[:, :, t] = seen & (slate > 0)
        if task.target == "value":  # of what did not happen, or came without one, there is none
            known[:, 0, t] &= column(task.event).astype(bool) & told(name)
            known[:, 1:, t] = False
    return labels * known, known


def _numbered(ids: pl.Series) -> np.ndarray:
    """int32 numbers of ids, in order of first appearance."""
    first = {user_id: i for i, user_id in enumerate(ids.unique(maintain_order=True))}
    return np.fromiter((first[user_id] for user_id in ids), np.int32, len(ids))


def sample_negatives(
    user: np.ndarray, rows: np.ndarray, train: np.ndarray, num_items: int, k: int, seed: int
) -> np.ndarray:
    """Sampled negatives of each event: int32[N, k], 0 where none was found in 20 draws.

    Half of the draws are uniform over the items seen so far, half follow past popularity. Drawn
    separately for the training period, which must not know what a user rates later.
    """
    negatives = np.zeros((len(rows), k), np.int32)
    for period, known in ((train, train), (~train, np.ones_like(train))):
        index = np.flatnonzero(period)
        rng = np.random.default_rng([seed, int(period is train)])
        rated = np.unique(user[known].astype(np.int64) * (num_items + 1) + rows[known])
        # `appeared` lists items by first appearance; `new[i]` of them exist before event i.
        seen_rows, first = np.unique(rows, return_index=True)
        first = first[seen_rows > 0]
        appeared = rows[np.sort(first)]
        existing = np.searchsorted(np.sort(first), np.arange(len(rows)), side="left")
        popular = np.arange(k) % 2 == 1
        todo = np.ones((len(index), k), bool)
        drawn = np.zeros((len(index), k), np.int32)
        for _ in range(20):
            at, column = np.nonzero(todo)
            if not len(at):
                break
            event = index[at]
            u = rng.random(len(at))
            uniform = appeared[(u * existing[event]).astype(np.int64)]
            past = rows[(u * event).astype(np.int64)]
            draw = np.where(popular[column], past, uniform)
            pair = user[event].astype(np.int64) * (num_items + 1) + draw
            good = (draw > 0) & (existing[event] > 0) & ~_contains(rated, pair)
            drawn[at[good], column[good]] = draw[good]
            todo[at[good], column[good]] = False
        negatives[index] = drawn
    return negatives


def _contains(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Whether each value is in a sorted array."""
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[at] == values
