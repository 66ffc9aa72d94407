"""The item table: fields as they are declared, numbered as the models know them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogue import COUNTS_FILE, VOCABULARIES_FILE, ItemTable

SHOP_DTYPE = np.dtype(
    [("brand", "<u8"), ("category", "<u2", (3,)), ("price", "<f4"), ("words", "<u8", (2,))]
)
HASHES = st.integers(1, 2**64 - 1)


def table(features: np.ndarray, vocabularies: dict[str, list[int]] | None = None) -> ItemTable:
    learned = {name: np.array(v, np.uint64) for name, v in (vocabularies or {}).items()}
    return ItemTable.build([f"i{i}" for i in range(len(features))], features, None, learned)


@given(st.lists(HASHES, unique=True, max_size=8), st.lists(HASHES, min_size=4, max_size=4))
def test_a_learned_value_is_numbered_by_its_place_and_an_unlearned_one_is_0(
    learned: list[int], stored: list[int]
) -> None:
    mixed = [*learned, *stored][:4]
    features = np.zeros(2, SHOP_DTYPE)
    features["words"].flat = mixed
    features["brand"] = mixed[:2]
    subject = table(features, {"words": learned, "brand": learned})

    def number(value: int) -> int:
        return learned.index(value) + 1 if value in learned else 0

    assert subject.ids_of("words")[1:].ravel().tolist() == list(map(number, mixed))
    assert subject.ids_of("brand")[1:].ravel().tolist() == list(map(number, mixed[:2]))
    assert not subject.ids_of("words")[0].any()


def test_values_of_a_declared_vocabulary_are_their_own_ids() -> None:
    features = np.zeros(3, SHOP_DTYPE)
    features["category"][:2] = [[2, 1, 0], [5, 0, 0]]
    subject = table(features)
    assert subject.ids_of("category").tolist() == [[0, 0, 0], [2, 1, 0], [5, 0, 0], [0, 0, 0]]
    hot = subject.multi_hot("category", 5)
    assert hot[1].tolist() == [0, 1, 1, 0, 0, 0]
    assert hot[3].tolist() == [1, 0, 0, 0, 0, 0]  # without any
    assert not hot[0].any()
    assert not subject.multi_hot("price_class", 4).any()  # nobody has a field that is not there


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=6))
def test_items_are_as_similar_as_their_values(bags: list[list[int]]) -> None:
    features = np.zeros(len(bags), SHOP_DTYPE)
    features["category"] = bags
    units = table(features).unit_values("category", np.arange(len(bags) + 1))
    assert not units[0].any()
    found = units[1:] @ units[1:].T
    sets = [set(bag) - {0} or {0} for bag in bags]
    for i, one in enumerate(sets):
        for j, other in enumerate(sets):
            if not any(set(bag) - {0} for bag in bags):
                continue
            expected = len(one & other) / np.sqrt(len(one) * len(other))
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


def test_a_saved_table_is_opened_as_it_was(tmp_path: Path) -> None:
    features = np.zeros(2, SHOP_DTYPE)
    features["price"], features["words"] = [2, 3], [[7, 9], [9, 0]]
    saved = ItemTable.build(
        ["a", "b"], features, np.array([[5], [3]]), {"words": np.array([9, 7], np.uint64)}
    )
    saved.save(tmp_path)
    opened = ItemTable.load(tmp_path)
    assert (opened.ids, opened.fingerprint) == (saved.ids, saved.fingerprint)
    assert (opened.features == saved.features).all()
    assert opened.counts.tolist() == [[0], [5], [3]]
    assert opened.ids_of("words").tolist() == [[0, 0], [2, 1], [1, 0]]
    for file in (COUNTS_FILE, VOCABULARIES_FILE):
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).unlink()
        with pytest.raises(FileNotFoundError):
            ItemTable.load(tmp_path)
        (tmp_path / file).write_bytes(content)


def test_the_sizes_of_vocabularies_are_named_as_the_inputs_of_models() -> None:
    sizes = table(np.zeros(3, SHOP_DTYPE), {"words": [9, 7], "brand": []}).sizes
    assert sizes == {"item": 4, "item.words": 3, "item.brand": 1}
