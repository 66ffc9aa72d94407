"""A model is served over a catalogue that is not its own table, and goes with its changes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import artifact, cold_start, registry
from models import rows as of_rows
from models.artifact import ArtifactError
from models.catalogue import ItemTable
from models.cold_start import ColdStart
from models.ranking import model as ranking_model
from models.schema.inputs import ITEM
from models.serving import LoadedRanking, LoadedRetrieval, load_ranking, load_retrieval
from tests.artifacts import built, publish
from tests.unit.models.catalogues import Catalogue
from tests.unit.models.ranking.declared import EVERYTHING, ITEMS, domain, ranking_of, read

OWN = domain(read(EVERYTHING))
OTHERS = np.concatenate([domain(OWN.schema, seed).items.features[1:] for seed in (1, 2)])
RETRIEVAL, RANKING = registry.names("retrieval"), registry.names("ranking")
FOLLOWED = {
    "retrieval": ("ssl_two_tower", "youtube_dnn", "hcn_r", "cold_retrieval"),
    "ranking": ("masknet", "din", "logistic_regression", "cold_ranking"),
}
Loaded = LoadedRetrieval | LoadedRanking


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    """So that a few items are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_rows, "BLOCK", 16)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@cache
def published(folder: Path, name: str) -> Path:
    """The folder of a version of a model of OWN."""
    if name.startswith("cold_"):
        part: Any = name.removeprefix("cold_")
        cold_start.publish(folder, name, part, OWN.schema, OWN.items, {})
        return artifact.current(folder, name)
    if name in RANKING:
        model = ranking_of(name, OWN)
    else:
        sizes = {"field_width": 8, "hidden": (16,)} if name == "ssl_two_tower" else {}
        model = built(name, OWN.items, schema=OWN.schema, width=8, **sizes)
        if hasattr(model, "inputs"):
            model.inputs.learn(OWN.items, OWN.users)
    publish(folder, name, model, OWN.items, OWN.schema)
    return artifact.current(folder, name)


def load(folder: Path, name: str, items: ItemTable | None = None) -> Any:
    ranks = name in (*RANKING, "cold_ranking")
    return (load_ranking if ranks else load_retrieval)(
        published(folder, name), schema=OWN.schema, items=items
    )


def scores(loaded: LoadedRanking, rows: np.ndarray) -> torch.Tensor:
    """Of three users, for items by their rows in what is served; the counters say nothing."""
    users, count = OWN.users.take(slice(3)), 3 * len(rows)
    return loaded.model.score(
        loaded.model.user_part(users),
        torch.arange(3).repeat_interleave(len(rows)),
        torch.from_numpy(rows).repeat(3),
        torch.zeros(count, len(loaded.model.counters)),
    )


def grown() -> Catalogue:
    """The own items in another order, between others."""
    order = np.random.default_rng(0).permutation(np.arange(1, ITEMS + 1)).tolist()
    catalogue = Catalogue(OWN.items.features.dtype)
    for number, row in enumerate(order):
        catalogue.write({f"new {number}": OTHERS[number]} if number % 3 == 0 else {})
        catalogue.write({OWN.items.ids[row]: OWN.items.features[row]})
    return catalogue


@pytest.mark.parametrize("name", [*RETRIEVAL, "cold_retrieval"])
def test_an_item_has_the_vector_that_it_has_in_the_models_own_table(
    name: str, folder: Path
) -> None:
    own, items = load(folder, name), grown().items
    there = load(folder, name, items)
    at = items.index_of(OWN.items.keys[1:])
    assert (there.items, there.known.ids) == (items, OWN.items.ids)
    assert there.item_vectors.shape == (len(items) + 1, own.item_vectors.shape[1])
    assert torch.equal(there.item_vectors[at], own.item_vectors[1:])
    assert not there.hidden[at].any()
    assert not own.hidden[1:].any()
    if name != "cold_retrieval":  # the weight of newness is another one
        users = there.model.encode_users(OWN.users)
        assert torch.equal(users, own.model.encode_users(OWN.users))


