"""Imported events and given fields become the rows that a system running since then would have."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_store import codec
from feature_store.interface import RowKey
from feature_store.lmdb_store import LmdbFeatureStore
from models.catalogue import ItemTable, item_key
from models.data.own.tables import OwnTables
from models.schema import declaration
from models.schema.compiled import compiled
from models.schema.fold import Event
from services.feedback import backfill
from tests.unit.models.schema.shop import DECLARATION

PART = declaration.Event(name="part", id=9, history=True)  # named like a word of the code's
SHOP = compiled(replace(DECLARATION, events=(*DECLARATION.events, PART)))
START, MINUTE = 1_700_000_000_000, 60_000
NAMES = ("impression", "click", "part", "purchase", "return")


def _tables(users: int = 12, events: int = 300) -> OwnTables:
    rng = np.random.default_rng(0)
    kinds = rng.choice(NAMES, events, p=(0.5, 0.2, 0.1, 0.15, 0.05))
    rows = pl.LazyFrame(
        {
            "user_id": [f"u{i}" for i in rng.integers(0, users, events)],
            "item_id": [f"i{i}" for i in rng.integers(0, 9, events)],
            "event": kinds.tolist(),
            "time_ms": [START + i * MINUTE for i in range(events)],
            "value": [float(i % 7) + 1 if k in NAMES[3:] else None for i, k in enumerate(kinds)],
        }
    )
    given = pl.LazyFrame({"user_id": ["u1", "only given"], "country": ["DE", None]})
    return OwnTables(SHOP, rows, pl.LazyFrame(), given)


def _items() -> ItemTable:
    features = np.zeros(5, SHOP.layout.item.dtype)
    features["category"][:, 0] = [1, 2, 0, 1, 2]
    return ItemTable.build([f"i{i}" for i in range(5)], features)


def _written(folder: Path, own: OwnTables) -> dict[tuple[str, str], bytes | None]:
    """Every row, by group and entity."""
    events = own.events.collect()
    users = [*events["user_id"].unique(), "only given"]
    layout = SHOP.layout
    keys = [
        *(RowKey(g.name, u) for u in users for g in (layout.profile, layout.history, layout.given)),
        *(RowKey(layout.counters.name, i) for i in events["item_id"].unique()),
    ]
    url = folder / "store"
    with closing(LmdbFeatureStore(url, map_size_mb=16, groups=SHOP.groups)) as store:
        backfill.imported(store, own, _items())
        found = store.read(keys)
        with pytest.raises(backfill.NotEmpty):
            backfill.imported(store, own, _items())
        assert store.read(keys) == found, "what is refused changes nothing"
    return {(key.group, key.entity_id): row for key, row in zip(keys, found, strict=True)}


def test_rows_are_those_of_the_fold_over_all_events(tmp_path: Path) -> None:
    own, items = _tables(), _items()
    rows, fold, layout = _written(tmp_path, own), SHOP.fold, SHOP.layout
    values = dict(zip(items.keys.tolist(), items.values_of(np.arange(6), fold.item_fields),
                      strict=True))  # fmt: skip
    users, counted = {}, {}
    for user, item, event, time_ms, value in own.events.collect().iter_rows():
        kind = SHOP.declaration.event[event].id
        one = Event("", user, item_key(item), kind, time_ms, value or 0.0)
        fold.user(users.setdefault(user, fold.user_state()), one, values.get(item_key(item)))
        fold.item(counted.setdefault(item, fold.item_state()), one)
    for user, state in users.items():
        for group, record in ((layout.profile, state.profile), (layout.history, state.history)):
            row = rows[group.name, user]
            assert row is not None
            assert codec.decode(group, row).record.tobytes() == record.tobytes()
    for item, state in counted.items():
        row = rows[layout.counters.name, item]
        assert row is not None
        assert codec.decode(layout.counters, row).record.tobytes() == state.counters.tobytes()


def test_given_fields_are_kept_also_of_users_without_events(tmp_path: Path) -> None:
    rows, given = _written(tmp_path, _tables()), SHOP.layout.given
    german, other = (rows[given.name, user] for user in ("u1", "only given"))
    assert german is not None
    assert other is not None
    assert codec.decode(given, german).record["country"] == 1
    assert codec.decode(given, other).record["country"] == 2, "the declared default"
    assert rows[given.name, "u2"] is None


def test_a_part_of_the_users_at_a_time_gives_the_same_rows_of_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = _tables()
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = _written(tmp_path / "whole", own)
    monkeypatch.setattr(backfill, "USERS_AT_ONCE", 3)
    parts = _written(tmp_path / "parts", own)
    counters = SHOP.layout.counters.name
    for key, row in whole.items():
        if key[0] != counters:
            assert parts[key] == row
            continue
        assert row is not None
        mine, other = (codec.decode(SHOP.layout.counters, r).record for r in (row, parts[key]))
        for name in SHOP.layout.counters.dtype.names or ():
            assert float(mine[name]) == pytest.approx(float(other[name]))
