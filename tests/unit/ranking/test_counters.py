"""Counters follow the store in the background, and say when they no longer do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feature_store.codec import guarded_write
from feature_store.connect import connect
from feature_store.interface import FeatureStore
from models.schema import COUNTERS, ITEM_DELIVERY
from services.ranking.counters import ItemCounters
from tests.artifacts import small_items

NOW_S = 1_700_000_000.0


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = connect(f"lmdb://{tmp_path}/features", timeout_ms=50, lmdb_map_size_mb=16)
    yield store
    store.close()


def write(store: FeatureStore, item_id: str, clicks: float, version: int = 0) -> None:
    counters = COUNTERS.defaults()
    counters["clicks"] = clicks
    counters["as_of_ms"] = int(NOW_S * 1000)
    rows = {"item_delivery": ITEM_DELIVERY.defaults(), "counters": counters}
    guarded = guarded_write(item_id, ITEM_DELIVERY, version, rows, int(NOW_S * 1000))
    assert store.write([guarded]) == [True]


def test_every_item_is_read_at_first_and_later_those_that_were_used(store):
    items = small_items(3)
    subject = ItemCounters(store, items, max_age_s=60, clock=lambda: NOW_S)
    for item_id in ("m1", "m2"):
        write(store, item_id, 5)
    subject.refresh()
    values, fresh = subject.take(np.array([1, 2, 3, 0]))
    assert fresh
    np.testing.assert_array_equal(values[:, 1], [5, 5, 0, 0])
    subject.refresh()
    write(store, "m1", 7, version=1)
    write(store, "m2", 7, version=1)
    subject.take(np.array([1]))
    subject.refresh()
    np.testing.assert_array_equal(subject.take(np.array([1, 2]))[0][:, 1], [7, 5])
    subject.refresh()
    np.testing.assert_array_equal(subject.take(np.array([1, 2]))[0][:, 1], [7, 7])


def test_counters_that_were_not_refreshed_for_long_give_way_to_defaults(store):
    now = [NOW_S]
    subject = ItemCounters(store, small_items(3), max_age_s=60, clock=lambda: now[0])
    assert not subject.take(np.array([1]))[1]  # never refreshed
    write(store, "m1", 5)
    subject.refresh()
    now[0] += 60
    assert subject.take(np.array([1]))[1]
    now[0] += 1
    values, fresh = subject.take(np.array([1, 1]))
    assert not fresh
    np.testing.assert_array_equal(values, np.zeros((2, 3), np.float32))