@pytest.mark.parametrize("name", RANKING)
def test_an_item_has_the_scores_that_it_has_in_the_models_own_table(
    name: str, folder: Path
) -> None:
    own, items = load(folder, name), grown().items
    there = load(folder, name, items)
    at = items.index_of(OWN.items.keys[1:])
    assert torch.equal(scores(there, at), scores(own, np.arange(1, ITEMS + 1)))
    assert there.unknown.sum() == 1 + len(items) - ITEMS
    assert not there.unknown[at].any()
    assert own.unknown.tolist() == [True] + ITEMS * [False]


def test_an_item_that_the_two_tower_does_not_know_is_found_by_its_fields(folder: Path) -> None:
    """A twin of a known item differs from it by the id, in whose place is the default."""
    catalogue = Catalogue.of(OWN.items, range(1, 9))
    catalogue.write({"twin": OWN.items.features[5], "other": OTHERS[3]})
    loaded = load(folder, "ssl_two_tower", catalogue.items)
    assert loaded.hidden_rows.tolist() == [0]
    model = loaded.model
    known, twin, other = model.item_fields(torch.tensor([5, 9, 10]))
    place = [field.name for field in model.fields].index(ITEM)
    assert torch.equal(twin[place], model.default[place])
    assert not torch.equal(twin[place], known[place])
    rest = [i for i in range(len(model.fields)) if i != place]
    assert torch.equal(twin[rest], known[rest])
    assert not torch.equal(other[rest], twin[rest])
    vectors = loaded.item_vectors
    assert vectors[5] @ vectors[9] > vectors[5] @ vectors[10]


@pytest.mark.parametrize("name", [name for name in RETRIEVAL if name != "ssl_two_tower"])
def test_an_item_of_which_a_model_knows_no_row_is_hidden(name: str, folder: Path) -> None:
    items = grown().items
    loaded = load(folder, name, items)
    assert loaded.hidden.tolist() == [not key.startswith("i") for key in items.ids]
    assert not loaded.item_vectors[loaded.hidden].any()


def test_before_training_what_came_since_is_newer_than_all_and_has_its_content(
    folder: Path,
) -> None:
    items = grown().items
    loaded = load(folder, "cold_retrieval", items)
    assert loaded.hidden_rows.tolist() == [0]
    newness = loaded.item_vectors[:, -1]
    order = [items.ids[row] for row in newness.argsort(descending=True).tolist()]
    since = [key for key in items.ids if key.startswith("new")]
    assert order == [*reversed(since), *OWN.items.ids[1:], ""]
    assert newness.max() * loaded.model.encode_users(OWN.users)[0, 0, -1] == cold_start.NEW
    own = ColdStart.of(OWN.schema, OWN.items)
    twin = Catalogue.of(OWN.items, range(ITEMS, 0, -1))
    twin.write({"twin": OWN.items.features[5]})
    there = load(folder, "cold_retrieval", twin.items).item_vectors
    assert torch.equal(there[-1, :-1], own.item_vectors()[5, :-1])


def test_a_catalogue_without_a_field_that_a_model_reads_is_refused_by_its_name(
    folder: Path,
) -> None:
    table = OWN.items
    names = [name for name in table.features.dtype.names if name != "i_values"]
    bare = ItemTable.build(table.ids[1:], table.features[names][1:])
    for name in ("ssl_two_tower", "masknet", "cold_retrieval"):
        with pytest.raises(ArtifactError, match=r"no field (of name )?i_values"):
            load(folder, name, bare)


@pytest.mark.parametrize("name", [n for names in FOLLOWED.values() for n in names])
def test_a_model_is_served_over_nothing_and_over_what_comes(name: str, folder: Path) -> None:
    catalogue = Catalogue(OWN.items.features.dtype)
    loaded = load(folder, name, catalogue.items)
    catalogue.write({OWN.items.ids[1]: OWN.items.features[1], "new": OTHERS[0]})
    loaded.follow(catalogue.items)
    assert_same(loaded, load(folder, name, catalogue.items))


