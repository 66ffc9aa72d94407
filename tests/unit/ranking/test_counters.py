"""Counters follow the store in the background, and say when they no longer do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feature_store.codec import guarded_write
from feature_store.connect import connect
from feature_store.interface import FeatureStore
from models.data.worlds.films.schema import (
    COUNTERS,
    GROUPS,
    ITEM_CLICKS,
    ITEM_COUNTS,
    ITEM_LIKES,
    SCHEMA,
)
from models.schema.progress import ITEM_DELIVERY
from services.ranking.counters import ItemCounters
from tests.artifacts import small_items
from tests.unit.models.catalogues import Catalogue

NOW_S = 1_700_000_000.0
READ = (ITEM_CLICKS, ITEM_LIKES)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = connect(
        f"lmdb://{tmp_path}/features", GROUPS, installation=None, timeout_ms=50, lmdb_map_size_mb=16
    )
    yield store
    store.close()


def write(store: FeatureStore, item_id: str, clicks: float, version: int = 0) -> None:
    counters = COUNTERS.defaults()
    counters[ITEM_CLICKS] = clicks
    counters["as_of_ms"] = int(NOW_S * 1000)
    rows = {ITEM_DELIVERY: ITEM_DELIVERY.defaults(), COUNTERS: counters}
    guarded = guarded_write(item_id, ITEM_DELIVERY, version, rows, int(NOW_S * 1000))
    assert store.write([guarded]) == [True]


def clicks(subject: ItemCounters, rows: list[int]) -> list[float]:
    return subject.take(np.array(rows))[0][:, 0].tolist()


def test_every_item_is_read_at_first_and_those_in_use_at_every_refresh(store):
    subject = ItemCounters(
        SCHEMA, store, small_items(1000), READ, refresh_s=0.01, max_age_s=60, clock=lambda: NOW_S
    )
    for item_id in ("m500", "m900"):
        write(store, item_id, 5)
    subject.refresh()
    assert clicks(subject, [500, 900, 3, 0]) == [5, 5, 0, 0]
    subject.refresh()
    write(store, "m500", 7, version=1)
    write(store, "m900", 7, version=1)
    subject.take(np.array([500]))
    subject.refresh()
    assert clicks(subject, [500, 900]) == [7, 5]
    subject.refresh()
    assert clicks(subject, [500, 900]) == [7, 7]


def test_no_item_is_left_unread_for_longer_than_the_limit(store):
    refresh_s, max_age_s = 2.0, 60.0
    items = small_items(500)
    subject = ItemCounters(
        SCHEMA, store, items, READ, refresh_s=refresh_s, max_age_s=max_age_s, clock=lambda: NOW_S
    )
    subject.refresh()
    for item_id in items.ids[1:]:
        write(store, item_id, 1)
    for _ in range(int(max_age_s / refresh_s)):
        subject.refresh()
    assert clicks(subject, list(range(1, 501))) == [1.0] * 500


def test_counters_that_were_not_refreshed_for_long_give_way_to_defaults(store):
    now = [NOW_S]
    subject = ItemCounters(
        SCHEMA, store, small_items(3), READ, refresh_s=2, max_age_s=60, clock=lambda: now[0]
    )
    assert not subject.take(np.array([1]))[1]  # never refreshed
    write(store, "m1", 5)
    subject.refresh()
    now[0] += 60
    assert subject.take(np.array([1]))[1]
    now[0] += 1
    values, fresh = subject.take(np.array([1, 1]))
    assert not fresh
    np.testing.assert_array_equal(values, np.zeros((2, 2), np.float32))


def test_a_model_is_given_the_counts_that_it_reads_in_its_own_order(store):
    """Fading ones as of now, the others as they are."""
    counters = COUNTERS.defaults()
    for i, column in enumerate(ITEM_COUNTS):
        counters[column] = 8 << i
    counters["as_of_ms"] = int((NOW_S - 90 * 86_400) * 1000)  # one half-life
    rows = {ITEM_DELIVERY: ITEM_DELIVERY.defaults(), COUNTERS: counters}
    assert store.write([guarded_write("m2", ITEM_DELIVERY, 0, rows, int(NOW_S * 1000))]) == [True]
    faded_clicks, clicks_ever, faded_likes, likes_ever = ITEM_COUNTS
    for columns, found in (
        ((likes_ever, faded_clicks), [64, 4]),
        ((faded_likes, clicks_ever, likes_ever), [16, 16, 64]),
        ((), []),
    ):
        subject = ItemCounters(
            SCHEMA, store, small_items(3), columns, refresh_s=2, max_age_s=60, clock=lambda: NOW_S
        )
        subject.refresh()
        values, fresh = subject.take(np.array([2, 0]))
        assert fresh
        np.testing.assert_allclose(values, [found, [0] * len(columns)])


def test_what_comes_to_the_catalogue_is_read_with_the_next_refresh(store):
    items = small_items(400)
    catalogue = Catalogue.of(items, range(1, 3))
    subject = ItemCounters(
        SCHEMA, store, catalogue.items, READ, refresh_s=0.01, max_age_s=60, clock=lambda: NOW_S
    )
    for item_id in ("m1", "m2", "m300"):
        write(store, item_id, 5)
    subject.refresh()
    for row in range(3, 401):
        catalogue.write({items.ids[row]: items.features[row], "m2": None})
        subject.follow(catalogue.items)
        assert clicks(subject, [1, 2, row]) == [5, 5, 0]
    write(store, "m1", 6, version=1)
    write(store, "m2", 6, version=1)
    subject.refresh()
    assert clicks(subject, [1, 300, 400]) == [6, 5, 0]
    assert clicks(subject, [2]) == [5], "nobody asks for what has been removed"
    catalogue.write({"m2": items.features[2]})
    subject.follow(catalogue.items)
    subject.refresh()
    assert clicks(subject, [2]) == [6]


def test_of_another_table_no_counts_are_kept(store):
    subject = ItemCounters(
        SCHEMA, store, small_items(3), READ, refresh_s=0.01, max_age_s=60, clock=lambda: NOW_S
    )
    write(store, "m1", 5)
    subject.refresh()
    catalogue = Catalogue.of(small_items(3), [3, 1])
    subject.follow(catalogue.items)
    assert clicks(subject, [1, 2]) == [0, 0]
    subject.refresh()
    assert clicks(subject, [1, 2]) == [0, 5]
