"""A ranking version scores the catalogue as it is now; what it does not know stands last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from feature_store.connect import connect
from feature_store.interface import FeatureStore
from models import artifact
from models.catalogue import ItemTable
from models.data.worlds.films.schema import GROUPS, SCHEMA
from models.serving import load_ranking
from services.common.model_service.user_context import warm_up_users
from services.common.packed import F4
from services.ranking.counters import ItemCounters
from services.ranking.servicer import ServedRanking, Slate, answer
from tests.artifacts import publish_small, small_items
from tests.unit.models.catalogues import Catalogue
from tests.unit.ranking.test_counters import NOW_S, write

KNOWN = small_items(30)
OTHERS = small_items(60)  # m1..m30 are known, m31..m60 are cold
MODELS = ("masknet", "din")
_, SOMEBODY = warm_up_users(SCHEMA, KNOWN, KNOWN)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    publish_small(folder, MODELS, items=KNOWN)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    store = connect(
        f"lmdb://{tmp_path}/features", GROUPS, installation=None, timeout_ms=50, lmdb_map_size_mb=16
    )
    yield store
    store.close()


def load(
    artifacts: Path, name: str, store: FeatureStore, items: ItemTable | None = None
) -> ServedRanking:
    ranking = load_ranking(artifact.current(artifacts, name), schema=SCHEMA, items=items)
    counters = ItemCounters(
        SCHEMA, store, ranking.items, ranking.model.counters,
        refresh_s=2, max_age_s=60, clock=lambda: NOW_S,
    )  # fmt: skip
    counters.refresh()
    return ServedRanking(ranking, counters)


def ranked(served: ServedRanking, items: ItemTable, keys: np.ndarray) -> np.ndarray:
    """float32[n, tasks]."""
    (found,) = answer(SCHEMA, served, [Slate(SOMEBODY, "", keys)], lambda: items)
    scores = np.frombuffer(found.task_scores, F4).reshape(len(keys), -1)
    assert found.unknown_items == (~scores.any(axis=1)).sum()
    return scores


@pytest.mark.parametrize("name", MODELS)
def test_what_the_catalogue_or_the_model_lacks_stands_last(
    name: str, artifacts: Path, store: FeatureStore
) -> None:
    items = Catalogue.of(OTHERS, [40, 2, 41, 1]).items
    served = load(artifacts, name, store, items)
    asked = np.append(OTHERS.keys[[1, 40, 3, 2]], np.uint64(12345))
    found = ranked(served, items, asked)
    assert found.any(axis=1).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("name", MODELS)
def test_an_item_has_one_score_in_every_catalogue(
    name: str, artifacts: Path, store: FeatureStore
) -> None:
    for row in (1, 7, 19):
        write(store, f"m{row}", float(row))
    own = load(artifacts, name, store)
    order = np.random.default_rng(3).permutation(np.arange(1, 61)).tolist()
    there = load(artifacts, name, store, Catalogue.of(OTHERS, order).items)
    keys = KNOWN.keys[1:]
    np.testing.assert_array_equal(ranked(own, own.items, keys), ranked(there, there.items, keys))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_an_older_version_serves_a_catalogue_that_has_grown_since(
    name: str, precision: torch.dtype, artifacts: Path, store: FeatureStore
) -> None:
    """It answers as a version that is loaded then, in whichever precision it is asked."""
    subject = Catalogue.of(OTHERS, range(20, 61))
    served, older = (load(artifacts, name, store, subject.items) for _ in range(2))
    write(store, "m5", 9.0)
    for row in range(1, 20):
        changed = {OTHERS.ids[row]: OTHERS.features[row], "m30": OTHERS.features[row]}
        subject.write({**changed, f"m{20 + row % 5}": None})
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            found = ranked(served, subject.items, OTHERS.keys[1:])
    served.counters.refresh()
    fresh = load(artifacts, name, store, subject.items)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        expected = ranked(fresh, subject.items, OTHERS.keys[1:])
        assert (expected.any(axis=1) == (np.arange(1, 61) <= 30)).all()
        np.testing.assert_array_equal(ranked(served, subject.items, OTHERS.keys[1:]), expected)
        ranked(older, subject.items, OTHERS.keys[1:])
        older.counters.refresh()
        np.testing.assert_array_equal(ranked(older, subject.items, OTHERS.keys[1:]), expected)
    assert (found[4] != expected[4]).any(), "its counters were read later"


def test_a_catalogue_that_has_not_changed_costs_one_look(
    artifacts: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Catalogue.of(OTHERS, range(1, 31))
    served = load(artifacts, "masknet", store, subject.items)
    monkeypatch.setattr(served.ranking, "follow", None)
    assert ranked(served, subject.items, OTHERS.keys[1:4]).all()
    assert len(answer(SCHEMA, served, [Slate(SOMEBODY, "", OTHERS.keys[1:4])])) == 1