def test_a_version_with_its_own_table_takes_another_one_whole(folder: Path) -> None:
    for name in ("ssl_two_tower", "youtube_dnn", "masknet", "cold_ranking"):
        loaded, items = load(folder, name), grown().items
        loaded.follow(items)
        assert_same(loaded, load(folder, name, items))


def test_a_catalogue_that_was_read_anew_is_taken_whole(folder: Path) -> None:
    for name in ("ssl_two_tower", "youtube_dnn", "masknet", "cold_ranking"):
        catalogue = Catalogue.of(OWN.items, range(1, 20))
        loaded = load(folder, name, catalogue.items)
        catalogue.write({OWN.items.ids[3]: None, OWN.items.ids[5]: OTHERS[0]})
        catalogue.read_anew()
        loaded.follow(catalogue.items)
        assert_same(loaded, load(folder, name, catalogue.items))


def test_items_are_embedded_with_each_row_once_they_take_too_much_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue.of(OWN.items, range(1, 20))
    loaded = load(folder, "masknet", catalogue.items)
    remembered = loaded.model.network.tables.remembered
    assert remembered is not None
    monkeypatch.setattr(ranking_model, "MOST_BYTES", 4 * remembered.numel())
    catalogue.write({"new": OTHERS[0]})
    loaded.follow(catalogue.items)
    assert loaded.model.network.tables.remembered is None
    assert_same(loaded, load(folder, "masknet", catalogue.items))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("known"), st.integers(1, ITEMS), st.integers(1, 20)),
        st.tuples(st.just("new"), st.integers(0, 50), st.integers(1, 20)),
        st.tuples(st.just("change"), st.integers(0, 99), st.integers(0, len(OTHERS) - 1)),
        st.tuples(st.just("remove"), st.integers(0, 99), st.just(0)),
        st.tuples(st.sampled_from(["follow", "gap"]), st.just(0), st.just(0)),
    ),
    max_size=12,
)


@pytest.mark.parametrize("name", [n for names in FOLLOWED.values() for n in names])
@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, ITEMS), steps=STEPS)
def test_who_has_followed_answers_as_who_loads_anew(
    name: str, folder: Path, start: int, steps: list[tuple[str, int, int]]
) -> None:
    catalogue = Catalogue.of(OWN.items, range(1, start + 1))
    loaded = load(folder, name, catalogue.items)
    for kind, which, more in steps:
        there = catalogue.items.ids[1:]
        if kind == "known":
            rows = range(which, min(which + more, ITEMS + 1))
            catalogue.write({OWN.items.ids[row]: OWN.items.features[row] for row in rows})
        elif kind == "new":
            catalogue.write({f"new {i}": OTHERS[i] for i in range(which, which + more)})
        elif kind == "follow":
            loaded.follow(catalogue.items)
        elif kind == "gap":
            catalogue.leave_gap()
        elif there and (item := there[which % len(there)]):
            record = OTHERS[more] if kind == "change" else None
            catalogue.write({item: record})
    loaded.follow(catalogue.items)
    assert_same(loaded, load(folder, name, catalogue.items))


def assert_same(found: Loaded, expected: Loaded) -> None:
    """The same answers to the last bit, and nothing else kept than a fresh one keeps."""
    assert found.items is expected.items
    every = np.arange(len(found.items) + 1)
    if isinstance(found, LoadedRetrieval):
        assert isinstance(expected, LoadedRetrieval)
        for name in ("item_vectors", "hidden", "hidden_rows"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        users = found.model.encode_users(OWN.users)
        assert torch.equal(users, expected.model.encode_users(OWN.users))
    else:
        assert isinstance(expected, LoadedRanking)
        np.testing.assert_array_equal(found.unknown, expected.unknown)
        assert torch.equal(scores(found, every), scores(expected, every))
    module: Any = expected.model
    kept = dict(found.model.named_buffers())  # type: ignore[attr-defined]
    for name, values in module.named_buffers():
        assert torch.equal(kept.pop(name), values), name
    assert not kept
