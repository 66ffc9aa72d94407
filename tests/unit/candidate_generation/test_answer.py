"""What is found is of the catalogue as it is now, whichever version of a model finds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import artifact
from models.artifact import ArtifactError
from models.catalogue import ItemTable
from models.data.worlds.films.schema import SCHEMA
from models.serving import LoadedRetrieval, load_retrieval
from protos.tandem.v1 import candidate_generation_pb2 as pb
from protos.tandem.v1.features_pb2 import UserContext
from services.candidate_generation.deployment import warm
from services.candidate_generation.servicer import Retrieval, answer
from services.common.model_service.user_context import popular_items, warm_up_users
from services.common.packed import F4, U4, U8
from tests.artifacts import publish_small, small_items
from tests.unit.models.catalogues import Catalogue

KNOWN = small_items(30)
OTHERS = small_items(60)  # m1..m30 are known, m31..m60 are cold
MODELS = ("ssl_two_tower", "youtube_dnn")
NOBODY, SOMEBODY = warm_up_users(SCHEMA, KNOWN, KNOWN)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    publish_small(folder, MODELS, items=KNOWN)
    return folder


def catalogue(*rows: int) -> Catalogue:
    """Of these items, in this order."""
    return Catalogue.of(OTHERS, rows)


def load(artifacts: Path, name: str, items: ItemTable | None = None) -> LoadedRetrieval:
    return load_retrieval(artifact.current(artifacts, name), schema=SCHEMA, items=items)


def retrieved(loaded: LoadedRetrieval, items: ItemTable, wanted: int = 100) -> list[str]:
    job = Retrieval(SOMEBODY, loaded.name, wanted, items.keys[:0])
    (found,) = answer(SCHEMA, loaded, [job], lambda: items)
    assert isinstance(found, pb.RetrieveResponse)
    rows = np.frombuffer(found.item_rows, U4)
    assert items.keys[rows].tolist() == np.frombuffer(found.item_keys, U8).tolist()
    assert found.catalogue == items.fingerprint
    return [items.ids[row] for row in rows]


def scored(loaded: LoadedRetrieval, items: ItemTable, keys: np.ndarray) -> np.ndarray:
    (found,) = answer(SCHEMA, loaded, [Retrieval(SOMEBODY, "", 0, keys)], lambda: items)
    return np.frombuffer(found.scores, F4)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=30, deadline=None)
@given(
    rows=st.permutations(range(1, 61)).flatmap(
        lambda rows: st.integers(0, 60).map(lambda count: rows[:count])
    ),
    data=st.data(),
)
def test_a_removed_item_is_never_found_and_all_others_are_that_the_model_can_place(
    name: str, artifacts: Path, rows: list[int], data: st.DataObject
) -> None:
    subject = catalogue(*rows)
    loaded = load(artifacts, name, subject.items)
    gone = data.draw(st.sets(st.sampled_from(rows))) if rows else set()
    subject.write({OTHERS.ids[row]: None for row in gone})
    found = retrieved(loaded, subject.items)
    placed = [row for row in rows if row not in gone and (row <= 30 or name == "ssl_two_tower")]
    assert sorted(found) == sorted(OTHERS.ids[row] for row in placed)
    few = set(retrieved(loaded, subject.items, 5))
    assert few <= set(found)
    assert len(few) == min(5, len(placed)), "a list is never short"
    back = {OTHERS.ids[row]: OTHERS.features[row] for row in gone if row <= 30}
    subject.write(back)
    assert set(retrieved(loaded, subject.items)) == {*found, *back}


@pytest.mark.parametrize("name", MODELS)
def test_an_item_has_one_score_in_every_catalogue(name: str, artifacts: Path) -> None:
    own = load(artifacts, name)
    order = np.random.default_rng(3).permutation(np.arange(1, 61)).tolist()
    there = load(artifacts, name, catalogue(*order).items)
    keys = KNOWN.keys[1:]
    np.testing.assert_array_equal(scored(own, own.items, keys), scored(there, there.items, keys))


def test_what_cannot_be_placed_has_no_score(artifacts: Path) -> None:
    subject = catalogue(1, 2, 40)
    subject.write({"m2": None})
    asked = np.append(OTHERS.keys[[1, 2, 40, 3]], np.uint64(12345))
    for name, missing in (
        ("ssl_two_tower", [False, True, False, True, True]),
        ("youtube_dnn", [False, True, True, True, True]),
    ):
        found = scored(load(artifacts, name, subject.items), subject.items, asked)
        assert np.isnan(found).tolist() == missing


@pytest.mark.parametrize("name", MODELS)
def test_an_older_version_serves_a_catalogue_that_has_grown_since(
    name: str, artifacts: Path
) -> None:
    """One version follows while it is served; the other one is rolled back to, and follows then."""
    subject = catalogue(*range(1, 31))
    served, older = (load(artifacts, name, subject.items) for _ in range(2))
    for row in range(31, 61):
        subject.write({OTHERS.ids[row]: OTHERS.features[row], OTHERS.ids[row - 30]: None})
        found = retrieved(served, subject.items)
        assert len(found) == (30 if name == "ssl_two_tower" else 60 - row)
    assert older.items.version < subject.items.version
    assert retrieved(older, subject.items) == found


def test_a_catalogue_that_has_not_changed_costs_one_look(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = catalogue(*range(1, 31))
    loaded = load(artifacts, "ssl_two_tower", subject.items)
    monkeypatch.setattr(loaded, "follow", None)
    assert len(retrieved(loaded, subject.items)) == 30
    job = Retrieval(UserContext(now_ms=1), "", 3, subject.items.keys[:0])
    assert len(answer(SCHEMA, loaded, [job])) == 1


def test_users_that_warm_a_version_chose_what_is_popular_and_there() -> None:
    subject = catalogue(40, 9, 3, 7, 5)
    subject.write({"m5": None})
    assert popular_items(KNOWN, subject.items, 20).tolist() == [3, 7, 9]
    assert popular_items(KNOWN, subject.items, 2).tolist() == [3, 7]
    assert popular_items(KNOWN, KNOWN, 2).tolist() == [1, 2]
    nobody, somebody = warm_up_users(SCHEMA, KNOWN, catalogue(40, 41).items)
    assert nobody == NOBODY
    assert somebody != SOMEBODY


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [(), (40,), (40, 41, 42), (1,), (1, 2, 40)])
def test_a_version_is_not_to_blame_for_a_catalogue_of_which_it_knows_little(
    name: str, rows: tuple[int, ...], artifacts: Path
) -> None:
    warm(SCHEMA, load(artifacts, name, catalogue(*rows).items), [])


def test_a_version_that_tells_no_items_apart_is_refused_over_any_catalogue(tmp_path: Path) -> None:
    def alike(model: object) -> None:
        for weight in model.query_mlp.parameters():  # type: ignore[attr-defined]
            weight.zero_()

    publish_small(tmp_path, ["ssl_two_tower"], items=KNOWN, change=alike)
    loaded = load(tmp_path, "ssl_two_tower", catalogue(1, 2, 40).items)
    with pytest.raises(ArtifactError, match="scores all items alike"):
        warm(SCHEMA, loaded, [])
